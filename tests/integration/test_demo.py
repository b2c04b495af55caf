"""The demonstration for real: processes, signals, files; and that it tidies up after itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.demo.cast import Cast
from distributed_backup.demo.director import Director, Recording
from distributed_backup.demo.messages import Event, Plan
from distributed_backup.demo.verdict import judge
from distributed_backup.store import CheckpointStore

PROGRAM = (sys.executable, "-m", "distributed_backup.cli", "demo")


class Witness:
    """Remembers what it was told; raises what it was given when a worker is elected."""

    def __init__(self, interruption: BaseException | None = None) -> None:
        self.interruption = interruption
        self.pids: set[int] = set()
        self.kinds: list[str] = []

    def step(self, text: str) -> None: ...

    def event(self, event: Event, cast: Cast) -> None:
        self.kinds.append(event.kind)
        self.pids |= {life.pid for lives in cast.lives.values() for life in lives}
        if event.kind == "elected" and self.interruption is not None:
            raise self.interruption


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def direct(plan: Plan, tmp_path: Path, witness: Witness, *, workers: int = 2) -> Recording:
    return Director(
        plan, workers=workers, backup_dir=tmp_path / "run", keep=True, logs=tmp_path, audience=witness
    ).run()


def test_the_demonstration_holds_what_is_promised(tmp_path: Path) -> None:
    """As a newcomer runs it, into a pipe: three workers, a SIGTERM, a SIGKILL, two restarts."""
    result = subprocess.run(
        [*PROGRAM, "--plain", "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    verdict = json.loads(result.stdout)
    assert_holds(verdict)
    assert verdict["workers"] == 3
    assert verdict["backup_deleted"] is True
    assert list(tmp_path.iterdir()) == []
    lines = result.stderr.splitlines()
    assert all(line.isprintable() for line in lines)
    for words in ("<== SIGTERM", "<== SIGKILL", "process ended with exit code 143", "process was killed"):
        assert sum(line.endswith(words) for line in lines) == 1, result.stderr


def assert_holds(verdict: dict[str, Any]) -> None:
    assert verdict["problems"] == []
    assert (verdict["holds"], verdict["final_state_equal"], verdict["differences"]) == (True, True, [])
    # At least the ends of the epochs and what the SIGTERM brought about.
    assert verdict["checkpoints_written"] >= 5
    assert verdict["calls_uninterrupted"] == 4 * (6 * 8 + 4)
    sigterm, sigkill = verdict["sigterm"], verdict["sigkill"]
    assert sigterm["last_boundary"] <= sigterm["on_disk"]
    assert sigterm["exit_code"] == 143
    assert 0 < sigterm["durable_ms"] < sigterm["in_flight_durable_ms"] < sigterm["gone_ms"] < 10_000
    assert sigterm["calls_repeated"] == 0
    assert 0 < sigterm["next_leader_ms"] < 10_000
    assert sigkill["worker"] != sigterm["worker"]
    assert 0 < sigkill["next_leader_ms"] < 2_000


def test_a_grace_period_too_short_for_the_batch_in_flight_costs_no_more_than_that_batch(tmp_path: Path) -> None:
    """A batch takes three calls in a row, 1.2 s; the leader has 0.6 s, of which it keeps some in reserve."""
    plan = Plan(epochs=3, latency=0.4, grace_period=0.6)
    witness = Witness()
    recording = direct(plan, tmp_path, witness)
    verdict = judge(recording, plan, keep=True)
    assert verdict.problems == ()
    assert verdict.final_state_equal
    assert verdict.sigterm is not None
    assert verdict.sigterm.in_flight_durable_ms is None
    assert 0 < verdict.sigterm.calls_repeated <= verdict.sigterm.calls_in_flight == 8
    assert CheckpointStore(tmp_path / "run").verify() == []
    assert not any(is_running(pid) for pid in witness.pids)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), RuntimeError("a bug in the screen")])
def test_an_interruption_leaves_no_process_behind(tmp_path: Path, interruption: BaseException) -> None:
    witness = Witness(interruption)
    with pytest.raises(type(interruption)):
        direct(Plan(), tmp_path, witness)
    assert "elected" in witness.kinds
    assert len(witness.pids) == 3
    assert not any(is_running(pid) for pid in witness.pids)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ending_it_while_it_starts_tidies_up(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """The server that processes are forked from is busy for many seconds then, and must not stay."""
    with subprocess.Popen(
        [*PROGRAM, "--plain"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert "Starting" in process.stdout.readline()
        wait_for_server(process.pid)
        process.send_signal(number)
        # The pipes end when the last process that inherited them has ended.
        _, errors = process.communicate(timeout=8)
        assert process.returncode == code
        assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def wait_for_server(pid: int) -> None:
    """Wait until the process has started the server, and that is under way."""
    never, deadline = threading.Event(), time.monotonic() + 20
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes():
                return
        never.wait(0.01)
    raise AssertionError("no server was started")
