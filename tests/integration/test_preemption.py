"""Test preemption by real signals in real processes with a real fit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.position import Position
from tests.support.preempted_fits import (
    Start,
    assert_resumes_exactly,
    job,
    newest,
    seconds_until_saved,
)
from tests.support.processes import PATIENCE
from tests.support.stores import remove_at_once


def test_a_directory_that_is_removed_during_the_fit_is_made_again_by_the_save(
    start: Start, backup_dir: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    """The lock is elsewhere, as it is with a server, so nothing but the save makes the directory."""
    arguments = {"coordinator": f"file://{tmp_path}/lock", "save_freq": 1, "grace_period": 2.0}
    child = start(job(backup_dir, slow=("batch_begin", 1, 1), arguments=arguments))
    child.expect("slow_call")
    seconds_until_saved(backup_dir, Position(1, 1))
    remove_at_once(backup_dir)
    child.kill(signal.SIGTERM)
    assert child.join() == 143
    assert newest(backup_dir) == Position(1, 1)
    assert f"the run's directory or run.json was removed, making it again path={backup_dir}" in child.output()
    assert_resumes_exactly(start, backup_dir, uninterrupted)


def test_a_batch_in_flight_that_takes_too_long_is_given_up_and_the_last_boundary_is_on_disk_at_once(
    start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """With a batch of 60 s and 2 s of grace, the save takes 100 ms and the process exits before the kill."""
    latencies = []
    for attempt in range(3):
        directory = backup_dir.with_name(f"run-{attempt}")
        child = start(job(directory, slow=("batch_begin", 1, 1), arguments={"save_freq": False, "grace_period": 2.0}))
        child.expect("slow_call")
        assert newest(directory) is None
        signalled = time.monotonic()
        child.kill(signal.SIGTERM)
        latencies.append(seconds_until_saved(directory, Position(1, 1)))
        assert child.join() == 143
        assert time.monotonic() - signalled < 2.0
        assert newest(directory) == Position(1, 1)
    assert sorted(latencies)[1] < 0.1, latencies
    assert_resumes_exactly(start, directory, uninterrupted)


def test_a_batch_in_flight_that_ends_within_the_grace_period_is_saved_too(
    start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """The last boundary is committed first, and then that of the batch in flight."""
    child = start(job(backup_dir, slow=("batch_begin", 1, 1), slow_latency=1.0, arguments={"save_freq": False}))
    child.expect("slow_call")
    child.kill(signal.SIGTERM)
    seconds_until_saved(backup_dir, Position(1, 1))
    position, name, seconds, code = child.expect("preempted")
    assert (position, code) == (Position(1, 2), 143)
    assert 0.0 < seconds < 30.0
    assert child.join() == 143
    assert [info.name for info in CheckpointStore(backup_dir).list()] == [name]
    assert_resumes_exactly(start, backup_dir, uninterrupted)


def test_a_batch_that_blocks_the_event_loop_is_ended_before_the_grace_period_is(start: Start, backup_dir: Path) -> None:
    """A synchronous call can't be cancelled. The boundary is saved, and the process is forced to exit in time."""
    child = start(
        job(backup_dir, slow=("batch_begin", 1, 1), blocking=True, arguments={"save_freq": False, "grace_period": 2.0})
    )
    child.expect("slow_call")
    signalled = time.monotonic()
    child.kill(signal.SIGTERM)
    seconds_until_saved(backup_dir, Position(1, 1))
    assert child.join() == 143
    assert time.monotonic() - signalled < 2.5


def test_a_notice_during_the_very_first_batch_saves_the_start(
    start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """A notice in the first batch saves the state before it, with the random generators."""
    child = start(job(backup_dir, slow=("batch_begin", 0, 0), arguments={"grace_period": 2.0}))
    child.expect("slow_call")
    child.kill(signal.SIGTERM)
    assert child.join() == 143
    assert newest(backup_dir) == Position(0, 0)
    assert_resumes_exactly(start, backup_dir, uninterrupted)


def test_a_notice_during_validation_keeps_what_validation_has_done(
    start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """After 3 training batches and 1 validation batch the position is batch 4."""
    child = start(job(backup_dir, slow=("test_batch_begin", 1, 1), arguments={"save_freq": False, "grace_period": 2.0}))
    child.expect("slow_call")
    child.kill(signal.SIGTERM)
    assert child.join() == 143
    assert newest(backup_dir) == Position(1, 4)
    assert_resumes_exactly(start, backup_dir, uninterrupted)


@pytest.mark.parametrize(
    ("hook", "position"),
    [
        ("on_train_batch_end", Position(0, 1)),
        ("on_epoch_end", Position(1, 0)),
        ("on_epoch_begin", Position(0, 1)),
        ("on_test_end", Position(1, 0)),
        ("on_train_end", Position(3, 0)),
    ],
)
def test_a_notice_between_batches_and_epochs_and_at_the_end_of_training_is_served(
    hook: str, position: Position, start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """A signal at any hook gives a clean exit with the next boundary on disk and nothing deleted."""
    child = start(
        job(backup_dir, arguments={"save_freq": False, "delete_checkpoint": True}), hook, how="train_with_signal_at"
    )
    child.expect("fired")
    assert child.join() == 143
    assert newest(backup_dir) == position
    assert_resumes_exactly(start, backup_dir, uninterrupted)


def test_a_signal_while_a_complete_fit_leaves_is_not_lost(start: Start, backup_dir: Path) -> None:
    """With the final state kept, a signal during the last steps of a fit ends it with `Preempted`."""
    child = start(job(backup_dir), FileCoordinator, "leave", False, how="train_and_be_told_at_the_end")
    position, name, seconds, _ = child.expect("preempted")
    assert child.join() == 143
    assert position == newest(backup_dir) == Position(3, 0)
    assert [info.name for info in CheckpointStore(backup_dir).list()] == [name]
    assert 0.0 < seconds < PATIENCE


def test_a_signal_while_a_complete_run_is_deleted_is_told_and_does_not_have_it_start_again(
    start: Start, backup_dir: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    """A signal during the deletion logs a warning, and the exit code is 0, so the job is not restarted."""
    complete = job(backup_dir, arguments={"delete_checkpoint": True})
    child = start(complete, CheckpointStore, "delete", False, how="train_and_be_told_at_the_end")
    assert child.result()["state"] == uninterrupted["state"]
    assert not backup_dir.exists()
    [log] = [path.read_text() for path in tmp_path.glob("log-*")]
    assert "SIGTERM arrived after training had finished" in log


def test_a_fit_that_hangs_as_it_leaves_is_ended_before_the_grace_period_is(start: Start, backup_dir: Path) -> None:
    """A hang after the end of training is ended by the forced exit, although no save is needed."""
    child = start(
        job(backup_dir, arguments={"grace_period": 2.0}),
        FileCoordinator,
        "leave",
        True,
        how="train_and_be_told_at_the_end",
    )
    child.expect("leaving")
    signalled = time.monotonic()
    assert child.join() == 143
    assert time.monotonic() - signalled < 2.5
    assert newest(backup_dir) == Position(3, 0)


def test_a_second_signal_and_ctrl_c_do_not_disturb_the_save(start: Start, backup_dir: Path) -> None:
    """A second SIGTERM and a SIGINT during a slow save do not disturb it."""
    child = start(
        job(backup_dir, slow=("batch_begin", 1, 1), arguments={"save_freq": False, "grace_period": 5.0}),
        0.5,
        how="train_with_slow_disk",
    )
    child.expect("slow_call")
    child.kill(signal.SIGTERM)
    child.expect("sync")
    child.kill(signal.SIGTERM)
    child.kill(signal.SIGINT)
    assert child.join() == 143
    assert newest(backup_dir) == Position(1, 1)


def test_without_saving_before_preemption_signals_are_left_alone(start: Start, backup_dir: Path) -> None:
    """With `save_before_preemption=False` a SIGTERM kills the process."""
    child = start(
        job(backup_dir, slow=("batch_begin", 1, 1), arguments={"save_freq": 1, "save_before_preemption": False})
    )
    child.expect("slow_call")
    seconds_until_saved(backup_dir, Position(1, 1))
    child.kill(signal.SIGTERM)
    assert child.join() == -signal.SIGTERM


def test_a_full_disk_does_not_stop_training_and_a_notice_tries_until_the_grace_ends(
    start: Start, backup_dir: Path
) -> None:
    """Each failure is logged with the path. The exit is clean and in time."""
    child = start(
        job(backup_dir, slow=("batch_begin", 1, 1), arguments={"save_freq": 1, "grace_period": 2.0}),
        how="train_with_failing_disk",
    )
    child.expect("slow_call")
    child.kill(signal.SIGTERM)
    position, name, seconds, code = child.expect("preempted")
    assert (position, name, code) == (None, None, 143)
    assert seconds < 2.0
    assert child.join() == 143
    assert len([event for event, _ in child.seen if event == "disk_full"]) > 4
    assert str(backup_dir) in child.output()
    assert "No space left" in child.output()


def test_a_full_disk_ends_the_fit_if_asked_to(start: Start, backup_dir: Path) -> None:
    """With `on_save_error="raise"` the fit ends with our error, which names the path."""
    child = start(
        job(backup_dir, latency=0.02, arguments={"save_freq": 1, "on_save_error": "raise"}),
        how="train_with_failing_disk",
    )
    child.expect("disk_full")
    assert child.join() == 1
    assert "StoreError: can't write" in child.output()


def test_off_the_main_thread_a_warning_is_given_and_training_goes_on(
    start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """Off the main thread a warning is logged, no handler is installed, and training continues."""
    child = start(job(backup_dir), how="train_in_a_thread")
    assert child.result()["state"] == uninterrupted["state"]
    assert "signals can't be handled" in child.output()


def test_a_leader_off_the_main_thread_saves_for_a_follower_that_is_preempted(start: Start, backup_dir: Path) -> None:
    """A leader off the main thread still serves the notices of other workers."""
    fields = {"slow": ("batch_begin", 1, 1), "slow_latency": 3.0, "arguments": {"save_freq": False}}
    leader = start(job(backup_dir, **fields), how="train_in_a_thread")
    leader.expect("slow_call")
    follower = start(job(backup_dir, **fields))
    follower.expect("slow_call")
    follower.kill(signal.SIGTERM)
    assert follower.join() == 143
    assert newest(backup_dir) == Position(1, 1)
    leader.result()


SCRIPT = """
import sys
import tests.support.preload
from pathlib import Path
from tests.support.jobs import Job
from tests.integration.preemption_scenarios import train
train(lambda *event: print(*event, flush=True), Job(
    backup_dir=Path(sys.argv[1]), slow=("batch_begin", 1, 1), arguments={"save_freq": False, "grace_period": 4.0}))
"""


def test_a_script_exits_with_143_and_without_a_traceback(backup_dir: Path) -> None:
    """A whole interpreter exits with 143 and prints no traceback."""
    with subprocess.Popen(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", SCRIPT, str(backup_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("slow_call") for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert newest(backup_dir) == Position(1, 1)


# ---------------------------------------------------------------- the end of a process without a notice


def test_a_fit_that_died_does_not_block_the_next_one_in_the_process(
    start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """The next fit ends the session that the first left open, and resumes."""
    child = start(job(backup_dir), how="train_after_a_death")
    assert child.expect("died") == "dying"
    result = child.result()
    assert result["state"] == uninterrupted["state"]


def test_fits_that_died_in_other_directories_leave_no_session_behind(start: Start, backup_dir: Path) -> None:
    """A search over many programs goes on after each error. One that awaits the next fit is no dead one."""
    child = start(job(backup_dir, arguments={"save_freq": False}), how="train_after_deaths")
    assert child.expect("open_sessions") == ["run-3"]
    assert child.expect("open_sessions_within") == ["run-4", "run-5"]
    assert child.join() == 143
    saved = newest(backup_dir.with_name("run-5"))
    assert saved is not None
    assert saved >= Position(0, 1)


def test_what_is_due_and_pending_is_committed_at_the_exit_of_the_interpreter(start: Start, backup_dir: Path) -> None:
    """A commit that runs when the fit dies is completed at the interpreter's exit."""
    child = start(job(backup_dir), how="train_and_die")
    child.join()
    assert newest(backup_dir) == Position(1, 0)
