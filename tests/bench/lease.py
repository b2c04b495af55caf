"""Light processes that contend for a lease: what the benchmarks of the election are made of. No synalinks.

A contender leads, or waits to. SIGTERM makes it give up what it holds; SIGUSR1 makes it contend again, as a new worker,
when another leads: at once, it would win against one that only looks now and then. Every instant is of `SystemClock`,
which all processes of the machine share.
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

import redis
import redis_lock  # type: ignore[import-untyped]

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import SystemClock
from distributed_backup.coordination.base import ClusterView
from distributed_backup.coordination.election import Elector, LeaseLoss
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.worker.options import new_worker_id

PATIENCE = 120.0
_CONTEXT = multiprocessing.get_context("spawn")


class Contender:
    """A process that runs `body(report, …)`, which awaits SIGTERM."""

    def __init__(self, body: Callable[..., None], *arguments: Any) -> None:
        self._events, sender = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_run, args=(sender, body, arguments), daemon=True)
        self._process.start()
        sender.close()
        self.name = ""

    def expect(self, wanted: str) -> Any:
        """Wait for an event of that name; its value."""
        while self._events.poll(PATIENCE):
            name, value = self._events.recv()
            if name == wanted:
                return value
        raise AssertionError(f"no {wanted!r} within {PATIENCE} s")

    def terminate(self) -> float:
        """Send SIGTERM; when."""
        now = SystemClock().now()
        self._process.terminate()
        return now

    def contend_again(self) -> None:
        """Send SIGUSR1."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGUSR1)

    def kill(self) -> float:
        """Send SIGKILL; when."""
        now = SystemClock().now()
        self._process.kill()
        return now

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

    # Waited for, not handled: a handler that sets an event may find the event's lock taken by what it interrupts.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        body(report, *arguments)
        signal.sigwait({signal.SIGUSR1})


def await_sigterm() -> None:
    """Wait until this contender is to give up what it holds."""
    signal.sigwait({signal.SIGTERM})


@contextmanager
def contenders() -> Iterator[list[Contender]]:
    """A list; what was put into it is killed at the end."""
    made: list[Contender] = []
    try:
        yield made
    finally:
        for contender in made:
            contender.end()


# ---------------------------------------------------------------- the contenders' bodies

Report = Callable[..., None]


class Told:
    """Reports what an elector tells."""

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
    """An elector of this package, with the term's claim in a directory."""
    store = CheckpointStore(directory)
    coordinator = RedisCoordinator(url)
    coordinator.open(store.open_run(), timings)
    elector = Elector(
        coordinator=coordinator,
        worker_id=new_worker_id(None),
        timings=timings,
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
    """`redis.lock.Lock` as it is made by default: a waiting `acquire` looks every 0.1 s."""
    lock = redis.Redis.from_url(url).lock("bench-lock", timeout=15)
    if not lock.acquire(blocking=False):
        report("waits")
        lock.acquire()
    report("leads", SystemClock().now())
    await_sigterm()
    lock.release()


def python_redis_lock(report: Report, url: str, *_: Any) -> None:
    """`redis_lock.Lock`: a waiting `acquire` is woken through a list."""
    logging.getLogger("redis_lock").setLevel(logging.CRITICAL)  # it warns of each try that was in vain
    # It waits in one blocking command, for longer than redis-py's time-out.
    lock = redis_lock.Lock(redis.Redis.from_url(url, socket_timeout=None), "bench-redis-lock", expire=15)
    if not lock.acquire(blocking=False):
        report("waits")
        lock.acquire()
    report("leads", SystemClock().now())
    await_sigterm()
    lock.release()
