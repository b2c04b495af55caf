"""Act at a deadline, even if every other thread hangs.

The watchdog waits in a thread of its own, which it starts early. A process that shuts down, or that has reached its
limit of threads, starts none. It can't interrupt a thread that hangs.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


class ExitWatchdog:
    """Calls `act` once, at the earliest instant it was armed for, unless it is disarmed. Thread-safe."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self._condition = threading.Condition()
        self._instant = math.inf
        self._over = False

    def start(self) -> None:
        """Start the thread, which ends when it has acted or is disarmed.

        Raises:
            RuntimeError: No thread can be started.
        """
        threading.Thread(target=self._watch, name="distributed-backup-watchdog", daemon=True).start()

    def arm(self, seconds: float) -> None:
        """Act in `seconds`, or at an earlier instant that it is armed for already."""
        with self._condition:
            self._instant = min(self._instant, time.monotonic() + seconds)
            self._condition.notify()

    def disarm(self) -> None:
        """Never act, even if armed again."""
        with self._condition:
            self._over = True
            self._condition.notify()

    def _watch(self) -> None:
        with self._condition:
            while not self._over and (left := self._instant - time.monotonic()) > 0:
                self._condition.wait(min(left, threading.TIMEOUT_MAX))
            if self._over:
                return
        self._act()
