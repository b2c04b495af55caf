"""Find out whether the asyncio task of a fit was cancelled, during a wait that blocks its event loop.

asyncio handles the first Ctrl-C by a cancellation of the main task, which reaches the task at its next await. A standby
may wait for hours before that. So its waits look for a cancellation themselves.

The limit: a cancellation by the event loop itself, as by `asyncio.timeout`, comes after the wait.
"""

from __future__ import annotations

import asyncio
from typing import Any


def current_task() -> asyncio.Task[Any] | None:
    """Return the running task. None if no event loop runs in this thread."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


class FitTask:
    """The task that runs the fit: the current one when this is made."""

    def __init__(self) -> None:
        self._task = current_task()
        # A program that caught an earlier cancellation may begin a fit afterwards.
        self._earlier = self._cancellations

    def raise_if_cancelled(self) -> None:
        """Raise if the task was cancelled since the fit began.

        Raises:
            CancelledError: It was. `asyncio.run` raises KeyboardInterrupt for it if Ctrl-C was pressed.
        """
        if self._cancellations > self._earlier:
            raise asyncio.CancelledError

    @property
    def _cancellations(self) -> int:
        return 0 if self._task is None else self._task.cancelling()
