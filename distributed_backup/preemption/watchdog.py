"""Act at a deadline, even if every other thread hangs.

The timer has a thread of its own. It can't interrupt a thread that hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class ExitWatchdog:
    """A timer that calls `act` once, at the earliest instant it was armed for, unless it is disarmed. Thread-safe."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._lock = threading.Lock()
        self._instant: float | None = None
        self._timer: threading.Timer | None = None
        self._over = False

    def arm(self, seconds: float) -> None:
        """Act in `seconds`, or at an earlier instant that it is armed for already.

        An interpreter that shuts down starts no thread. Then only an earlier call counts.
        """
        instant = time.monotonic() + seconds
        with self._lock:
            if self._over or (self._instant is not None and self._instant <= instant):
                return
            timer = threading.Timer(seconds, self._act)
            timer.name, timer.daemon = "distributed-backup-watchdog", True
            try:
                timer.start()
            except RuntimeError:
                return
            if self._timer is not None:
                self._timer.cancel()
            self._instant, self._timer = instant, timer

    def disarm(self) -> None:
        """Never act, even if armed again."""
        with self._lock:
            self._over = True
            if self._timer is not None:
                self._timer.cancel()
