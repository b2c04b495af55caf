"""The workers of one test, each with its real threads, over a coordinator in memory.

The test moves the time in steps. After each step every elector has made its tick.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.base import Announcement, ClusterView, Coordinator, Heartbeat
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.errors import CoordinatorUnavailableError, StoreError
from distributed_backup.observability.reporter import Reporter
from distributed_backup.position import Position
from distributed_backup.worker.options import WorkerOptions
from distributed_backup.worker.worker import Worker
from tests.support.clocks import FakeClock
from tests.support.internals import context_of, elector_of, saver_of, waiting_threads

PATIENCE = 30.0
STEP = 0.15
# Longer than any test takes, for limits that the test is not about.
LONG = 1e6


class Metronome(FakeClock):
    """Time moves in steps. A step ends when each thread whose wait is over has acted and waits again."""

    def __init__(self) -> None:
        super().__init__()
        self._condition = threading.Condition()
        self._until: dict[threading.Thread, float] = {}

    def wait(self, event: threading.Event, timeout: float) -> bool:
        me, until = threading.current_thread(), self._now + timeout
        with self._condition:
            self._until[me] = until
            self._condition.notify_all()
        while not event.wait(0.001) and self._now < until:
            pass
        return event.is_set()

    def await_wait(self, thread: threading.Thread | None) -> None:
        """Wait until `thread` has come to its first wait."""
        with self._condition:
            assert self._condition.wait_for(lambda: thread in self._until, PATIENCE)

    def advance(self, seconds: float) -> None:
        with self._condition:
            self._now += seconds
            woken = [thread for thread, until in self._until.items() if until <= self._now]

            def settled() -> bool:
                return all(self._until[thread] > self._now or not thread.is_alive() for thread in woken)

            for _ in range(int(PATIENCE / 0.01)):
                if self._condition.wait_for(settled, 0.01):
                    return
            raise AssertionError(f"still at work after {PATIENCE} s: {woken}")


class FaultyStore(CheckpointStore):
    """Commits fail while it is `broken`. It calls `before_load` before it reads a checkpoint."""

    broken = False
    before_load: Callable[[], None] | None = None

    def commit(self, snapshot: Snapshot, *, term: int, worker_id: str) -> CheckpointHeader:
        if self.broken:
            raise StoreError(f"can't write {self.location}: No space left on device", path=self.location)
        return super().commit(snapshot, term=term, worker_id=worker_id)

    def load(self, name: str) -> Any:
        before, self.before_load = self.before_load, None
        if before is not None:
            before()
        return super().load(name)


class Gone(MemoryCoordinator):
    """Can't be reached while it is `gone`."""

    gone = True

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        if self.gone:
            raise CoordinatorUnavailableError("can't reach redis://host")
        return super().heartbeat(beat)


class Team:
    """The workers of one test."""

    def __init__(self, root: Path) -> None:
        self.root = root / "run"
        self.clock = Metronome()
        self.coordinator = MemoryCoordinator(self.clock)
        self.workers: list[Worker] = []
        self.cut_offs: dict[str, list[float]] = {}
        self.reporter: Callable[[str], Reporter] = Reporter
        self._threads = ThreadPoolExecutor(8)

    def worker(self, worker_id: str, **arguments: Any) -> Worker:
        """A worker that has joined."""
        worker = self.unjoined(worker_id, **arguments)
        worker.join()
        # Time must not pass before the first heartbeat, even on a slow machine.
        self.clock.await_wait(elector_of(worker)._thread)
        return worker

    def unjoined(
        self,
        worker_id: str,
        *,
        root: Path | None = None,
        store: CheckpointStore | None = None,
        coordinator: Coordinator | None = None,
        **options: Any,
    ) -> Worker:
        """A worker that has not joined yet."""
        settled = {"restore_timeout": LONG, "grace_period": LONG, **options}
        worker = Worker(
            store=store or FaultyStore(root or self.root, keep=10),
            coordinator=coordinator or self.coordinator,
            clock=self.clock,
            options=WorkerOptions(**settled),
            stop_training_at=self.cut_offs.setdefault(worker_id, []).append,
            report=self.reporter(worker_id),
        )
        self.workers.append(worker)
        return worker

    def started(self, worker_id: str, **arguments: Any) -> Worker:
        """A worker that trains."""
        worker = self.worker(worker_id, **arguments)
        start = self.result(self.begin(worker.await_start))
        worker.training_started(Position(0) if start.checkpoint is None else start.checkpoint.position)
        return worker

    def begin(self, call: Callable[[], Any]) -> Future[Any]:
        return self._threads.submit(call)

    def step(self) -> None:
        self.clock.advance(STEP)

    def steps(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            self.step()

    def until(self, condition: Callable[[], object], limit: float = 300.0) -> None:
        """Let time pass until `condition` holds."""
        for _ in range(round(limit / STEP)):
            if condition():
                return
            self.step()
            self._let_waiting_threads_look(condition)
        # The limit is of the test's time, which stands still from here. A loaded machine needs more of its own.
        soon(condition)

    def _let_waiting_threads_look(self, condition: Callable[[], object]) -> None:
        """Time must not run away from a thread that is starved: its wait is in real time."""
        pause = threading.Event()
        pause.wait(0.001)
        for worker in self.workers:
            waiting = waiting_threads(worker)
            if waiting:
                context_of(worker).state.notify_all()
            for _ in range(200):
                # A thread that has left its loop does not come back.
                if waiting_threads(worker) >= waiting or condition():
                    break
                pause.wait(0.005)

    def result(self, future: Future[Any], limit: float = 300.0) -> Any:
        self.until(future.done, limit)
        return future.result(PATIENCE)

    def commit(self, epoch: int, batch: int = 0, *, term: int = 1) -> CheckpointHeader:
        """A checkpoint from an earlier incarnation of the run."""
        return CheckpointStore(self.root, keep=10).commit(snapshot(epoch, batch), term=term, worker_id="earlier")

    def positions(self) -> list[Position]:
        return [row.position for row in CheckpointStore(self.root).list()]

    @property
    def announcement(self) -> Announcement:
        made = self.coordinator.view().announcement
        assert made is not None
        return made

    def holder(self) -> str | None:
        return self.coordinator.view().holder

    def member_ids(self) -> list[str]:
        return [member.worker_id for member in self.coordinator.members()]

    def kill(self, worker: Worker) -> None:
        """Make the worker silent: it makes no tick and no commit from here on."""
        elector_of(worker).stop()
        saver_of(worker).stop()

    def end(self) -> None:
        for worker in self.workers:
            worker.give_notice("end of the test")
            worker.close(timeout=0.0)
        # Each wait that is still under way ends here.
        self.clock.advance(2 * LONG)
        self._threads.shutdown()


def snapshot(epoch: int, batch: int = 0) -> Snapshot:
    return Snapshot(position=Position(epoch, batch), body=b'{"epoch":%d,"batch":%d}' % (epoch, batch))


def soon(condition: Callable[[], object]) -> None:
    """Wait for other threads while the clock stands still."""
    pause = threading.Event()
    for _ in range(round(PATIENCE / 0.005)):
        if condition():
            return
        pause.wait(0.005)
    assert condition()
