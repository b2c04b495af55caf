"""Light processes that contend for a lease, for the benchmarks of the election. They do not import synalinks.

A contender leads or waits to lead. SIGTERM makes it release the lease. SIGUSR1 makes it contend again as a new worker,
after another has begun to lead: otherwise it would win against a contender that polls. Every instant comes from
`SystemClock`, which all processes of the machine share.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import filelock
import redis
import redis_lock  # type: ignore[import-untyped]

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import SystemClock
from distributed_backup.coordination.base import ClusterView, Coordinator
from distributed_backup.coordination.election import Candidate, Elector, LeaseLoss
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.worker.options import new_worker_id

PATIENCE = 120.0
_CONTEXT = multiprocessing.get_context("spawn")


class Contender:
    """A process that runs `body(report, …)`, which waits for SIGTERM."""

    def __init__(self, body: Callable[..., None], *arguments: Any) -> None:
        self._events, sender = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_run, args=(sender, body, arguments), daemon=True)
        self._process.start()
        sender.close()
        self.name = ""

    def expect(self, wanted: str) -> Any:
        """Wait for the next event of that name and return its value."""
        while self._events.poll(PATIENCE):
            name, value = self._events.recv()
            if name == wanted:
                return value
        raise AssertionError(f"no {wanted!r} within {PATIENCE} s")

    def terminate(self) -> float:
        """Send SIGTERM and return the instant."""
        now = SystemClock().now()
        self._process.terminate()
        return now

    def contend_again(self) -> None:
        """Send SIGUSR1."""
        os.kill(self.pid, signal.SIGUSR1)

    def kill(self) -> float:
        """Send SIGKILL and return the instant."""
        now = SystemClock().now()
        self._process.kill()
        return now

    def cpu(self) -> float:
        """Return the seconds of CPU that the process has used, in steps of 0.01 s."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        if not self._events.closed:
            self._events.close()


def _run(sender: Connection, body: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    reporting = threading.Lock()

    def report(name: str, value: Any = None) -> None:
        with reporting:
            sender.send((name, value))

    # `sigwait` instead of a handler: a handler that sets an event can deadlock on the lock of the event.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        body(report, *arguments)
        signal.sigwait({signal.SIGUSR1})


def await_sigterm() -> None:
    """Wait until this contender must release the lease."""
    signal.sigwait({signal.SIGTERM})


@contextmanager
def contenders() -> Iterator[list[Contender]]:
    """Yield a list, and kill the contenders in it at the end."""
    made: list[Contender] = []
    try:
        yield made
    finally:
        for contender in made:
            contender.end()


# ---------------------------------------------------------------- the contenders' bodies

Report = Callable[..., None]


class Told:
    """Report the calls of an elector."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._seen = False

    def elected(self, term: int) -> None:
        self._report("leads", SystemClock().now())

    def lost(self, loss: LeaseLoss) -> None:
        self._report("lost", loss.reason)

    def observed(self, view: ClusterView) -> None:
        if not self._seen:
            self._seen = True
            self._report("waits")


def ours(report: Report, url: str, directory: Path, timings: LeaseTimings) -> None:
    """Contend with an elector of this package, which claims terms in a directory."""
    _contend(report, RedisCoordinator(url), directory, timings)


def ours_on_disk(report: Report, url: str, directory: Path, timings: LeaseTimings) -> None:
    """Contend as `ours`, with a file lock."""
    _contend(report, FileCoordinator(directory), directory, timings)


def _contend(report: Report, coordinator: Coordinator, directory: Path, timings: LeaseTimings) -> None:
    store = CheckpointStore(directory)
    coordinator.open(store.open_run(), timings)
    elector = Elector(
        candidate=Candidate(worker_id=new_worker_id(None), timings=timings),
        coordinator=coordinator,
        clock=SystemClock(),
        listener=Told(report),
        terms=store.terms,
    )
    deaf = coordinator.subscribe(lambda hint: elector.wake() if hint == "free" else None)
    elector.start()
    await_sigterm()
    elector.resign()
    elector.stop()
    deaf()
    coordinator.close()


def redis_py(report: Report, url: str, *_: Any) -> None:
    """Contend with `redis.lock.Lock` and its defaults: a waiting `acquire` polls every 0.1 s."""
    lock = redis.Redis.from_url(url).lock("bench-lock", timeout=15)
    if not lock.acquire(blocking=False):
        report("waits")
        lock.acquire()
    report("leads", SystemClock().now())
    await_sigterm()
    lock.release()


def file_lock(report: Report, url: str, directory: Path, timings: LeaseTimings) -> None:
    """Contend with `filelock.FileLock` and its defaults: a waiting `acquire` polls every 0.05 s."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(directory / "lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        report("waits")
        lock.acquire()
    report("leads", SystemClock().now())
    await_sigterm()
    lock.release()


def python_redis_lock(report: Report, url: str, *_: Any) -> None:
    """Contend with `redis_lock.Lock`: a list wakes a waiting `acquire`."""
    logging.getLogger("redis_lock").setLevel(logging.CRITICAL)  # it warns of each try that was in vain
    # Its one blocking command takes longer than redis-py's default timeout.
    lock = redis_lock.Lock(redis.Redis.from_url(url, socket_timeout=None), "bench-redis-lock", expire=15)
    if not lock.acquire(blocking=False):
        report("waits")
        lock.acquire()
    report("leads", SystemClock().now())
    await_sigterm()
    lock.release()
