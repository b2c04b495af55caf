"""Act at a deadline, whatever else hangs.

The timer has a thread of its own. It can't interrupt the thread that hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class ExitWatchdog:
    """Acts once, at the earliest of the instants that it was given, unless it is called off. Thread-safe.

    Args:
        act: Called from a thread of its own, so that whatever hangs elsewhere can't take it away.
    """

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._lock = threading.Lock()
        self._instant: float | None = None
        self._timer: threading.Timer | None = None
        self._over = False

    def arm(self, seconds: float) -> None:
        """Act in `seconds`, if that is sooner than what was said before."""
        instant = time.monotonic() + seconds
        with self._lock:
            if self._over or (self._instant is not None and self._instant <= instant):
                return
            if self._timer is not None:
                self._timer.cancel()
            self._instant, self._timer = instant, threading.Timer(seconds, self._act)
            self._timer.name, self._timer.daemon = "distributed-backup-last-resort", True
            self._timer.start()

    def disarm(self) -> None:
        """It is not needed any more."""
        with self._lock:
            self._over = True
            if self._timer is not None:
                self._timer.cancel()
