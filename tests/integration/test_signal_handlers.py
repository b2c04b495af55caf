"""Test that handlers of the user's and ours serve the same signals, with a real fit in a real process."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from distributed_backup.position import Position
from tests.support.preempted_fits import Start, job, newest


def test_a_handler_that_was_there_is_called_and_stays_below_ours_until_the_process_has_ended(
    start: Start, backup_dir: Path
) -> None:
    """After a notice, a second signal must not end the process in another way."""
    child = start(job(backup_dir, slow=("batch_begin", 1, 1), slow_latency=1.0), how="train_with_handler")
    child.expect("slow_call")
    child.kill(signal.SIGTERM)
    assert child.expect("their_handler") == signal.SIGTERM
    assert child.expect("handler_is_back") is False
    assert child.join() == 143
    assert newest(backup_dir) == Position(1, 2)


def test_a_handler_that_was_there_is_back_after_a_complete_fit(start: Start, backup_dir: Path) -> None:
    """Without a notice the process is as it was before the fit."""
    child = start(job(backup_dir), how="train_with_handler")
    assert child.expect("handler_is_back") is True
    child.result()


def test_a_handler_of_the_event_loop_that_was_added_during_the_fit_is_called_and_the_notice_is_served(
    start: Start, backup_dir: Path
) -> None:
    """From the next boundary on, ours is in front again."""
    child = start(
        job(backup_dir, slow=("batch_begin", 1, 1), slow_latency=1.0, arguments={"save_freq": False}),
        how="train_with_loop_handler",
    )
    child.expect("slow_call")
    child.kill(signal.SIGTERM)
    child.expect("their_handler")
    assert child.join() == 143
    assert newest(backup_dir) == Position(1, 2)
    assert child.output().count("the handler of SIGTERM was replaced during the fit") == 1


def test_an_ignored_signal_stays_ignored(start: Start, backup_dir: Path, uninterrupted: dict[str, Any]) -> None:
    """Under nohup the fit goes on."""
    child = start(job(backup_dir, slow=("batch_begin", 1, 1), slow_latency=1.0), how="train_with_ignored_signal")
    child.expect("slow_call")
    child.kill(signal.SIGTERM)
    assert child.result()["state"] == uninterrupted["state"]
    assert "SIGTERM is ignored in this process" in child.output()


def test_a_handler_that_was_there_and_leaves_the_process_does_not_prevent_the_save(
    start: Start, backup_dir: Path
) -> None:
    """A user's handler that calls sys.exit does not prevent the save."""
    child = start(
        job(backup_dir, slow=("batch_begin", 1, 1), arguments={"save_freq": False, "grace_period": 5.0}),
        how="train_with_exiting_handler",
    )
    child.expect("slow_call")
    child.kill(signal.SIGTERM)
    assert child.join() == 143
    assert newest(backup_dir) == Position(1, 1)
