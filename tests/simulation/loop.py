"""An event loop of asyncio inside a simulated thread, with simulated time."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.simulation.scheduler import Scheduler
from tests.simulation.threads import SimulatedClock, Threading


class SimulatedLoop(asyncio.BaseEventLoop):
    """Waits in the scheduler where other loops wait in the kernel."""

    def __init__(self, scheduler: Scheduler, threading: Threading, clock: SimulatedClock) -> None:
        super().__init__()
        self._scheduler = scheduler
        self._simulated_clock = clock
        self._wake_up = threading.Event()
        self._selector = self

    def time(self) -> float:
        return self._simulated_clock.now()

    def select(self, timeout: float | None) -> list[Any]:
        """Wait for a call from another thread, as a selector waits for a socket."""
        if timeout is None:
            self._wake_up.wait()
        elif timeout > 0:
            self._simulated_clock.wait(self._wake_up, timeout)
        elif self._scheduler.random.random() < 0.1:
            self._scheduler.pause()
        self._wake_up.clear()
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        self._wake_up.set()
