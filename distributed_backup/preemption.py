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
from typing import Any, Final, TypeGuard

from distributed_backup.clock import Clock
from distributed_backup.notice_sources import Alert, NoticeSource

logger = logging.getLogger(__name__)

# An end that is farther away is a warning until then. It is the most that a cloud gives who takes a Spot machine back.
_SOON: Final = 120.0
# Between two polls of a source that has never answered: most likely it is not there.
_SELDOM: Final = 60.0


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


class LastResort:
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

    def within(self, seconds: float) -> None:
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

    def call_off(self) -> None:
        """It is not needed any more."""
        with self._lock:
            self._over = True
            if self._timer is not None:
                self._timer.cancel()


def _asked(source: NoticeSource) -> Alert | None:
    """What a source says, which may be anybody's."""
    alert: object = source.poll()
    if isinstance(alert, Alert | None):
        return alert
    raise TypeError(f"poll must return an Alert or None, got {alert!r}")


class NoticeWatch:
    """Asks sources of notices for as long as a fit runs, each from a thread of its own: none waits for another.

    A sure end is a notice as soon as it is near. One that is still far away is a warning until then, for what is done
    at a notice is to leave, and a job that is started anew on the same machine would leave again at once.

    Args:
        sources: Whom to ask.
        on_notice: Called from such a thread, once for a source at most, with the reason and the seconds that remain;
            None where the source can't tell.
        on_warning: Called from such a thread with the reason, when a source begins to warn of it; False if nobody could
            be told: then it is called again.
        grace_period: An end is near if it is no farther away than this, or two minutes.
        clock: Where time comes from.
    """

    def __init__(
        self,
        sources: Iterable[NoticeSource],
        *,
        on_notice: Callable[[str, float | None], None],
        on_warning: Callable[[str], bool],
        grace_period: float,
        clock: Clock,
    ) -> None:
        self._sources = tuple(sources)
        self._on_notice = on_notice
        self._on_warning = on_warning
        self._soon = max(_SOON, grace_period)
        self._clock = clock
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to ask."""
        for source in self._sources:
            source.begin()
            threading.Thread(
                target=self._watch, args=(source,), name=f"distributed-backup-{source.name}", daemon=True
            ).start()

    def stop(self) -> None:
        """Ask no more. A poll that is under way is not waited for; what it finds counts for nothing."""
        self._stopped.set()

    def _watch(self, source: NoticeSource) -> None:
        pause, has_answered, failure_told = source.period, False, False
        known: str | None = None
        while not self._stopped.is_set():
            try:
                alert = _asked(source)
                if self._is_near_end(alert):
                    self._on_notice(alert.reason, alert.remaining)
                    return
                known = self._warned_of(alert, known)
            except Exception as error:  # noqa: BLE001 - a source may be anybody's
                if not failure_told:
                    logger.warning("no notices from %s for now: %s", source.name, error)
                failure_told = True
                # Never heard of: not there, or not yet. Else it fails for a moment, which may be the one that counts.
                pause = source.period if has_answered else min(2 * pause, _SELDOM)
            else:
                pause, has_answered = source.period, True
            self._clock.wait(self._stopped, pause)

    def _is_near_end(self, alert: Alert | None) -> TypeGuard[Alert]:
        """Whether a source has said its last word."""
        if alert is None or self._stopped.is_set() or not alert.sure:
            return False
        return alert.remaining is None or alert.remaining <= self._soon

    def _warned_of(self, alert: Alert | None, known: str | None) -> str | None:
        """The reason that was warned of by now."""
        if alert is None or self._stopped.is_set():
            return None
        told = alert.reason == known or self._on_warning(alert.reason)
        return alert.reason if told else None
