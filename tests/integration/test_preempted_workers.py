"""Test preemption of several workers of one run: leaders, followers and standbys, over the file lock."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.base import Heartbeat
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.position import Position
from tests.support.preempted_fits import (
    Start,
    assert_resumes_exactly,
    job,
    newest,
    seconds_until_saved,
    wait_for_members,
)
from tests.support.processes import Child

QUICK = LeaseTimings(duration=3.0, renew_deadline=2.0, retry_period=0.5)


def start_leader_and_followers(
    start: Start, backup_dir: Path, followers: int, leader_runs: str = "train", **fields: Any
) -> tuple[Child, list[Child]]:
    """Return a leader and then followers, each in its slow call: without a journal, each asks for itself."""
    arguments = {"journal": False, **fields.pop("arguments", {})}
    slow = {"slow": ("batch_begin", 1, 1), "arguments": arguments, **fields}
    leader = start(job(backup_dir, **slow), how=leader_runs)
    leader.expect("slow_call")
    others = [start(job(backup_dir, **slow)) for _ in range(followers)]
    for child in others:
        child.expect("slow_call")
    return leader, others


def test_a_notice_to_a_follower_makes_the_leader_commit_and_lets_only_the_follower_go(
    start: Start, backup_dir: Path
) -> None:
    """The leader commits its last boundary for the follower and continues training."""
    leader, (follower,) = start_leader_and_followers(
        start, backup_dir, 1, slow_latency=3.0, arguments={"save_freq": False}
    )
    signalled = time.monotonic()
    follower.kill(signal.SIGTERM)
    position, name, _, code = follower.expect("preempted")
    assert time.monotonic() - signalled < 2.5, "the follower leaves as soon as it is answered"
    assert (position, code) == (Position(1, 1), 143)
    assert follower.join() == 143
    assert name is not None
    leader.kill(signal.SIGTERM)
    assert leader.join() == 143


def test_a_notice_to_all_at_once_is_saved_by_the_leader(
    start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """The leader alone commits, and all workers exit within the grace period."""
    leader, followers = start_leader_and_followers(
        start, backup_dir, 2, arguments={"save_freq": False, "grace_period": 3.0}
    )
    signalled = time.monotonic()
    for child in (leader, *followers):
        child.kill(signal.SIGTERM)
    assert [child.join() for child in (leader, *followers)] == [143, 143, 143]
    assert time.monotonic() - signalled < 3.0
    assert newest(backup_dir) == Position(1, 1)
    assert {info.term for info in CheckpointStore(backup_dir).list()} == {1}
    assert_resumes_exactly(start, backup_dir, uninterrupted)


def test_a_follower_saves_when_the_leader_is_killed_while_it_saves(
    start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """If the leader is killed in fsync after all workers got a notice, a follower takes over and commits."""
    leader, followers = start_leader_and_followers(
        start,
        backup_dir,
        2,
        leader_runs="train_with_hanging_commit",
        arguments={"save_freq": False, "grace_period": 8.0},
    )
    for child in (leader, *followers):
        child.kill(signal.SIGTERM)
    leader.expect("hanging")
    leader.kill(signal.SIGKILL)
    assert leader.join() == -signal.SIGKILL
    assert [child.join() for child in followers] == [143, 143]
    assert newest(backup_dir) == Position(1, 1)
    assert {info.term for info in CheckpointStore(backup_dir).list()} == {2}
    assert_resumes_exactly(start, backup_dir, uninterrupted)


def test_a_killed_leader_is_replaced_and_the_run_ends_exactly(
    start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """After a SIGKILL of the leader the follower leads at its next tick and ends exactly."""
    leader, (follower,) = start_leader_and_followers(start, backup_dir, 1, slow_latency=1.0)
    leader.kill(signal.SIGKILL)
    assert leader.join() == -signal.SIGKILL
    assert follower.result()["state"] == uninterrupted["state"]
    infos = CheckpointStore(backup_dir).list()
    assert [(info.term, info.position) for info in infos] == [(2, Position(3, 0))]


def test_workers_that_change_their_working_directory_stay_in_one_run(start: Start, tmp_path: Path) -> None:
    """A relative `backup_dir` is resolved when the callback is made, for the lock and the checkpoints alike."""
    relative = job(Path("run"), slow=("batch_begin", 1, 1), arguments={"journal": False})
    for name in ("own-0", "own-1"):
        (tmp_path / name).mkdir()
        start(relative, tmp_path, tmp_path / name, how="train_elsewhere").expect("slow_call")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("leader.lock")] == [
        "run/coordinator/leader.lock"
    ]
    members = FileCoordinator(tmp_path / "run/coordinator").members()
    assert sorted(member.role for member in members) == ["follower", "leader"]


def test_a_worker_that_starts_late_joins_at_the_newest_commit(start: Start, backup_dir: Path) -> None:
    """A worker that joins late starts from the newest checkpoint."""
    leader = start(job(backup_dir, slow=("batch_begin", 2, 0), slow_latency=2.0))
    leader.expect("slow_call")
    late = start(job(backup_dir, epochs=3))
    assert late.expect("epoch_begin") == (2,)
    assert late.result()["state"] == leader.result()["state"]


def test_a_signal_while_waiting_for_the_leader_ends_the_wait(start: Start, backup_dir: Path) -> None:
    """A worker that waits for an announcement exits at a signal, and writes and deletes nothing."""
    coordinator = FileCoordinator(backup_dir / "coordinator")
    coordinator.heartbeat(Heartbeat(worker_id="silent", campaign=True, floor=0, duration=1000.0))
    child = start(job(backup_dir))
    child.expect("train_begin")
    wait_for_members(coordinator, 2)
    child.kill(signal.SIGTERM)
    assert child.join() == 143
    assert newest(backup_dir) is None
    coordinator.resign("silent")


def test_the_last_worker_to_finish_deletes_the_backup_and_no_other(start: Start, backup_dir: Path) -> None:
    """A worker that finishes first leaves the backup to the slower one."""
    arguments = {"delete_checkpoint": True, "journal": False}
    slow = start(job(backup_dir, slow=("batch_begin", 2, 0), slow_latency=1.5, arguments=arguments))
    slow.expect("slow_call")
    quick = start(job(backup_dir, arguments=arguments))
    quick.result()
    assert newest(backup_dir) is not None
    slow.result()
    assert not backup_dir.exists()


# ---------------------------------------------------------------- standby


STANDBY = {"standby": True, "timings": QUICK}


def test_a_standby_spends_no_call_and_takes_over_when_the_leader_is_killed(
    start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """A standby makes no call, takes over from the newest checkpoint, and ends exactly."""
    leader = start(job(backup_dir, slow=("batch_begin", 1, 1), arguments={"save_freq": 1, **STANDBY}))
    leader.expect("slow_call")
    seconds_until_saved(backup_dir, Position(1, 1))
    standby = start(job(backup_dir, arguments={"save_freq": 1, **STANDBY}))
    standby.expect("train_begin")
    leader.kill(signal.SIGKILL)
    result = standby.result()
    assert ("epoch_begin", (0,)) not in standby.seen
    assert result["state"] == uninterrupted["state"]
    assert result["calls"] < uninterrupted["calls"]


def test_a_standby_returns_with_the_final_state_when_the_leader_has_finished(
    start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """A standby makes no call, and the backup is deleted after it has restored the final state."""
    arguments = {"delete_checkpoint": True, "save_freq": False, **STANDBY}
    leader = start(job(backup_dir, slow=("batch_begin", 2, 0), slow_latency=1.5, arguments=arguments))
    leader.expect("slow_call")
    standby = start(job(backup_dir, arguments=arguments))
    standby.expect("train_begin")
    assert leader.result()["state"] == uninterrupted["state"]
    result = standby.result()
    assert result["calls"] == 0
    assert result["state"]["variables"] == uninterrupted["state"]["variables"]
    assert not backup_dir.exists()


def test_a_signal_ends_the_wait_of_a_standby(start: Start, backup_dir: Path) -> None:
    """A standby that waits exits cleanly at a signal, and the leader continues."""
    leader = start(job(backup_dir, slow=("batch_begin", 1, 1), arguments={**STANDBY, "grace_period": 2.0}))
    leader.expect("slow_call")
    standby = start(job(backup_dir, arguments=STANDBY))
    standby.expect("train_begin")
    coordinator = FileCoordinator(backup_dir / "coordinator")
    wait_for_members(coordinator, 2)
    standby.kill(signal.SIGTERM)
    assert standby.join() == 143
    leader.kill(signal.SIGTERM)
    assert leader.join() == 143
