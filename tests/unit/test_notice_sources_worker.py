"""Test notices with their own time, and warnings, in a worker."""

from __future__ import annotations

import pytest

from distributed_backup.clock import Clock
from distributed_backup.coordination.base import ClusterView, Heartbeat, Notice
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.errors import CoordinatorUnavailableError
from distributed_backup.position import Position
from distributed_backup.preemption.exit import Preempted
from distributed_backup.preemption.grace import shutdown_reserve
from distributed_backup.worker.notices import Notices
from distributed_backup.worker.options import WorkerOptions
from tests.support.internals import context_of
from tests.support.team import STEP, Team, snapshot

# ---------------------------------------------------------------- how much time is left


def test_the_reserve_fits_the_time_that_is_left() -> None:
    """The reserve is computed from the remaining time, of a notice as of the grace period."""
    assert WorkerOptions(grace_period=30.0).reserve == shutdown_reserve(30.0) == 3.0
    assert (shutdown_reserve(120.0), shutdown_reserve(5.0), shutdown_reserve(1.0)) == (12.0, 1.0, 0.4)


def test_the_earlier_of_two_deadlines_counts_whichever_came_first() -> None:
    """A later notice can shorten the deadline of the first, and never lengthens it."""
    notices = Notices(lambda: 1)
    first = notices.give("aws:terminate", now=1000.0, remaining=110.0)
    assert first is not None
    assert (first.deadline, first.reserve) == (1110.0, 11.0)
    assert notices.give("SIGTERM", now=1050.0, remaining=30.0) is None
    hastened = notices.shorten_deadline(now=1050.0, remaining=30.0)
    assert hastened is not None
    assert hastened is notices.own
    assert (hastened.notice_id, hastened.given, hastened.reason) == (first.notice_id, 1000.0, "aws:terminate")
    assert (hastened.deadline, hastened.reserve) == (1080.0, 3.0)
    assert notices.shorten_deadline(now=1060.0, remaining=30.0) is None
    assert notices.own is hastened


def test_nothing_is_hastened_before_there_is_a_notice() -> None:
    """Without a notice there is no deadline to shorten."""
    notices = Notices(lambda: 1)
    assert notices.shorten_deadline(now=0.0, remaining=1.0) is None
    assert notices.own is None


def test_a_notice_with_its_own_time_bounds_the_training_by_that(team: Team) -> None:
    """Training is cut off at the notice's own time less its reserve, whatever the grace period."""
    worker = team.started("a", grace_period=30.0)
    now = team.clock.now()
    worker.give_notice("aws:terminate", 110.0)
    assert team.cut_offs["a"] == [now + 99.0]
    assert worker._preemption.reserve == 11.0


def test_a_signal_after_a_notice_with_more_time_shortens_it(team: Team) -> None:
    """A SIGTERM after a notice of 110 s cuts training off within the grace period."""
    worker = team.started("a", grace_period=30.0)
    worker.give_notice("aws:terminate", 110.0)
    team.step()
    now = team.clock.now()
    worker.give_notice("SIGTERM")
    assert team.cut_offs["a"][1:] == [now + 27.0]
    assert worker._preemption.reserve == 3.0
    worker.give_notice("SIGTERM")
    assert len(team.cut_offs["a"]) == 2


def test_a_notice_with_more_time_after_a_signal_lengthens_nothing(team: Team) -> None:
    """A notice of 110 s after a SIGTERM leaves the earlier deadline."""
    worker = team.started("a", grace_period=30.0)
    worker.give_notice("SIGTERM")
    worker.give_notice("aws:terminate", 110.0)
    assert len(team.cut_offs["a"]) == 1
    assert worker._preemption.reserve == 3.0


def test_who_waits_for_a_save_waits_no_longer_than_the_shortened_time(team: Team) -> None:
    """A follower that waits for a dead leader's save exits by the shortened deadline."""
    leader = team.started("a")
    follower = team.started("b", grace_period=6.0)
    follower.boundary(snapshot(1), due=False)
    team.kill(leader)
    begin = team.clock.now()
    follower.give_notice("aws:terminate", 110.0)
    waiting = team.begin(follower.check)
    team.steps(2.0)
    follower.give_notice("SIGTERM")
    with pytest.raises(Preempted):
        team.result(waiting, limit=6.0)
    assert team.clock.now() - begin < 2.0 + 6.0 + STEP


# ---------------------------------------------------------------- warnings


def test_a_warning_to_the_leader_saves_its_last_boundary_and_training_goes_on(team: Team) -> None:
    """The leader commits its last boundary, gets no notice and continues."""
    leader = team.started("a")
    leader.boundary(snapshot(1, 3), due=False)
    leader.ask_for_save("aws:rebalance")
    team.until(lambda: team.positions() == [Position(1, 3)])
    leader.boundary(snapshot(1, 4), due=False)
    assert not leader.notice_given
    assert team.cut_offs["a"] == []
    assert team.holder() == "a"


def test_a_warning_to_a_follower_makes_the_leader_save(team: Team) -> None:
    """The leader commits for a follower's warning and answers it. Both continue."""
    leader, follower = team.started("a"), team.started("b")
    leader.boundary(snapshot(2), due=False)
    follower.boundary(snapshot(1), due=False)
    follower.ask_for_save("azure:Freeze")
    asked = team.coordinator.view().notices
    assert [(notice.worker_id, notice.reason, notice.action) for notice in asked] == [("b", "azure:Freeze", "save")]
    team.until(lambda: asked[0].notice_id in team.announcement.acknowledged)
    assert team.positions() == [Position(2)]
    follower.boundary(snapshot(1, 1), due=False)
    assert not follower.notice_given


class Counting(MemoryCoordinator):
    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.notified = 0

    def notify(self, notice: Notice) -> None:
        self.notified += 1
        super().notify(notice)


def test_a_notice_is_told_once_while_nothing_was_forgotten(team: Team) -> None:
    """A notice that is on record is published once, although no answer comes."""
    coordinator = Counting(team.clock)
    leader, follower = team.started("a", coordinator=coordinator), team.started("b", coordinator=coordinator)
    leader.boundary(snapshot(2), due=False)
    follower.boundary(snapshot(1), due=False)
    team.kill(leader)
    follower.give_notice("SIGTERM")
    team.steps(3.0)
    assert not context_of(follower).notices.own_is_acknowledged
    assert coordinator.notified == 1


class Refusing(MemoryCoordinator):
    def notify(self, notice: Notice) -> None:
        raise CoordinatorUnavailableError("connection refused")


def test_a_warning_to_the_leader_saves_though_the_coordinator_does_not_answer(
    team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    """The leader commits for its own warning without the coordinator."""
    leader = team.started("a", coordinator=Refusing(team.clock))
    leader.boundary(snapshot(1), due=False)
    assert leader.ask_for_save("gce:MIGRATE_ON_HOST_MAINTENANCE")
    team.until(lambda: team.positions() == [Position(1)])
    assert "requesting a save failed worker=a reason=connection refused" in caplog.text


class Away(MemoryCoordinator):
    """Unreachable while `away` is True."""

    away = False

    def notify(self, notice: Notice) -> None:
        self._check()
        super().notify(notice)

    def heartbeat(self, request: Heartbeat) -> ClusterView:
        self._check()
        return super().heartbeat(request)

    def _check(self) -> None:
        if self.away:
            raise CoordinatorUnavailableError("connection refused")


def test_a_warning_that_can_not_be_told_is_to_be_told_again(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """`ask_for_save` returns False without a coordinator, logs it once, and works when it is back."""
    coordinator = Away(team.clock)
    leader, follower = team.started("a", coordinator=coordinator), team.started("b", coordinator=coordinator)
    leader.boundary(snapshot(1), due=False)
    coordinator.away = True
    assert not follower.ask_for_save("aws:rebalance")
    team.steps(3.0)
    assert not follower.ask_for_save("aws:rebalance")
    assert caplog.text.count("requesting a save failed") == 1
    coordinator.away = False
    team.steps(3.0)
    assert follower.ask_for_save("aws:rebalance")
    team.until(lambda: team.positions() == [Position(1)])


def test_a_warning_before_or_after_training_asks_nobody(team: Team) -> None:
    """A worker that does not train yet, or is being preempted, publishes no request."""
    leaving = team.started("a")
    assert not team.worker("b").ask_for_save("aws:rebalance")
    assert team.coordinator.view().notices == ()
    leaving.give_notice("SIGTERM")
    assert leaving.ask_for_save("aws:rebalance")
    assert [notice.reason for notice in team.coordinator.view().notices] == ["SIGTERM"]
