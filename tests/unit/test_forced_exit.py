"""The exit before the kill, when `fit` has not returned."""

from __future__ import annotations

import threading

import pytest

from distributed_backup.preemption.signals import SignalWatch
from distributed_backup.training import forced_exit
from distributed_backup.training.forced_exit import ForcedExit
from distributed_backup.worker.options import WorkerOptions
from tests.support.log_handlers import PATIENCE, hanging
from tests.support.team import Team


def test_a_log_handler_that_hangs_does_not_prevent_the_exit(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process exits with its own code before the kill, although nothing reads the pipe that it logs to."""
    codes: list[int] = []
    exited = threading.Event()

    def leave(code: int) -> None:
        codes.append(code)
        exited.set()

    monkeypatch.setattr("os._exit", leave)
    for step in ("run_exit_functions", "flush_output"):  # they would end what the tests share
        monkeypatch.setattr(forced_exit, step, lambda: None)
    worker = team.unjoined("a", grace_period=1.0)
    with hanging(forced_exit.logger) as handler:
        signals = SignalWatch([], on_notice=lambda _: None)
        ForcedExit(worker, WorkerOptions(exit_code=77), signals).arm(0.0)
        assert handler.hangs.wait(PATIENCE)
        assert exited.wait(PATIENCE / 3), "the exit waits for the handler"
    for thread in threading.enumerate():
        if thread.name == "distributed-backup-watchdog":
            thread.join(PATIENCE)
    assert codes == [77] * 3  # each of the three attempts, because the first call did not end the process
