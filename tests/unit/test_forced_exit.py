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
    exits, is_over = threading.Semaphore(0), threading.Event()

    def leave(code: int) -> None:
        codes.append(code)
        exits.release()
        is_over.wait(PATIENCE)  # the real one never returns

    monkeypatch.setattr("os._exit", leave)
    for step in ("run_exit_functions", "flush_output"):  # they would end what the tests share
        monkeypatch.setattr(forced_exit, step, lambda: None)
    worker = team.unjoined("a", grace_period=1.0)
    with hanging(forced_exit.logger) as handler:
        signals = SignalWatch([], on_notice=lambda _: None)
        forced = ForcedExit(worker, WorkerOptions(exit_code=77), signals)
        forced.start()
        forced.arm(0.0)
        assert handler.hangs.wait(PATIENCE)
        assert exits.acquire(timeout=PATIENCE / 3), "the exit waits for the handler"
    for _ in range(2):
        assert exits.acquire(timeout=PATIENCE)
    assert codes == [77] * 3  # each of the three attempts, because the first call did not end the process
    is_over.set()
    for thread in threading.enumerate():
        if thread.name == "distributed-backup-watchdog":
            thread.join(PATIENCE)
