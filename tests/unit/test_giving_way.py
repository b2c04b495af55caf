"""Who gives way at an election, and for how long: the decisions as values, and electors that act on them."""

from __future__ import annotations

from typing import Any

import pytest

from distributed_backup.coordination.base import Heartbeat, Member
from distributed_backup.coordination.election import Elector
from distributed_backup.coordination.giving_way import HoldBack, fresh_seconds, hold_back_seconds, is_ahead
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from tests.support.election import TIMINGS, Bench, leads

TICK = MemoryCoordinator.heartbeat_interval
HOLD_BACK = hold_back_seconds(TICK)
MOMENT = 0.001


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---------------------------------------------------------------- the decisions


@pytest.mark.parametrize(
    ("own", "other", "ahead"),
    [
        (None, None, False),
        (None, Position(0), True),
        (Position(0), None, False),
        (Position(1, 2), Position(1, 2), False),
        (Position(1, 2), Position(1, 3), True),
        (Position(1, 9), Position(2), True),
        (Position(2), Position(1, 9), False),
    ],
)
def test_a_member_is_ahead_if_its_position_is_later(own: Position | None, other: Position | None, ahead: bool) -> None:
    """A worker that has not started is behind every worker that has."""
    assert is_ahead(member(position=other), beat(position=own)) == ahead


def test_only_a_live_member_that_may_take_the_lease_is_ahead() -> None:
    """A member whose role is still "leader" while the lease is free has died or resigned."""
    assert is_ahead(member(age=4.999), beat())
    assert is_ahead(member(role="standby"), beat())
    assert not is_ahead(member(age=5.0), beat())
    assert not is_ahead(member(role="leader"), beat())
    assert not is_ahead(member(worker_id="me"), beat())
    assert not is_ahead(member(age=0.0), beat(gives_way_to=0.0))


def test_a_worker_holds_back_once_until_a_holder_is_seen() -> None:
    """Also if the worker that is ahead takes the lease and gives it back again and again."""
    hold_back, fresh, ends = HoldBack(2.0), fresh_seconds(2.0), 10.0 + hold_back_seconds(2.0)
    hold_back.observe(9.0, campaigned=False, is_free=True)
    assert (hold_back.gives_way_to(99.0), hold_back.left(9.0)) == (fresh, None)
    hold_back.observe(10.0, campaigned=True, is_free=True)
    hold_back.observe(11.0, campaigned=True, is_free=True)
    assert (hold_back.gives_way_to(11.0), hold_back.left(11.0)) == (fresh, ends - 11.0)
    assert (hold_back.gives_way_to(ends), hold_back.left(ends)) == (0.0, None)
    hold_back.observe(ends, campaigned=False, is_free=True)
    assert hold_back.gives_way_to(99.0) == 0.0
    hold_back.observe(99.0, campaigned=True, is_free=False)
    assert (hold_back.gives_way_to(99.0), hold_back.left(99.0)) == (fresh, None)


def member(**changes: Any) -> Member:
    return Member(**{"worker_id": "other", "role": "follower", "position": Position(9), "age": 0.0, **changes})


def beat(*, position: Position | None = None, gives_way_to: float = 5.0) -> Heartbeat:
    return Heartbeat(
        worker_id="me", campaign=True, floor=0, duration=15.0, position=position, gives_way_to=gives_way_to
    )


# ---------------------------------------------------------------- electors that act on them


def replica(bench: Bench, worker_id: str, position: Position | None) -> Elector:
    elector = bench.another(worker_id)
    elector.position = position
    return elector


def vacancy(bench: Bench, *followers: Elector) -> None:
    """A leader dies. Each follower has made its last tick just before the lease runs out."""
    leader = bench.another("dead")
    leader.tick()
    bench.clock.advance(TIMINGS.duration - MOMENT)
    for follower in followers:
        follower.tick()
    bench.clock.advance(2 * MOMENT)


def test_a_restarted_worker_leaves_the_lease_to_a_replica_that_is_epochs_ahead(bench: Bench) -> None:
    """The restarted worker is the first to see that the lease is free, and the last that should have it."""
    restarted, behind, ahead = (
        replica(bench, "restarted", None),
        replica(bench, "behind", Position(3, 1)),
        replica(bench, "ahead", Position(14)),
    )
    vacancy(bench, restarted, behind, ahead)
    for elector in (restarted, behind, ahead, behind, restarted):
        elector.tick()
    assert (restarted.is_leader, behind.is_leader, ahead.is_leader) == (False, False, True)
    assert ahead.term == 2


def test_a_worker_that_gave_way_leads_after_one_tick_if_no_other_does(bench: Bench) -> None:
    """The worker that is ahead was killed within its last tick: progress does not depend on it."""
    restarted, ahead = replica(bench, "restarted", None), replica(bench, "ahead", Position(14))
    vacancy(bench, restarted, ahead)
    restarted.tick()
    bench.clock.advance(HOLD_BACK - MOMENT)
    restarted.tick()
    assert not restarted.is_leader
    bench.clock.advance(2 * MOMENT)
    restarted.tick()
    assert restarted.is_leader


def test_the_thread_ticks_as_soon_as_the_hold_back_is_over(bench: Bench) -> None:
    """A hold-back of one tick must not become two by the jitter of the ticks."""
    restarted, ahead = replica(bench, "restarted", None), replica(bench, "ahead", Position(14))
    vacancy(bench, restarted, ahead)
    restarted.tick()
    until = bench.clock.now() + HOLD_BACK
    bench.clock.advance(HOLD_BACK - TICK / 2)
    restarted.tick()
    assert bench.clock.now() + restarted._pause() == pytest.approx(until)


def test_a_job_that_starts_elects_at_the_first_tick(bench: Bench) -> None:
    """None of its workers has a position, and those of its last incarnation have been silent for a lease."""
    dead = replica(bench, "ahead", Position(14))
    dead.tick()
    bench.clock.advance(TIMINGS.duration + MOMENT)
    replica(bench, "other", None).tick()
    bench.elector.tick()
    assert not leads(bench)
    assert bench.coordinator.view().holder == "other"


def test_a_worker_that_is_level_or_ahead_never_waits(bench: Bench) -> None:
    """The first of them to see the free lease has it."""
    first, second = replica(bench, "first", Position(2, 1)), replica(bench, "second", Position(2, 1))
    vacancy(bench, first, second)
    first.tick()
    assert first.is_leader


def test_a_leader_that_resigned_for_an_operator_is_not_waited_for(bench: Bench) -> None:
    """It is a live member, and ahead, and its heartbeats go on. It does not campaign."""
    leader, follower = replica(bench, "leader", Position(5)), replica(bench, "follower", Position(4))
    leader.tick()
    follower.tick()
    leader.pause_campaign(60.0)
    leader.tick()
    follower.tick()
    assert follower.is_leader


def test_a_worker_that_can_not_lead_does_not_keep_others_from_it(bench: Bench) -> None:
    """The worker that is ahead takes the lease at each tick and gives it back, because it can't claim a term."""
    broken, behind = replica(bench, "broken", Position(9)), replica(bench, "behind", Position(1))

    class Unwritable:
        def highest_term(self) -> int:
            return 0

        def claim_term(self, term: int) -> bool:
            raise StoreError("read-only", path="/mnt/run")

    broken._terms = Unwritable()
    vacancy(bench, broken, behind)
    for _ in range(round(HOLD_BACK / TICK) + 1):
        assert not behind.is_leader
        broken.tick()
        behind.tick()
        bench.clock.advance(TICK)
    assert behind.is_leader


def test_a_worker_gives_way_in_each_vacancy_anew(bench: Bench) -> None:
    """It has seen a leader since the last one."""
    behind, first, second = (
        replica(bench, "behind", Position(1)),
        replica(bench, "first", Position(9)),
        replica(bench, "second", Position(8)),
    )
    vacancy(bench, behind, first)
    for elector in (behind, first, behind):
        elector.tick()
    assert first.is_leader
    bench.clock.advance(TIMINGS.duration - MOMENT)
    second.tick()
    bench.clock.advance(2 * MOMENT)
    behind.tick()
    assert not behind.is_leader
    second.tick()
    assert second.is_leader
