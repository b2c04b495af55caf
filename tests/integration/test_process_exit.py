"""Test how a preempted process ends: real fits in real processes, measured from the signal to `waitpid`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from distributed_backup.checkpoints.store import CheckpointStore
from tests.support.processes import PATIENCE

# Seconds: `GRACE_PERIOD` of the scenarios, and the two that its documentation names for a busy machine, on which Python
# runs a signal handler late.
KILL = 4.0 + 2.0
EXIT_CODE = 143


class End(NamedTuple):
    """How one process has ended. `seconds` are those since the signal."""

    code: int
    seconds: float
    output: str


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exits")


@pytest.fixture(scope="module")
def ends(root: Path) -> dict[str, End]:
    """Run all cases, one after the other."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.integration.process_exit_scenarios", str(root)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=2 * PATIENCE,
    )
    return {case: End(*fields) for case, *fields in map(json.loads, run.stdout.splitlines())}


@pytest.mark.parametrize(
    "case",
    [
        "short call",
        "call that never ends",
        "call that blocks the loop",
        "call that hangs in a thread",
        "task that swallows cancellation",
        "cleanup that hangs",
        "thread that is left",
    ],
)
def test_a_preempted_process_ends_before_the_kill_with_its_exit_code(
    case: str, ends: dict[str, End], root: Path
) -> None:
    """Whatever hangs, the process ends by itself, and the last boundary is saved."""
    end = ends[case]
    assert end.code == EXIT_CODE, end.output
    assert end.seconds < KILL, end.output
    assert CheckpointStore(root / case).latest() is not None


def test_a_process_that_exits_by_itself_does_not_use_up_its_grace_period(ends: dict[str, End]) -> None:
    """The forced exit is the last resort: it has not acted here."""
    assert "exiting now" not in ends["short call"].output
    assert "exiting now" not in ends["call that never ends"].output


def test_a_forced_exit_flushes_the_output_and_calls_exit_functions(ends: dict[str, End]) -> None:
    """What was printed is in the output although the interpreter did not exit."""
    output = ends["thread that is left"].output
    assert "this process has not ended: exiting now" in output
    assert [line for line in output.splitlines() if line in {"printed", "exit function called"}] == [
        "printed",
        "exit function called",
    ]


def test_signals_until_the_very_end_do_not_change_the_exit_code(ends: dict[str, End]) -> None:
    """SIGTERM arrives each millisecond, also while the interpreter takes its modules down."""
    assert ends["signals until the end"].code == EXIT_CODE


def test_a_handler_of_the_user_that_exits_does_not_win(ends: dict[str, End], root: Path) -> None:
    """A handler that calls `sys.exit(0)` neither prevents the save nor changes the exit code."""
    end = ends["handler that exits"]
    assert end.code == EXIT_CODE, end.output
    assert end.seconds < KILL
    assert CheckpointStore(root / "handler that exits").latest() is not None
    assert "the signal handler before ours raised SystemExit" in end.output


def test_a_handler_of_the_event_loop_that_is_closed_does_not_change_the_exit_code(ends: dict[str, End]) -> None:
    """Closing the loop sets the signal to its default. Ours ignores it as soon as the interpreter shuts down."""
    end = ends["handler of the loop"]
    assert (end.code, "their handler called" in end.output) == (EXIT_CODE, True), end.output
    assert end.seconds < KILL


def test_a_program_that_catches_the_exit_and_goes_on_is_left_alone(ends: dict[str, End]) -> None:
    """It works on after the deadline, and exits with its own code."""
    end = ends["goes on"]
    assert (end.code, "caught 143" in end.output) == (7, True), end.output


def test_a_program_that_goes_on_can_be_ended_again(ends: dict[str, End]) -> None:
    """Once the deadline has passed, a signal acts as if no fit had run."""
    assert ends["goes on and is ended"].code == -signal.SIGTERM
