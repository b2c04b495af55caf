"""What a coordinator must offer to run the contract suite.

One harness is one run on one server (a directory, a database, an object): it hands out connections to it, moves
its time, and kills a holder without a word. A new implementation joins by one more subclass in `HARNESSES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from distributed_backup.coordinators.base import Coordinator
from distributed_backup.coordinators.file import FileCoordinator
from distributed_backup.coordinators.memory import MemoryCoordinator
from tests.clocks import FakeClock

DURATION = 15.0


class Harness(ABC):
    """One run's coordinator, as several workers see it."""

    @abstractmethod
    def connect(self) -> Coordinator:
        """A coordinator for one more process: what it shares with others, it shares through the server."""

    @abstractmethod
    def advance(self, seconds: float) -> None:
        """Let time pass for the server and for all connections."""

    @abstractmethod
    def crash(self, coordinator: Coordinator) -> None:
        """End the process behind `coordinator` without a word, and wait until its lease is free."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Release what the harness holds."""


class MemoryHarness(Harness):
    """All workers share one object; a crash is silence for as long as the lease lasts."""

    def __init__(self, _: Path) -> None:
        self._clock = FakeClock()
        self._coordinator = MemoryCoordinator(self._clock)

    def connect(self) -> Coordinator:
        return self._coordinator

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)

    def crash(self, coordinator: Coordinator) -> None:
        self._clock.advance(DURATION)


class FileHarness(Harness):
    """Each worker has an object of its own over one directory; a crash closes what the process had open."""

    def __init__(self, root: Path) -> None:
        self._clock = FakeClock()
        self._root = root / "coordinator"
        self._connections: list[FileCoordinator] = []

    def connect(self) -> Coordinator:
        self._connections.append(FileCoordinator(self._root, self._clock))
        return self._connections[-1]

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)

    def crash(self, coordinator: Coordinator) -> None:
        assert isinstance(coordinator, FileCoordinator)
        release_locks(coordinator)

    def close(self) -> None:
        for coordinator in self._connections:
            release_locks(coordinator)


def release_locks(coordinator: FileCoordinator) -> None:
    """What the kernel does when a process dies: its locks are free, and nothing is written."""
    for held in coordinator._held.values():
        held.lock.release(force=True)
    coordinator._held.clear()


HARNESSES: dict[str, type[MemoryHarness] | type[FileHarness]] = {"memory": MemoryHarness, "file": FileHarness}
