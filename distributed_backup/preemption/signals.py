"""Turn signals into preemption notices.

The signal handler only records the signal. It takes no lock, does no I/O and logs nothing, because it may interrupt any
code (signal-safety(7)). A thread gives the notice. Python runs handlers on the main thread between two bytecodes, so a
long call of C code there delays the notice.

All fits of a process share the handlers. So fits may end in any order, and a dead handler is never called by another.
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

_watches: list[SignalWatch] = []
"""The installed watches of this process, and those that a forked child has inherited."""

_in_progress: set[int] = set()
"""Signals whose handler runs: another handler that chains to ours is called by ours."""


class SignalWatch:
    """Handlers that turn signals into notices while they are installed.

    Each signal is also passed to the handler before ours, which is restored at the end. A thread calls `on_notice` with
    the name of the first signal. A signal that is ignored in this process stays ignored.
    """

    def __init__(self, signals: Iterable[signal.Signals], *, on_notice: Callable[[str], None]) -> None:
        self._signals = tuple(signals)
        self._on_notice = on_notice
        self._installed: list[signal.Signals] = []
        # SimpleQueue is reentrant, unlike Event: a second signal may interrupt the handler of the first.
        self._notes: SimpleQueue[int | str | None] = SimpleQueue()
        self._pid = os.getpid()
        self.noted: str | None = None
        """Name of the first signal. Set by the handler, before its thread runs."""
        self._noted_at = 0.0
        self._replacement_logged = False

    @property
    def seconds_since(self) -> float:
        """Seconds since the first signal."""
        return time.monotonic() - self._noted_at

    def serves(self, number: int) -> bool:
        """Whether the signal is a notice for this watch. In a forked child none is: it has no thread to give it."""
        return number in self._installed and self._pid == os.getpid()

    def install(self) -> bool:
        """Install the handlers and start the thread. Off the main thread, warn and return False."""
        if not _on_main_thread():
            logger.warning(
                "fit does not run on the main thread, so signals can't be handled: a SIGTERM ends this process without "
                "a save. Other sources of notices work, and a notice to another worker is still served. Run fit on the "
                "main thread to have signals served too"
            )
            return False
        _watches.append(self)
        for number in self._signals:
            if signal.getsignal(number) is signal.SIG_IGN:
                logger.warning(
                    "%s is ignored in this process, as under nohup, so it stays ignored and is no notice", number.name
                )
                continue
            self._installed.append(number)
            _Handler.put_in_front(number)
        threading.Thread(target=self._watch, name="distributed-backup-signals", daemon=True).start()
        return True

    def keep_in_front(self) -> None:
        """Put our handler over one that was installed over it, and call that one from it. Log the first time."""
        if not _on_main_thread():
            return
        for number in self._installed:
            if _Handler.put_in_front(number) and not self._replacement_logged:
                self._replacement_logged = True
                logger.warning(
                    "the handler of %s was replaced during the fit, so a signal would not have been served: ours is in "
                    "front again and calls the other one",
                    number.name,
                )

    def ignore_from_now_on(self) -> None:
        """Ignore the signals until the process has ended. Off the main thread this does nothing.

        Python sets its own handlers back to the default before it takes the modules down, so a signal would end the
        process with another exit code. It leaves SIG_IGN (`_PySignal_Fini` of CPython 3.12).
        """
        for number in self._installed if _on_main_thread() else ():
            signal.signal(number, signal.SIG_IGN)

    def uninstall(self) -> None:
        """Stop the thread, and restore the handlers of others unless another watch needs ours. May be called again.

        Off the main thread the handlers stay, and act as if they were absent.
        """
        if self not in _watches:
            return
        _watches.remove(self)
        self._notes.put(None)
        if _on_main_thread():
            for number in self._installed:
                if not any(watch.serves(number) for watch in _watches):
                    _Handler.remove(number)

    def note(self, number: int) -> None:
        """Record a signal, from its handler."""
        if self.noted is None:
            self.noted, self._noted_at = signal.Signals(number).name, time.monotonic()
        self._notes.put(number)

    def note_error(self, error: BaseException) -> None:
        """Record what the handler before ours has raised, from the handler."""
        self._notes.put(type(error).__name__)

    def _watch(self) -> None:
        given = False
        while (note := self._notes.get()) is not None:
            if isinstance(note, str):
                logger.warning("the signal handler before ours raised %s: ignored, the save continues", note)
            elif given:
                logger.warning("a signal arrived again: the save before the exit continues")
            else:
                given = True
                self._on_notice(signal.Signals(note).name)


class _Handler:
    """One installation of our handler, over the handler `previous`.

    Each is an object of its own. Code that replaces a handler and later restores what it found so restores the chain as
    it was then.
    """

    def __init__(self, previous: Any) -> None:
        self._previous = previous

    @classmethod
    def put_in_front(cls, number: int) -> bool:
        """Install our handler unless it is the installed one. Return whether it was not."""
        current = signal.getsignal(number)
        if isinstance(current, cls):
            return False
        # asyncio's `add_signal_handler` installs a function that does nothing. Its loop reads the signal from a pipe,
        # which Python's C code fills whatever the handler is (`signal.set_wakeup_fd`), so its callback still runs.
        signal.signal(number, cls(current))
        return True

    @classmethod
    def remove(cls, number: int) -> None:
        """Install the handler of others that is below ours. If one of theirs is installed, it stays."""
        found = current = signal.getsignal(number)
        while isinstance(current, cls):
            current = current._previous  # noqa: SLF001 - its own class
        # None: a handler that C code had installed. Python can't install it again.
        if current is not None and current is not found:
            signal.signal(number, current)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        watches = [watch for watch in _watches if watch.serves(number)]
        if not watches:
            self._pass_on(number, frame)
        elif number in _in_progress:
            self._call_previous(number, frame)
        else:
            for watch in watches:
                watch.note(number)
            _in_progress.add(number)
            try:
                self._call_previous(number, frame)
            except BaseException as error:  # noqa: BLE001 - SystemExit, too: the save and our exit code win
                watches[0].note_error(error)
            finally:
                _in_progress.discard(number)

    def _call_previous(self, number: int, frame: FrameType | None) -> None:
        # Python's own SIGINT handler raises KeyboardInterrupt, which would abort the save that the notice asks for.
        if callable(self._previous) and self._previous is not signal.default_int_handler:
            self._previous(number, frame)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Act as if our handler were absent: a forked child, or no fit runs and the handler could not be removed."""
        if callable(self._previous):
            self._previous(number, frame)
        elif self._previous is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _on_main_thread() -> bool:
    """Whether this is the thread on which Python installs and runs signal handlers."""
    return threading.current_thread() is threading.main_thread()
