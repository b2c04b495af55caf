"""What a coordinator must offer to run the contract suite.

One harness is one run on one server (a directory, a database, an object): it hands out connections to it, moves
its time, and kills a holder without a word. A new implementation joins by one more line in `HARNESSES`.
"""

from __future__ import annotations

import atexit
import secrets
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from distributed_backup.coordination.base import Coordinator
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from tests.support.clocks import FakeClock
from tests.support.servers import RedisServer, binaries

DURATION = 15.0


class Harness(ABC):
    """One run's coordinator, as several workers see it."""

    slack = 0.0
    """Seconds by which an age or a time left may be off, where a real clock runs beside the one we move."""

    def is_age(self, told: float | None, seconds: float) -> bool:
        """Whether `told` is the age of what was `seconds` ago by the time that we moved."""
        return told is not None and seconds <= told + 1e-6 and told <= seconds + self.slack + 1e-6

    def is_left(self, told: float, seconds: float) -> bool:
        """Whether `told` is what is left when `seconds` were by the time that we moved."""
        return seconds - self.slack - 1e-6 <= told <= seconds + 1e-6

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
    """All workers share one object. A crash is silence for the duration of the lease."""

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
    """Each worker has its own object over one directory. A crash closes the files that the process had open."""

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


@cache
def shared_server(name: str) -> RedisServer:
    """Return one server for all tests of this process. Each test has its own run on it."""
    directory = tempfile.TemporaryDirectory(prefix="contract-")
    atexit.register(directory.cleanup)
    server = RedisServer(Path(directory.name) / name, binary=binaries()[name])
    server.start()
    atexit.register(server.stop)
    return server


# Time passes for a run when all its instants move into the past.
_AGE = """
local by = tonumber(ARGV[1])
local function earlier(instant) return string.format('%.0f', tonumber(instant) - by) end
for _, field in ipairs({'until', 'heard'}) do
  local instant = redis.call('HGET', KEYS[1], field)
  if instant then redis.call('HSET', KEYS[1], field, earlier(instant)) end
end
for _, key in ipairs({KEYS[2], KEYS[3]}) do
  local records = redis.call('HGETALL', key)
  for i = 1, #records, 2 do
    local instant, rest = string.match(records[i + 1], '^(%d+)(.*)$')
    redis.call('HSET', key, records[i], earlier(instant) .. rest)
  end
end
for _, worker in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  redis.call('ZINCRBY', KEYS[4], -by, worker)
end
"""


class RedisHarness(Harness):
    """Each worker has its own connections to a real server. A crash is silence for the duration of the lease."""

    slack = 7.0

    def __init__(self, name: str, _: Path) -> None:
        self._server = shared_server(name)
        self._client = self._server.client()
        self._run = f"run-{secrets.token_hex(4)}"
        self._connections: list[RedisCoordinator] = []

    def connect(self) -> Coordinator:
        coordinator = RedisCoordinator(self._server.url)
        # Generous: two noisy cores, and nothing here is about time-outs.
        coordinator.open(self._run, LeaseTimings(duration=180.0, renew_deadline=120.0, retry_period=30.0))
        self._connections.append(coordinator)
        return coordinator

    def advance(self, seconds: float) -> None:
        prefix = f"distributed-backup:{{{self._run}}}:"
        keys = [prefix + name for name in ("lease", "members", "notices", "expiries")]
        self._client.eval(_AGE, len(keys), *keys, round(seconds * 1000))

    def crash(self, coordinator: Coordinator) -> None:
        assert isinstance(coordinator, RedisCoordinator)
        coordinator.close()
        self.advance(DURATION)

    def close(self) -> None:
        for coordinator in self._connections:
            coordinator.close()
        self._client.close()


HARNESSES: dict[str, Callable[[Path], Harness]] = {
    "memory": MemoryHarness,
    "file": FileHarness,
    **{name: partial(RedisHarness, name) for name in binaries()},
}
