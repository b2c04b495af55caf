"""A worker over a coordinator on a network: hints, requests of operators, refusals, calls that hang."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_backup.checkpoints.fencing import TermClaims
from distributed_backup.checkpoints.format import Checkpoint
from distributed_backup.coordination.base import Announcement, ClusterView, Heartbeat, Hint, Notice
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import (
    ConfigError,
    CoordinatorUnavailableError,
    NotSharedError,
    RestoreTimeoutError,
    StoreError,
)
from distributed_backup.position import Position
from distributed_backup.preemption.exit import Preempted
from tests.support.clocks import FakeClock
from tests.support.internals import context_of, elector_of, saver_of
from tests.support.stores import remove_at_once
from tests.support.team import PATIENCE, FaultyStore, Gone, Team, snapshot, soon


class Hinting(MemoryCoordinator):
    """Gives hints. Its ticks are so rare that only hints make workers act within a test."""

    heartbeat_interval = 1e5

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.wakes: list[Callable[[Hint], None]] = []
        self.beats: list[str] = []

    def subscribe(self, wake: Callable[[Hint], None]) -> Callable[[], None]:
        self.wakes.append(wake)
        return lambda: self.wakes.remove(wake)

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        self.beats.append(beat.worker_id)
        return super().heartbeat(beat)

    def hint(self, hint: Hint) -> None:
        for wake in list(self.wakes):
            wake(hint)

    def resign(self, worker_id: str) -> None:
        super().resign(worker_id)
        self.hint("free")

    def announce(self, announcement: Announcement) -> bool:
        made = super().announce(announcement)
        self.hint("finished" if announcement.finished else "announced")
        return made

    def notify(self, notice: Notice) -> None:
        super().notify(notice)
        self.hint("noticed")


@pytest.fixture
def hinting(team: Team) -> Hinting:
    coordinator = Hinting(team.clock)
    team.coordinator = coordinator
    return coordinator


def request(worker_id: str, action: str = "save", remaining: float = 1e4) -> Notice:
    return Notice(notice_id="request", worker_id=worker_id, reason="operator", remaining=remaining, action=action)  # type: ignore[arg-type]


# ---------------------------------------------------------------- hints


def test_a_lease_that_is_given_back_is_taken_at_once(team: Team, hinting: Hinting) -> None:
    """A hint makes the follower take a free lease before its next tick."""
    leader = team.started("a")
    follower = team.worker("b")
    soon(lambda: "b" in hinting.beats)
    leader.close(timeout=0.0)
    soon(lambda: elector_of(follower).is_leader)


def test_who_waits_for_the_position_looks_when_it_is_announced(team: Team, hinting: Hinting) -> None:
    """A hint makes a waiting follower start as soon as the leader announces its position."""
    leader = team.worker("a")
    soon(lambda: elector_of(leader).is_leader)
    follower = team.worker("b")
    soon(lambda: "b" in hinting.beats)
    waiting = team.begin(follower.await_start)
    # The announcement then shows that the leader belongs to this incarnation, not to an earlier one.
    team.clock.advance(1.0)
    team.begin(leader.await_start).result(PATIENCE)
    soon(waiting.done)
    assert waiting.result(PATIENCE).checkpoint is None


def test_a_standby_that_lost_the_lease_stops_when_its_successor_announces(team: Team, hinting: Hinting) -> None:
    """Over Redis the next heartbeat may be 2 s away, and what is trained until then is paid for in vain."""
    former = team.started("a", standby=True)
    successor = team.worker("b", standby=True)
    soon(lambda: "b" in hinting.beats)
    waiting = team.begin(successor.await_start)
    elector_of(former).pause_campaign(1e4)
    waiting.result(PATIENCE)
    soon(lambda: former.stands_by)


def test_a_commit_wakes_nobody_who_trains(team: Team, hinting: Hinting) -> None:
    """A training follower sends no extra heartbeat for a commit, so a thousand followers don't do so at once."""
    leader, _ = team.started("a"), team.started("b")
    before = hinting.beats.count("b")
    leader.boundary(snapshot(1), due=True)
    assert saver_of(leader).drain(PATIENCE)
    soon(lambda: team.announcement.position == Position(1))
    assert hinting.beats.count("b") == before


def test_a_preempted_follower_hears_of_its_answer_at_once(team: Team, hinting: Hinting) -> None:
    """The notice wakes the leader, and the announcement of its save wakes the follower, before any tick."""
    leader, follower = team.started("a"), team.started("b")
    leader.boundary(snapshot(1), due=False)
    follower.give_notice("SIGTERM")
    preempted = team.begin(follower.preempt)
    soon(preempted.done)
    assert preempted.result().position == Position(1)


def test_a_standby_sleeps_through_commits_and_wakes_at_the_end(team: Team, hinting: Hinting) -> None:
    """A standby reacts to the end of the run, not to commits."""
    leader = team.started("a", standby=True, delete_checkpoint=False)
    standby = team.worker("b", standby=True, delete_checkpoint=False)
    waiting = team.begin(standby.await_start)
    soon(lambda: "b" in hinting.beats)
    # The standby must see the leader alive once, to know that the end belongs to this incarnation of the run.
    team.clock.advance(1.0)
    for worker in (leader, standby):
        count = hinting.beats.count(worker.worker_id)
        elector_of(worker).wake()
        soon(lambda worker=worker, count=count: hinting.beats.count(worker.worker_id) > count)  # type: ignore[misc]
    before = hinting.beats.count("b")
    leader.boundary(snapshot(1), due=True)
    soon(lambda: team.announcement.position == Position(1))
    assert hinting.beats.count("b") == before
    team.begin(leader.finish).result(PATIENCE)
    soon(waiting.done)
    assert waiting.result().finished


def test_nobody_listens_any_more_after_leaving(team: Team, hinting: Hinting) -> None:
    """A worker that left has no subscription, so a coordinator that serves the next fit does not wake it."""
    worker = team.started("a")
    assert len(hinting.wakes) == 1
    worker.close(timeout=0.0)
    assert hinting.wakes == []


# ---------------------------------------------------------------- requests of operators


def test_a_leader_that_is_asked_for_a_save_saves_and_goes_on(team: Team) -> None:
    """The leader acknowledges the request after the commit, and keeps its lease."""
    leader = team.started("a")
    leader.boundary(snapshot(0, 3), due=False)
    assert team.positions() == []
    team.coordinator.notify(request("operator-1"))
    team.until(lambda: "request" in team.announcement.acknowledged)
    assert team.positions() == [Position(0, 3)]
    leader.boundary(snapshot(0, 4), due=False)
    assert elector_of(leader).is_leader


def test_a_leader_that_is_asked_to_resign_saves_and_lets_another_lead(team: Team) -> None:
    """The leader saves before it resigns, and goes on as a follower."""
    leader, other = team.started("a"), team.started("b")
    leader.boundary(snapshot(0, 3), due=False)
    team.coordinator.notify(request("a", "resign"))
    team.until(lambda: elector_of(other).is_leader)
    assert team.positions() == [Position(0, 3)]
    leader.boundary(snapshot(0, 4), due=True)
    team.steps(3.0)
    assert team.holder() == "b"
    assert team.member_ids() == ["a", "b"]


def test_who_was_asked_to_resign_leads_again_if_nobody_else_does(team: Team) -> None:
    """When the request has expired, the former leader takes the free lease under a new term."""
    leader = team.started("a")
    leader.boundary(snapshot(0, 3), due=False)
    team.coordinator.notify(request("a", "resign", remaining=5.0))
    team.until(lambda: not elector_of(leader).is_leader)
    assert team.positions() == [Position(0, 3)]
    team.until(lambda: elector_of(leader).is_leader, limit=30.0)
    assert elector_of(leader).term == 2


def test_a_request_to_resign_is_obeyed_once(team: Team) -> None:
    """A former leader takes the free lease again, and keeps it although the request has not expired."""
    leader = team.started("a")
    leader.boundary(snapshot(0, 3), due=False)
    team.coordinator.notify(request("a", "resign", remaining=600.0))
    team.until(lambda: not elector_of(leader).is_leader)
    team.until(lambda: elector_of(leader).is_leader, limit=30.0)
    team.steps(5.0)
    assert elector_of(leader).term == 2


def test_a_request_to_resign_is_not_for_the_next_leader(team: Team) -> None:
    """A request applies only to the worker it names, so the next leader keeps its lease."""
    leader, other = team.started("a"), team.started("b")
    leader.boundary(snapshot(0, 3), due=False)
    other.boundary(snapshot(0, 3), due=False)
    team.coordinator.notify(request("a", "resign"))
    team.until(lambda: elector_of(other).is_leader)
    team.steps(5.0)
    assert (team.holder(), elector_of(other).term) == ("b", 2)


def test_a_leader_whose_save_fails_does_not_resign(team: Team) -> None:
    """A leader that can't save keeps its lease, since a handover would lose its state."""
    leader, other = team.started("a"), team.started("b")
    leader.boundary(snapshot(0, 3), due=False)
    context_of(leader).store.broken = True  # type: ignore[attr-defined]
    team.coordinator.notify(request("a", "resign"))
    team.steps(5.0)
    assert (team.holder(), elector_of(other).is_leader) == ("a", False)


# ---------------------------------------------------------------- refusals


class Refusing(MemoryCoordinator):
    """Refuses each login."""

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        raise ConfigError("redis://host refused the user name or password")


def test_a_coordinator_that_refuses_us_ends_the_start(team: Team) -> None:
    """A refused login ends the start at once, before `restore_timeout`."""
    worker = team.worker("a", coordinator=Refusing(team.clock))
    starting = team.begin(worker.await_start)
    with pytest.raises(ConfigError, match="refused the user name"):
        starting.result(PATIENCE)


def test_a_coordinator_that_is_gone_at_the_start_is_waited_for(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """The worker logs once that the coordinator is unreachable, and starts when it is back."""
    coordinator = team.coordinator = Gone(team.clock)
    with caplog.at_level(logging.INFO):
        worker = team.worker("a", restore_timeout=300.0)
        starting = team.begin(worker.await_start)
        team.steps(20.0)
        assert not starting.done()
        coordinator.gone = False
        assert team.result(starting).checkpoint is None
    assert caplog.text.count('unreachable worker=a reason="can\'t reach redis://host"') == 1
    assert " reachable worker=a" in caplog.text


# ---------------------------------------------------------------- calls that hang


class Hanging(MemoryCoordinator):
    """Each call hangs while `hangs` is set, until `release` is set."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.hangs = False
        self.hung = 0
        self.release = threading.Event()

    def _maybe_hang(self) -> None:
        if self.hangs:
            self.hung += 1
            self.release.wait()
            raise CoordinatorUnavailableError("redis://host did not answer within 2 s")

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        self._maybe_hang()
        return super().heartbeat(beat)

    def announce(self, announcement: Announcement) -> bool:
        self._maybe_hang()
        return super().announce(announcement)

    def notify(self, notice: Notice) -> None:
        self._maybe_hang()
        super().notify(notice)

    def resign(self, worker_id: str) -> None:
        self._maybe_hang()
        super().resign(worker_id)

    def leave(self, worker_id: str) -> None:
        self._maybe_hang()
        super().leave(worker_id)


def test_a_coordinator_that_hangs_does_not_hold_up_a_preemption(team: Team) -> None:
    """A preempted worker saves its boundary and exits in time, even if each call to the coordinator hangs."""
    coordinator = team.coordinator = Hanging(team.clock)
    worker = team.started("a", grace_period=2.0)
    worker.boundary(snapshot(0, 3), due=False)
    coordinator.hangs = True
    try:
        telling = threading.Thread(target=worker.give_notice, args=("SIGTERM",), daemon=True)
        telling.start()
        soon(lambda: worker.notice_given)
        preempted = team.begin(worker.preempt).result(PATIENCE)
        assert coordinator.hung, "nothing hung"
    finally:
        coordinator.hangs = False
        coordinator.release.set()
        telling.join(PATIENCE)
    assert isinstance(preempted, Preempted)
    assert preempted.position == Position(0, 3)
    assert team.positions() == [Position(0, 3)]


# ---------------------------------------------------------------- a coordinator that forgets, or is away


def test_a_finisher_whose_coordinator_forgot_everybody_deletes_nothing(team: Team) -> None:
    """A worker that finishes must not delete the backup because an emptied server lists no members."""
    leader, other = team.started("a"), team.started("b")
    leader.boundary(snapshot(1), due=True)
    team.until(lambda: team.positions() == [Position(1)])
    leave = team.coordinator.leave

    def emptied(worker_id: str) -> None:
        leave(worker_id)
        team.coordinator.erase()

    team.coordinator.leave = emptied  # type: ignore[method-assign]
    finishing = team.begin(leader.finish)
    team.result(finishing)
    assert team.positions() == [Position(1)]
    team.until(lambda: elector_of(other).is_leader)
    other.boundary(snapshot(2), due=True)
    team.until(lambda: Position(2) in team.positions())


def test_who_stands_back_for_an_operator_saves_when_it_is_preempted(team: Team) -> None:
    """A preempted worker that resigned by request takes the free lease again to save its last boundary."""
    worker = team.started("a", grace_period=60.0)
    worker.boundary(snapshot(0, 1), due=False)
    team.coordinator.notify(request("a", "resign", remaining=600.0))
    team.until(lambda: not elector_of(worker).is_leader)
    worker.boundary(snapshot(0, 2), due=False)
    worker.give_notice("SIGTERM")
    assert team.result(team.begin(worker.preempt), limit=5.0).position == Position(0, 2)


def test_nobody_stands_back_for_longer_than_a_lease(team: Team) -> None:
    """A worker that resigned by request takes a free lease again after one lease duration."""
    worker = team.started("a")
    worker.boundary(snapshot(0, 1), due=False)
    team.coordinator.notify(request("a", "resign", remaining=600.0))
    team.until(lambda: not elector_of(worker).is_leader)
    team.coordinator.notify(request("a", "resign", remaining=0.001))
    team.until(lambda: elector_of(worker).is_leader, limit=LeaseTimings().duration + 2.0)


class LosesNotices(MemoryCoordinator):
    """Loses each notice while `failing`."""

    failing = True

    def notify(self, notice: Notice) -> None:
        if self.failing:
            raise CoordinatorUnavailableError("can't reach redis://host")
        super().notify(notice)


def test_a_notice_that_could_not_be_told_is_told_again(team: Team) -> None:
    """A worker retries a notice that failed to reach the coordinator, with the rest of its grace period."""
    coordinator = team.coordinator = LosesNotices(team.clock)
    leader, follower = team.started("a"), team.started("b", grace_period=60.0)
    leader.boundary(snapshot(0, 1), due=False)
    follower.give_notice("SIGTERM")
    leaving = team.begin(follower.preempt)
    team.steps(5.0)
    assert not leaving.done()
    coordinator.failing = False
    team.until(lambda: coordinator.view().notices)
    assert coordinator.view().notices[0].remaining < 56.0
    assert team.result(leaving, limit=30.0).position == Position(0, 1)


def test_a_notice_that_was_forgotten_is_told_again(team: Team) -> None:
    """A worker publishes its notice again after the server was emptied."""
    leader, follower = team.started("a"), team.started("b", grace_period=60.0)
    leader.boundary(snapshot(0, 1), due=False)
    context_of(leader).store.broken = True  # type: ignore[attr-defined]
    follower.give_notice("SIGTERM")
    leaving = team.begin(follower.preempt)
    team.until(lambda: team.coordinator.view().notices)
    team.coordinator.erase()
    elector_of(leader).tick()
    assert elector_of(leader).term == 2
    context_of(leader).store.broken = False  # type: ignore[attr-defined]
    assert team.result(leaving, limit=30.0).position == Position(0, 1)


def test_a_start_that_can_not_lead_says_why(team: Team) -> None:
    """The timeout gives the error of the store that kept this worker from leading."""

    class Unclaimable(TermClaims):
        def claim_term(self, term: int) -> bool:
            raise StoreError("can't claim the term x: Read-only file system", path="x")

    store = FaultyStore(team.root)
    store.terms = Unclaimable(store.storage)
    worker = team.worker("a", store=store, restore_timeout=20.0)
    with pytest.raises(RestoreTimeoutError, match=r"this worker can't lead: can't claim the term .*Read-only"):
        team.result(team.begin(worker.await_start))


def test_a_checkpoint_that_can_not_be_read_for_a_while_is_waited_for(
    team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    """A leader waits for a busy store until `restore_timeout`, with one log line, and uses no older checkpoint."""

    class Busy(FaultyStore):
        tries = 0

        def latest(self) -> Checkpoint | None:
            Busy.tries += 1
            if Busy.tries < 4:
                raise StoreError("can't read it: slow down", path=self.location)
            return super().latest()

    team.commit(3)
    worker = team.worker("a", store=Busy(team.root))
    assert team.result(team.begin(worker.await_start)).checkpoint.position == Position(3)
    assert caplog.text.count("can't restore yet, retrying worker=a reason=can't read it: slow down") == 1
    Busy.tries = -(10**9)
    late = team.worker("b", store=Busy(team.root), restore_timeout=20.0, coordinator=MemoryCoordinator(team.clock))
    with pytest.raises(StoreError, match="slow down"):
        team.result(team.begin(late.await_start))


def test_a_lease_that_outlasts_the_grace_period_is_warned_of(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """A lease as long as the grace period logs a warning, since no other worker could take over in time."""
    team.worker("a", grace_period=15.0)
    assert "timings.duration of 15 s is too long for a grace_period of 15 s" in caplog.text
    caplog.clear()
    team.worker("b", grace_period=30.0)
    assert "is too long for" not in caplog.text


def test_an_announced_checkpoint_that_was_pruned_since_is_waited_past(team: Team) -> None:
    """A follower waits for the next announcement if the announced checkpoint is gone and a newer one is there."""
    first = team.commit(1, term=1)
    team.coordinator.heartbeat(Heartbeat(worker_id="cut-off", campaign=True, floor=1, duration=1e3))
    worker = team.worker("a")
    starting = team.begin(worker.await_start)
    team.step()
    announced = Announcement(
        term=2,
        worker_id="cut-off",
        position=first.position,
        checkpoint=first.name,
        digest=first.digest,
    )
    second = team.commit(2, term=2)
    (team.root / first.name).unlink()
    assert team.coordinator.announce(announced)
    team.steps(10.0)
    assert not starting.done()
    committed = replace(announced, checkpoint=second.name, position=second.position, digest=second.digest)
    assert team.coordinator.announce(committed)
    assert team.result(starting).checkpoint.position == Position(2)


def test_what_began_in_the_directory_while_the_last_one_deleted_it_stays(team: Team) -> None:
    """The last worker deletes only its own run, so a run that begins during the deletion keeps its checkpoints."""
    leader = team.started("a")
    leader.boundary(snapshot(1), due=True)
    erase = team.coordinator.erase

    def erased() -> None:
        erase()
        team.commit(0, 1)

    team.coordinator.erase = erased  # type: ignore[method-assign]
    team.result(team.begin(leader.finish))
    assert team.positions() == [Position(0, 1)]


# ---------------------------------------------------------------- directories that are not shared


def test_a_leader_that_commits_often_does_not_hide_that_the_directory_is_not_shared(team: Team, tmp_path: Path) -> None:
    """A follower without the announced checkpoints fails, even if a new one is announced at each look."""
    leader = team.started("a")
    leader.boundary(snapshot(0, 1), due=True)
    team.until(team.positions)
    other = team.worker("b", root=tmp_path / "elsewhere", restore_timeout=60.0)
    waiting = team.begin(other.await_start)

    def commit_on_and_on() -> bool:
        batch = len(team.positions()) + 1
        leader.boundary(snapshot(0, batch), due=True)
        team.steps(1.0)
        return waiting.done()

    team.until(commit_on_and_on)
    with pytest.raises(NotSharedError, match=r"which is not in .*elsewhere here: is the directory shared"):
        waiting.result()


def test_a_new_leader_without_what_the_last_one_announced_does_not_start_over(team: Team, tmp_path: Path) -> None:
    """A new leader whose directory lacks the announced checkpoint fails instead of training from the start."""
    leader, other = team.started("a"), team.worker("b", root=tmp_path / "elsewhere", standby=True)
    waiting = team.begin(other.await_start)
    team.steps(1.0)
    leader.boundary(snapshot(3), due=True)
    team.until(lambda: team.announcement.position == Position(3))
    team.steps(1.0)
    leader.close(timeout=0.0)
    with pytest.raises(NotSharedError, match=r"a announced 0000000001-00000003-00000000.ckpt, which is not in"):
        team.result(waiting)


def test_a_worker_that_was_away_until_the_run_was_deleted_learns_that(team: Team, tmp_path: Path) -> None:
    """The announcement is still on record, because the last worker out died before it had erased it."""
    leader = team.started("a", standby=True, delete_checkpoint=False)
    waiting = team.begin(team.worker("b", root=tmp_path / "elsewhere", standby=True).await_start)
    team.steps(1.0)
    leader.boundary(snapshot(3), due=True)
    team.until(lambda: team.announcement.position == Position(3))
    team.steps(1.0)
    team.result(team.begin(leader.finish))
    assert team.announcement.finished
    with pytest.raises(NotSharedError, match=r"If it is, the run was complete and was deleted while this worker"):
        team.result(waiting)


def test_a_run_that_was_started_over_on_purpose_is(team: Team) -> None:
    """The record of an earlier incarnation does not keep an emptied directory from a fresh start."""
    first = team.commit(3)
    team.coordinator.heartbeat(Heartbeat(worker_id="dead", campaign=True, floor=0, duration=15.0))
    announced = Announcement(
        term=1, worker_id="dead", position=first.position, checkpoint=first.name, digest=first.digest
    )
    assert team.coordinator.announce(announced)
    team.clock.advance(1.0)
    (team.root / first.name).unlink()
    worker = team.worker("a")
    assert team.result(team.begin(worker.await_start)).checkpoint is None


def test_a_commit_that_fails_again_and_again_is_logged_once(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """Five failed commits log one error, and the next commit that succeeds logs the recovery."""
    worker = team.started("a")
    context_of(worker).store.broken = True  # type: ignore[attr-defined]
    with caplog.at_level(logging.INFO):
        for batch in range(1, 6):
            worker.boundary(snapshot(0, batch), due=True)
            assert saver_of(worker).drain(PATIENCE)
        assert caplog.text.count("commit_failed ") == caplog.text.count(" intact=true") == 1
        context_of(worker).store.broken = False  # type: ignore[attr-defined]
        worker.boundary(snapshot(0, 6), due=True)
        team.until(lambda: team.positions() == [Position(0, 6)])
        team.until(lambda: "commit_recovered worker=a" in caplog.text)


def test_a_directory_that_is_gone_is_not_said_to_be_intact(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """A failed commit is logged with `intact=false` if the directory was removed and can't be made again."""
    worker = team.started("a")
    remove_at_once(team.root)
    team.root.write_text("a file")
    worker.boundary(snapshot(0, 1), due=True)
    team.until(lambda: "commit_failed" in caplog.text)
    assert "intact=false" in caplog.text
    assert "intact=true" not in caplog.text
