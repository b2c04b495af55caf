"""A bound on what a fit awaits, set by another thread while it is being awaited.

Cancelling is asking: code that catches CancelledError goes on. So it is asked again and again; code that blocks the
event loop can't be asked at all.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, Final

from distributed_backup.clock import Clock

_CUT_PERIOD: Final = 0.02


class DeadlineExceededError(Exception):
    """What was awaited was cancelled, for the grace period is running out. Never leaves this package."""


class CancelScope:
    """Bounds what a fit awaits by an instant that another thread may set at any time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._instant: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cuts = 0

    def set_deadline(self, instant: float) -> None:
        """Cancel what is awaited at `instant`; the earliest instant counts. From any thread."""
        with self._lock:
            self._instant = instant if self._instant is None else min(self._instant, instant)
            loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the loop was closed meanwhile: nothing is awaited any more
                loop.call_soon_threadsafe(self._arm)

    async def run(self, awaitable: Awaitable[Any]) -> Any:
        """Await `awaitable`.

        Raises:
            CutOffError: The instant came first.
        """
        with self._lock:
            self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._arm()
        try:
            result = await awaitable
        except (Exception, asyncio.CancelledError):
            if self._cuts:
                raise DeadlineExceededError from None
            raise
        else:
            if self._cuts:
                # A retry may have taken the cancellation for a failed call, and the rest have gone on without it.
                raise DeadlineExceededError
            return result
        finally:
            self._disarm()

    def _arm(self) -> None:
        if self._instant is None or self._task is None or self._loop is None or self._cuts:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, self._instant - self._clock.now()), self._cut)

    def _cut(self) -> None:
        # Again and again: synalinks retries language-model calls with tenacity, which takes a cancellation for one
        # more failure of the call and goes on. It ends when one falls into the pause between two tries.
        if self._task is not None and self._loop is not None:
            self._cuts += 1
            self._task.cancel()
            self._timer = self._loop.call_later(_CUT_PERIOD, self._cut)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        task, self._task, self._timer = self._task, None, None
        while task is not None and self._cuts:
            task.uncancel()
            self._cuts -= 1
