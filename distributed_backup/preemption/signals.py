"""What tells of a preemption, and what comes of it; the only module that touches `signal`.

Signals and sources of notices (files, metadata services) are watched from threads of their own. The signal handler
takes a note and nothing else: it takes no lock, does no I/O and logs nothing, for it may interrupt anything
(signal-safety(7)); a thread does the rest. Python runs handlers on the main thread between two bytecodes, so a main
thread that sits in a long call of C code hears of a signal late. The last resort waits for nobody.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)


class SignalWatch:
    """Turns signals into notices while it is installed.

    Handlers that were there before are called for each signal, and put back at the end.

    Args:
        signals: Which signals.
        on_notice: Called from a thread with the signal's name, for the first signal.
    """

    def __init__(self, signals: Iterable[signal.Signals], *, on_notice: Callable[[str], None]) -> None:
        self._signals = tuple(signals)
        self._on_notice = on_notice
        self._previous: dict[int, Any] = {}
        # Reentrant by contract, unlike an Event: a second signal may interrupt the handler of the first.
        self._notes: SimpleQueue[int | None] = SimpleQueue()
        self._active = False
        self._pid = os.getpid()
        self.noted: str | None = None
        """Name of the first signal; set before anything else happens because of it."""
        self._noted_at = 0.0
        self._handler = self._handle  # a bound method is a new object at each look; we compare identities

    @property
    def seconds_since(self) -> float:
        """Seconds since the first signal."""
        return time.monotonic() - self._noted_at

    def install(self) -> bool:
        """Install the handlers and start the thread; False, with a warning, off the main thread."""
        if threading.current_thread() is not threading.main_thread():
            logger.warning(
                "fit does not run on the main thread, so signals can't be handled there: a SIGTERM ends this process "
                "without a save; other sources of notices work, and a notice to another worker is still served"
            )
            return False
        self._active = True
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._handler)
        threading.Thread(target=self._watch, name="distributed-backup-signals", daemon=True).start()
        return True

    def uninstall(self) -> None:
        """Put the previous handlers back, where ours are still in place, and stop the thread."""
        self._active = False
        self._notes.put(None)
        if threading.current_thread() is threading.main_thread():
            for number, previous in list(self._previous.items()):
                # Somebody who chained to us since still calls us, and we the one before us.
                if signal.getsignal(number) is self._handler and previous is not None:
                    signal.signal(number, previous)
                    del self._previous[number]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid or not self._active:
            # A forked child, or a fit that is over and could not put the handler back: not ours to swallow.
            self._pass_on(number, frame)
            return
        if self.noted is None:
            self.noted, self._noted_at = signal.Signals(number).name, time.monotonic()
        self._notes.put(number)
        self._call_previous(number, frame)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if not self._call_previous(number, frame) and self._previous.get(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _call_previous(self, number: int, frame: FrameType | None) -> bool:
        previous = self._previous.get(number)
        # Python's own SIGINT handler raises KeyboardInterrupt, which would abort the save it should bring about.
        if not callable(previous) or previous is signal.default_int_handler:
            return False
        previous(number, frame)
        return True

    def _watch(self) -> None:
        number = self._notes.get()
        if number is None:
            return
        self._on_notice(signal.Signals(number).name)
        while self._notes.get() is not None:
            logger.warning("signal came again, the save goes on")
