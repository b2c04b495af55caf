"""Report the transitions of one worker: a log line and an event for each.

The limit: a log handler that hangs holds up the thread that reports. Other threads go on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from distributed_backup.observability.events import FINAL_KINDS, Event, Kind, RepeatedFailures, Sink
from distributed_backup.observability.log_lines import level_of, logfmt

logger = logging.getLogger(__name__)

# The text of an error may be long, and a log is bounded.
_LONGEST_TEXT: Final = 500


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Reporter:
    """Stamps the transitions of one worker, logs them, and hands them to `sinks`, in one order for all of them.

    A worker ends once: of several final kinds the sinks get the first. A commit that fails again for the same reason is
    logged once.
    """

    def __init__(self, worker_id: str, *sinks: Sink, wall: Callable[[], datetime] = _utc_now) -> None:
        self.worker_id = worker_id
        self._sinks = sinks
        self._wall = wall
        # Held while handing on, so that every sink gets the events in one order.
        self._lock = threading.Lock()
        self._ends: set[Kind] = set()
        self._failures = RepeatedFailures()

    def __call__(self, kind: Kind, /, **fields: Any) -> None:
        """Report a transition."""
        # A bug here must not end the election or the saving. A bug in one sink must not hide the event from others.
        with self._surviving(kind):
            cut = {name: _cut(value) if isinstance(value, str) else value for name, value in fields.items()}
            bugs: list[Exception] = []
            with self._lock:
                event = Event(at=self._wall(), worker=self.worker_id, kind=kind, fields=cut)
                is_second_end = kind in FINAL_KINDS and bool(self._ends)
                # A worker that finished may still be preempted as it leaves. The log says so, once.
                is_late_preemption = kind == "preempted" and kind not in self._ends
                is_logged = not self._failures.is_repeated(event) and (not is_second_end or is_late_preemption)
                self._ends |= {kind} & FINAL_KINDS
                for sink in () if is_second_end else self._sinks:
                    try:
                        sink.emit(event)
                    except Exception as bug:  # noqa: BLE001 - the other sinks must get the event
                        bugs.append(bug)
            # Without the lock: a handler may hang.
            if is_logged:
                logger.log(level_of(event), "%s", logfmt(event))
            for found in bugs:
                self._log_bug(kind, found)

    @contextmanager
    def _surviving(self, kind: Kind) -> Iterator[None]:
        try:
            yield
        except Exception as bug:  # noqa: BLE001 - logged
            self._log_bug(kind, bug)

    def _log_bug(self, kind: Kind, bug: Exception) -> None:
        logger.error("event not reported worker=%s event=%s", self.worker_id, kind, exc_info=bug)

    def close(self, timeout: float) -> None:
        """Close the sinks, each within `timeout` seconds."""
        for sink in self._sinks:
            sink.close(timeout)


def _cut(text: str) -> str:
    """Bound the length, and replace surrogates: JSON can't hold them, and a file name may be no UTF-8."""
    return text[:_LONGEST_TEXT].encode(errors="replace").decode()
