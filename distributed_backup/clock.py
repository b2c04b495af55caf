"""The clock that every class takes that measures or waits, so that tests never sleep or patch.

Instants are float seconds of one clock of one machine. Instants of two machines can't be compared.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """A clock that never goes back and counts while the machine is suspended."""

    def now(self) -> float:
        """Return the instant, in seconds since an arbitrary origin."""
        ...

    def wait(self, event: threading.Event, timeout: float) -> bool:
        """Wait until `event` is set or `timeout` seconds have passed, and return whether it is set."""
        ...


class SystemClock:
    """The machine's clock.

    CLOCK_BOOTTIME where it exists. CLOCK_MONOTONIC stops during a suspend (clock_gettime(2)), so a suspended laptop or
    virtual machine would keep a lease that has expired for the others.
    """

    _clock_id = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now(self) -> float:
        """Return the seconds since boot, the same in every process of the machine."""
        return time.clock_gettime(self._clock_id)

    def wait(self, event: threading.Event, timeout: float) -> bool:
        """Wait until `event` is set or `timeout` seconds have passed, and return whether it is set."""
        return event.wait(max(timeout, 0.0))
