"""Keep files in Redis or Valkey, for workers that have neither a shared directory nor a bucket.

All files of a run are in one hash, zlib-compressed. A file that `append` makes has a key of its own, uncompressed, and
"append" as its value in the hash. The keys are in the same cluster slot as those of the lease:

    distributed-backup:{RUN}:files          hash     file name -> bytes, or "append"
    distributed-backup:{RUN}:append:NAME    string   bytes of the file NAME

The keys do not expire. A file is as durable as the server makes it. With `appendonly yes` and the usual fsync each
second, a power cut may lose the last second. Without an append-only file, a restart loses the newest checkpoints or all
of them, and a warning says so. A server that is emptied, or a stale replica that is promoted, loses checkpoints and
claims alike. Used terms may then be granted again.
"""

from __future__ import annotations

import logging
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
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
# The longest string of a server with the default settings.
_LONGEST: Final = 512 * 2**20
# Value of an appended file in the hash. No zlib stream is that short.
_APPENDED: Final = b"append"
# JSON of numbers and words shrinks to a fifth at this level. Higher levels take three times as long for little more.
_LEVEL: Final = 1
# Timeout of a listing of runs, in seconds. Only commands list them.
_LOOK_LIMIT: Final = 10.0
# Error texts that mean a server misconfiguration. Retrying does not help.
_REFUSALS: Final = ("WRONGTYPE", "WRONGPASS", "NOAUTH", "NOPERM", "can't run this command", "ACL failure in script")
_FILES_KEY: Final = re.compile(r"distributed-backup:\{(.+)\}:files")


def runs_at(url: str) -> tuple[str, ...]:
    """Return the ids of the runs whose files are on a deployment.

    Raises:
        ConfigError: The URL is malformed.
        StoreError: The deployment can't be reached.
    """
    address = RedisAddress.of_url(url)
    client = RedisClient(address, _LOOK_LIMIT)
    try:
        found = (_FILES_KEY.fullmatch(key) for key in client.find("distributed-backup:{*}:files"))
        return tuple(match[1] for match in found if match is not None)
    except CoordinatorError as error:
        raise StoreError(f"can't list {address}: {error}", path=str(address), retryable=_retryable(error)) from error
    finally:
        client.close()


class RedisStorage(Storage):
    """The files of one run on a Redis or Valkey server.

    Args:
        url: The URL, see `redis_client.address`.
        run_id: Id of the run. It names the key.
        limit: Seconds that one call may take. Each of its steps has half of that.

    Raises:
        ConfigError: The URL is malformed, or the run has no id.
    """

    write_interval = 1.0

    def __init__(self, url: str, *, run_id: str | None, limit: float) -> None:
        self._address = RedisAddress.of_url(url)
        if run_id is None:
            raise ConfigError(f"checkpoints at {self._address} are kept by run id: set run_id")
        self._run_id = checked_name("run_id", run_id)
        self._key = f"distributed-backup:{{{run_id}}}:files"
        self._append_prefix = f"distributed-backup:{{{run_id}}}:append:"
        # A server that hangs may delay two steps of a call.
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
            info = self._client.get().info()
            if info is not None and info.forgets:
                logger.warning("%s", info.forgets)

    @override
    def exists(self) -> bool:
        return True

    @override
    def names(self) -> Names:
        with self._translated("list", self.location):
            # A name that is no UTF-8 is none of ours.
            return [name.decode(errors="replace") for name in self._client.get().command("HKEYS", self._key)]

    @override
    def read(self, name: str) -> bytes:
        return self.read_from(name, 0, _LONGEST)

    @override
    def read_from(self, name: str, offset: int, limit: int) -> bytes:
        path = self.path_of(name)
        with self._translated("read", path):
            stored: bytes | None = self._client.get().command("HGET", self._key, name)
            if stored is None:
                raise FileNotFoundError(f"{path} is not there")
            if stored != _APPENDED:
                return _unpacked(stored)[offset : offset + limit]
            if limit <= 0:  # GETRANGE takes -1 as the last byte
                return b""
            found: bytes = self._client.get().command(
                "GETRANGE", self._append_key(name), str(offset), str(offset + limit - 1)
            )
            return found

    @override
    def size(self, name: str) -> int | None:
        with self._translated("read", self.path_of(name)):
            command = self._client.get().command
            # HSTRLEN is 0 both for an empty file and for a missing one.
            length = int(command("HSTRLEN", self._key, name))
            if length == len(_APPENDED) and command("HGET", self._key, name) == _APPENDED:
                return int(command("STRLEN", self._append_key(name)))
            return length if length or command("HEXISTS", self._key, name) else None

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
    def append(self, name: str, data: bytes, *, at: int) -> None:
        path = self.path_of(name)
        with self._translated("append to", path):
            if at + len(data) > _LONGEST:
                raise ValueError(
                    f"{at + len(data)} bytes are more than the {_LONGEST >> 20} MB that one file may have in Redis: "
                    "use a shared directory or a bucket"
                )
            keys = [self._key, self._append_key(name)]
            found = self._client.get().run(_script("append"), keys, [name, _APPENDED, at, data])
            if found < 0:
                raise FileNotFoundError(f"{path} is not there")
            if found < at:
                raise OSError(f"it has {found} bytes, and {at} were written before")

    @override
    def remove(self, name: str) -> None:
        with self._translated("remove", self.path_of(name)):
            # In this order, bytes whose name is removed can't stay behind.
            self._client.get().command("UNLINK", self._append_key(name))
            self._client.get().command("HDEL", self._key, name)

    @override
    def close(self) -> None:
        client = self._client.take()
        if client is not None:
            client.close()

    def _append_key(self, name: str) -> str:
        return self._append_prefix + name

    def _make_client(self) -> RedisClient:
        return RedisClient(self._address, self._limit, text=False)

    @contextmanager
    def _translated(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, CoordinatorError) as error:
            raise StoreError(f"can't {verb} {path}: {error}", path=path, retryable=_retryable(error)) from error


@cache
def _script(name: str) -> str:
    """Return the Lua script of that name in `lua/`."""
    return files("distributed_backup.storage").joinpath("lua", f"{name}.lua").read_text()


def _retryable(error: Exception) -> bool:
    # Only the driver's error shows a refusal. The lease takes the same error for a server that is being changed.
    cause = error.__context__
    refused = isinstance(cause, AuthenticationError | NoPermissionError) or any(
        text in str(cause) for text in _REFUSALS
    )
    return isinstance(error, CoordinatorUnavailableError) and not refused


def _packed(chunks: Chunks) -> bytes:
    """Compress chunks.

    Raises:
        ValueError: They exceed `_LARGEST`.
    """
    if (size := sum(map(len, chunks))) > _LARGEST:
        raise ValueError(
            # Rounded up: rounding down could show the allowed size.
            f"{math.ceil(10 * size / 2**20) / 10:.1f} MB are more than the {_LARGEST >> 20} MB that are kept in "
            "Redis: use a shared directory or a bucket"
        )
    return zlib.compress(b"".join(chunks), _LEVEL)


def _unpacked(stored: bytes) -> bytes:
    """Decompress a file. Return other bytes unchanged: they are damage, which verification reports."""
    stream = zlib.decompressobj()
    try:
        # Limit the output: a few kilobytes of zlib data can inflate to gigabytes.
        data = stream.decompress(stored, _LARGEST + 1)
    except zlib.error:
        return stored
    whole = stream.eof and not stream.unused_data and len(data) <= _LARGEST
    return data if whole else stored
