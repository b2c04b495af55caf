"""Cancel an await of a fit at a deadline that another thread may set meanwhile.

Code that catches CancelledError continues, so the cancellation is repeated every 20 ms. `gather` ends with the first of
its tasks that does. The others go on, and their retries would send requests after the await: see `end_cancelled`.

The limit: code that blocks the event loop can't be cancelled. A task that goes on for `_END_LIMIT` is left alone. So is
a task that was not cancelled with the await, as in `asyncio.shield`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

from distributed_backup.clock import Clock

# Seconds between two cancellations of one await.
_CANCEL_PERIOD: Final = 0.02
# Seconds that a task has to release what it holds before it is cancelled again. The pauses of synalinks take 1 s.
_RELEASE_PERIOD: Final = 0.2
# Seconds in which the tasks of an await that was cancelled may end.
_END_LIMIT: Final = 2.0

# The awaits that a task is part of, outermost first: a fit may run in a batch of another. Its own tasks inherit them.
_awaits: ContextVar[tuple[object, ...]] = ContextVar("distributed_backup_awaits", default=())


class DeadlineExceededError(Exception):
    """The await was cancelled at its deadline. Never leaves this package."""


class CancelScope:
    """A deadline for the awaits of a fit, set at any time and from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._instant: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cancellations = 0
        # The last await, as its tasks know it.
        self._own = object()

    def set_deadline(self, instant: float) -> None:
        """Cancel the running await at `instant` of the clock. The earliest instant counts. From any thread."""
        with self._lock:
            self._instant = instant if self._instant is None else min(self._instant, instant)
            loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the loop is closed, so nothing is awaited
                loop.call_soon_threadsafe(self._arm)

    def withdraw_deadline(self) -> None:
        """Let the next await run without a deadline, until one is set again."""
        with self._lock:
            self._instant = None

    async def run(self, awaitable: Awaitable[Any]) -> Any:
        """Return the result of `awaitable`.

        Raises:
            DeadlineExceededError: The deadline passed first.
        """
        with self._lock:
            self._loop = asyncio.get_running_loop()
        self._task = task = asyncio.current_task()
        assert task is not None
        requested = task.cancelling()
        self._arm()
        self._own = object()
        outer = _awaits.set((*_awaits.get(), self._own))
        try:
            result = await awaitable
        except (Exception, asyncio.CancelledError):
            if not self._cancellations:
                raise
        else:
            # If cancelled, a retry may have treated that as a failed call, so the result may lack that call's part.
            if not self._cancellations:
                return result
        finally:
            self._disarm()
            with suppress(ValueError):  # a coroutine that is collected is closed in another context
                _awaits.reset(outer)
        if task.cancelling() > requested:
            raise asyncio.CancelledError  # Ctrl-C came at the same moment
        raise DeadlineExceededError

    async def end_cancelled(self) -> None:
        """Wait until the tasks end that were cancelled with the last await. Those that go on are cancelled again."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _END_LIMIT
        while (left := self._cancelled()) and loop.time() < end:
            _, pending = await asyncio.wait(left, timeout=_RELEASE_PERIOD)
            for task in pending:
                task.cancel()

    def _cancelled(self) -> list[asyncio.Task[Any]]:
        return [
            task
            for task in asyncio.all_tasks()
            if task.cancelling() and self._own in task.get_context().get(_awaits, ())
        ]

    def _arm(self) -> None:
        if self._instant is None or self._task is None or self._loop is None or self._cancellations:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, self._instant - self._clock.now()), self._cancel)

    def _cancel(self) -> None:
        # Repeated, because synalinks retries language-model calls with tenacity, which treats a cancellation as one
        # more failed call. A cancellation in the pause between two attempts ends the retries.
        if self._task is not None and self._loop is not None:
            self._cancellations += 1
            self._task.cancel()
            self._timer = self._loop.call_later(_CANCEL_PERIOD, self._cancel)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        task, self._task, self._timer = self._task, None, None
        while task is not None and self._cancellations:
            task.uncancel()
            self._cancellations -= 1
