"""The decisions of a worker's three waits: start, preemption and finish. Values go in, a step comes out."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from distributed_backup.coordination.base import Announcement, ClusterView
from distributed_backup.position import Position
from distributed_backup.worker import preemption, restore
from distributed_backup.worker.restore import LiveTerms, RestoreAnnounced, RestoreNewest, RestoreStatus
from distributed_backup.worker.shutdown import deletion_step, flush_step, run_with_timeout

# -------------------------------------------------------------------- restore


def announced(term: int, *, finished: bool = False) -> Announcement:
    return Announcement(term=term, worker_id="leader", position=Position(1), checkpoint="c", finished=finished)


def view(term: int, holder: str | None = "leader", **changes: Any) -> ClusterView:
    values = {"holder_age": 0.1, "remaining": 9.0, "announcement": None, **changes}
    return ClusterView(term=term, holder=holder, **values)


def status(seen: ClusterView | None, *, term: int | None = None, standby: bool = False, live: int = 5) -> RestoreStatus:
    """A worker that joined in term 4 and has seen a heartbeat of the holder of term `live` since."""
    terms = LiveTerms("me")
    terms.observe(view(4, holder_age=100.0), since_joined=1.0)
    terms.observe(view(live), since_joined=1.0)
    return RestoreStatus(worker_id="me", standby=standby, term=term, view=seen, live_terms=terms)


def test_a_leader_restores_the_newest_checkpoint() -> None:
    """A view of an earlier term says nothing about the one that the elector has just won."""
    assert restore.next_step(status(view(5, "me"), term=5)) == RestoreNewest(5, None, finished=False)
    assert restore.next_step(status(view(4, "leader"), term=5)) is None
    assert restore.next_step(status(None, term=5)) is None


def test_a_follower_restores_what_the_current_holder_announced() -> None:
    """An announcement of the term before is out of date, and so is one whose term has no holder."""
    current = announced(5)
    assert restore.next_step(status(view(5, announcement=current))) == RestoreAnnounced(current, finished=False)
    assert restore.next_step(status(view(6, announcement=current))) is None
    assert restore.next_step(status(view(5, None, announcement=current))) is None
    assert restore.next_step(status(view(5))) is None


def test_a_follower_ignores_an_earlier_incarnation() -> None:
    """Workers that were killed left lease and announcement of term 4 behind."""
    assert restore.next_step(status(view(4, announcement=announced(4)))) is None
    found = restore.next_step(status(view(4, announcement=announced(4)), live=4))
    assert found == RestoreAnnounced(announced(4), finished=False)


def test_a_standby_waits_for_the_lease_or_the_end() -> None:
    """The leader that announced the end may have left."""
    end = announced(5, finished=True)
    assert restore.next_step(status(view(5, announcement=announced(5)), standby=True)) is None
    assert restore.next_step(status(view(5, None, announcement=end), standby=True)) == RestoreAnnounced(
        end, finished=True
    )
    assert restore.next_step(status(view(6, "me", announcement=end), term=6, standby=True)) == RestoreNewest(
        6, end, finished=True
    )
    assert restore.next_step(status(view(5, announcement=end))) == RestoreAnnounced(end, finished=False)


# -------------------------------------------------------------------- preemption


def preempted(**changes: Any) -> preemption.PreemptionStatus:
    values = {"may_lose_work": True, "is_saved": False, "is_isolated": False, "time_left": 7.0, **changes}
    return preemption.PreemptionStatus(**values)


def test_a_preempted_worker_waits_for_its_save() -> None:
    """In slices, and never past the time that is left."""
    assert preemption.next_step(preempted()) == preemption.WaitForSave(0.5, look_in_storage=False)
    assert preemption.next_step(preempted(time_left=0.2)) == preemption.WaitForSave(0.2, look_in_storage=False)
    assert preemption.next_step(preempted(is_isolated=True)) == preemption.WaitForSave(0.5, look_in_storage=True)


@pytest.mark.parametrize("change", [{"may_lose_work": False}, {"is_saved": True}, {"time_left": 0.0}])
def test_a_preempted_worker_leaves(change: dict[str, Any]) -> None:
    """It leaves when it has nothing to lose, when the save is durable, and when the time is up."""
    assert preemption.next_step(preempted(**change)) is None


# -------------------------------------------------------------------- finish


@pytest.mark.parametrize(
    ("is_pending", "awaits_final", "gives_up", "seconds_left", "step"),
    [
        (True, False, False, 1.0, "drain"),
        (True, False, False, -0.1, "failed"),
        (True, False, True, -0.1, "done"),
        (False, False, False, -0.1, "done"),
        (False, True, False, -0.1, "wait"),
        (False, True, True, 1.0, "done"),
    ],
)
def test_a_finished_worker_flushes_what_is_due(
    is_pending: bool, awaits_final: bool, gives_up: bool, seconds_left: float, step: str
) -> None:
    """It waits for another's commit without a limit. A notice, or a commit error, is not a failure of the flush."""
    found = flush_step(is_pending=is_pending, awaits_final=awaits_final, gives_up=gives_up, seconds_left=seconds_left)
    assert found == step


@pytest.mark.parametrize(
    ("ages", "now", "quiet_since", "step"),
    [
        ([], 10.0, 0.0, "wait"),
        ([], 10.1, 0.0, "delete"),
        ([], 12.0, 5.0, "wait"),
        # A member whose last heartbeat came before this worker left may be dead, or may be leaving too.
        ([12.5], 12.0, 0.0, "wait"),
        # A member that sent a heartbeat since goes on.
        ([12.5, 1.0], 12.0, 0.0, "keep"),
    ],
)
def test_only_the_last_worker_out_deletes(ages: list[float], now: float, quiet_since: float, step: str) -> None:
    """It has seen no other member for the quiet period."""
    assert deletion_step(ages, now=now, left_at=0.0, quiet_since=quiet_since, quiet_period=10.0) == step


def test_leaving_at_the_exit_of_the_interpreter_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that shuts down starts no thread, so the work is done in the calling one."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[bool] = []
    assert run_with_timeout(lambda: done.append(True), 0.0)
    assert done == [True]
