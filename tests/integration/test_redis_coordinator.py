"""What only the Redis coordinator does, on a real server: its clock, its roles, its connections over the time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from distributed_backup.coordination.base import Announcement, ClusterView, Heartbeat, Notice
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import ConfigError, CoordinatorUnavailableError
from distributed_backup.position import Position
from tests.support.servers import HOST, RedisServer, binaries, free_port, wait_for

CALM = LeaseTimings(duration=60.0, renew_deadline=40.0, retry_period=5.0)
HOUR_MS = 3_600_000
LEASE = "distributed-backup:{run}:lease"
ANNOUNCEMENT = "distributed-backup:{run}:announcement"


@pytest.fixture(params=sorted(binaries()))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "server", binary=binaries()[request.param], port=0) as made:
        yield made


@pytest.fixture
def coordinator(server: RedisServer) -> Iterator[RedisCoordinator]:
    made = RedisCoordinator(server.url)
    made.open("run", CALM)
    yield made
    made.close()


def beat(coordinator: RedisCoordinator, worker_id: str, duration: float = 60.0) -> ClusterView:
    return coordinator.heartbeat(Heartbeat(worker_id=worker_id, campaign=True, floor=0, duration=duration))


def set_clock_back(server: RedisServer) -> None:
    """By an hour: all instants on record lie an hour ahead of it then."""
    with server.client() as client:
        for field in ("until", "heard"):
            client.hincrby(LEASE, field, HOUR_MS)
        for worker_id in client.zrange("distributed-backup:{run}:expiries", 0, -1):
            client.zincrby("distributed-backup:{run}:expiries", HOUR_MS, worker_id)
        members: dict[str, str] = client.hgetall("distributed-backup:{run}:members")
        for worker_id, record in members.items():
            seen, _, rest = record.partition(" ")
            client.hset("distributed-backup:{run}:members", worker_id, f"{int(seen) + HOUR_MS} {rest}")


@pytest.mark.parametrize(
    ("kind", "finished"), [("fresh", False), ("restored", False), ("committed", False), ("finished", True)]
)
def test_an_announcement_of_version_0_3_is_read(
    server: RedisServer, coordinator: RedisCoordinator, kind: str, finished: bool
) -> None:
    """A job may be upgraded while its records are on the server."""
    record = (
        f'{{"term":7,"worker_id":"old","kind":"{kind}","position":[2,3],'
        '"checkpoint":"c.ckpt","digest":"d","answers":["n"]}'
    )
    with server.client() as client:
        client.set(ANNOUNCEMENT, record)
    assert coordinator.view().announcement == Announcement(
        term=7,
        worker_id="old",
        position=Position(2, 3),
        checkpoint="c.ckpt",
        digest="d",
        acknowledged=("n",),
        finished=finished,
    )


def test_a_clock_that_was_set_back_keeps_no_dead_leader_alive(
    server: RedisServer, coordinator: RedisCoordinator
) -> None:
    """It has one lease at most, counted from the next heartbeat of any worker, and its age is unknown."""
    beat(coordinator, "dead")
    set_clock_back(server)
    told = coordinator.view()
    assert (told.holder, told.holder_age) == ("dead", None)
    seen = beat(coordinator, "b")
    assert seen.holder == "dead"
    assert seen.remaining is not None
    assert seen.remaining <= 60.0
    with server.client() as client:
        expiry = client.zscore("distributed-backup:{run}:expiries", "dead")
        assert expiry is not None
        assert expiry < client.time()[0] * 1000 + 61_000, "it would count as a member for an hour"


def test_a_longer_lease_is_not_cut_short_by_workers_with_a_shorter_one(coordinator: RedisCoordinator) -> None:
    """It lasts as long as its holder asked for: the holder counts on it."""
    beat(coordinator, "a", duration=600.0)
    seen = beat(coordinator, "b", duration=6.0)
    assert seen.remaining is not None
    assert seen.remaining > 500.0


def test_a_primary_that_was_demoted_is_left(server: RedisServer) -> None:
    """Its address leads to another server by now. The old connection would stay read-only."""
    coordinator = RedisCoordinator(server.url)
    coordinator.open("run", CALM)
    assert beat(coordinator, "a").holder == "a"
    with server.client() as client:
        before = {entry["id"] for entry in client.client_list()}
        client.replicaof(HOST, free_port())
        with pytest.raises(CoordinatorUnavailableError, match="is a read-only replica"):
            beat(coordinator, "a")
        client.replicaof("NO", "ONE")
        assert beat(coordinator, "a").holder == "a"
        ours = {entry["id"] for entry in client.client_list() if entry["id"] != str(client.client_id())}
    assert not ours & before, "still on the old connection"
    coordinator.close()


def test_one_coordinator_serves_one_run_after_another(server: RedisServer, coordinator: RedisCoordinator) -> None:
    """A callback may serve a second fit, whose directory has a new id. It can't serve two runs at the same time."""
    beat(coordinator, "a")
    with pytest.raises(ConfigError, match="serves run 'run' and can't serve 'next'"):
        coordinator.open("next", CALM)
    coordinator.open("run", CALM)
    coordinator.close()
    with pytest.raises(ConfigError, match="can't serve 'next'"):
        coordinator.open("next", CALM)
    coordinator.close()
    coordinator.open("next", CALM)
    assert coordinator.view().term == 0


def test_connections_are_closed_when_the_last_worker_is_gone(
    server: RedisServer, coordinator: RedisCoordinator
) -> None:
    """A process that goes on after its fit holds nothing on the server."""
    coordinator.open("run", CALM)
    beat(coordinator, "a")
    with server.client() as client:
        mine = client.client_id()

        def others() -> list[Any]:
            return [entry for entry in client.client_list() if entry["id"] != str(mine)]

        coordinator.close()
        assert others()
        coordinator.close()
        wait_for(lambda: not others(), "the server sees them closed")


@pytest.mark.parametrize("apart", [0.001, 9.999])
def test_the_time_for_a_call_is_never_absurd(server: RedisServer, apart: float) -> None:
    """Neither with deadlines that are close together nor with ones that are far apart."""
    coordinator = RedisCoordinator(server.url)
    coordinator.open("run", LeaseTimings(duration=15.0, renew_deadline=10.0, retry_period=10.0 - apart))
    coordinator.view()
    client: redis.Redis = coordinator._client._client  # type: ignore[assignment]
    limit = client.connection_pool.connection_kwargs["socket_timeout"]
    coordinator.close()
    assert 1.0 <= limit <= 10.0 / 3


def test_a_database_that_is_not_there_is_a_mistake(server: RedisServer) -> None:
    """Waiting would not make one."""
    coordinator = RedisCoordinator(server.url.removesuffix("/0") + "/99")
    coordinator.open("run", CALM)
    with pytest.raises(ConfigError, match="has no such database: DB index is out of range"):
        coordinator.view()
    coordinator.close()


def test_a_server_that_is_no_sentinel_is_a_mistake(server: RedisServer) -> None:
    """And the message says what to write instead."""
    coordinator = RedisCoordinator(f"redis+sentinel://{HOST}:{server.port}/primary")
    coordinator.open("run", CALM)
    with pytest.raises(ConfigError, match=r"does not name a sentinel: use redis://"):
        coordinator.view()
    coordinator.close()


def test_no_thread_outlives_the_coordinator(
    server: RedisServer, coordinator: RedisCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the interpreter's end it could hold a lock of the driver for ever. It ends before its connections do."""

    def listens() -> bool:
        return any(thread.name == "distributed-backup-hints" for thread in threading.enumerate())

    listening: list[bool] = []
    close = coordinator._client.close

    def watched() -> None:
        listening.append(listens())
        close()

    monkeypatch.setattr(coordinator._client, "close", watched)
    stop = coordinator.subscribe(lambda _: None)
    assert listens()
    stop()
    coordinator.close()
    assert listening == [False]


def test_a_notice_that_is_withdrawn_leaves_no_record(server: RedisServer, coordinator: RedisCoordinator) -> None:
    """An expired record would count again on a server whose clock is behind, such as a replica that is promoted."""
    client, key = server.client(), "distributed-backup:{run}:notices"
    notice = Notice(notice_id="n", worker_id="a", reason="operator", remaining=60.0, action="resign")
    coordinator.notify(notice)
    assert client.hkeys(key) == ["n"]
    client.config_set("maxmemory", 1)
    try:
        coordinator.notify(replace(notice, remaining=0.0))
    finally:
        client.config_set("maxmemory", 0)
    assert client.hkeys(key) == []


def test_a_notice_of_an_earlier_version_has_no_position(server: RedisServer, coordinator: RedisCoordinator) -> None:
    """Workers of two versions may run side by side. An earlier leader saves for every wish but "resign"."""
    client, key = server.client(), "distributed-backup:{run}:notices"
    until = int(client.time()[0] + 60) * 1000
    client.hset(key, "old", f"{until} b save SIGTERM")
    coordinator.notify(Notice(notice_id="new", worker_id="c", reason="x y", remaining=60.0, position=Position(3, 4)))
    assert [(one.notice_id, one.action, one.position) for one in coordinator.view().notices] == [
        ("new", "save", Position(3, 4)),
        ("old", "save", None),
    ]
    record: Any = client.hget(key, "new")
    assert record.split(" ", 3)[1:] == ["c", "save@3,4", "x y"]
