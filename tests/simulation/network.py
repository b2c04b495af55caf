"""The network between the workers and the server of the election: it delays, loses, doubles and reorders messages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, override

from distributed_backup.coordination.base import (
    Announcement,
    ClusterView,
    Coordinator,
    Heartbeat,
    Hint,
    Member,
    Notice,
)
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import CoordinatorUnavailableError
from tests.simulation.scheduler import Process, Scheduler
from tests.simulation.threads import SimulatedClock


class Network:
    """One server, and the messages to it and from it. `chance` is the chance that something happens to a message."""

    def __init__(self, scheduler: Scheduler, machine: Process) -> None:
        self.scheduler = scheduler
        self._machine = machine
        self._runs: dict[str, MemoryCoordinator] = {}
        self.cut_off: set[Process] = set()
        self.chance = 0.0
        self.latency = 0.003
        self._subscribers: dict[Callable[[Hint], None], Process] = {}

    def run(self, run_id: str) -> MemoryCoordinator:
        """Return the records of a run on the server. A run that was begun again has another id."""
        return self._runs.setdefault(run_id, MemoryCoordinator(SimulatedClock(self.scheduler, self._machine)))

    @property
    def is_leased(self) -> bool:
        """Whether a worker holds a lease that has not expired, dead or alive."""
        return any(each.view().holder is not None for each in self._runs.values())

    def empty(self) -> None:
        """Let the server lose all of its data."""
        self._runs.clear()

    def call(self, process: Process, request: Callable[[], Any], limit: float) -> Any:
        """Send a request and return the reply, at most after `limit` seconds."""
        scheduler, choose = self.scheduler, self.scheduler.random
        fate = "arrives"
        if process in self.cut_off:
            fate = "lost"
        elif choose.random() < self.chance:
            fate = choose.choice(["lost", "late", "doubled", "reply lost"])
        scheduler.pause(choose.expovariate(1 / self.latency))
        if fate in {"lost", "late"}:
            if fate == "late":
                self._later(request)
            scheduler.pause(limit)
            raise CoordinatorUnavailableError("the server does not answer")
        reply = request()
        if fate == "doubled":
            self._later(request)
        scheduler.pause(choose.expovariate(1 / self.latency))
        if fate == "reply lost" or process in self.cut_off:
            scheduler.pause(limit)
            raise CoordinatorUnavailableError("the server does not answer")
        return reply

    def _later(self, request: Callable[[], Any]) -> None:
        """Have the server serve a request once more, some time later."""
        delay = self.scheduler.random.expovariate(1 / 2.0)

        def serve() -> None:
            self.scheduler.pause(delay)
            request()

        self.scheduler.spawn(self._machine, serve)

    def subscribe(self, process: Process, wake: Callable[[Hint], None]) -> Callable[[], None]:
        self._subscribers[wake] = process

        def unsubscribe() -> None:
            self._subscribers.pop(wake, None)

        return unsubscribe

    def give(self, hint: Hint) -> None:
        """Hints are lost with the chance of other messages, and more often."""
        for wake, process in list(self._subscribers.items()):
            is_lost = process.is_dead or process.is_paused or process in self.cut_off
            if not is_lost and self.scheduler.random.random() < 0.8:
                self.scheduler.spawn(process, partial(wake, hint))


class RemoteCoordinator(Coordinator):
    """The server as one process reaches it."""

    has_expiry = True
    has_hints = True

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process
        self._limit = 1.0
        self._run_id = ""

    @override
    def open(self, run_id: str, timings: LeaseTimings) -> None:
        self._limit = timings.retry_period / 2
        self._run_id = run_id

    @property
    def _server(self) -> MemoryCoordinator:
        return self._network.run(self._run_id)

    def _call(self, request: Callable[[], Any]) -> Any:
        return self._network.call(self._process, request, self._limit)

    @override
    def subscribe(self, wake: Callable[[Hint], None]) -> Callable[[], None]:
        return self._network.subscribe(self._process, wake)

    @override
    def give_hint(self, hint: Hint) -> None:
        self._network.give(hint)

    @override
    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        view: ClusterView = self._call(lambda: self._server.heartbeat(beat))
        return view

    @override
    def view(self) -> ClusterView:
        view: ClusterView = self._call(self._server.view)
        return view

    @override
    def members(self) -> tuple[Member, ...]:
        members: tuple[Member, ...] = self._call(self._server.members)
        return members

    @override
    def announce(self, announcement: Announcement) -> bool:
        is_made: bool = self._call(lambda: self._server.announce(announcement))
        if is_made:
            self._network.give("finished" if announcement.finished else "announced")
        return is_made

    @override
    def notify(self, notice: Notice) -> None:
        self._call(lambda: self._server.notify(notice))
        self._network.give("noticed")

    @override
    def resign(self, worker_id: str) -> None:
        self._call(lambda: self._server.resign(worker_id))
        self._network.give("free")

    @override
    def leave(self, worker_id: str) -> None:
        self._call(lambda: self._server.leave(worker_id))

    @override
    def erase(self) -> None:
        self._call(self._server.erase)
