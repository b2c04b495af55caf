"""A sink of events for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from distributed_backup.observability.events import Event


class RecordingSink:
    """Records all events, and the value of `at_close()` at each close. `arrived` is set by each event."""

    def __init__(self, *, at_close: Callable[[], object] = lambda: None) -> None:
        self.events: list[Event] = []
        self.closed: list[tuple[float, object]] = []
        self.arrived = threading.Event()
        self._at_close = at_close

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.arrived.set()

    def close(self, timeout: float) -> None:
        self.closed.append((timeout, self._at_close()))

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the fields of all events of one kind."""
        return [dict(event.fields) for event in self.events if event.kind == kind]
