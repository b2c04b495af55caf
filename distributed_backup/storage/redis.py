"""Files in Redis or Valkey itself, for clusters that have neither a shared directory nor a bucket.

All files of a run are in one hash, zlib-compressed, beside the keys of its lease and in the same slot of a cluster:

    distributed-backup:{RUN}:files     hash     file name -> bytes

It does not expire. What is durable is what the
server makes so: with `appendonly yes` and its usual fsync each second, a power cut of the server's machine takes the
last second with it; without, a restart takes the newest checkpoints or all of them, and a warning says so. A server
that is emptied, or a replica that takes over too early, forgets checkpoints and claims alike: terms that were used may
then be used again.
"""

from __future__ import annotations

import logging
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self, override

from redis.exceptions import AuthenticationError, NoPermissionError

from distributed_backup.checks import checked_name
from distributed_backup.errors import ConfigError, CoordinatorError, CoordinatorUnavailableError, StoreError
from distributed_backup.per_process import PerProcess
from distributed_backup.redis_client.address import RedisAddress
from distributed_backup.redis_client.client import RedisClient
from distributed_backup.storage.base import Chunks, Names, Storage

logger = logging.getLogger(__name__)

_LARGEST: Final = 64 * 2**20
# JSON of numbers and words shrinks to a fifth at this level; a higher one takes thrice the time for a little more.
_LEVEL: Final = 1
# Seconds to look for runs; nobody waits for that with a notice.
_LOOK_LIMIT: Final = 10.0
# What a server says that has been reached and refuses: its people must change something.
_REFUSALS: Final = ("WRONGTYPE", "WRONGPASS", "NOAUTH", "NOPERM", "can't run this command", "ACL failure in script")
_FILES_KEY: Final = re.compile(r"distributed-backup:\{(.+)\}:files")


def runs_at(url: str) -> tuple[str, ...]:
    """Ids of the runs whose files are on a deployment.

    Raises:
        ConfigError: The URL can't be used.
        StoreError: The deployment can't be reached.
    """
    address = RedisAddress.of_url(url)
    link = RedisClient(address, _LOOK_LIMIT)
    try:
        found = (_FILES_KEY.fullmatch(key) for key in link.find("distributed-backup:{*}:files"))
        return tuple(match[1] for match in found if match is not None)
    except CoordinatorError as error:
        raise StoreError(f"can't list {address}: {error}", path=str(address), retryable=_retryable(error)) from error
    finally:
        link.close()


class RedisStorage(Storage):
    """The files of one run on a Redis or Valkey server.

    Args:
        url: See `redis_url`.
        run_id: Id of the run, which names its key.
        limit: Seconds that a step of one call may take.

    Raises:
        ConfigError: The URL can't be used, or the run has no id.
    """

    write_interval = 1.0

    def __init__(self, url: str, *, run_id: str | None, limit: float) -> None:
        self._address = RedisAddress.of_url(url)
        if run_id is None:
            raise ConfigError(f"checkpoints at {self._address} are kept by run id: set run_id")
        self._run_id = checked_name("run_id", run_id)
        self._key = f"distributed-backup:{{{run_id}}}:files"
        # A call is several steps, of which a server that hangs may delay each.
        self._limit = limit / 2
        self._client = PerProcess(self._make_client)

    @classmethod
    @override
    def from_url(cls, url: str, *, run_id: str | None, limit: float) -> Self:
        return cls(url, run_id=run_id, limit=limit)

    @property
    @override
    def location(self) -> str:
        return f"{self._address}/{self._run_id}"

    @override
    def prepare(self) -> None:
        with self._translated("use", self.location):
            if not self._client.get().persists():
                logger.warning(
                    "the server at %s keeps no append-only file: checkpoints are lost when it restarts; set appendonly "
                    "yes",
                    self._address,
                )

    @override
    def exists(self) -> bool:
        return True

    @override
    def names(self) -> Names:
        with self._translated("list", self.location):
            return [name.decode() for name in self._client.get().command("HKEYS", self._key)]

    @override
    def read(self, name: str) -> bytes:
        path = self.path_of(name)
        with self._translated("read", path):
            stored = self._client.get().command("HGET", self._key, name)
            if stored is None:
                raise FileNotFoundError(f"{path} is not there")
            return _unpacked(stored)

    @override
    def size(self, name: str) -> int | None:
        with self._translated("read", self.path_of(name)):
            # No bytes are those of a file that somebody emptied, or of none.
            length = int(self._client.get().command("HSTRLEN", self._key, name))
            return length if length or self._client.get().command("HEXISTS", self._key, name) else None

    @override
    def create(self, name: str, data: bytes = b"") -> bool:
        with self._translated("write", self.path_of(name)):
            return bool(self._client.get().command("HSETNX", self._key, name, _packed([data])))

    @override
    def put(self, name: str, chunks: Chunks, *, new: bool = False, durable: bool = True) -> None:
        path = self.path_of(name)
        with self._translated("write", path):
            packed = _packed(chunks)
            written = self._client.get().command("HSETNX" if new else "HSET", self._key, name, packed)
            if new and not written:
                raise FileExistsError("the file exists")

    @override
    def remove(self, name: str) -> None:
        with self._translated("remove", self.path_of(name)):
            self._client.get().command("HDEL", self._key, name)

    @override
    def close(self) -> None:
        client = self._client.take()
        if client is not None:
            client.close()

    def _make_client(self) -> RedisClient:
        return RedisClient(self._address, self._limit, text=False)

    @contextmanager
    def _translated(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, CoordinatorError) as error:
            raise StoreError(f"can't {verb} {path}: {error}", path=path, retryable=_retryable(error)) from error


def _retryable(error: Exception) -> bool:
    # That it was refused is in what the driver said; to the lease, a server in the midst of a change says the same.
    said = error.__context__
    refused = isinstance(said, AuthenticationError | NoPermissionError) or any(text in str(said) for text in _REFUSALS)
    return isinstance(error, CoordinatorUnavailableError) and not refused


def _packed(chunks: Chunks) -> bytes:
    """As it is stored.

    Raises:
        ValueError: It is too large.
    """
    if (size := sum(map(len, chunks))) > _LARGEST:
        raise ValueError(
            # Rounded up, lest it be the number that is allowed.
            f"{math.ceil(10 * size / 2**20) / 10:.1f} MB are more than the {_LARGEST >> 20} MB that are kept in "
            "Redis: use a shared directory or a bucket"
        )
    return zlib.compress(b"".join(chunks), _LEVEL)


def _unpacked(stored: bytes) -> bytes:
    """What was stored; as it is if we can't have stored it: it is damaged, which shows when it is verified."""
    stream = zlib.decompressobj()
    try:
        # One more than there can be: some kilobytes may inflate to all the memory there is.
        data = stream.decompress(stored, _LARGEST + 1)
    except zlib.error:
        return stored
    whole = stream.eof and not stream.unused_data and len(data) <= _LARGEST
    return data if whole else stored
