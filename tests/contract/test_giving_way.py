"""The contract of `coordination.base`, over every implementation: who leaves a free lease to whom.

The Lua script of the Redis coordinator decides as `giving_way.is_ahead` does. These tests hold the two together.
"""

from __future__ import annotations

import pytest

from distributed_backup.coordination.base import ClusterView, Coordinator, Heartbeat, Role
from distributed_backup.position import Position
from tests.contract.harness import DURATION, Harness


def beat(
    coordinator: Coordinator,
    worker_id: str,
    *,
    campaign: bool = True,
    position: Position | None = None,
    role: Role = "follower",
    gives_way_to: float = 0.0,
) -> ClusterView:
    return coordinator.heartbeat(
        Heartbeat(
            worker_id=worker_id,
            campaign=campaign,
            floor=0,
            duration=DURATION,
            role=role,
            position=position,
            gives_way_to=gives_way_to,
        )
    )


FRESH = 60.0


@pytest.mark.parametrize("own", [None, Position(0, 3), Position(1), Position(1, 1)])
def test_a_worker_leaves_a_free_lease_to_a_live_member_that_is_ahead(harness: Harness, own: Position | None) -> None:
    """The lease stays free, and the view shows it. The member that is ahead then takes it."""
    a, b = harness.connect(), harness.connect()
    beat(b, "b", campaign=False, position=Position(1, 2))
    held_back = beat(a, "a", position=own, gives_way_to=FRESH)
    assert (held_back.holder, held_back.term) == (None, 0)
    taken = beat(b, "b", position=Position(1, 2), gives_way_to=FRESH)
    assert (taken.holder, taken.term) == ("b", 1)
    assert beat(a, "a", position=own, gives_way_to=FRESH).holder == "b"


@pytest.mark.parametrize(
    ("own", "other"),
    [(None, None), (Position(0), None), (Position(1, 2), Position(1, 2)), (Position(2), Position(1, 9))],
)
def test_a_worker_that_is_level_or_ahead_takes_a_free_lease(
    harness: Harness, own: Position | None, other: Position | None
) -> None:
    """A whole job that starts again has no position, and elects without a pause."""
    a, b = harness.connect(), harness.connect()
    beat(b, "b", campaign=False, position=other)
    assert beat(a, "a", position=own, gives_way_to=FRESH).holder == "a"


def test_a_worker_takes_a_free_lease_if_it_gives_way_to_none(harness: Harness) -> None:
    """The member that is ahead had its chance."""
    a, b = harness.connect(), harness.connect()
    beat(b, "b", campaign=False, position=Position(9))
    assert beat(a, "a").holder == "a"


def test_a_worker_does_not_give_way_to_a_member_that_has_gone_silent(harness: Harness) -> None:
    """Its membership lasts, but it may have died."""
    a, b = harness.connect(), harness.connect()
    beat(b, "b", campaign=False, position=Position(9))
    harness.advance(FRESH / 6)
    assert beat(a, "a", gives_way_to=FRESH / 6 - 0.5).holder == "a"


def test_a_worker_does_not_give_way_to_a_member_that_left(harness: Harness) -> None:
    """It will take no lease."""
    a, b = harness.connect(), harness.connect()
    beat(b, "b", campaign=False, position=Position(9))
    b.leave("b")
    assert beat(a, "a", gives_way_to=FRESH).holder == "a"


def test_a_worker_does_not_give_way_to_the_leader_that_resigned(harness: Harness) -> None:
    """It is about to leave, or asked not to lead, though it is a member still."""
    a, b = harness.connect(), harness.connect()
    beat(b, "b", position=Position(9))
    beat(b, "b", position=Position(9), role="leader")
    b.resign("b")
    assert beat(a, "a", gives_way_to=FRESH).holder == "a"


@pytest.mark.parametrize("silent", ["b", "c"])
def test_one_member_that_is_ahead_is_enough(harness: Harness, silent: str) -> None:
    """Others that are behind, or silent, do not matter."""
    a, b = harness.connect(), harness.connect()
    beat(b, silent, campaign=False, position=Position(9))
    harness.advance(FRESH / 6)
    beat(b, {"b": "c", "c": "b"}[silent], campaign=False, position=Position(2))
    beat(b, "d", campaign=False, position=Position(0))
    assert beat(a, "a", position=Position(1), gives_way_to=FRESH / 6 - 0.5).holder is None


def test_a_holder_renews_though_another_is_ahead(harness: Harness) -> None:
    """A worker gives way for a free lease only."""
    a, b = harness.connect(), harness.connect()
    beat(a, "a", gives_way_to=FRESH)
    beat(b, "b", position=Position(9), gives_way_to=FRESH)
    assert beat(a, "a", gives_way_to=FRESH).holder == "a"


def test_a_worker_that_gave_way_after_a_crash_sees_a_free_lease(harness: Harness) -> None:
    """The dead leader's record must not look like a lease."""
    a, b, c = harness.connect(), harness.connect(), harness.connect()
    beat(a, "a")
    harness.crash(a)
    beat(b, "b", campaign=False, position=Position(9))
    assert beat(c, "c", gives_way_to=FRESH).holder is None
    assert (beat(b, "b", position=Position(9)).holder, beat(c, "c").holder) == ("b", "b")
