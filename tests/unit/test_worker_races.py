"""Races between a worker's threads, each made certain by holding one of them up at the worst place."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from distributed_backup.checkpoint import Position
from distributed_backup.config import LeaseTimings
from distributed_backup.coordinators.base import Announcement, ClusterView, Heartbeat
from distributed_backup.coordinators.memory import MemoryCoordinator
from distributed_backup.errors import CoordinatorUnavailableError
from distributed_backup.worker import Worker
from tests.unit.test_worker import PATIENCE, FaultyStore, Team, snapshot, team

__all__ = ["team"]


def test_a_standby_that_is_elected_as_the_run_finishes_knows_that_it_has_finished(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The election is known an instant before the view that came with it: the older view must not be used."""
    observed = Worker.observed

    def late(self: Worker, view: ClusterView) -> None:
        if self.worker_id == "b" and view.holder == "b":
            # Long enough for the training thread to look in between.
            threading.Event().wait(0.3)
        observed(self, view)

    monkeypatch.setattr(Worker, "observed", late)
    leader = team.started("a", standby=True)
    standby = team.worker("b", standby=True)
    waiting = team.begin(standby.await_start)
    team.steps(1.0)
    leader.boundary(snapshot(4), due=False)
    # finish() while no tick of the standby comes in between announcement and resignation
    finishing = team.begin(leader.finish)
    finishing.result(PATIENCE)
    start = team.result(waiting)
    assert (start.checkpoint.position, start.finished) == (Position(4), True)
    team.result(team.begin(standby.finish))
    assert not team.root.exists()


def test_a_notice_is_answered_although_its_save_was_quicker_than_its_registration(team: Team) -> None:
    """The saver may serve a ticket before the thread that asked has written down which notice it is for."""
    leader, follower = team.started("a"), team.started("b")
    leader.boundary(snapshot(1), due=True)
    assert leader._saver.drain(PATIENCE)
    save_now, pause = leader._saver.save_now, threading.Event()

    def slow_to_return() -> int:
        ticket = save_now()
        pause.wait(0.3)
        return ticket

    leader._saver.save_now = slow_to_return  # type: ignore[method-assign]
    follower.give_notice("SIGTERM")
    assert team.result(team.begin(follower.preempt), limit=30.0).position == Position(1)


def test_a_follower_that_is_elected_while_it_restores_announces(team: Team) -> None:
    """Otherwise nobody could start under its term until it commits, an epoch later."""
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
    team.until(lambda: follower._elector.is_leader)
    go.set()
    assert team.result(starting).checkpoint.position == Position(1)
    late = team.worker("c")
    assert team.result(team.begin(late.await_start), limit=30.0).checkpoint.position == Position(1)


def test_a_former_leader_saves_when_the_coordinator_goes_away_after_its_notice(team: Team, tmp_path: Path) -> None:
    """The saver must look again when the term of last resort becomes usable, not only when it was asked."""

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
    team.until(lambda: former._elector.term is None)
    former.boundary(snapshot(1, 3), due=False)
    former.give_notice("SIGTERM")
    leaving = team.begin(former.preempt)
    team.steps(1.0)
    coordinator.cut = True
    team.until(leaving.done, limit=90.0)
    assert team.positions() == [Position(1, 3)]
