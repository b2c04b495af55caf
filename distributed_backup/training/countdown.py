"""Count down the time of a bounded wait in an event loop, so that a suspension does not use it up.

The machine may be suspended for longer than the wait. What the wait is for comes soon after. So the time is counted in
looks: a suspension uses up one of them.

The limit: a process that runs for a moment between two suspensions, again and again, waits longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

LOOKS: Final = 10


class Countdown:
    """Calls `call` once, when the process has run for `seconds` since now, unless it is cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], None]) -> None:
        self._loop = loop
        self._period = seconds / LOOKS
        self._call = call
        self._timer = loop.call_later(self._period, self._look, LOOKS - 1)

    def _look(self, left: int) -> None:
        if left > 0:
            self._timer = self._loop.call_later(self._period, self._look, left - 1)
        else:
            self._call()

    def cancel(self) -> None:
        """Call nothing."""
        self._timer.cancel()
