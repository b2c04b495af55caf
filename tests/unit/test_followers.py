"""How far the slowest follower is, as the leader sees it."""

from __future__ import annotations

import logging

import pytest

from distributed_backup.coordination.base import Heartbeat, Member, Role
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import CoordinatorUnavailableError
from distributed_backup.position import Position
from distributed_backup.worker import followers
from distributed_backup.worker.followers import Followers
from tests.support.clocks import FakeClock


class Members(MemoryCoordinator):
    """A coordinator whose members a test lists."""

    listed: tuple[Member, ...]
    error: CoordinatorUnavailableError | None = None

    def members(self) -> tuple[Member, ...]:
        if self.error is not None:
            raise self.error
        return self.listed


def member(worker_id: str, position: Position | None, role: Role = "follower") -> Member:
    return Member(worker_id=worker_id, role=role, position=position, age=0.0)


class Seen:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.coordinator = Members(self.clock)
        self.appended = 100
        self.followers = Followers(self.coordinator, self.clock, "me", appended=lambda: self.appended)

    def slowest(self, *members: Member) -> Position | None:
        self.coordinator.listed = members
        return self.followers.slowest()


def test_the_slowest_of_the_others_counts_and_no_standby() -> None:
    seen = Seen()
    assert seen.slowest() is None
    assert seen.slowest(member("me", Position(0)), member("s", None, "standby")) is None
    others = member("a", Position(1, 2)), member("b", Position(1, 1)), member("me", Position(0), "leader")
    assert seen.slowest(*others) == Position(1, 1)


def test_a_worker_that_has_not_started_may_need_everything() -> None:
    assert Seen().slowest(member("a", Position(3)), member("new", None)) == Position(0)


def test_a_follower_that_makes_no_progress_is_not_waited_for_after_the_limit() -> None:
    """Until it makes progress, or is another worker."""
    seen, others = Seen(), [member("slow", Position(0, 1)), member("a", Position(2))]
    assert seen.slowest(*others) == Position(0, 1)
    seen.clock.advance(followers._PATIENCE - 1)
    others[1] = member("a", Position(3))
    assert seen.slowest(*others) == Position(0, 1)
    seen.clock.advance(1)
    assert seen.slowest(*others) == Position(3)
    assert seen.slowest(member("slow", Position(0, 2)), others[1]) == Position(0, 2)
    seen.slowest(others[1])
    assert seen.slowest(member("slow", Position(0, 2)), others[1]) == Position(0, 2)


def test_a_follower_that_makes_no_progress_is_not_waited_for_after_a_gigabyte() -> None:
    """The disk must not fill up for one worker that is stopped."""
    seen, others = Seen(), [member("slow", Position(0, 1)), member("a", Position(2))]
    assert seen.slowest(*others) == Position(0, 1)
    seen.appended += followers._MOST_BYTES - 1
    assert seen.slowest(*others) == Position(0, 1)
    others[1] = member("a", Position(3))
    seen.slowest(*others)
    seen.appended += 1
    assert seen.slowest(*others) == Position(3)
    assert seen.slowest(member("slow", Position(0, 2)), others[1]) == Position(0, 2)


def test_without_an_answer_of_the_coordinator_a_follower_may_need_everything(caplog: pytest.LogCaptureFixture) -> None:
    """A server that is slow for a moment costs no follower its log."""
    seen = Seen()
    seen.coordinator.error = CoordinatorUnavailableError("can't reach it")
    with caplog.at_level(logging.WARNING):
        assert seen.slowest() == Position(0)
    assert "not known" in caplog.text


def test_the_positions_are_those_of_the_heartbeats() -> None:
    clock = FakeClock()
    coordinator = MemoryCoordinator(clock)
    coordinator.open("run", LeaseTimings())
    for worker_id, position in (("me", Position(5)), ("a", Position(2))):
        beat = Heartbeat(worker_id=worker_id, campaign=True, floor=0, duration=15, role="follower", position=position)
        coordinator.heartbeat(beat)
    assert Followers(coordinator, clock, "me", appended=lambda: 0).slowest() == Position(2)
