"""Run many simulated threads in one real one: time passes only when none can run, and a seed makes every choice.

A simulated thread is a greenlet. It runs until it waits, and then the scheduler picks one of those that can run. So a
seed decides the order of all steps, and the same seed repeats it. A process is a group of threads that can be paused
or killed between any two of their steps. A killed thread runs nothing more, not even its `finally`.

The limit: a thread loses its turn where it waits or locks, and not between two of its instructions.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import traceback
import zlib
from collections.abc import Callable
from typing import Any, Final

from greenlet import GreenletExit, getcurrent, greenlet

# Steps after which a run counts as one that does not end.
MOST_STEPS: Final = 2_000_000


class Process:
    """A group of threads with one fate. `rate` is the speed of its clock."""

    def __init__(self, name: str, *, rate: float = 1.0) -> None:
        self.name = name
        self.rate = rate
        self.ahead = 0.0
        """Seconds by which its clock has jumped."""
        self.is_dead = self.is_paused = False


class Task:
    """A simulated thread."""

    def __init__(self, number: int, process: Process, call: Callable[[], None], hub: greenlet) -> None:
        self.number = number
        self.process = process
        # It returns to the scheduler, and not to the thread that has started it.
        self.greenlet = greenlet(call, hub)
        self.loop: Any = None
        """The event loop that runs in it: asyncio knows one for each real thread."""
        self.waits = 0
        """The number of its waits, so that a timer of an earlier one has no effect."""
        self.is_waiting = self.was_woken = False


class Scheduler:
    """The threads of all processes, and the time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self.digest = 0
        """Of all choices so far. Two runs of one seed have the same."""
        self._hub = getcurrent()
        self._ready: list[Task] = []
        self._parked: list[Task] = []
        self._timers: list[tuple[float, int, Task, int]] = []
        self._tasks: list[Task] = []
        # Of timers: of two that end together, the older one comes first.
        self._numbers = itertools.count()
        self._current: Task | None = None

    @property
    def current(self) -> Task:
        """The thread that runs."""
        assert self._current is not None
        return self._current

    def spawn(self, process: Process, call: Callable[[], None]) -> Task:
        """Start a thread of `process`."""
        task = Task(len(self._tasks), process, call, self._hub)
        self._tasks.append(task)
        self._ready.append(task)
        return task

    # ---------------------------------------------------------------- from a simulated thread

    def pause(self, seconds: float = 0.0) -> None:
        """Let others run, and go on after `seconds` at the earliest."""
        task = self.current
        if seconds > 0:
            self.block(seconds)
            return
        self._ready.append(task)
        self._leave(task)

    def block(self, seconds: float | None) -> bool:
        """Wait until another thread calls `wake`, at most `seconds`. Return whether one did."""
        task = self.current
        task.is_waiting, task.was_woken = True, False
        task.waits += 1
        if seconds is not None:
            heapq.heappush(self._timers, (self.now + max(seconds, 0.0), next(self._numbers), task, task.waits))
        self._leave(task)
        return task.was_woken

    def wake(self, task: Task) -> None:
        """End the wait of a thread. No effect if it does not wait."""
        if task.is_waiting:
            task.is_waiting, task.was_woken = False, True
            self._ready.append(task)

    def _leave(self, task: Task) -> None:
        if task.process.is_dead:
            raise GreenletExit
        self._hub.switch()
        if task.process.is_dead:
            raise GreenletExit

    # ---------------------------------------------------------------- processes

    def kill(self, process: Process) -> None:
        """End all threads of a process where they are."""
        process.is_dead = True

    def resume(self, process: Process) -> None:
        """Let a paused process go on."""
        process.is_paused = False
        self._ready += [task for task in self._parked if task.process is process]
        self._parked = [task for task in self._parked if task.process is not process]

    def stacks(self) -> str:
        """Return where each thread waits that has not ended."""
        found = []
        for task in self._tasks:
            frame = task.greenlet.gr_frame
            if frame is not None and not task.process.is_dead:
                calls = traceback.extract_stack(frame)
                found.append(
                    f"{task.process.name}: " + " < ".join(f"{call.name}:{call.lineno}" for call in calls[::-1])
                )
        return "\n".join(found)

    # ---------------------------------------------------------------- the run

    def run(self, until: Callable[[], bool]) -> None:
        """Run until `until`, which is asked after each step.

        Raises:
            AssertionError: No thread can ever run again, or the run does not end.
        """
        while not until():
            if not self._ready:
                self._advance()
                continue
            index = self.random.randrange(len(self._ready))
            self._ready[index], self._ready[-1] = self._ready[-1], self._ready[index]
            task = self._ready.pop()
            if task.process.is_dead:
                continue
            if task.process.is_paused:
                self._parked.append(task)
                continue
            self._switch_to(task)
            self.steps += 1
            assert self.steps < MOST_STEPS, f"the run has not ended after {MOST_STEPS} steps, at {self.now:.1f} s"

    def _switch_to(self, task: Task) -> None:
        self.digest = zlib.crc32(task.number.to_bytes(4, "big"), self.digest)
        self._current = task
        asyncio._set_running_loop(task.loop)
        try:
            task.greenlet.switch()
        finally:
            task.loop = asyncio._get_running_loop()
            asyncio._set_running_loop(None)
            self._current = None

    def _advance(self) -> None:
        assert self._timers, f"no thread can run any more, at {self.now:.1f} s"
        self.now = max(self.now, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self.now:
            _, _, task, waits = heapq.heappop(self._timers)
            if task.is_waiting and task.waits == waits:
                task.is_waiting = False
                self._ready.append(task)
