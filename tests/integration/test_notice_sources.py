"""Test notices of sources other than signals, in real processes with a real fit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.position import Position
from distributed_backup.preemption.sources.azure import AzureSource
from tests.support.jobs import Job
from tests.support.metadata_servers import Azure
from tests.support.processes import PATIENCE, Child

Start = Callable[..., Child]
# Seconds. Well above the grace period of 1 s on a busy machine, and well below the 60 s of a notice or a batch.
SOON = 30.0
NEVER = "would never save anything: set save_freq to 'epoch' or to a number of batches"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(function: str, *arguments: Any) -> Child:
            return stack.enter_context(Child(f"tests.integration.{function}", *arguments, log=tmp_path / "log"))

        yield start


def fit(start: Start, root: Path, how: str, *, blocking: bool = False, **arguments: Any) -> Child:
    """Start a fit that hangs in batch 1 of epoch 1, with a grace period of 1 s."""
    options = {"delete_checkpoint": False, "save_freq": False, "grace_period": 1.0, **arguments}
    child = start(
        f"preemption_scenarios:{how}",
        Job(backup_dir=root / "run", slow=("batch_begin", 1, 1), blocking=blocking, arguments=options),
    )
    child.expect("slow_call")
    return child


def wait_until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def newest(root: Path) -> Position | None:
    latest = CheckpointStore(root / "run").latest()
    return None if latest is None else latest.position


def test_a_file_that_is_touched_makes_a_fit_save_and_leave(start: Start, tmp_path: Path) -> None:
    """A touch ends the fit with a save within the grace period, even off the main thread. An old file does nothing."""
    path = tmp_path / "notice"
    path.touch()
    child = fit(start, tmp_path, "train_in_a_thread", notices=["signal", f"file:{path}"])
    assert newest(tmp_path) is None
    path.touch()
    position, checkpoint, seconds, code = child.expect("preempted")
    assert (position, code) == (Position(1, 1), 143)
    assert seconds < SOON
    assert [checkpoint] == [row.name for row in CheckpointStore(tmp_path / "run").list()]
    assert "Other sources of notices work" in child.output()
    assert f" reason=file:{path} remaining=1" in child.output()


def test_who_takes_notices_from_elsewhere_only_is_told_what_a_signal_does(start: Start, tmp_path: Path) -> None:
    """`notices` without 'signal' logs a warning that a SIGTERM ends the process without a save."""
    path = tmp_path / "notice"
    child = fit(start, tmp_path, "train", notices=[f"file:{path}"])
    assert f"'signal' is not among the notices, which are file:{path}" in child.output()
    path.touch()
    assert child.expect("preempted")[0] == Position(1, 1)


def test_a_warning_a_notice_with_much_time_and_a_signal_with_little(start: Start, tmp_path: Path) -> None:
    """A warning saves. A notice of 60 s sets a deadline. A SIGTERM shortens it to 1 s and ends a blocked fit."""
    cloud = Azure()
    with cloud.served():
        child = fit(start, tmp_path, "train", blocking=True, notices=["signal", AzureSource(cloud.url)])
        assert newest(tmp_path) is None
        cloud.schedule("Freeze")
        wait_until(lambda: newest(tmp_path) == Position(1, 1))
        cloud.schedule("Preempt", before="Mon, 19 Sep 2016 18:30:47 GMT")
        noticed = FileCoordinator(tmp_path / "run" / "coordinator")
        wait_until(lambda: "azure:Preempt" in {notice.reason for notice in noticed.view().notices})
        [left] = [notice.remaining for notice in noticed.view().notices if notice.reason == "azure:Preempt"]
        assert left > 50.0
        signalled = time.monotonic()
        child.kill(signal.SIGTERM)
        assert child.join() == 143
        assert time.monotonic() - signalled < SOON
    assert "an earlier deadline was given" in child.output()


@pytest.mark.parametrize(
    ("variable", "arguments", "made"),
    [
        ("", {}, (["signal"], True)),
        ("signal,gce", {}, (["signal", "gce"], True)),
        ("signal,gce", {"notices": ()}, ([], False)),
        ("signal", {"notices": "aws"}, (["aws"], True)),
        ("gce", {"save_before_preemption": False}, (["gce"], False)),
        ("aws", {"save_freq": False}, (["aws"], True)),
        ("", {"save_freq": False, "notices": ()}, f"save_freq=False with notices=() {NEVER}, or leave notices out"),
        ("", {"save_freq": False, "signals": ()}, f"save_freq=False with signals=() {NEVER}, or leave signals out"),
        ("gce", {"save_freq": False, "signals": ()}, (["gce"], True)),
        ("", {"signals": ()}, (["signal"], False)),
    ],
)
def test_an_argument_wins_over_the_variable_and_without_either_signals_count(
    start: Start, tmp_path: Path, variable: str, arguments: dict[str, Any], made: Any
) -> None:
    """`save_freq=False` without a source of notices is refused, because nothing would be saved."""
    assert start("notice_scenarios:make", tmp_path / "run", variable, arguments).result() == made


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ({"standby": "false"}, "standby must be True or False, got 'false'"),
        ({"delete_checkpoint": "no"}, "delete_checkpoint must be True or False, got 'no'"),
        ({"double_checkpoint": 2}, "double_checkpoint must be True or False, got 2"),
        ({"save_before_preemption": None}, "save_before_preemption must be True or False, got None"),
        ({"timings": (15, 10, 2)}, "timings must be a LeaseTimings, got (15, 10, 2)"),
        ({"grace_period": 0.05}, "grace_period must be at least 0.1 s, got 0.05: nothing is saved in less"),
        ({"exit_code": True}, "exit_code must be a whole number from 0 to 255, got True"),
        ({"state_of": 5}, "state_of must be a sequence of objects, got 5"),
        ({"state_of": "cb"}, "state_of must be a sequence of objects, got 'cb'"),
    ],
)
def test_a_wrong_argument_is_refused_before_the_fit(
    start: Start, tmp_path: Path, arguments: dict[str, Any], refusal: str
) -> None:
    """Each invalid argument is refused by name, text for a boolean among them."""
    assert start("notice_scenarios:make", tmp_path / "run", "", arguments).result() == refusal
    assert not (tmp_path / "run").exists()


def test_a_variable_that_names_no_source_is_refused(start: Start, tmp_path: Path) -> None:
    """The error names the variable and lists the valid names."""
    refusal = start("notice_scenarios:make", tmp_path / "run", "signal,gpc", {}).result()
    assert "notices must be any of" in refusal
    assert refusal.endswith("got 'gpc'")
