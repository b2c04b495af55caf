"""Clocks for tests."""

from __future__ import annotations

import threading
from typing import override


class FakeClock:
    """A clock that moves only when a test moves it."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def wait(self, event: threading.Event, timeout: float) -> bool:
        """Time passes at once unless the event is set."""
        if not event.is_set():
            self._now += timeout
        return event.is_set()


class Clocked(FakeClock):
    """A clock that records its waits. `waited` is set by the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []
        self.waited = threading.Event()

    @override
    def wait(self, event: threading.Event, timeout: float) -> bool:
        self.waits.append(timeout)
        self.waited.set()
        return super().wait(event, timeout)
