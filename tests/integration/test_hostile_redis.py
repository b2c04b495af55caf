"""Hostile content under each key that a run has on a Redis server: our own errors only, and no run is lost."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, override

import pytest

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import SystemClock
from distributed_backup.coordination import redis as coordination
from distributed_backup.coordination.base import Announcement, ClusterView, Heartbeat, Notice
from distributed_backup.coordination.redis import RedisCoordinator, _Keys
from distributed_backup.coordination.redis_hints import HintListener
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import BackupError
from distributed_backup.observability.reporter import Reporter
from distributed_backup.position import Position
from distributed_backup.redis_client.address import RedisAddress
from distributed_backup.redis_client.client import RedisClient
from distributed_backup.storage.redis import RedisStorage
from distributed_backup.worker.options import WorkerOptions
from distributed_backup.worker.worker import Worker
from tests.support.cli_runs import call, commit
from tests.support.servers import RedisServer, wait_for

RUN = "job-42"
PREFIX = f"distributed-backup:{{{RUN}}}:"
TIMINGS = LeaseTimings(duration=1.5, renew_deadline=1.0, retry_period=0.1)
BEAT = Heartbeat(worker_id="w-1", campaign=True, floor=0, duration=15.0)
ANNOUNCEMENT = Announcement(term=1, worker_id="w-1", position=Position(1))
HUGE = "9" * 2**23

type Change = Callable[[Any, str], None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as made:
        yield made


@pytest.fixture
def client(server: RedisServer) -> Iterator[Any]:
    with server.client(decode_responses=False) as made:
        made.flushall()
        yield made


@pytest.fixture
def coordinator(server: RedisServer, client: Any) -> Iterator[RedisCoordinator]:
    made = RedisCoordinator(server.url)
    made.open(RUN, TIMINGS)
    made.heartbeat(BEAT)
    made.announce(ANNOUNCEMENT)
    made.notify(Notice(notice_id="n-1", worker_id="w-1", reason="SIGTERM", remaining=30.0))
    yield made
    made.close()


# -------------------------------------------------------------------- what lies under a key


def other_type(client: Any, key: str) -> None:
    """Replace a value by one of another type."""
    is_list = client.type(key) == b"list"
    client.delete(key)
    client.set(key, "x") if is_list else client.rpush(key, "x")


def text(value: Any) -> Change:
    """Return a change that puts `value` in the place of each value under a key, whatever the key's type."""

    def change(client: Any, key: str) -> None:
        match client.type(key):
            case b"hash":
                client.hset(key, mapping=dict.fromkeys(client.hkeys(key), value))
            case b"zset":
                client.zadd(key, {value: 9e15})
            case _:
                client.set(key, value)

    return change


def more_fields(client: Any, key: str) -> None:
    """Add fields and members with names that no worker has."""
    for name in (b"", b"\xff\xfe", b"../../x", b"a b c", b"\x1b[2J\n"):
        match client.type(key):
            case b"hash":
                client.hset(key, name, b"9999999999999 a save r")
            case b"zset":
                client.zadd(key, {name: 9e15})
            case _:
                client.append(key, name)


def fewer_fields(client: Any, key: str) -> None:
    """Remove the first field."""
    if client.type(key) == b"hash":
        client.hdel(key, min(client.hkeys(key)))
    else:
        client.delete(key)


CHANGES: dict[str, Change] = {
    "another type": other_type,
    "empty": text(""),
    "words": text("a b c d e"),
    "other encoding": text(b"\xff\xfe\x00"),
    "negative": text("-1"),
    "large number": text("9" * 30),
    "fraction": text("1e308"),
    "not a number": text("nan"),
    "huge": text(HUGE),
    "list": text("[]"),
    "nested": text("[" * 20000 + "]" * 20000),
    "announcement of other types": text(
        '{"term":1,"worker_id":1,"position":{"a":1},"checkpoint":[],"digest":1,"answers":3}'
    ),
    "announcement of a path": text(
        '{"term":1,"worker_id":"w","kind":"x","position":[1,0],"checkpoint":"../../x","digest":"","answers":[]}'
    ),
    "position out of range": text("9999999999999 follower 999999999999 1"),
    "more fields": more_fields,
    "fewer fields": fewer_fields,
}
of_each_change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
KEYS = ("lease", "announcement", "members", "expiries", "notices")


@of_each_change
@pytest.mark.parametrize("key", KEYS)
def test_each_operation_ends_with_an_error_of_ours_or_none(
    coordinator: RedisCoordinator, client: Any, key: str, change: Change
) -> None:
    change(client, PREFIX + key)
    operations: tuple[Callable[[], object], ...] = (
        coordinator.view,
        coordinator.members,
        lambda: coordinator.heartbeat(BEAT),
        lambda: coordinator.announce(ANNOUNCEMENT),
        lambda: coordinator.notify(Notice(notice_id="n-2", worker_id="w-1", reason="r", remaining=1.0)),
        lambda: coordinator.resign("w-1"),
        lambda: coordinator.leave("w-1"),
        coordinator.runs,
        coordinator.erase,
    )
    for operation in operations:
        with suppress(BackupError):
            operation()
    # Erased keys are as those of a new run.
    assert coordinator.heartbeat(BEAT).holder == "w-1"


def test_the_keys_are_all_that_the_code_uses() -> None:
    """Another key needs a test here."""
    keys = _Keys(RUN)
    assert {name for name in vars(keys) if name not in {"run_id", "all"}} == {*KEYS, "hints"}
    assert {key.removeprefix(PREFIX) for key in keys.all} == set(KEYS)
    source = Path(coordination.__file__).parents[1]
    named = {
        name
        for path in source.rglob("*.py")
        for name in re.findall(r"distributed-backup:\{\{?\{?\w*\}?\}?\}:(\w+)", path.read_text())
    }
    assert named <= {*KEYS, "hints", "files", "append"}


# -------------------------------------------------------------------- a worker that runs


class Counting(RedisCoordinator):
    """Counts the heartbeats that are sent."""

    heartbeats = 0

    @override
    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        self.heartbeats += 1
        return super().heartbeat(beat)


@pytest.mark.parametrize("name", ["another type", "words", "announcement of other types", "other encoding", "huge"])
def test_a_running_worker_survives_and_its_run_goes_on(
    server: RedisServer, client: Any, tmp_path: Path, name: str
) -> None:
    """Its threads live, its checkpoints stay, and it leads again when the keys are removed."""
    store = CheckpointStore(tmp_path / "run", run_id=RUN)
    commit(store, 1, Position(1))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.ckpt")}
    coordinator = Counting(server.url)
    worker = Worker(
        store=store,
        coordinator=coordinator,
        clock=SystemClock(),
        options=WorkerOptions(timings=TIMINGS),
        stop_training_at=lambda instant: None,
        report=Reporter("w-1"),
    )
    try:
        worker.join()
        threads = {thread.name for thread in threading.enumerate()}
        for key in KEYS:
            with suppress(Exception):
                CHANGES[name](client, PREFIX + key)
        sent = coordinator.heartbeats
        wait_for(lambda: coordinator.heartbeats > sent + 3 or None, "the worker goes on with its heartbeats")
        assert {thread.name for thread in threading.enumerate()} >= threads, "a thread has died"
        client.flushall()
        wait_for(lambda: client.hget(PREFIX + "lease", "holder") or None, "the worker leads again")
        assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.ckpt")} == before
    finally:
        with suppress(BackupError):
            worker.close(timeout=5.0)


def test_foreign_messages_wake_nobody(server: RedisServer, client: Any) -> None:
    """A channel is open to all users of a server."""
    listener = HintListener(RedisClient(RedisAddress.of_url(server.url), 1.0), PREFIX + "hints", silence=5.0, retry=0.1)
    hints: list[str] = []
    remove = listener.add(hints.append)
    wait_for(lambda: client.pubsub_numsub(PREFIX + "hints")[0][1] or None, "the listener has subscribed")
    for message in (b"\xff\xfe", b"", b"x" * 2**20, b"[]", b"free\n"):
        client.publish(PREFIX + "hints", message)

    def heard() -> bool | None:
        client.publish(PREFIX + "hints", "free")
        return bool(hints) or None

    wait_for(heard, "the listener hears a hint after them")
    remove()
    listener.join(3.0)
    assert set(hints) == {"free"}


# -------------------------------------------------------------------- files of a run


def damaged(client: Any, key: str) -> None:
    for field in client.hkeys(key):
        client.hset(key, field, b"\x00\xff" * 50)


def appended_of_another_type(client: Any, key: str) -> None:
    for field in client.hkeys(key):
        client.hset(key, field, b"append")
        client.rpush(f"{PREFIX}append:{field.decode()}", "x")


def foreign_names(client: Any, key: str) -> None:
    for name in (b"../../x", b"a\nb", b"\x1b[2J", b"9" * 5000 + b".ckpt", b"9999999999-99999999-99999999.ckpt"):
        client.hset(key, name, b"x")


def names_of_another_encoding(client: Any, key: str) -> None:
    client.hset(key, b"\xff\xfe", b"x")


FILES: tuple[Change, ...] = (
    *(other_type, damaged, appended_of_another_type, foreign_names, names_of_another_encoding),
)


@pytest.mark.parametrize("change", FILES, ids=lambda change: change.__name__)
def test_files_under_hostile_keys_are_refused_or_skipped(server: RedisServer, client: Any, change: Change) -> None:
    store = CheckpointStore(server.url, run_id=RUN)
    newest = commit(store, 1, Position(1))
    change(client, PREFIX + "files")
    reader = CheckpointStore(server.url, run_id=RUN)
    for look in (reader.latest, reader.list, reader.verify, reader.find_run_id):
        with suppress(BackupError):
            look()
    if change in {foreign_names, names_of_another_encoding}:
        found = reader.latest()
        assert found is not None
        assert found.name == newest
    for words in (("status",), ("checkpoints", "list"), ("checkpoints", "verify"), ("journal", "show"), ("events",)):
        result = call(*words, server.url, "--run", RUN)
        assert "\x1b" not in result.output
    storage = RedisStorage(server.url, run_id=RUN, limit=5.0)
    for name in ("run.json", newest):
        with suppress(BackupError):
            storage.read(name)
