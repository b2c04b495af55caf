"""Poll the sources of notices (files, metadata services), each from a thread of its own.

A source that hangs delays only itself. A preemption that no source announces is not detected.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Final, TypeGuard

from distributed_backup.clock import Clock
from distributed_backup.preemption.sources import Alert, NoticeSource

logger = logging.getLogger(__name__)

# Seconds. A termination further away is a warning. 120 s is the longest notice that a cloud gives before it reclaims a
# Spot machine.
IMMINENT: Final = 120.0
# Seconds between two polls of a source that has never answered. Most likely the machine has no such service.
IDLE_POLL_PERIOD: Final = 60.0


def _poll(source: NoticeSource) -> Alert | None:
    """Poll a source and check the type of its answer, because users may write sources."""
    alert: object = source.poll()
    if isinstance(alert, Alert | None):
        return alert
    raise TypeError(f"poll must return an Alert or None, got {alert!r}")


class NoticePoller:
    """Polls of all sources of one fit.

    A terminal alert is a notice once it is imminent: at most 120 s away, or the grace period if that is longer. Before,
    it is a warning: a worker exits at a notice, so a job restarted on the same machine would exit again and again.

    Each source calls `on_notice` at most once, with the reason and the remaining seconds, None if unknown. It calls
    `on_warning` with the reason at the first poll that returns a warning, and again while that returns False.
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
        self._imminent = max(IMMINENT, grace_period)
        self._clock = clock
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start one thread for each source."""
        for source in self._sources:
            source.begin()
            threading.Thread(
                target=self._watch, args=(source,), name=f"distributed-backup-{source.name}", daemon=True
            ).start()

    def stop(self) -> None:
        """Stop polling. A poll under way is not waited for, and its result is ignored."""
        self._stopped.set()

    def _watch(self, source: NoticeSource) -> None:
        pause, has_answered, failure_logged = source.period, False, False
        warned_of: str | None = None
        while not self._stopped.is_set():
            try:
                alert = _poll(source)
                if self._is_imminent(alert):
                    self._on_notice(alert.reason, alert.remaining)
                    return
                warned_of = self._report_warning(alert, warned_of)
            except Exception as error:  # noqa: BLE001 - users may write sources
                if not failure_logged:
                    logger.warning("no notices from %s until it answers: %s", source.name, error)
                failure_logged = True
                # A source that has answered before fails for a short time, and its notice may come at any poll.
                pause = source.period if has_answered else min(2 * pause, IDLE_POLL_PERIOD)
            else:
                pause, has_answered = source.period, True
            self._clock.wait(self._stopped, pause)

    def _is_imminent(self, alert: Alert | None) -> TypeGuard[Alert]:
        """Whether the alert is a notice."""
        if alert is None or self._stopped.is_set() or not alert.terminal:
            return False
        return alert.remaining is None or alert.remaining <= self._imminent

    def _report_warning(self, alert: Alert | None, warned_of: str | None) -> str | None:
        """Report a new warning. Return the reason that has been reported, None if there is none."""
        if alert is None or self._stopped.is_set():
            return None
        reported = alert.reason == warned_of or self._on_warning(alert.reason)
        return alert.reason if reported else None
