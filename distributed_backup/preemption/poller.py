"""Poll the sources of notices (files, metadata services), each from a thread of its own.

A source that hangs delays only itself. A cloud that announces nothing can't be heard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final, TypeGuard

from distributed_backup.clock import Clock
from distributed_backup.preemption.signals import logger
from distributed_backup.preemption.sources import Alert, NoticeSource

# An end that is farther away is a warning until then. It is the most that a cloud gives who takes a Spot machine back.
IMMINENT: Final = 120.0
# Between two polls of a source that has never answered: most likely it is not there.
IDLE_POLL_PERIOD: Final = 60.0


def _asked(source: NoticeSource) -> Alert | None:
    """What a source says, which may be anybody's."""
    alert: object = source.poll()
    if isinstance(alert, Alert | None):
        return alert
    raise TypeError(f"poll must return an Alert or None, got {alert!r}")


class NoticePoller:
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
        self._soon = max(IMMINENT, grace_period)
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
                pause = source.period if has_answered else min(2 * pause, IDLE_POLL_PERIOD)
            else:
                pause, has_answered = source.period, True
            self._clock.wait(self._stopped, pause)

    def _is_near_end(self, alert: Alert | None) -> TypeGuard[Alert]:
        """Whether a source has said its last word."""
        if alert is None or self._stopped.is_set() or not alert.terminal:
            return False
        return alert.remaining is None or alert.remaining <= self._soon

    def _warned_of(self, alert: Alert | None, known: str | None) -> str | None:
        """The reason that was warned of by now."""
        if alert is None or self._stopped.is_set():
            return None
        told = alert.reason == known or self._on_warning(alert.reason)
        return alert.reason if told else None
