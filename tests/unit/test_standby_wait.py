"""The waits of a fit between two awaits, with stubs for worker, scope, state and snapshots."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from distributed_backup.checkpoints.format import Checkpoint, Snapshot, encode
from distributed_backup.position import Position
from distributed_backup.training.standby_wait import StandbyWait
from distributed_backup.worker.options import WorkerOptions
from distributed_backup.worker.start_point import StartPoint


class Stubs:
    """Worker, scope, state and snapshots in one. It records the calls, and `final` is the result of a wait."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.stands_by = self.notice_given = False
        self.waits = 1
        self.final: StartPoint | None = None
        self.value = 0
        self.restored: Checkpoint | None = None

    def wait(self, *, standby: bool = True) -> StandbyWait:
        stub = cast(Any, self)
        return StandbyWait(stub, WorkerOptions(standby=standby), scope=stub, state=stub, snapshots=stub, journal=stub)

    def capture(self) -> bytes:
        self.calls.append("capture")
        return b"%d" % self.value

    def apply(self, body: bytes) -> None:
        self.value = int(body)

    def mark(self) -> None:
        self.calls.append("mark")

    def rewind(self) -> None:
        self.calls.append("rewind")

    def withdraw_deadline(self) -> None:
        self.calls.append("withdraw_deadline")

    async def end_cancelled(self) -> None:
        self.calls.append("end_cancelled")

    def stand_by(self) -> StartPoint | None:
        self.calls.append("stand_by")
        self.waits -= 1
        self.stands_by = self.waits > 0
        return self.final

    def take_over(self, final: Checkpoint | None) -> None:
        self.restored = final


def test_a_cancelled_await_is_undone_before_it_is_repeated() -> None:
    """A batch that was cancelled may have changed the state half-way."""
    stubs = Stubs()
    wait = stubs.wait()
    assert not wait.before_await()
    stubs.value, stubs.stands_by = 7, True
    assert asyncio.run(wait.undo_await())
    assert stubs.value == 0
    assert not wait.before_await()
    undone = ["withdraw_deadline", "end_cancelled", "rewind", "withdraw_deadline", "stand_by"]
    assert stubs.calls == ["capture", "mark", *undone, "capture", "mark"]


def test_an_await_that_a_notice_cancels_is_not_undone() -> None:
    """Also if this worker must wait: it is preempted."""
    stubs = Stubs()
    wait = stubs.wait()
    wait.before_await()
    stubs.value = 7
    assert not asyncio.run(wait.undo_await())
    stubs.stands_by = stubs.notice_given = True
    assert not asyncio.run(wait.undo_await())
    assert (stubs.value, stubs.calls) == (7, ["capture", "mark"])


def test_what_is_cancelled_before_the_first_capture_is_only_repeated() -> None:
    """The optimizer's reset at the start of a fit costs nothing and may be done twice."""
    stubs = Stubs()
    stubs.value, stubs.stands_by = 7, True
    assert asyncio.run(stubs.wait().undo_await())
    assert (stubs.value, stubs.calls) == (7, ["withdraw_deadline", "end_cancelled"])


def test_a_run_that_has_finished_is_the_result() -> None:
    """Its last boundary is applied at the end of the loop, whose validation resets the metrics."""
    snapshot = Snapshot(position=Position(3), body=b"9")
    header, _ = encode(snapshot, run_id="r", term=2, worker_id="b", created_at="")
    final = Checkpoint(header=header, body=b"9")
    stubs = Stubs()
    stubs.stands_by, stubs.final = True, StartPoint(checkpoint=final, finished=True)
    wait = stubs.wait()
    assert wait.before_await()
    assert (stubs.calls, stubs.restored, stubs.value) == (["withdraw_deadline", "stand_by"], final, 0)
    wait.apply_last_boundary()
    assert stubs.value == 9


def test_a_standby_that_must_wait_again_at_once_trains_under_no_deadline() -> None:
    """It has lost the lead that its wait ended with, which would cancel the next await."""
    stubs = Stubs()
    stubs.stands_by, stubs.waits = True, 2
    assert not stubs.wait().before_await()
    assert stubs.calls == ["withdraw_deadline", "stand_by"] * 2 + ["capture", "mark"]


def test_a_replica_captures_nothing_before_an_await() -> None:
    """It never waits, and a capture costs milliseconds."""
    stubs = Stubs()
    assert not stubs.wait(standby=False).before_await()
    assert stubs.calls == []
