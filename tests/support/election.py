"""One elector on a clock that stands still, with a coordinator that fails on request."""

from __future__ import annotations

import threading
from typing import Any

from distributed_backup.coordination.base import ClusterView, Heartbeat
from distributed_backup.coordination.election import Candidate, Elector, LeaseLoss
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import CoordinatorUnavailableError, StoreError
from tests.support.clocks import FakeClock
from tests.support.terms import Terms

TIMINGS = LeaseTimings(duration=15.0, renew_deadline=10.0, retry_period=2.0)


class FaultyCoordinator(MemoryCoordinator):
    """Fails before the operation while `down`, and after it while `lossy`. A call takes `slow` seconds."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.fake = clock
        self.down = self.lossy = False
        self.slow = 0.0
        self.beats: list[Heartbeat] = []
        self.resigned: list[str] = []
        self.answer: ClusterView | None = None
        self.beaten = threading.Event()

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        self.beats.append(beat)
        self.beaten.set()
        self._maybe_down()
        view = super().heartbeat(beat)
        self.fake.advance(self.slow)
        if self.lossy:
            raise CoordinatorUnavailableError("reply lost")
        return self.answer or view

    def resign(self, worker_id: str) -> None:
        self.resigned.append(worker_id)
        self._maybe_down()
        super().resign(worker_id)

    def _maybe_down(self) -> None:
        if self.down:
            raise CoordinatorUnavailableError("connection refused")


class Recorder:
    """Records the calls of the elector."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.broken = False

    def elected(self, term: int) -> None:
        self.events.append(("elected", term))
        self._maybe_break()

    def lost(self, loss: LeaseLoss) -> None:
        self.events.append(("lost", loss))

    def observed(self, view: ClusterView) -> None:
        self.events.append(("observed", view))
        self._maybe_break()

    def of(self, kind: str) -> list[Any]:
        return [value for name, value in self.events if name == kind]

    def _maybe_break(self) -> None:
        if self.broken:
            raise RuntimeError("a bug in the listener")


class Bench:
    """A clock, a coordinator, and an elector "a" with its recorder."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.coordinator = FaultyCoordinator(self.clock)
        self.recorder = Recorder()
        self.terms = Terms()
        self.elector = self.another("a", self.recorder)

    def another(self, worker_id: str, recorder: Recorder | None = None) -> Elector:
        return Elector(
            candidate=Candidate(worker_id=worker_id, timings=TIMINGS),
            coordinator=self.coordinator,
            clock=self.clock,
            listener=recorder or Recorder(),
            terms=self.terms,
        )


def broken_store() -> StoreError:
    return StoreError("can't list /mnt/run", path="/mnt/run")


def broken_claim(term: int) -> bool:
    raise broken_store()


# Functions, because mypy takes a property for unchanged after an assert.
def leads(bench: Bench) -> bool:
    return bench.elector.is_leader


def in_doubt(bench: Bench) -> bool:
    return bench.elector.is_in_doubt


def last_resort(bench: Bench) -> int | None:
    return bench.elector.term_of_last_resort
