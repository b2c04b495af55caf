"""Turn signals into preemption notices.

The signal handler only records the signal. It takes no lock, does no I/O and logs nothing, because it may interrupt any
code (signal-safety(7)). A thread gives the notice. Python runs handlers on the main thread between two bytecodes, so a
long call of C code there delays the notice.
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
    """Handlers that turn signals into notices while they are installed.

    Each signal is also passed to the handler before ours, which is restored at the end. A thread calls `on_notice` with
    the name of the first signal.
    """

    def __init__(self, signals: Iterable[signal.Signals], *, on_notice: Callable[[str], None]) -> None:
        self._signals = tuple(signals)
        self._on_notice = on_notice
        self._previous: dict[int, Any] = {}
        # SimpleQueue is reentrant, unlike Event: a second signal may interrupt the handler of the first.
        self._notes: SimpleQueue[int | None] = SimpleQueue()
        self._active = False
        self._pid = os.getpid()
        self.noted: str | None = None
        """Name of the first signal. Set by the handler, before its thread runs."""
        self._noted_at = 0.0
        self._handler = self._handle  # kept, because each access makes a new bound method and `is` compares

    @property
    def seconds_since(self) -> float:
        """Seconds since the first signal."""
        return time.monotonic() - self._noted_at

    def install(self) -> bool:
        """Install the handlers and start the thread. Off the main thread, warn and return False."""
        if threading.current_thread() is not threading.main_thread():
            logger.warning(
                "fit does not run on the main thread, so signals can't be handled: a SIGTERM ends this process without "
                "a save. Other sources of notices work, and a notice to another worker is still served. Run fit on the "
                "main thread to have signals served too"
            )
            return False
        self._active = True
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._handler)
        threading.Thread(target=self._watch, name="distributed-backup-signals", daemon=True).start()
        return True

    def uninstall(self) -> None:
        """Stop the thread, and restore the previous handlers where ours are still in place."""
        self._active = False
        self._notes.put(None)
        if threading.current_thread() is threading.main_thread():
            for number, previous in list(self._previous.items()):
                # A handler that was installed since and chains to ours keeps calling it, and ours calls the previous.
                if signal.getsignal(number) is self._handler and previous is not None:
                    signal.signal(number, previous)
                    del self._previous[number]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid or not self._active:
            # A forked child, or a finished fit whose handler could not be removed: act as if ours were absent.
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
        # Python's own SIGINT handler raises KeyboardInterrupt, which would abort the save that the notice asks for.
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
            logger.warning("a signal arrived again: the save before the exit continues")
