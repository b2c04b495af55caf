"""A disk that all processes share, and that may be slow, full, away or torn.

Each operation lets other threads run before it has its effect and after it, so that a process may be killed between.
An append to a file becomes visible in two parts. What `put` or the first append writes is either there or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self, override

from distributed_backup.errors import StoreError
from distributed_backup.storage.base import Chunks, Names, Storage
from tests.simulation.scheduler import Process, Scheduler

NAME = "disk"


class Disk:
    """The files, and what is wrong with the disk."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.files: dict[str, bytes] = {}
        self.is_full = self.is_away = False
        self.latency = 0.002
        """Seconds that an operation takes on average."""
        self.in_next: dict[str, Callable[[Process], None]] = {}
        """Called once for a "write" or an "append", with the process that is in its midst."""
        self.on_change: Callable[[str], None] = lambda _: None
        """Called with the name of each file that has changed."""

    def put(self, name: str, data: bytes) -> None:
        self.files[name] = data
        self.on_change(name)

    def remove(self, name: str) -> None:
        if self.files.pop(name, None) is not None:
            self.on_change(name)


class SimulatedStorage(Storage):
    """The disk as the package sees it."""

    write_interval: ClassVar[float] = 1.0
    poll_interval: ClassVar[float] = 0.05

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    @classmethod
    @override
    def from_url(cls, url: str, *, run_id: str | None, limit: float) -> Self:
        raise NotImplementedError

    @property
    @override
    def location(self) -> str:
        return NAME

    def _begin(self, *, writes: bool = False) -> None:
        scheduler = self._disk.scheduler
        scheduler.pause(scheduler.random.expovariate(1 / self._disk.latency))
        if self._disk.is_away:
            raise StoreError(f"can't reach {NAME}: the server does not answer", path=NAME, retryable=True)
        if writes and self._disk.is_full:
            raise StoreError(f"can't write {NAME}: No space left on device", path=NAME)

    def _end(self) -> None:
        if self._disk.scheduler.random.random() < 0.5:
            self._disk.scheduler.pause()

    def _midway(self, kind: str = "write") -> None:
        happen = self._disk.in_next.pop(kind, None) or self._disk.in_next.pop("write", None)
        if happen is not None:
            happen(self._disk.scheduler.current.process)
            self._disk.scheduler.pause()

    def _found(self, name: str) -> bytes:
        data = self._disk.files.get(name)
        if data is None:
            raise StoreError(f"can't read {NAME}/{name}: no such file", path=name) from FileNotFoundError(name)
        return data

    @override
    def prepare(self) -> None:
        self._begin(writes=True)

    @override
    def exists(self) -> bool:
        return True

    @override
    def names(self) -> Names:
        self._begin()
        return list(self._disk.files)

    @override
    def read(self, name: str) -> bytes:
        self._begin()
        return self._found(name)

    @override
    def size(self, name: str) -> int | None:
        self._begin()
        data = self._disk.files.get(name)
        return None if data is None else len(data)

    @override
    def create(self, name: str, data: bytes = b"") -> bool:
        self._begin(writes=True)
        if name in self._disk.files:
            return False
        self._disk.put(name, data)
        self._midway()
        self._end()
        return True

    @override
    def put(self, name: str, chunks: Chunks, *, new: bool = False, durable: bool = True) -> None:
        self._begin(writes=True)
        if new and name in self._disk.files:
            raise StoreError(f"can't write {NAME}/{name}: it exists", path=name) from FileExistsError(name)
        self._midway()
        self._disk.put(name, b"".join(chunks))
        self._midway()
        self._end()

    @override
    def append(self, name: str, data: bytes, *, at: int) -> None:
        self._begin()
        before = self._disk.files.get(name, b"") if at == 0 else self._found(name)
        if len(before) < at:
            raise StoreError(f"can't append to {NAME}/{name}: it is too short", path=name)
        if at > 0:
            # What a crash or a full disk leaves of it.
            part = self._disk.scheduler.random.randrange(len(data) + 1)
            self._disk.put(name, before[:at] + data[:part])
        self._midway("append")
        self._begin(writes=True)
        self._disk.put(name, before[:at] + data)
        self._end()

    @override
    def read_from(self, name: str, offset: int, limit: int) -> bytes:
        self._begin()
        return self._found(name)[offset : offset + limit]

    @override
    def remove(self, name: str) -> None:
        self._begin()
        self._disk.remove(name)
        self._end()
