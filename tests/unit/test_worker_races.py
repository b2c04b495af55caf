"""Races between a worker's threads. Each test holds one thread up at the worst place, so that the race is certain."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot, is_final
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import Clock
from distributed_backup.coordination.base import Announcement, ClusterView, Heartbeat, Notice
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import CoordinatorUnavailableError
from distributed_backup.position import Position
from distributed_backup.preemption.exit import Preempted
from distributed_backup.worker import preemption, shutdown
from distributed_backup.worker.preemption import PreemptionStatus, WaitForSave
from distributed_backup.worker.worker import Worker
from tests.support.internals import context_of, elector_of, saver_of
from tests.support.team import PATIENCE, FaultyStore, Team, snapshot, soon


def test_a_standby_that_is_elected_as_the_run_finishes_knows_that_it_has_finished(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby that wins the lease before it has the new view must not decide by its older view."""
    observed = Worker.observed

    def late(self: Worker, view: ClusterView) -> None:
        if self.worker_id == "b" and view.holder == "b":
            # Long enough for the training thread to look in between.
            threading.Event().wait(0.3)
        observed(self, view)

    monkeypatch.setattr(Worker, "observed", late)
    leader = team.started("a", standby=True, delete_checkpoint=False)
    standby = team.worker("b", standby=True)
    waiting = team.begin(standby.await_start)
    team.steps(1.0)
    leader.boundary(snapshot(4), due=False)
    # No tick of the standby comes between announcement and resignation.
    finishing = team.begin(leader.finish)
    finishing.result(PATIENCE)
    start = team.result(waiting)
    assert (start.checkpoint.position, start.finished) == (Position(4), True)
    team.result(team.begin(standby.finish))
    assert not team.root.exists()


def test_a_notice_is_answered_although_its_save_was_quicker_than_its_registration(team: Team) -> None:
    """The leader acknowledges a notice whose save ended before its ticket was recorded."""
    leader, follower = team.started("a"), team.started("b")
    leader.boundary(snapshot(1), due=True)
    assert saver_of(leader).drain(PATIENCE)
    request_save, pause = saver_of(leader).request_save, threading.Event()

    def slow_to_return() -> int:
        ticket = request_save()
        pause.wait(0.3)
        return ticket

    saver_of(leader).request_save = slow_to_return  # type: ignore[method-assign]
    follower.give_notice("SIGTERM")
    assert team.result(team.begin(follower.preempt), limit=30.0).position == Position(1)


def test_a_follower_that_is_elected_while_it_restores_announces(team: Team) -> None:
    """A follower that is elected while it restores announces its start, so that late joiners can start in its term."""
    team.commit(1)
    leader = team.started("a")
    store = FaultyStore(team.root)
    loading, go = threading.Event(), threading.Event()

    def hold_up() -> None:
        loading.set()
        assert go.wait(PATIENCE)

    store.before_load = hold_up
    follower = team.worker("b", store=store)
    starting = team.begin(follower.await_start)
    team.until(loading.is_set)
    team.kill(leader)
    team.until(lambda: elector_of(follower).is_leader)
    go.set()
    assert team.result(starting).checkpoint.position == Position(1)
    late = team.worker("c")
    assert team.result(team.begin(late.await_start), limit=30.0).checkpoint.position == Position(1)


def test_a_former_leader_saves_when_the_coordinator_goes_away_after_its_notice(team: Team, tmp_path: Path) -> None:
    """A preempted former leader saves under its last term when the coordinator is lost after the notice."""

    class Partitioned(MemoryCoordinator):
        cut = False

        def heartbeat(self, beat: Heartbeat) -> ClusterView:
            self._maybe_cut()
            return super().heartbeat(beat)

        def announce(self, announcement: Announcement) -> bool:
            self._maybe_cut()
            return super().announce(announcement)

        def _maybe_cut(self) -> None:
            if self.cut:
                raise CoordinatorUnavailableError("no route to host")

    coordinator = team.coordinator = Partitioned(team.clock)
    former = team.started("a", grace_period=60.0, timings=LeaseTimings())
    coordinator.resign("a")
    coordinator.heartbeat(Heartbeat(worker_id="other", campaign=True, floor=0, duration=1e6))
    team.until(lambda: elector_of(former).term is None)
    former.boundary(snapshot(1, 3), due=False)
    former.give_notice("SIGTERM")
    leaving = team.begin(former.preempt)
    team.steps(1.0)
    coordinator.cut = True
    team.steps(5.0)
    # The clock stands still here, since the saver waits in real time between two looks.
    soon(team.positions)
    team.until(leaving.done, limit=90.0)
    assert team.positions() == [Position(1, 3)]


def test_the_end_stays_announced_whatever_is_asked_for_meanwhile(team: Team) -> None:
    """A notice that is acknowledged between the announcement of the end and the exit must not hide the end."""
    leader = team.started("a", standby=True, delete_checkpoint=False)
    team.worker("b", standby=True)
    leader.boundary(snapshot(2), due=True)
    team.until(lambda: team.positions() == [Position(2)])
    stop = elector_of(leader).stop

    def tick_once_more() -> None:
        team.coordinator.notify(Notice(notice_id="n", worker_id="x", reason="SIGTERM", remaining=1e5))
        elector_of(leader).tick()
        team.until(lambda: "n" in team.announcement.acknowledged)
        stop()

    elector_of(leader).stop = tick_once_more  # type: ignore[method-assign]
    team.result(team.begin(leader.finish))
    assert (team.announcement.finished, team.announcement.acknowledged) == (True, ("n",))


def test_answers_are_forgotten_when_their_notices_are_over(team: Team) -> None:
    """The announcement drops acknowledged notices of members that left, so a spot fleet does not make it grow."""
    leader = team.started("a")
    leader.boundary(snapshot(1), due=False)
    for number in range(20):
        notice = Notice(notice_id=f"n{number}", worker_id=f"w{number}", reason="SIGTERM", remaining=1e5)
        team.coordinator.notify(notice)
        team.step()
        team.until(lambda name=notice.notice_id: name in team.announcement.acknowledged)  # type: ignore[misc]
        team.coordinator.leave(f"w{number}")
    assert len(team.announcement.acknowledged) < 3


def test_training_is_bounded_before_the_others_are_told(team: Team) -> None:
    """Training gets its time limit even if the call that publishes the notice hangs."""
    worker = team.started("a")
    gate = threading.Event()

    def hang(notice: Notice) -> None:
        gate.wait(PATIENCE)

    team.coordinator.notify = hang  # type: ignore[method-assign]
    telling = team.begin(lambda: worker.give_notice("SIGTERM"))
    try:
        team.until(lambda: bool(team.cut_offs["a"]))
        assert not telling.done()
    finally:
        gate.set()
        telling.result(PATIENCE)


def test_with_other_data_the_epoch_that_began_anew_is_saved(team: Team) -> None:
    """A lower batch is saved if its data is new, since batches of two pipelines can't be compared."""
    old = Snapshot(position=Position(1, 90), body=b"{}", data="old")
    CheckpointStore(team.root).commit(old, term=1, worker_id="earlier")
    leader = team.started("a")
    leader.training_started(Position(1))
    leader.boundary(Snapshot(position=Position(1, 5), body=b"{}", data="new"), due=False)
    leader.give_notice("SIGTERM")
    assert team.result(team.begin(leader.preempt)).position == Position(1, 5)


def test_a_leader_whose_term_the_store_refuses_campaigns_for_a_higher_one(team: Team) -> None:
    """A leader whose term is below the newest checkpoint's takes a higher term and commits."""
    leader = team.started("a")
    team.commit(0, 5, term=9)
    leader.boundary(snapshot(0, 6), due=True)
    team.until(lambda: saver_of(leader)._stale_term is not None)
    leader.boundary(snapshot(0, 7), due=True)
    team.until(lambda: Position(0, 7) in team.positions())
    assert (elector_of(leader).term or 0) > 9


def test_a_full_disk_at_the_end_is_tried_until_a_limit(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """A final commit that keeps failing ends at a time limit, with an error in the log."""
    store = FaultyStore(team.root, keep=10)
    leader = team.started("a", store=store, delete_checkpoint=False)
    store.broken = True
    leader.boundary(snapshot(3), due=True)
    finishing = team.begin(leader.finish)
    team.result(finishing)
    assert "the final state could not be saved" in caplog.text


class Gated(FaultyStore):
    """A commit waits until the gate is open."""

    gate = threading.Event()

    def commit(self, snapshot: Snapshot, *, term: int, worker_id: str) -> CheckpointHeader:
        assert self.gate.wait(PATIENCE)
        return super().commit(snapshot, term=term, worker_id=worker_id)


def test_a_worker_that_was_suspended_in_its_last_commit_tries_it_still(team: Team) -> None:
    """The time limit of a storage that refuses it has passed meanwhile."""
    store = Gated(team.root)
    store.gate = threading.Event()
    worker = team.started("a", store=store, delete_checkpoint=False)
    worker.boundary(snapshot(3), due=False)
    saver, drain, tries = saver_of(worker), saver_of(worker).drain, list[float]()
    finishing = team.begin(lambda: worker.finish(replace(snapshot(3), final=True)))
    soon(lambda: saver._running)

    def tried_again(timeout: float) -> bool:
        tries.append(timeout)
        if len(tries) > 2:
            store.gate.set()
        # In each of them.
        team.clock.advance(60.0)
        return drain(timeout)

    saver.drain = tried_again  # type: ignore[method-assign]
    team.clock.advance(60.0)
    finishing.result(PATIENCE)
    assert is_final(store.names()[0])


def test_a_save_between_the_decision_to_wait_and_the_wait_ends_it(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that ends just before the wait begins must end the wait, since a short grace period has no time for it."""
    store = Gated(team.root)
    store.gate = threading.Event()
    worker = team.started("a", store=store)
    worker.boundary(snapshot(1), due=False)
    held: list[WaitForSave] = []

    def decide_then_save(status: PreemptionStatus) -> WaitForSave | None:
        step = next_step(status)
        if step is not None and not held:
            store.gate.set()
            soon(lambda: context_of(worker).notices.own_is_acknowledged)
            held.append(step)
        return step

    next_step = preemption.next_step
    monkeypatch.setattr(preemption, "next_step", decide_then_save)
    monkeypatch.setattr(preemption, "WAIT_SLICE", 2 * PATIENCE)
    worker.give_notice("SIGTERM")
    assert team.begin(worker.preempt).result(PATIENCE).position == Position(1)
    assert held, "the save came before the decision: nothing was shown"


class Unhurried(MemoryCoordinator):
    """Its ticks are as rare as `RARE` asks for, so a wait for the next tick outlasts a test."""

    heartbeat_interval = 1e5


RARE = LeaseTimings(duration=900.0, renew_deadline=800.0, retry_period=10 * PATIENCE)


def test_a_notice_between_the_look_for_other_members_and_the_wait_ends_it(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that waits to be the last one out must not wait for a whole tick after its notice."""
    worker = team.started("a", coordinator=Unhurried(team.clock), timings=RARE, delete_checkpoint=True)
    worker.boundary(snapshot(1), due=True)
    deletion_step = shutdown.deletion_step

    def decide_then_notice(*arguments: Any, **values: Any) -> str:
        step = deletion_step(*arguments, **values)
        worker.give_notice("SIGTERM")
        return step

    monkeypatch.setattr(shutdown, "deletion_step", decide_then_notice)
    with pytest.raises(Preempted):
        team.begin(worker.finish).result(PATIENCE / 2)
    assert team.positions() == [Position(1)]


def test_a_notice_during_a_commit_that_hangs_ends_the_wait_of_a_finished_worker(team: Team) -> None:
    """A finished worker serves a notice that comes while it waits for its last commit."""
    store = Gated(team.root)
    store.gate = threading.Event()
    worker = team.started("a", store=store, coordinator=Unhurried(team.clock), timings=RARE)
    worker.boundary(snapshot(1), due=True)
    drain = saver_of(worker).drain

    def notice_then_drain(timeout: float) -> bool:
        worker.give_notice("SIGTERM")
        return drain(timeout)

    saver_of(worker).drain = notice_then_drain  # type: ignore[method-assign]
    preempt, serving = worker._shutdown.preempt, threading.Event()

    def served() -> Preempted:
        serving.set()
        return preempt()

    worker._shutdown.preempt = served  # type: ignore[method-assign]
    finishing = team.begin(worker.finish)
    try:
        assert serving.wait(PATIENCE / 3)
    finally:
        store.gate.set()
        context_of(worker).state.notify_all()
    with pytest.raises(Preempted):
        finishing.result(PATIENCE)


class Silent(MemoryCoordinator):
    """Records resignations and leaves. Heartbeats fail while it is `cut`."""

    cut = False

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.calls: list[str] = []

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        if self.cut:
            raise CoordinatorUnavailableError("no answer within 0.4 s")
        return super().heartbeat(beat)

    def resign(self, worker_id: str) -> None:
        self.calls.append("resign")
        super().resign(worker_id)

    def leave(self, worker_id: str) -> None:
        self.calls.append("leave")
        super().leave(worker_id)


@pytest.mark.parametrize(
    ("cut", "grace_period", "calls"),
    [(False, 4.0, ["resign", "leave"]), (True, 4.0, []), (True, 30.0, ["resign", "leave"])],
)
def test_a_preempted_worker_calls_a_coordinator_that_does_not_answer_only_if_time_is_left(
    team: Team, cut: bool, grace_period: float, calls: list[str]
) -> None:
    """Each call may cost its time limit. One failed heartbeat must not cost the next leader a whole lease."""
    coordinator = Silent(team.clock)
    worker = team.started("a", coordinator=coordinator, grace_period=grace_period)
    worker.boundary(snapshot(1), due=False)
    coordinator.cut = cut
    team.until(lambda: (elector_of(worker).coordinator_error is not None) == cut)
    worker.give_notice("SIGTERM")
    # The clock stands still: the time left does not depend on the machine.
    assert worker.preempt().position == Position(1)
    assert coordinator.calls == calls


class FullDisk(FileCoordinator):
    """While `full`, the record of a member can't be written, so each heartbeat fails."""

    full = False

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        if self.full:
            raise CoordinatorUnavailableError("can't coordinate: No space left on device")
        return super().heartbeat(beat)


def test_a_preempted_worker_frees_its_file_lock_though_its_heartbeats_fail(team: Team, tmp_path: Path) -> None:
    """A file lock does not expire. Another worker must lead though the preempted process lives on."""
    coordinator = FullDisk(tmp_path / "coordinator", team.clock)
    worker = team.started("a", coordinator=coordinator)
    worker.boundary(snapshot(1), due=False)
    coordinator.full = True
    team.until(lambda: elector_of(worker).coordinator_error is not None)
    worker.give_notice("SIGTERM")
    team.result(team.begin(worker.preempt))
    beat = Heartbeat(worker_id="b", campaign=True, floor=0, duration=15.0)
    other = FileCoordinator(tmp_path / "coordinator", team.clock)
    assert other.heartbeat(beat).holder == "b"
    other.resign("b")
