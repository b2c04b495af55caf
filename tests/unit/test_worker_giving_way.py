"""A save serves a preempted worker only if it is as far as that worker. Otherwise the worker takes over and saves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from distributed_backup.coordination.base import Notice
from distributed_backup.coordination.giving_way import fresh_seconds
from distributed_backup.position import Position
from distributed_backup.preemption.exit import Preempted
from distributed_backup.worker.notices import covers
from distributed_backup.worker.worker import Worker
from tests.support.internals import context_of, elector_of
from tests.support.team import STEP, Team, snapshot, soon

GRACE = 30.0


@pytest.mark.parametrize(
    ("saved", "boundary", "covered"),
    [
        (Position(1, 2), Position(1, 2), True),
        (Position(2), Position(1, 9), True),
        (Position(1, 2), Position(1, 3), False),
        (None, Position(0, 1), False),
        (Position(1), None, True),
        (None, None, True),
    ],
)
def test_a_checkpoint_covers_the_boundaries_up_to_its_own(
    saved: Position | None, boundary: Position | None, covered: bool
) -> None:
    """A worker without a boundary has nothing of its own to save."""
    assert covers(saved, boundary) == covered


def at(worker: Worker, epoch: int, batch: int = 0) -> Worker:
    worker.boundary(snapshot(epoch, batch), due=False)
    return worker


def replicas(team: Team, *epochs: int) -> list[Worker]:
    """Workers that train, each at the end of an epoch. The first one leads. All have sent their positions."""
    workers = [team.started(name, grace_period=GRACE) for name in "abcd"[: len(epochs)]]
    for worker, epoch in zip(workers, epochs, strict=True):
        at(worker, epoch)
    team.steps(3 * STEP)
    assert team.holder() == "a"
    return workers


def test_a_preempted_follower_that_is_ahead_takes_over_and_saves_its_own(team: Team) -> None:
    """The leader saves, gives way, and leads again when the follower has left."""
    leader, follower = replicas(team, 1, 3)
    follower.give_notice("SIGTERM")
    leaving = team.result(team.begin(follower.preempt), limit=GRACE)
    assert (leaving.position, leaving.checkpoint) == (Position(3), "0000000002-00000003-00000000.ckpt")
    assert team.positions() == [Position(3), Position(1)]
    team.until(lambda: elector_of(leader).term == 3)


def test_a_leader_does_not_give_way_for_a_notice_that_another_save_has_served(team: Team) -> None:
    """The follower has saved and resigned. Its notice is still on record, and the leader's own save was behind it."""
    team.coordinator.leave = lambda worker_id: None  # type: ignore[method-assign]
    leader, follower = replicas(team, 1, 3)
    follower.give_notice("SIGTERM")
    team.result(team.begin(follower.preempt), limit=GRACE)
    team.until(lambda: elector_of(leader).term == 3)
    team.steps(5.0)
    assert elector_of(leader).term == 3


def test_a_preempted_follower_that_is_level_leaves_the_lease_alone(team: Team) -> None:
    """The leader's save is as far. No term is spent."""
    _, level, behind = replicas(team, 3, 3, 2)
    for follower in (level, behind):
        follower.give_notice("SIGTERM")
        assert team.result(team.begin(follower.preempt), limit=GRACE).position == Position(3)
    assert (team.coordinator.view().term, team.holder()) == (1, "a")


def test_of_three_that_are_preempted_at_once_the_farthest_takes_over(team: Team) -> None:
    """Its save serves the one in the middle. Nothing is saved in between, and all leave within their grace period."""
    workers = replicas(team, 1, 3, 5)
    for worker in workers:
        worker.give_notice("SIGTERM")
    leaving = [team.begin(worker.preempt) for worker in workers]
    team.until(lambda: all(future.done() for future in leaving), GRACE)
    assert [future.result().position for future in leaving[1:]] == [Position(5)] * 2
    assert team.positions() == [Position(5), Position(1)]


def test_a_preempted_leader_gives_way_while_its_batch_goes_on(team: Team) -> None:
    """Its batch may last until its grace period ends. By then the follower has no time left."""
    leader, follower = replicas(team, 1, 3)
    for worker in (leader, follower):
        worker.give_notice("SIGTERM")
    assert team.result(team.begin(follower.preempt), limit=GRACE).position == Position(3)
    assert not leader.closed
    team.result(team.begin(leader.preempt), limit=GRACE)
    assert team.positions() == [Position(3), Position(1)]


def unable_to_lead(worker: Worker) -> Worker:
    """A worker whose heartbeats go on, but that never campaigns: it can't claim a term."""
    elector_of(worker)._retry_claim_at = math.inf
    return worker


def preempted_pair(team: Team) -> tuple[Worker, Worker]:
    """A leader that has just given way, and the follower that does not take the lease. Both are being preempted."""
    leader, follower = replicas(team, 1, 3)
    for worker in (leader, unable_to_lead(follower)):
        worker.give_notice("SIGTERM")
    team.until(lambda: not elector_of(leader).is_leader)
    return leader, follower


def test_a_preempted_leader_that_gave_way_trains_on_until_another_worker_leads(team: Team) -> None:
    """It leads again if no other does, and can save the batch in flight."""
    _, follower = preempted_pair(team)
    team.steps(2 * STEP)
    assert team.holder() is None
    assert len(team.cut_offs["a"]) == 1, "only the bound of the grace period"
    elector_of(follower)._retry_claim_at = 0.0
    team.until(lambda: team.positions()[0] == Position(3))
    team.until(lambda: min(team.cut_offs["a"]) <= team.clock.now())


def test_a_preempted_leader_that_gave_way_saves_a_batch_that_has_ended_since(team: Team) -> None:
    """It campaigns again at once: its own grace period may be over before its pause is."""
    leader, follower = preempted_pair(team)
    team.kill(follower)
    team.coordinator.leave("b")
    ending = team.begin(lambda: at(leader, 1, 1))
    soon(ending.done)
    assert team.positions() == [Position(1, 1), Position(1)]


def test_a_replica_that_is_still_farther_saves_for_the_preempted_one(team: Team) -> None:
    """It leads from then on, though it is not preempted."""
    _, follower, farthest = replicas(team, 1, 3, 5)
    follower.give_notice("SIGTERM")
    assert team.result(team.begin(follower.preempt), limit=GRACE).position == Position(5)
    assert elector_of(farthest).is_leader


def test_a_batch_that_ends_after_the_notice_counts_too(team: Team) -> None:
    """The leader was as far when the notice came, and is not when the batch in flight has ended."""
    _, follower = replicas(team, 2, 2)
    follower.give_notice("SIGTERM")
    ending = team.begin(lambda: at(follower, 2, 1))
    with pytest.raises(Preempted) as preempted:
        team.result(ending, limit=GRACE)
    assert preempted.value.position == Position(2, 1)


def test_a_follower_leaves_in_time_if_the_leader_never_gives_way(team: Team) -> None:
    """A leader of an earlier version does not look at positions."""
    notify = team.coordinator.notify

    def without_position(notice: Notice) -> None:
        notify(replace(notice, position=None))

    team.coordinator.notify = without_position  # type: ignore[method-assign]
    leader, follower = replicas(team, 1, 3)
    follower.give_notice("SIGTERM")
    leaving = team.result(team.begin(follower.preempt), limit=GRACE)
    assert leaving.position == Position(1)
    assert GRACE / 2 < leaving.seconds < GRACE
    assert elector_of(leader).term == 1


def test_the_batch_of_a_follower_that_is_ahead_goes_on_until_its_save(team: Team) -> None:
    """Its end can be saved when the follower leads. The batch of a follower that is not ahead is cancelled."""
    _, ahead, level = replicas(team, 1, 3, 1)
    for follower in (level, ahead):
        follower.give_notice("SIGTERM")
    team.until(lambda: elector_of(ahead).is_leader)
    team.until(lambda: team.positions()[0] == Position(3))
    assert len(team.cut_offs["b"]) == 1, "only the bound of the grace period"
    team.until(lambda: min(team.cut_offs["c"]) <= team.clock.now(), GRACE / 2)


def test_a_leader_gives_way_three_times_for_one_notice(team: Team) -> None:
    """The worker that sent it may be unable to lead. The leader must not pause for it again and again."""
    leader, follower = replicas(team, 1, 3)
    unable_to_lead(follower).give_notice("SIGTERM")
    team.until(lambda: elector_of(leader).term == 4)
    team.steps(GRACE / 2)
    assert elector_of(leader).term == 4


def test_a_leader_does_not_give_way_to_a_worker_that_has_died(team: Team) -> None:
    """Its notice stays on record until its grace period is over."""
    leader, dead = replicas(team, 1, 3)
    team.kill(dead)
    team.steps(fresh_seconds(elector_of(leader).period))
    team.coordinator.notify(
        Notice(notice_id="n", worker_id="b", reason="SIGTERM", remaining=600.0, position=Position(3))
    )
    team.until(lambda: "n" in context_of(leader).notices.acknowledged)
    team.steps(5.0)
    assert elector_of(leader).term == 1


def test_a_request_without_a_position_leaves_the_lease_alone(team: Team) -> None:
    """An operator's `preempt`, and a worker in danger, ask for the leader's save."""
    leader, follower = replicas(team, 1, 3)
    follower.ask_for_save("rebalance recommendation")
    team.until(lambda: Position(1) in team.positions())
    team.steps(5.0)
    assert elector_of(leader).term == 1
