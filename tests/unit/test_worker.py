"""Workers of one run, each with its real threads, over a coordinator in memory and checkpoints in a directory.

The test moves the time in steps. After each step every elector has made its tick.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.base import Announcement, ClusterView, Heartbeat
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.errors import (
    CoordinatorUnavailableError,
    NotSharedError,
    NoUsableCheckpointError,
    RestoreTimeoutError,
    RunMismatchError,
    StoreError,
)
from distributed_backup.position import Position
from distributed_backup.preemption.exit import Preempted
from distributed_backup.storage.local import LocalStorage
from distributed_backup.worker.start_point import StartPoint
from tests.support.internals import context_of, elector_of, saver_of
from tests.support.team import PATIENCE, FaultyStore, Team, snapshot

# ---------------------------------------------------------------- the start


def test_the_leader_restores_the_newest_checkpoint_and_announces_it(team: Team) -> None:
    """The announcement carries the leader's term, and the checkpoint's name and digest."""
    team.commit(1)
    newest = team.commit(2, 3)
    worker = team.worker("a")
    start = team.result(team.begin(worker.await_start))
    assert start.checkpoint.header == newest
    made = team.announcement
    assert (made.finished, made.term, made.worker_id) == (False, 2, "a")
    assert (made.checkpoint, made.digest, made.position) == (newest.name, newest.digest, Position(2, 3))


def test_a_run_without_checkpoints_starts_afresh_and_says_so(team: Team) -> None:
    """The leader announces a fresh start, and the follower starts afresh too."""
    workers = [team.worker("a"), team.worker("b")]
    starts = [team.result(team.begin(worker.await_start)) for worker in workers]
    assert starts == [StartPoint(), StartPoint()]
    assert (team.announcement.finished, team.announcement.checkpoint) == (False, None)


def test_all_workers_start_from_one_checkpoint(team: Team) -> None:
    """All four workers start from the newest checkpoint, whichever of them leads."""
    newest = team.commit(4, 2)
    team.commit(3)
    workers = [team.worker(f"w{number}") for number in range(4)]
    futures = [team.begin(worker.await_start) for worker in workers]
    assert [team.result(future).checkpoint.header for future in futures] == [newest] * 4


def test_a_follower_waits_for_the_leader_to_speak(team: Team) -> None:
    """A follower starts only after the leader's announcement, although it could read the directory itself."""
    team.commit(1)
    team.worker("a")
    follower = team.worker("b")
    waiting = team.begin(follower.await_start)
    team.steps(5.0)
    assert not waiting.done()
    team.result(team.begin(team.workers[0].await_start))
    assert team.result(waiting).checkpoint.position == Position(1)


def test_the_announcement_of_a_dead_incarnation_is_ignored(team: Team) -> None:
    """Workers ignore the record of a leader that was silent since they joined, although its lease has time left."""
    old = team.commit(1)
    team.coordinator.heartbeat(Heartbeat(worker_id="dead", campaign=True, floor=1, duration=15.0))
    assert team.coordinator.announce(
        Announcement(term=2, worker_id="dead", position=old.position, checkpoint=old.name, digest=old.digest)
    )
    newest = team.commit(5, term=2)
    team.clock.advance(1.0)
    workers = [team.worker("a"), team.worker("b")]
    futures = [team.begin(worker.await_start) for worker in workers]
    team.steps(12.0)
    assert not any(future.done() for future in futures)
    assert [team.result(future).checkpoint.header for future in futures] == [newest] * 2
    assert team.announcement.term > 2


def test_a_late_joiner_takes_the_newest_announced_commit(team: Team) -> None:
    """A late joiner starts from the leader's last commit, not from the checkpoint that the run began with."""
    team.commit(1)
    leader = team.started("a")
    leader.boundary(snapshot(2), due=True)
    team.until(lambda: team.announcement.position == Position(2))
    late = team.worker("b")
    assert team.result(team.begin(late.await_start)).checkpoint.position == Position(2)


def test_an_announced_checkpoint_that_can_not_be_seen_is_an_unshared_directory(team: Team, tmp_path: Path) -> None:
    """The error names the checkpoint and the directory. It comes only after a file system had time to show the file."""
    newest = team.commit(1)
    team.started("a")
    elsewhere = team.worker("b", root=tmp_path / "elsewhere")
    waiting = team.begin(elsewhere.await_start)
    team.steps(4.0)
    assert not waiting.done()
    with pytest.raises(NotSharedError, match=rf"{newest.name}.*{tmp_path}/elsewhere.*shared by all workers"):
        team.result(waiting)


def test_a_checkpoint_of_the_same_name_with_another_digest_is_not_the_announced_one(team: Team, tmp_path: Path) -> None:
    """A directory that holds the announced name with another digest counts as not shared."""
    team.commit(1)
    other = CheckpointStore(tmp_path / "elsewhere")
    other.commit(replace(snapshot(1), body=b'{"other":1}'), term=1, worker_id="earlier")
    team.started("a")
    waiting = team.begin(team.worker("b", root=tmp_path / "elsewhere").await_start)
    with pytest.raises(NotSharedError):
        team.result(waiting)


def test_a_leader_that_says_nothing_is_a_timeout_that_names_it(team: Team) -> None:
    """A follower whose leader announces no position fails with a timeout that names the leader."""
    team.worker("silent")
    waiting = team.begin(team.worker("b", restore_timeout=20.0).await_start)
    team.steps(15.0)
    assert not waiting.done()
    with pytest.raises(RestoreTimeoutError, match=r"within 20 s: term 1 is held by silent.*raise restore_timeout"):
        team.result(waiting)


class Unreachable(MemoryCoordinator):
    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        raise CoordinatorUnavailableError("connection refused")


def test_a_coordinator_that_never_answers_is_a_timeout_that_says_so(team: Team) -> None:
    """The timeout gives the connection error, since the address may be wrong."""
    worker = team.worker("a", coordinator=Unreachable(team.clock), restore_timeout=20.0)
    with pytest.raises(RestoreTimeoutError, match="does not answer: connection refused"):
        team.result(team.begin(worker.await_start))


def test_a_leader_without_a_usable_checkpoint_fails_and_deletes_nothing(team: Team) -> None:
    """A leader whose only checkpoint is damaged fails and keeps the file. A fresh start would discard the run."""
    damaged = team.root / team.commit(1).name
    damaged.write_bytes(b"")
    worker = team.worker("a")
    with pytest.raises(NoUsableCheckpointError):
        team.result(team.begin(worker.await_start))
    assert damaged.exists()


def test_joining_the_directory_of_another_run_is_refused(team: Team) -> None:
    """The worker is refused before it becomes a member."""
    team.commit(1)
    with pytest.raises(RunMismatchError):
        team.worker("a", store=CheckpointStore(team.root, run_id="another"))
    assert team.member_ids() == []


# ---------------------------------------------------------------- saving


def test_only_the_leader_commits_and_announces_what_is_due(team: Team) -> None:
    """A boundary that is due for a follower leads to no commit."""
    leader, follower = team.started("a"), team.started("b")
    follower.boundary(snapshot(9), due=True)
    leader.boundary(snapshot(1), due=False)
    leader.boundary(snapshot(2), due=True)
    team.until(lambda: team.announcement.checkpoint is not None)
    team.steps(2.0)
    assert team.positions() == [Position(2)]
    assert (team.announcement.worker_id, team.announcement.position) == ("a", Position(2))


def test_a_new_leader_announces_the_newest_and_commits_what_is_due(team: Team) -> None:
    """A new leader announces the newest checkpoint under its own term, then commits its own boundaries."""
    leader, follower = team.started("a"), team.started("b")
    leader.boundary(snapshot(1), due=True)
    team.until(lambda: team.announcement.checkpoint is not None)
    follower.boundary(snapshot(0, 5), due=True)
    team.kill(leader)
    team.until(lambda: team.announcement.worker_id == "b")
    assert (team.announcement.finished, team.announcement.position) == (False, Position(1))
    assert team.positions() == [Position(1)]
    follower.boundary(snapshot(1, 1), due=True)
    team.until(lambda: team.announcement.position == Position(1, 1))
    assert team.positions() == [Position(1, 1), Position(1)]


def test_an_announcement_that_was_lost_is_made_again(team: Team) -> None:
    """The leader repeats an announcement that failed, as soon as the coordinator is back."""

    class LosesAnnouncements(MemoryCoordinator):
        failing = False

        def announce(self, announcement: Announcement) -> bool:
            if self.failing:
                raise CoordinatorUnavailableError("connection reset")
            return super().announce(announcement)

    coordinator = team.coordinator = LosesAnnouncements(team.clock)
    leader = team.started("a")
    coordinator.failing = True
    leader.boundary(snapshot(1), due=True)
    team.until(lambda: team.positions() == [Position(1)])
    team.steps(1.0)
    assert team.announcement.checkpoint is None
    coordinator.failing = False
    team.until(lambda: team.announcement.checkpoint is not None, limit=1.0)


def test_a_failed_commit_is_raised_at_the_next_boundary_if_asked_for(team: Team) -> None:
    """With `on_save_error="raise"`, the next boundary raises the store's error."""
    store = FaultyStore(team.root)
    worker = team.started("a", store=store, on_save_error="raise")
    store.broken = True
    worker.boundary(snapshot(1), due=True)
    assert saver_of(worker).drain(PATIENCE)
    with pytest.raises(StoreError, match="No space left on device"):
        worker.boundary(snapshot(1, 1), due=False)


def test_a_failed_commit_only_warns_otherwise(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """With `on_save_error="warn"`, training goes on and the saver retries at the next boundary."""
    store = FaultyStore(team.root)
    worker = team.started("a", store=store, on_save_error="warn")
    store.broken = True
    worker.boundary(snapshot(1), due=True)
    assert saver_of(worker).drain(PATIENCE)
    store.broken = False
    worker.boundary(snapshot(1, 1), due=False)
    assert saver_of(worker).drain(PATIENCE)
    assert team.positions() == [Position(1)]
    assert "commit_failed worker=a reason=\"can't write" in caplog.text


# ---------------------------------------------------------------- notices


def test_a_notice_to_the_leader_saves_its_last_boundary_and_hands_over(team: Team) -> None:
    """The leader saves a boundary that was not due and exits with its position. Then a follower leads."""
    leader, follower = team.started("a", exit_code=77), team.started("b")
    leader.boundary(snapshot(1, 3), due=False)
    leader.give_notice("SIGTERM")
    with pytest.raises(Preempted) as caught:
        team.result(team.begin(leader.check))
    assert caught.value.code == 77
    assert caught.value.position == Position(1, 3)
    assert [caught.value.checkpoint] == [row.name for row in CheckpointStore(team.root).list()]
    assert leader.closed
    assert not follower.notice_given
    team.until(lambda: team.holder() == "b", limit=1.0)
    assert team.member_ids() == ["b"]


def test_a_notice_to_a_follower_makes_the_leader_save(team: Team) -> None:
    """The follower exits after the leader's save is committed and announced. The leader keeps its lease."""
    leader, follower = team.started("a"), team.started("b")
    leader.boundary(snapshot(1, 3), due=False)
    follower.boundary(snapshot(1, 2), due=False)
    follower.give_notice("SIGTERM")
    preempted = team.result(team.begin(follower.preempt))
    assert preempted.position == Position(1, 3)
    assert team.positions() == [Position(1, 3)]
    team.steps(1.0)
    assert (team.holder(), team.member_ids()) == ("a", ["a"])
    assert team.coordinator.view().notices == ()


def test_a_follower_whose_notice_was_answered_stops_training_at_once(team: Team) -> None:
    """A preempted follower may train until its reserve begins, or until the leader acknowledges its notice."""
    leader, follower = team.started("a"), team.started("b", grace_period=100.0)
    leader.boundary(snapshot(1), due=False)
    given = team.clock.now()
    follower.give_notice("SIGTERM")
    assert team.cut_offs["b"][0] == given + 90.0
    team.until(lambda: len(team.cut_offs["b"]) > 1)
    assert team.cut_offs["b"][-1] <= team.clock.now() < given + 10.0


def test_a_leader_that_vanishes_while_a_follower_is_preempted_is_succeeded_by_it(team: Team) -> None:
    """The preempted follower waits until the lease expires, takes it, and saves its own last boundary."""
    leader, follower = team.started("a"), team.started("b", grace_period=120.0)
    leader.boundary(snapshot(1, 3), due=False)
    follower.boundary(snapshot(1, 2), due=False)
    team.kill(leader)
    follower.give_notice("SIGTERM")
    preempted = team.result(team.begin(follower.preempt))
    assert preempted.position == Position(1, 2)
    assert team.positions() == [Position(1, 2)]
    newest = CheckpointStore(team.root).latest()
    assert newest is not None
    assert newest.header.worker_id == "b"


def test_when_all_are_preempted_at_once_the_newest_boundary_of_the_leader_is_saved(team: Team) -> None:
    """All workers exit with the position that the leader saved."""
    workers = [team.started(f"w{number}") for number in range(3)]
    for number, worker in enumerate(workers):
        worker.boundary(snapshot(1, 5 - number), due=False)
    for worker in workers:
        worker.give_notice("SIGTERM")
    futures = [team.begin(worker.preempt) for worker in workers]
    results = [team.result(future) for future in futures]
    assert max(team.positions()) == Position(1, 5)
    assert [result.position for result in results] == [Position(1, 5)] * 3
    assert team.member_ids() == []


def test_a_notice_that_nobody_can_answer_ends_before_the_kill(team: Team) -> None:
    """A follower whose leader can't save exits shortly before its grace period ends."""
    leader, follower = team.started("a"), team.started("b", grace_period=10.0)
    saver_of(leader).stop()
    follower.give_notice("SIGTERM")
    leaving = team.begin(follower.preempt)
    team.until(lambda: follower.closed)
    # The clock stands still while the follower leaves.
    preempted = leaving.result(PATIENCE)
    assert preempted.position is None
    assert 8.0 < preempted.seconds < 10.0


def test_an_unreachable_coordinator_does_not_keep_the_last_leader_from_saving(team: Team) -> None:
    """A leader that lost its lease with the coordinator still commits, under the last term it held."""

    class Partitioned(MemoryCoordinator):
        cut = False

        def heartbeat(self, beat: Heartbeat) -> ClusterView:
            self._maybe_cut()
            return super().heartbeat(beat)

        def announce(self, announcement: Announcement) -> bool:
            self._maybe_cut()
            return super().announce(announcement)

        def resign(self, worker_id: str) -> None:
            self._maybe_cut()

        def leave(self, worker_id: str) -> None:
            self._maybe_cut()

        def _maybe_cut(self) -> None:
            if self.cut:
                raise CoordinatorUnavailableError("no route to host")

    coordinator = team.coordinator = Partitioned(team.clock)
    leader = team.started("a", grace_period=60.0)
    leader.boundary(snapshot(1, 3), due=False)
    coordinator.cut = True
    team.steps(12.0)
    assert not elector_of(leader).is_leader
    leader.give_notice("SIGTERM")
    preempted = team.result(team.begin(leader.preempt))
    assert preempted.position == Position(1, 3)
    assert preempted.seconds < 5.0


def test_a_notice_while_waiting_for_the_start_is_a_clean_exit(team: Team) -> None:
    """A worker that waits for its start position exits at a notice, with no checkpoint to name."""
    team.worker("silent")
    waiting_worker = team.worker("b", grace_period=30.0)
    waiting = team.begin(waiting_worker.await_start)
    team.steps(1.0)
    waiting_worker.give_notice("SIGTERM")
    with pytest.raises(Preempted) as caught:
        team.result(waiting)
    assert caught.value.checkpoint is None
    assert team.member_ids() == ["silent"]


def test_only_the_first_notice_counts(team: Team) -> None:
    """A second signal neither extends the grace period nor publishes a second notice."""
    worker = team.started("a", grace_period=100.0)
    worker.give_notice("SIGTERM")
    team.steps(3.0)
    worker.give_notice("SIGTERM")
    assert len(team.coordinator.view().notices) == 1
    assert min(team.cut_offs["a"]) <= 1000.0 + 95.0


# ---------------------------------------------------------------- the end


def test_the_last_one_out_deletes(team: Team) -> None:
    """The first worker that finishes keeps the backup, since others may need it. The last one deletes it."""
    leader, follower = team.started("a"), team.started("b")
    for worker in (leader, follower):
        worker.boundary(snapshot(2), due=True)
    team.result(team.begin(leader.finish))
    assert team.positions() == [Position(2)]
    team.until(lambda: team.holder() == "b")
    team.result(team.begin(follower.finish))
    assert not team.root.exists()
    assert team.member_ids() == []


def test_a_backup_that_is_to_be_kept_is_kept(team: Team) -> None:
    """With `delete_checkpoint=False`, the last worker keeps the backup and announces the end."""
    worker = team.started("a", delete_checkpoint=False)
    worker.boundary(snapshot(2), due=True)
    team.result(team.begin(worker.finish))
    assert team.positions() == [Position(2)]
    assert team.announcement.finished


def test_a_backup_that_is_kept_ends_with_the_final_state(team: Team) -> None:
    """The final state is committed though it was not due, so a worker that joins later finds the run finished."""
    leader, follower = (team.started(name, delete_checkpoint=False) for name in ("a", "b"))
    for worker in (leader, follower):
        worker.boundary(snapshot(1), due=True)
        worker.boundary(snapshot(2), due=False)
    team.result(team.begin(leader.finish))
    assert team.positions()[0] == Position(2)
    team.result(team.begin(follower.finish))
    late = team.worker("c", delete_checkpoint=False)
    assert team.result(team.begin(late.await_start)).checkpoint.position == Position(2)


def test_a_member_that_fell_silent_is_waited_for_until_it_expires(team: Team) -> None:
    """A silent member may be paused and still need the backup, so deletion waits until its membership expires."""
    worker, silent = team.started("a"), team.started("b")
    worker.boundary(snapshot(2), due=True)
    team.kill(silent)
    team.steps(3.0)
    finishing = team.begin(worker.finish)
    team.steps(9.0)
    assert not finishing.done()
    assert team.positions() == [Position(2)]
    team.result(finishing)
    assert not team.root.exists()


def test_a_notice_while_the_last_one_waits_keeps_the_backup(team: Team) -> None:
    """A worker that is preempted before it has deleted the backup keeps it."""
    worker, silent = team.started("a"), team.started("b")
    worker.boundary(snapshot(2), due=True)
    team.kill(silent)
    team.steps(3.0)
    finishing = team.begin(worker.finish)
    team.steps(3.0)
    worker.give_notice("SIGTERM")
    team.until(finishing.done)
    assert team.positions() == [Position(2)]


def test_a_preempted_run_keeps_its_backup(team: Team) -> None:
    """A worker that has a notice when it finishes exits as preempted and deletes nothing."""
    worker = team.started("a")
    worker.boundary(snapshot(1), due=False)
    worker.give_notice("SIGTERM")
    with pytest.raises(Preempted):
        team.result(team.begin(worker.finish))
    assert team.positions() == [Position(1)]


def test_a_worker_that_leaves_closes_its_storage(team: Team) -> None:
    """Closing a worker closes its storage, so that no fit leaves a connection open."""
    worker = team.started("a")
    with mock.patch.object(LocalStorage, "close", autospec=True) as close:
        worker.close(timeout=0.0)
    close.assert_called_once_with(context_of(worker).store.storage)


def test_a_close_that_is_interrupted_leaves_the_run_all_the_same(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during the wait for a commit still gives up lease and membership, since the process may live on."""
    worker = team.started("a")

    def interrupted(_: float) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(saver_of(worker), "drain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.close(timeout=PATIENCE)
    assert team.holder() is None
    assert team.member_ids() == []


def test_closing_commits_what_is_due_and_lets_the_next_one_lead_at_once(team: Team) -> None:
    """After a fit that failed, the next fit in the same process leads at once, from the last boundary that was due."""
    worker = team.started("a")
    worker.boundary(snapshot(1), due=True)
    worker.close(timeout=PATIENCE)
    worker.close(timeout=PATIENCE)
    assert team.positions() == [Position(1)]
    successor = team.worker("b")
    assert team.result(team.begin(successor.await_start), limit=1.0).checkpoint.position == Position(1)


# ---------------------------------------------------------------- standby


def test_a_standby_waits_while_another_trains(team: Team) -> None:
    """A standby waits for longer than its restore timeout, and its role is visible to all members."""
    team.commit(1)
    team.started("a")
    standby = team.worker("b", standby=True, restore_timeout=5.0)
    waiting = team.begin(standby.await_start)
    team.steps(30.0)
    assert not waiting.done()
    assert {member.role for member in team.coordinator.members()} == {"leader", "standby"}


def test_a_standby_takes_over_from_the_newest_checkpoint(team: Team) -> None:
    """A standby takes the lease of a leader that stopped, and starts from the newest checkpoint."""
    leader = team.started("a", standby=True)
    waiting = team.begin(team.worker("b", standby=True).await_start)
    leader.boundary(snapshot(3), due=True)
    team.until(lambda: team.announcement.checkpoint is not None)
    team.kill(leader)
    start = team.result(waiting)
    assert (start.checkpoint.position, start.finished) == (Position(3), False)
    assert team.holder() == "b"


def test_a_notice_ends_a_standbys_wait(team: Team) -> None:
    """A standby exits at a notice without a save, and the leader keeps its lease."""
    team.started("a")
    standby = team.worker("b", standby=True)
    waiting = team.begin(standby.await_start)
    team.steps(1.0)
    standby.give_notice("SIGTERM")
    with pytest.raises(Preempted):
        team.result(waiting)
    assert (team.holder(), team.member_ids()) == ("a", ["a"])
