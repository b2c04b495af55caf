"""Appends under real faults: a killed process and a full disk, lost replies and emptied servers, late uploads."""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.errors import StoreError
from distributed_backup.storage import storage_from_url
from distributed_backup.storage.base import PARTIAL, Storage
from distributed_backup.storage.local import LocalStorage
from distributed_backup.storage.object_store import ObjectStorage
from distributed_backup.storage.redis import RedisStorage, runs_at
from tests.integration.test_store_crash import KillingStorage
from tests.support.buckets import Fault, S3Server, denied, reply_lost, unavailable
from tests.support.places import enter, gcs_server, s3_server
from tests.support.processes import PATIENCE
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer

NAME = "0000000007-00000002-00000003.journal"
CONTENT_KEY = f"distributed-backup:{{job-42}}:append:{NAME}"
FILES_KEY = "distributed-backup:{job-42}:files"
KEPT, FAILED, NEW = b"kept" * 1000, b"failed" * 5000, b"new" * 2000

# -------------------------------------------------------------------- a directory: kills and full disks


class KilledStorage(KillingStorage):
    """Kills its own process at one step, cutting a file included."""

    def _cut(self, descriptor: int, size: int) -> None:
        cut = super()._cut
        self._step("cut", lambda: cut(descriptor, size))


def fork_and_append(spec: dict[str, Any]) -> int:
    """Append in a child that is killed at one step. Return the signal that ended it, 0 if it ended by itself."""
    child = os.fork()
    if child == 0:
        KilledStorage(spec, lambda _: None).append(NAME, NEW, at=spec["at"])
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


@pytest.mark.parametrize(("at", "steps"), [(0, 4), (len(KEPT), 3)])
@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_a_kill_at_any_step_of_an_append_leaves_the_earlier_bytes(
    tmp_path: Path, at: int, steps: int, when: str
) -> None:
    """A new file is complete or missing. One that grows ends with a part of one attempt. A repetition succeeds."""
    specs: list[dict[str, Any]] = []
    for fatal in range(steps + 1):
        root = tmp_path / str(fatal)
        storage = LocalStorage(root)
        storage.prepare()
        if at:
            storage.append(NAME, KEPT, at=0)
            storage.append(NAME, FAILED, at=at)
        specs.append({"root": str(root), "fatal": fatal, "when": when, "at": at})
    module = "tests.integration.test_storage_appends"
    done = subprocess.run(
        [sys.executable, "-m", module], input=json.dumps(specs), stdout=subprocess.PIPE, text=True, check=True
    )
    signals = json.loads(done.stdout)
    # Only a write has a half, and the last child has no step that is fatal.
    assert signals.count(signal.SIGKILL) == (1 if when == "half" else steps)
    assert signals[-1] == 0
    for spec in specs:
        storage = LocalStorage(spec["root"])
        if at or NAME in storage.names():
            found = storage.read(NAME)
            assert found[:at] == KEPT[:at]
            assert found[at:] == NEW if not at else FAILED.startswith(found[at:]) or NEW.startswith(found[at:])
        assert all(name == NAME or name.startswith(PARTIAL) for name in storage.names())
        storage.append(NAME, NEW, at=at)
        assert storage.read(NAME) == KEPT[:at] + NEW


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 kB."""
    root = tmp_path / "disk"
    root.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(root)]
    may_mount = shutil.which("mount") and os.geteuid() == 0
    if not may_mount or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount; a failing write covers the full disk")
    yield root
    subprocess.run(["umount", str(root)], check=True)


def test_an_append_to_a_full_disk_may_be_repeated(small_disk: Path) -> None:
    """The disk cuts it short. With room, the repetition replaces the part that was written."""
    storage = LocalStorage(small_disk)
    storage.append(NAME, KEPT, at=0)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    for _ in range(3):
        with pytest.raises(StoreError, match=r"can't append to .*: No space left on device"):
            storage.append(NAME, FAILED, at=len(KEPT))
        found = storage.read(NAME)
        assert found[: len(KEPT)] == KEPT
        assert FAILED.startswith(found[len(KEPT) :])
    with pytest.raises(StoreError, match="No space left on device"):
        storage.append("new", FAILED, at=0)
    assert sorted(storage.names()) == [NAME, "filler"]
    filler.unlink()
    storage.append(NAME, NEW, at=len(KEPT))
    assert storage.read(NAME) == KEPT + NEW


# -------------------------------------------------------------------- Redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "server", port=0) as server:
        yield server


def redis_storage(url: str) -> RedisStorage:
    return RedisStorage(url, run_id="job-42", limit=60.0)


def test_a_lost_reply_from_redis_does_not_double_bytes(server: RedisServer) -> None:
    """The driver repeats the script on another connection: for a new file and for one that grows."""
    with Proxy(server.address) as proxy:
        storage = redis_storage(proxy.url())
        storage.append("warm", b"", at=0)
        content = b""
        for number, chunk in enumerate((b"one", b"two", b"three"), 1):
            proxy.drop_replies(1, containing=b"EVALSHA")
            storage.append(NAME, chunk, at=len(content))
            proxy.wait_dropped(number)
            content += chunk
            assert storage.read(NAME) == content
        storage.close()


def test_an_append_that_failed_at_redis_may_be_repeated(server: RedisServer) -> None:
    """Both replies of a call are lost, so it raises. The bytes are there, and are replaced by others."""
    with Proxy(server.address) as proxy:
        storage = redis_storage(proxy.url())
        storage.append(NAME, b"one", at=0)
        proxy.drop_replies(2, containing=b"EVALSHA")
        with pytest.raises(StoreError, match="can't append to") as caught:
            storage.append(NAME, b"failed", at=3)
        assert caught.value.retryable
        proxy.wait_dropped(2)
        assert storage.read(NAME) == b"onefailed"
        storage.append(NAME, b"two", at=3)
        assert storage.read(NAME) == b"onetwo"
        storage.close()


def test_an_append_to_a_server_that_was_emptied_is_refused(server: RedisServer) -> None:
    """Nothing is created. A server that lost its scripts only is served again."""
    storage = redis_storage(server.url)
    storage.append(NAME, b"one", at=0)
    server.client().script_flush()
    storage.append(NAME, b"two", at=3)
    server.client().flushall()
    with pytest.raises(StoreError, match="is not there") as caught:
        storage.append(NAME, b"three", at=6)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert not caught.value.retryable
    assert server.client().keys("*") == []


def test_content_that_was_lost_or_cut_is_an_error_at_the_next_append(server: RedisServer) -> None:
    """An evicting server removes single keys."""
    storage = redis_storage(server.url)
    storage.append(NAME, b"one", at=0)
    server.client().set(CONTENT_KEY, "on")
    with pytest.raises(StoreError, match="it has 2 bytes, and 3 were written before"):
        storage.append(NAME, b"two", at=3)
    server.client().delete(CONTENT_KEY)
    with pytest.raises(StoreError, match="it has 0 bytes, and 3 were written before"):
        storage.append(NAME, b"two", at=3)
    assert server.client().keys("*") == [FILES_KEY]


def test_a_name_in_redis_is_one_file_however_it_was_written(server: RedisServer) -> None:
    """`create` and `put` see an appended file. What replaces it is read, and nothing is left of a removed one."""
    storage = redis_storage(server.url)
    storage.append(NAME, b"appended", at=0)
    assert runs_at(server.url) == ("job-42",)
    assert not storage.create(NAME, b"created")
    with pytest.raises(StoreError) as caught:
        storage.put(NAME, [b"put"], new=True)
    assert isinstance(caught.value.__cause__, FileExistsError)
    assert storage.read(NAME) == b"appended"
    storage.put(NAME, [b"put"])
    assert (storage.read(NAME), storage.read_from(NAME, 1, 1)) == (b"put", b"u")
    with pytest.raises(StoreError, match="is not there"):
        storage.append(NAME, b"x", at=3)
    storage.append(NAME, b"again", at=0)
    assert (storage.read(NAME), storage.names()) == (b"again", [NAME])
    storage.remove(NAME)
    assert server.client().keys("*") == []


def test_a_value_as_long_as_the_mark_has_its_own_size(server: RedisServer) -> None:
    """It is damage, and not an appended file."""
    server.client().hset(FILES_KEY, NAME, "sixsix")
    storage = redis_storage(server.url)
    assert (storage.size(NAME), storage.read(NAME)) == (6, b"sixsix")


def test_an_appended_file_has_at_most_512_mb_in_redis(server: RedisServer) -> None:
    """No more bytes are sent. The earlier ones stay."""
    storage = redis_storage(server.url)
    storage.append(NAME, b"one", at=0)
    server.client().setrange(CONTENT_KEY, 512 * 2**20 - 2, b"x")
    with pytest.raises(StoreError) as caught:
        storage.append(NAME, b"xx", at=512 * 2**20 - 1)
    why = "536870913 bytes are more than the 512 MB that one file may have in Redis: use a shared directory or a bucket"
    assert str(caught.value) == f"can't append to {storage.path_of(NAME)}: {why}"
    assert not caught.value.retryable
    storage.append(NAME, b"y", at=512 * 2**20 - 1)
    assert storage.read_from(NAME, 512 * 2**20 - 2, 10) == b"xy"


@pytest.mark.parametrize("key", [FILES_KEY, CONTENT_KEY])
def test_a_key_of_another_type_is_an_error_of_appends(server: RedisServer, key: str) -> None:
    """It is not retryable, and an append that is refused changes nothing."""
    storage = redis_storage(server.url)
    storage.append(NAME, b"one", at=0)
    client = server.client()
    client.delete(key)
    client.rpush(key, "a list")
    for use in (lambda: storage.append(NAME, b"x", at=3), lambda: storage.read_from(NAME, 0, 9)):
        with pytest.raises(StoreError, match="WRONGTYPE") as caught:
            use()
        assert not caught.value.retryable
    assert client.lrange(key, 0, -1) == ["a list"]
    if key == FILES_KEY:
        with pytest.raises(StoreError, match="WRONGTYPE"):
            storage.append(NAME, b"new", at=0)
        assert client.get(CONTENT_KEY) == "one"


def test_an_append_to_a_full_server_may_be_repeated(server: RedisServer) -> None:
    """It is refused as a whole. Files can be removed."""
    storage = redis_storage(server.url)
    storage.append(NAME, b"one", at=0)
    server.client().config_set("maxmemory", "1")
    for at in (0, 3):
        with pytest.raises(StoreError, match="out of memory") as caught:
            storage.append(NAME, b"two", at=at)
        assert caught.value.retryable
    assert storage.read(NAME) == b"one"
    server.client().config_set("maxmemory", "0")
    storage.append(NAME, b"two", at=3)
    assert storage.read(NAME) == b"onetwo"
    server.client().config_set("maxmemory", "1")
    storage.remove(NAME)
    assert storage.names() == []


# -------------------------------------------------------------------- buckets


@pytest.fixture
def s3() -> Iterator[S3Server]:
    server = s3_server()
    enter(server.environment)
    yield server
    server.mend()


@pytest.fixture
def url() -> str:
    return f"s3://bucket/{secrets.token_hex(4)}/run"


def bucket(url: str) -> Storage:
    """A storage as one more process has it."""
    return storage_from_url(url, limit=60.0)


def test_an_append_is_one_put(s3: S3Server, url: str) -> None:
    """The first append to a file lists the bucket, and so does a storage that continues the file."""
    storage = bucket(url)
    storage.names()
    for at, methods in ((0, ["GET", "PUT"]), (3, ["PUT"]), (6, ["PUT"]), (6, ["PUT"])):
        s3.forget()
        storage.append(NAME, b"abc", at=at)
        assert [method for method, _ in s3.requests] == methods
    assert bucket(url).read(NAME) == b"abcabcabc"


def test_the_tail_of_a_file_is_read_without_the_rest(s3: S3Server, url: str) -> None:
    """One listing, and one request for each part that has some of the bytes."""
    storage = bucket(url)
    for number in range(5):
        storage.append(NAME, b"%d" % number * 10, at=10 * number)
    reader = bucket(url)
    reader.names()
    s3.forget()
    assert reader.read_from(NAME, 35, 100) == b"3" * 5 + b"4" * 10
    assert [method for method, _ in s3.requests] == ["GET"] * 3
    assert s3.count("GET", ".part-") == 2
    s3.forget()
    assert reader.read_from(NAME, 50, 100) == b""
    assert [method for method, _ in s3.requests] == ["GET"]


def test_a_reply_from_s3_that_is_lost_does_not_double_bytes(s3: S3Server, url: str) -> None:
    """The client repeats the request, after a lost reply and after a refusal for a moment."""
    storage = bucket(url)
    content, injected = b"", s3.injected
    for fault in (reply_lost, unavailable, reply_lost):
        s3.next("PUT", fault)
        storage.append(NAME, b"abc", at=len(content))
        content += b"abc"
    assert s3.injected == injected + 3
    assert bucket(url).read(NAME) == content


def carried_out(app: Any, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """No fault."""
    reply: Iterable[bytes] = app(environ, start)
    return reply


def late(release: threading.Event, done: threading.Event) -> Fault:
    """Carry the request out when `release` is set, and set `done` then."""

    def carry_out(app: Any, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        length = int(environ["CONTENT_LENGTH"])
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        release.wait(PATIENCE)
        reply = list(app(environ, start))
        done.set()
        return reply

    return carry_out


def test_an_upload_that_arrives_after_its_repetition_changes_nothing(s3: S3Server, url: str) -> None:
    """It timed out and was repeated with more bytes. Those count, also after a listing without the late upload."""
    storage = bucket(url)
    assert isinstance(storage, ObjectStorage)
    storage.append(NAME, b"one", at=0)
    release, done = threading.Event(), threading.Event()
    s3.next("PUT", late(release, done))
    storage._limit = 1.0
    with pytest.raises(StoreError, match=r"can't append to .*: not done within 1 s") as caught:
        storage.append(NAME, b"two", at=3)
    assert caught.value.retryable
    storage._limit = 60.0
    storage._lengths.clear()  # as after a listing that missed the file
    storage.append(NAME, b"two three", at=3)
    storage.append(NAME, b" four", at=12)
    release.set()
    assert done.wait(PATIENCE)
    reader = bucket(url)
    assert reader.names() == [NAME]
    assert reader.read(NAME) == b"onetwo three four"
    assert isinstance(reader, ObjectStorage)
    assert len(reader._list()) == 4  # the late one, too
    reader.remove(NAME)
    assert bucket(url).names() == []


def test_a_failed_attempt_limits_the_next_offset(s3: S3Server, url: str) -> None:
    """It may take effect later and cut the file, so no append behind it would count."""
    storage = bucket(url)
    storage.append(NAME, b"one", at=0)
    storage.append(NAME, b"two", at=3)
    s3.next("PUT", denied)
    with pytest.raises(StoreError, match="can't append to"):
        storage.append(NAME, b"x", at=3)
    with pytest.raises(StoreError, match="it has 3 bytes, and 6 were written before"):
        storage.append(NAME, b"three", at=6)
    storage.append(NAME, b"two three", at=3)
    assert bucket(url).read(NAME) == b"onetwo three"


def test_a_removal_that_fails_half_way_leaves_no_earlier_content(s3: S3Server, url: str) -> None:
    """The file is missing for readers, and listed until another removal succeeds."""
    storage = bucket(url)
    for at, data in ((0, b"old"), (0, b"one"), (3, b"failed"), (3, b"two"), (6, b"three")):
        storage.append(NAME, data, at=at)
    # The name itself, and the two parts with offset 0.
    s3.next("DELETE", carried_out, times=3)
    s3.next("DELETE", denied, times=3)
    injected = s3.injected
    with pytest.raises(StoreError, match="can't remove"):
        storage.remove(NAME)
    assert s3.injected == injected + 6
    reader = bucket(url)
    assert (reader.names(), reader.size(NAME)) == ([NAME], None)
    reads: list[Callable[[], bytes]] = [lambda: reader.read(NAME), lambda: reader.read_from(NAME, 0, 9)]
    for read in reads:
        with pytest.raises(StoreError) as caught:
            read()
        assert isinstance(caught.value.__cause__, FileNotFoundError)
    reader.remove(NAME)
    assert bucket(url).names() == []


def test_a_file_of_hundreds_of_parts_is_removed_and_read(s3: S3Server, url: str) -> None:
    """More than one call removes."""
    storage = bucket(url)
    storage.append(NAME, b"0123456789", at=0)
    for number in range(1, 130):
        storage.append(NAME, b"0123456789", at=10 * number)
    reader = bucket(url)
    assert reader.read(NAME) == b"0123456789" * 130
    reader.remove(NAME)
    assert bucket(url).names() == []


@pytest.mark.parametrize("scheme", ["s3", "gs", "memory"])
def test_a_part_that_another_process_has_just_removed_is_no_error(s3: S3Server, url: str, scheme: str) -> None:
    """Two workers may prune at the same time, each after its own listing."""
    enter(gcs_server().environment)
    storage = bucket(url.replace("s3", scheme))
    assert isinstance(storage, ObjectStorage)
    for at in (0, 3, 6):
        storage.append(NAME, b"abc", at=at)
    client = storage._client.get()
    stored = [f"{client.path}/{name}" for name in storage._list()]
    client.fs.rm_file(stored[1])
    client.remove_all(stored, 20.0)
    assert storage._list() == {}


if __name__ == "__main__":
    print(json.dumps([fork_and_append(spec) for spec in json.load(sys.stdin)]))
