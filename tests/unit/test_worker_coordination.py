"""A worker and what a coordinator on a network adds: hints, requests of operators, refusals, calls that hang."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from distributed_backup.checkpoint import Position
from distributed_backup.coordinators.base import Announcement, ClusterView, Heartbeat, Hint, Notice
from distributed_backup.coordinators.memory import MemoryCoordinator
from distributed_backup.errors import ConfigError, CoordinatorUnavailableError, Preempted
from tests.clocks import FakeClock
from tests.unit.test_worker import PATIENCE, Team, snapshot, team

__all__ = ["team"]


class Hinting(MemoryCoordinator):
    """Gives hints, and has ticks so rare that without hints nothing would happen in a test."""

    tick = 1e5

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.wakes: list[Callable[[Hint], None]] = []
        self.beats: list[str] = []

    def listen(self, wake: Callable[[Hint], None]) -> Callable[[], None]:
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
        self.hint("finished" if announcement.kind == "finished" else "announced")
        return made

    def notify(self, notice: Notice) -> None:
        super().notify(notice)
        self.hint("noticed")


@pytest.fixture
def hinting(team: Team) -> Hinting:
    coordinator = Hinting(team.clock)
    team.coordinator = coordinator
    return coordinator


def soon(condition: Callable[[], object]) -> None:
    """Wait for other threads, while no time passes by the clock."""
    pause = threading.Event()
    for _ in range(round(PATIENCE / 0.005)):
        if condition():
            return
        pause.wait(0.005)
    assert condition()


def request(worker_id: str, wish: str = "save", remaining: float = 1e4) -> Notice:
    return Notice(notice_id="request", worker_id=worker_id, reason="operator", remaining=remaining, wish=wish)  # type: ignore[arg-type]


# ---------------------------------------------------------------- hints


def test_a_lease_that_is_given_back_is_taken_at_once(team: Team, hinting: Hinting) -> None:
    """Not at the follower's next tick."""
    leader = team.started("a")
    follower = team.worker("b")
    soon(lambda: "b" in hinting.beats)
    leader.close(timeout=0.0)
    soon(lambda: follower._elector.is_leader)


def test_who_waits_for_the_position_looks_when_it_is_announced(team: Team, hinting: Hinting) -> None:
    """A start takes no tick more than it must."""
    leader = team.worker("a")
    soon(lambda: leader._elector.is_leader)
    follower = team.worker("b")
    soon(lambda: "b" in hinting.beats)
    waiting = team.begin(follower.await_start)
    # Then its announcement is a sign of life: this is the leader of this incarnation, not of an earlier one.
    team.clock.advance(1.0)
    team.begin(leader.await_start).result(PATIENCE)
    soon(waiting.done)
    assert waiting.result(PATIENCE).checkpoint is None


def test_a_commit_wakes_nobody_who_trains(team: Team, hinting: Hinting) -> None:
    """A thousand followers are no herd: what is announced to them while they train can wait for their ticks."""
    leader, _ = team.started("a"), team.started("b")
    before = hinting.beats.count("b")
    leader.boundary(snapshot(1), due=True)
    assert leader._saver.drain(PATIENCE)
    soon(lambda: team.announcement.position == Position(1))
    assert hinting.beats.count("b") == before


def test_a_preempted_follower_hears_of_its_answer_at_once(team: Team, hinting: Hinting) -> None:
    """The notice wakes the leader, the announcement of its save the follower; no tick is waited for."""
    leader, follower = team.started("a"), team.started("b")
    leader.boundary(snapshot(1), due=False)
    follower.give_notice("SIGTERM")
    preempted = team.begin(follower.preempt)
    soon(preempted.done)
    assert preempted.result().position == Position(1)


def test_a_standby_sleeps_through_commits_and_wakes_at_the_end(team: Team, hinting: Hinting) -> None:
    """It has nothing to do before the run is finished or the lease is free."""
    leader = team.started("a", standby=True, delete_checkpoint=False)
    standby = team.worker("b", standby=True, delete_checkpoint=False)
    waiting = team.begin(standby.await_start)
    soon(lambda: "b" in hinting.beats)
    # It sees the leader alive, once: else it would not take the end for the end of this incarnation of the run.
    team.clock.advance(1.0)
    for worker in (leader, standby):
        count = hinting.beats.count(worker.worker_id)
        worker._elector.poke()
        soon(lambda worker=worker, count=count: hinting.beats.count(worker.worker_id) > count)  # type: ignore[misc]
    before = hinting.beats.count("b")
    leader.boundary(snapshot(1), due=True)
    soon(lambda: team.announcement.position == Position(1))
    assert hinting.beats.count("b") == before
    team.begin(leader.finish).result(PATIENCE)
    soon(waiting.done)
    assert waiting.result().finished


def test_nobody_listens_any_more_after_leaving(team: Team, hinting: Hinting) -> None:
    """A coordinator that is used for the next fit must not wake the last one's worker."""
    worker = team.started("a")
    assert len(hinting.wakes) == 1
    worker.close(timeout=0.0)
    assert hinting.wakes == []


# ---------------------------------------------------------------- requests of operators


def test_a_leader_that_is_asked_for_a_save_saves_and_goes_on(team: Team) -> None:
    """The answer is announced when the boundary is durable; nobody is preempted."""
    leader = team.started("a")
    leader.boundary(snapshot(0, 3), due=False)
    assert team.positions() == []
    team.coordinator.notify(request("operator-1"))
    team.until(lambda: "request" in team.announcement.answers)
    assert team.positions() == [Position(0, 3)]
    leader.boundary(snapshot(0, 4), due=False)
    assert leader._elector.is_leader


def test_a_leader_that_is_asked_to_resign_saves_and_lets_another_lead(team: Team) -> None:
    """Nothing is lost by the hand-over, and the former leader goes on as a follower."""
    leader, other = team.started("a"), team.started("b")
    leader.boundary(snapshot(0, 3), due=False)
    team.coordinator.notify(request("a", "resign"))
    team.until(lambda: other._elector.is_leader)
    assert team.positions() == [Position(0, 3)]
    leader.boundary(snapshot(0, 4), due=True)
    team.steps(3.0)
    assert team.holder() == "b"
    assert team.member_ids() == ["a", "b"]


def test_who_was_asked_to_resign_leads_again_if_nobody_else_does(team: Team) -> None:
    """A request bounds the time without a leader."""
    leader = team.started("a")
    leader.boundary(snapshot(0, 3), due=False)
    team.coordinator.notify(request("a", "resign", remaining=5.0))
    team.until(lambda: not leader._elector.is_leader)
    assert team.positions() == [Position(0, 3)]
    team.until(lambda: leader._elector.is_leader, limit=30.0)
    assert leader._elector.term == 2


def test_a_request_to_resign_is_not_for_the_next_leader(team: Team) -> None:
    """It names the one that led when it was made."""
    leader, other = team.started("a"), team.started("b")
    leader.boundary(snapshot(0, 3), due=False)
    other.boundary(snapshot(0, 3), due=False)
    team.coordinator.notify(request("a", "resign"))
    team.until(lambda: other._elector.is_leader)
    team.steps(5.0)
    assert (team.holder(), other._elector.term) == ("b", 2)


def test_a_leader_whose_save_fails_does_not_resign(team: Team) -> None:
    """To hand over what is not saved would lose it."""
    leader, other = team.started("a"), team.started("b")
    leader.boundary(snapshot(0, 3), due=False)
    leader._store.broken = True  # type: ignore[attr-defined]
    team.coordinator.notify(request("a", "resign"))
    team.steps(5.0)
    assert (team.holder(), other._elector.is_leader) == ("a", False)


# ---------------------------------------------------------------- refusals


class Refusing(MemoryCoordinator):
    """Refuses for good."""

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        raise ConfigError("redis://host refused the user name or password")


def test_a_coordinator_that_refuses_us_ends_the_start(team: Team) -> None:
    """Waiting can't help, so nobody waits for restore_timeout."""
    worker = team.worker("a", coordinator=Refusing(team.clock))
    starting = team.begin(worker.await_start)
    with pytest.raises(ConfigError, match="refused the user name"):
        starting.result(PATIENCE)


class Gone(MemoryCoordinator):
    """Can't be reached until it is told otherwise."""

    gone = True

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        if self.gone:
            raise CoordinatorUnavailableError("can't reach redis://host")
        return super().heartbeat(beat)


def test_a_coordinator_that_is_gone_at_the_start_is_waited_for(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """It says so, once, and goes on when the coordinator is there."""
    coordinator = team.coordinator = Gone(team.clock)
    with caplog.at_level(logging.INFO):
        worker = team.worker("a", restore_timeout=300.0)
        starting = team.begin(worker.await_start)
        team.steps(20.0)
        assert not starting.done()
        coordinator.gone = False
        assert team.result(starting).checkpoint is None
    assert caplog.text.count("can't reach redis://host") == 1
    assert "coordinator reachable again" in caplog.text


# ---------------------------------------------------------------- calls that hang


class Hanging(MemoryCoordinator):
    """Answers nothing once it hangs; `release` ends that."""

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
    """The boundary is saved, and the worker is gone before the kill, whatever call does not come back."""
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
