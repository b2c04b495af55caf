"""Time, passed in.

Everything that measures or waits takes a `Clock`, so that tests need neither sleep nor patch. Instants are
float seconds of one clock of one machine; they mean nothing on another.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """A clock that never goes back and counts while the machine is suspended."""

    def now(self) -> float:
        """The instant, in seconds since an arbitrary origin."""
        ...

    def wait(self, event: threading.Event, timeout: float) -> bool:
        """Wait until `event` is set or `timeout` seconds have passed; tell whether it is set."""
        ...


class SystemClock:
    """The machine's clock.

    CLOCK_BOOTTIME where there is one: CLOCK_MONOTONIC stops during a suspend (clock_gettime(2)), so a
    suspended laptop or a paused virtual machine would go on believing in a lease that others saw expire.
    """

    _clock_id = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now(self) -> float:
        """Seconds since boot; the same in every process of the machine."""
        return time.clock_gettime(self._clock_id)

    def wait(self, event: threading.Event, timeout: float) -> bool:
        """Wait until `event` is set or `timeout` seconds have passed; tell whether it is set."""
        return event.wait(max(timeout, 0.0))
