"""What the package uses of `threading`, over a scheduler. `Threading` takes the place of the module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from tests.simulation.scheduler import Process, Scheduler, Task


class Threading:
    """Stands for the module `threading` in a simulation. Its time is that of the scheduler."""

    TIMEOUT_MAX = 1e9

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._threads: dict[Task, FakeThread] = {}

    def Lock(self) -> FakeLock:  # noqa: N802 - named as in `threading`
        return FakeLock(self._scheduler)

    def RLock(self) -> FakeLock:  # noqa: N802
        return FakeLock(self._scheduler, is_reentrant=True)

    def Condition(self, lock: FakeLock | None = None) -> FakeCondition:  # noqa: N802
        return FakeCondition(self._scheduler, lock or self.RLock())

    def Event(self) -> FakeEvent:  # noqa: N802
        return FakeEvent(self._scheduler)

    def Thread(self, *, target: Callable[[], None], name: str = "", daemon: bool = True) -> FakeThread:  # noqa: N802
        return FakeThread(self, target, name)

    def current_thread(self) -> FakeThread:
        task = self._scheduler.current
        return self._threads.get(task) or FakeThread(self, lambda: None, "main", task)

    def main_thread(self) -> FakeThread:
        return FakeThread(self, lambda: None, "main")

    def spawn(self, thread: FakeThread, call: Callable[[], None]) -> Task:
        task = self._scheduler.spawn(self._scheduler.current.process, call)
        self._threads[task] = thread
        return task

    @property
    def scheduler(self) -> Scheduler:
        return self._scheduler


class FakeThread:
    """A thread of the process that starts it."""

    def __init__(self, module: Threading, target: Callable[[], None], name: str, task: Task | None = None) -> None:
        self._module = module
        self._target = target
        self.name = name
        self._task = task
        self._ended = module.Event()

    def start(self) -> None:
        self._task = self._module.spawn(self, self._run)

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self._ended.set()

    def join(self, timeout: float | None = None) -> None:
        self._ended.wait(timeout)

    def is_alive(self) -> bool:
        return self._task is not None and not self._ended.is_set()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FakeThread) and self._task is other._task

    def __hash__(self) -> int:
        return hash(self._task)


class FakeLock:
    """A lock. Each `acquire` may let another thread run first."""

    def __init__(self, scheduler: Scheduler, *, is_reentrant: bool = False) -> None:
        self._scheduler = scheduler
        self._is_reentrant = is_reentrant
        self._owner: Task | None = None
        self._count = 0
        self._waiting: list[Task] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = self._scheduler
        me = scheduler.current
        if self._is_reentrant and self._owner is me:
            self._count += 1
            return True
        if blocking and scheduler.random.random() < 0.05:
            scheduler.pause()
        while self._owner is not None:
            if not blocking:
                return False
            _wait_among(self._waiting, scheduler, None if timeout < 0 else timeout)
        self._owner, self._count = me, 1
        return True

    def release(self) -> None:
        self._count -= 1
        if self._count == 0:
            self._owner = None
            for task in self._waiting[:]:
                self._scheduler.wake(task)
            self._waiting.clear()

    def locked(self) -> bool:
        return self._owner is not None

    @contextmanager
    def released(self) -> Iterator[None]:
        """Free the lock whatever its count, and take it again."""
        count, self._count = self._count, 1
        self.release()
        try:
            yield
        finally:
            self.acquire()
            self._count = count

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._owner is not None:
            self.release()


class FakeCondition:
    """A condition."""

    def __init__(self, scheduler: Scheduler, lock: FakeLock) -> None:
        self._scheduler = scheduler
        self._lock = lock
        self._waiting: list[Task] = []

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *arguments: Any) -> None:
        self._lock.__exit__(*arguments)

    def wait(self, timeout: float | None = None) -> bool:
        with self._lock.released():
            return _wait_among(self._waiting, self._scheduler, timeout)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        end = None if timeout is None else self._scheduler.now + timeout
        while not (result := predicate()):
            left = None if end is None else end - self._scheduler.now
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify_all(self) -> None:
        for task in self._waiting[:]:
            self._scheduler.wake(task)
        self._waiting.clear()

    notify = notify_all


class FakeEvent:
    """An event."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_set = False
        self._waiting: list[Task] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for task in self._waiting[:]:
            self._scheduler.wake(task)
        self._waiting.clear()

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            _wait_among(self._waiting, self._scheduler, timeout)
        return self._is_set


def _wait_among(waiting: list[Task], scheduler: Scheduler, timeout: float | None) -> bool:
    """Wait until the list is woken. A task that gave up must not be woken in another wait of its own."""
    me = scheduler.current
    waiting.append(me)
    was_woken = scheduler.block(timeout)
    if me in waiting:
        waiting.remove(me)
    return was_woken


class SimulatedClock:
    """The clock of a process: it may run fast or slow, and jump ahead. It never goes back."""

    def __init__(self, scheduler: Scheduler, process: Process) -> None:
        self._scheduler = scheduler
        self._process = process

    def now(self) -> float:
        return 1000.0 + self._scheduler.now * self._process.rate + self._process.ahead

    def wait(self, event: Any, timeout: float) -> bool:
        is_set: bool = event.wait(max(timeout, 0.0) / self._process.rate)
        return is_set
