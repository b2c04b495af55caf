"""What the tests of ways to a Redis server share: a coordinator that is closed again, and what it complains of."""

from __future__ import annotations

import secrets
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import BackupError
from tests.integration.redis_scenarios import CALM, beat, committed
from tests.support.servers import wait_for

SECRET = "hunter2-correct-horse"


@contextmanager
def opened(
    server: str | redis.Redis, *, run: str | None = None, timings: LeaseTimings = CALM
) -> Iterator[RedisCoordinator]:
    coordinator = RedisCoordinator(server)
    coordinator.open(run or f"run-{secrets.token_hex(4)}", timings)
    assert SECRET not in f"{coordinator!r} {coordinator}"
    try:
        yield coordinator
    finally:
        coordinator.close()


def check_serves(coordinator: RedisCoordinator) -> None:
    """All operations work, and hints come."""
    heard = threading.Event()
    stop = coordinator.subscribe(lambda _: heard.set())
    try:
        assert beat(coordinator, "a").holder == "a"
        assert beat(coordinator, "b").holder == "a"
        # What is said before the subscription stands is not heard.
        wait_for(lambda: coordinator.announce(committed(1, "a")) and heard.wait(0.05), "a hint")
        assert coordinator.view().announcement == committed(1, "a")
        assert [member.worker_id for member in coordinator.members()] == ["a", "b"]
        coordinator.resign("a")
        coordinator.leave("a")
        view = beat(coordinator, "b")
        assert (view.holder, view.term) == ("b", 2)
        coordinator.erase()
        assert coordinator.view().term == 0
    finally:
        stop()


def complaint(kind: type[BackupError], call: Callable[[], Any]) -> str:
    """What `call` complains of: of exactly this kind, in one line, with neither stack nor password."""
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert type(error) is kind
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None, "raised from None"
    told = "".join(traceback.format_exception(error))
    assert "site-packages" not in told, "a driver's stack"
    assert SECRET not in told
    assert "\n" not in str(error)
    return str(error)


def complaint_at(server: str | redis.Redis, kind: type[BackupError], **options: Any) -> str:
    """Return the error of the first heartbeat. The second heartbeat and a view raise the same class."""
    with opened(server, **options) as coordinator:
        said = complaint(kind, lambda: beat(coordinator, "a"))
        complaint(kind, coordinator.view)
        complaint(kind, lambda: beat(coordinator, "a"))
    return said
