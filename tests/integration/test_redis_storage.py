"""Checkpoints on a Redis server: what is too large, damaged, compressed or refused, and what a warning says."""

from __future__ import annotations

import logging
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, override

import pytest

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot, checkpoint_name
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import CorruptCheckpointError, StaleTermError, StoreError
from distributed_backup.position import Position
from distributed_backup.storage.base import Names
from distributed_backup.storage.redis import RedisStorage, runs_at
from tests.support.servers import RedisServer

MEBIBYTE = 2**20
KEY = "distributed-backup:{job-42}:files"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "server", port=0) as server:
        yield server


@pytest.fixture
def storage(server: RedisServer) -> RedisStorage:
    return RedisStorage(server.url, run_id="job-42", limit=60.0)


def commit(store: CheckpointStore, epoch: int, *, term: int = 1, body: bytes = b"{}") -> CheckpointHeader:
    return store.commit(Snapshot(position=Position(epoch), body=body), term=term, worker_id="w")


# -------------------------------------------------------------------- sizes


def test_a_state_that_is_too_large_is_refused_and_the_earlier_one_stays(storage: RedisStorage) -> None:
    """One byte is too many, for a new file and for a replaced one. The error is final."""
    store = CheckpointStore(storage)
    before = commit(store, 1)
    why = "64.1 MB are more than the 64 MB that are kept in Redis: use a shared directory or a bucket"
    large = bytes(64 * MEBIBYTE + 1)
    for write in (lambda: storage.put("a", [large[:-1], b"1"]), lambda: storage.create("a", large)):
        with pytest.raises(StoreError) as caught:
            write()
        assert str(caught.value) == f"can't write {storage.path_of('a')}: {why}"
        assert not caught.value.retryable
    with pytest.raises(StoreError, match="are more than the 64 MB"):
        commit(store, 2, body=large)
    latest = CheckpointStore(storage).latest()
    assert latest is not None
    assert (latest.header, storage.size("a")) == (before, None)
    storage.put("a", [large[1:]])
    assert storage.read("a") == large[1:]


def test_a_state_is_stored_compressed(storage: RedisStorage) -> None:
    """JSON of numbers takes less than half of its length."""
    body = b'{"weights":[%s]}' % b",".join(b"%.6f" % (number / 7) for number in range(20_000))
    name = commit(CheckpointStore(storage), 1, body=body).name
    stored = storage.size(name)
    assert stored is not None
    assert 0 < stored < len(body) / 2
    assert CheckpointStore(storage).load(name).body == body


def test_a_value_that_inflates_to_all_the_memory_is_a_damaged_one(server: RedisServer, storage: RedisStorage) -> None:
    """A foreign value of some kilobytes. Reading stops at the size of the largest file."""
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(MEBIBYTE)) for _ in range(256)) + packer.flush()
    assert len(bomb) < MEBIBYTE
    name = checkpoint_name(1, Position(1))
    server.client().hset(KEY, name, bomb)
    storage.names()
    tracemalloc.start()
    try:
        assert storage.read(name) == bomb
        assert tracemalloc.get_traced_memory()[1] < 160 * MEBIBYTE
    finally:
        tracemalloc.stop()
    with pytest.raises(CorruptCheckpointError):
        CheckpointStore(storage).load(name)


@pytest.mark.parametrize("damage", [lambda stored: stored[:-1], lambda stored: stored + b"x", lambda _: b"plain"])
def test_what_is_no_complete_stream_is_read_as_it_is(server: RedisServer, storage: RedisStorage, damage: Any) -> None:
    """So that it shows as damaged, and not as what can't be read just now."""
    name = commit(CheckpointStore(storage), 1).name
    raw = server.client(decode_responses=False)
    stored = damage(raw.hget(KEY, name))
    raw.hset(KEY, name, stored)
    assert storage.read(name) == stored
    with pytest.raises(CorruptCheckpointError):
        CheckpointStore(storage).load(name)


def test_an_empty_value_is_a_file_of_no_bytes(server: RedisServer, storage: RedisStorage) -> None:
    """Such a file is listed, so it is not missing."""
    server.client().hset(KEY, "a", "")
    assert (storage.names(), storage.size("a"), storage.read("a")) == (["a"], 0, b"")
    assert storage.size("b") is None


# -------------------------------------------------------------------- what is refused


def test_a_writer_with_a_stale_listing_commits_below_the_newest_and_is_refused_then(
    server: RedisServer, storage: RedisStorage
) -> None:
    """It listed the files before a newer leader committed: its checkpoint is never the newest."""

    class Stale(RedisStorage):
        """Returns the listings in `earlier` first."""

        earlier: list[Names]

        @override
        def names(self) -> Names:
            return self.earlier.pop() if self.earlier else super().names()

    slow = Stale(server.url, run_id="job-42", limit=60.0)
    slow.earlier = []
    store = CheckpointStore(slow)
    commit(store, 1)
    earlier = slow.names()
    newer = commit(CheckpointStore(storage), 1, term=5)
    slow.earlier.append(earlier)
    late = commit(store, 2)
    assert slow.earlier == []
    assert late.name < newer.name
    assert late.position > newer.position
    latest = CheckpointStore(storage).latest()
    assert latest is not None
    assert latest.header == newer
    with pytest.raises(StaleTermError) as caught:
        commit(store, 3)
    assert (caught.value.term, caught.value.newest) == (1, 5)
    commit(CheckpointStore(storage), 2, term=5)
    assert late.name not in storage.names()


def test_a_user_who_may_look_and_not_write_is_told_at_once(server: RedisServer, storage: RedisStorage) -> None:
    """As is a key that is of another type."""
    client = server.client()
    client.execute_command("ACL", "SETUSER", "reader", "on", ">x", "~*", "+@all", "-hset", "-hsetnx")
    reader = RedisStorage(server.url.replace("://", "://reader:x@"), run_id="job-42", limit=60.0)
    assert reader.names() == []
    for write in (lambda: reader.put("a", [b"1"]), lambda: reader.create("a", b"1")):
        with pytest.raises(StoreError, match="may not do what is needed") as caught:
            write()
        assert not caught.value.retryable
    client.set(KEY, "no hash")
    for use in (storage.names, lambda: storage.put("a", [b"1"])):
        with pytest.raises(StoreError, match="WRONGTYPE") as caught:
            use()
        assert not caught.value.retryable


def test_a_server_that_is_full_or_gone_may_be_waited_for(server: RedisServer, storage: RedisStorage) -> None:
    """Its people may give it memory, or start it again."""
    client = server.client()
    client.config_set("maxmemory", "1")
    for write in (lambda: storage.put("a", [b"1"]), lambda: storage.create("a", b"1")):
        with pytest.raises(StoreError, match="out of memory") as caught:
            write()
        assert caught.value.retryable
    server.kill()
    for use in (storage.names, lambda: runs_at(server.url)):
        with pytest.raises(StoreError, match="can't reach") as caught:
            use()
        assert caught.value.retryable


# -------------------------------------------------------------------- what is said


@pytest.mark.parametrize("kept", ["yes", "no"])
def test_a_server_that_forgets_when_it_restarts_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: str
) -> None:
    """One with an append-only file is not."""
    with RedisServer(tmp_path / "server", config={"appendonly": kept}, port=0) as server:
        RedisStorage(server.url, run_id="job-42", limit=60.0).prepare()
        said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    warning = (
        f"the server at {server.url} keeps no append-only file, so a restart loses checkpoints: set appendonly yes"
    )
    assert said == ([warning] if kept == "no" else [])
