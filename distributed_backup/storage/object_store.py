"""Files in an object store, over fsspec: one PUT a file, conditional where the store can.

    s3://bucket/prefix      distributed-backup[s3]       If-None-Match: *, see `s3fs`
    gs://bucket/prefix      distributed-backup[gcs]      ifGenerationMatch=0, see `gcsfs`
    az://container/prefix   distributed-backup[azure]    If-None-Match: *, see `adlfs`
    memory://name           in this process, for trying things out
    any other               the client that fsspec names for it

Settings are the client's own and come from its environment (`AWS_…`, `GOOGLE_APPLICATION_CREDENTIALS`,
`AZURE_STORAGE_…`) or from fsspec's (`FSSPEC_S3_ENDPOINT_URL`, …); none are in the URL. A PUT is atomic and durable when
it is answered. One that was given up may still arrive: a file that was removed or replaced meanwhile is then back. A
store that takes conditions for granted and ignores them can't keep two workers from claiming one term; a warning says
so. Other clients, those of file servers, are as atomic as their renaming is, can't be told that a file must be new,
and have no limit in time.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Self, override

from distributed_backup.errors import BackupError, StoreError
from distributed_backup.per_process import PerProcess
from distributed_backup.storage.base import PARTIAL, PROBE, Chunks, Names, Storage
from distributed_backup.storage.fsspec_client import FsspecClient, check_url, make_client
from distributed_backup.storage.fsspec_errors import is_conflict, reason_of, retryable

logger = logging.getLogger(__name__)

# Bytes per second below which a transfer is given up: a network between machines of one region does many times that.
_SLOWEST: Final = 10e6
# Seconds until a write is tried again that met another's.
_PAUSE: Final = 0.1
# fsspec's memory has one state for the whole process, and makes a conditional write of two steps.
_one_at_a_time: Final = threading.Lock()


class ObjectStorage(Storage):
    """A prefix in a bucket.

    Args:
        url: Of the prefix; its scheme in small letters.
        limit: Seconds that one request may take, retries of the client included; for a file of N MB, N / 10 more.

    Raises:
        ConfigError: The URL can't be used, or its client is not installed.

    Example:
        >>> storage = ObjectStorage("memory://doctest", limit=10.0)
        >>> storage.create("a", b"1"), storage.create("a", b"2"), storage.read("a")
        (True, False, b'1')
        >>> storage.remove("a")
    """

    write_interval = 10.0

    def __init__(self, url: str, *, limit: float) -> None:
        self._shown = check_url(url)
        self._url = url.rstrip("/")
        self._limit = limit
        self._client = PerProcess(self._make_client)
        # Of the files at the last listing and those written since: a download is given the time that it may take.
        self._sizes: dict[str, int] = {}
        self._conditional: bool | None = None

    @classmethod
    @override
    def from_url(cls, url: str, *, run_id: str | None, limit: float) -> Self:
        return cls(url, limit=limit)

    @property
    @override
    def location(self) -> str:
        return self._shown

    @override
    def prepare(self) -> None:
        client = self._client.get()
        # Buckets have no directories to be made, and to make a bucket is not ours; on a file server they must be there.
        if not client.bounded:
            with self._translated("create", self._shown):
                client.fs.makedirs(client.path, exist_ok=True)

    @override
    def exists(self) -> bool:
        return True

    @override
    def names(self) -> Names:
        client = self._client.get()
        with self._translated("list", self._shown):
            found = client.sizes(self._limit)
        self._sizes = dict(found)
        return list(found)

    @override
    def read(self, name: str) -> bytes:
        client = self._client.get()
        limit = self._limit_for(self._sizes.get(name, 0))
        with self._translated("read", self.path_of(name), limit):
            raw: bytes = client.fs.cat_file(f"{client.path}/{name}", **client.within(limit))
        return raw

    @override
    def size(self, name: str) -> int | None:
        client = self._client.get()
        with self._translated("read", self.path_of(name)):
            try:
                return int(client.fs.info(f"{client.path}/{name}", **client.within(self._limit))["size"])
            except FileNotFoundError:
                return None

    @override
    def create(self, name: str, data: bytes = b"") -> bool:
        self._check_conditions()
        with self._translated("write", self.path_of(name), self._limit_for(len(data))):
            try:
                self._write(name, data, new=True)
            except FileExistsError:
                return False
        return True

    def _check_conditions(self) -> None:
        """Whether the store refuses what is there: many that only speak like S3 ignore the condition. Asked once."""
        if self._conditional is not None:
            return
        probe = f"{PROBE}{secrets.token_hex(8)}"
        with suppress(Exception):  # then it is not known yet; what is to be created will show what is wrong
            try:
                # The first is refused if its reply was lost, for the client asks again.
                for _ in range(2):
                    self._write(probe, b"", new=True)
                self._conditional = False
            except FileExistsError:
                self._conditional = True
            except TimeoutError:
                # To remove it would take as long. What may have arrived goes with the run.
                return
        with suppress(StoreError):
            self.remove(probe)
        if self._conditional is False:
            logger.warning(
                "%s ignores conditional writes: terms can't be claimed there, and a coordinator that loses its data "
                "may grant one twice; name the run with run_id, for two workers that start at once may make two ids",
                self._shown,
            )

    @override
    def put(self, name: str, chunks: Chunks, *, new: bool = False, durable: bool = True) -> None:
        data = b"".join(chunks)
        with self._translated("write", self.path_of(name), self._limit_for(len(data))):
            self._write(name, data, new=new)

    def _write(self, name: str, data: bytes, *, new: bool) -> None:
        client = self._client.get()
        path = f"{client.path}/{name}"
        if client.bounded:
            self._write_alone(client, path, data, new=new)
        elif "memory" in client.fs.protocol:
            with _one_at_a_time:
                client.fs.pipe_file(path, data, mode="create" if new else "overwrite")
        else:
            self._write_aside(client, path, data, new=new)
        self._sizes[name] = len(data)

    def _write_alone(self, client: FsspecClient, path: str, data: bytes, *, new: bool) -> None:
        """One request; another while it meets another's, as long as it may take."""
        end = time.monotonic() + self._limit_for(len(data))
        while True:
            try:
                return client.write(path, data, new=new, limit=end - time.monotonic())
            except Exception as error:
                if not is_conflict(error) or time.monotonic() + _PAUSE >= end:
                    raise
            threading.Event().wait(_PAUSE)

    def _write_aside(self, client: FsspecClient, path: str, data: bytes, *, new: bool) -> None:
        """Clients of file servers write in place: a file that is cut off must not have the name."""
        if new and client.fs.exists(path):
            raise FileExistsError(path)
        before, _, name = path.rpartition("/")
        partial = f"{before}/{PARTIAL}{name}-{secrets.token_hex(4)}"
        try:
            client.fs.pipe_file(partial, data)
            client.fs.mv(partial, path)
        except BaseException:
            with suppress(Exception):
                client.fs.rm_file(partial)
            raise

    @override
    def remove(self, name: str) -> None:
        client = self._client.get()
        with self._translated("remove", self.path_of(name)), suppress(FileNotFoundError):
            client.fs.rm_file(f"{client.path}/{name}", **client.within(self._limit))
        self._sizes.pop(name, None)

    @override
    def remove_if_empty(self) -> None:
        client = self._client.get()
        if not client.bounded:
            with suppress(Exception):  # something else is in it, or it is gone
                client.fs.rmdir(client.path)

    def _limit_for(self, size: int) -> float:
        return self._limit + size / _SLOWEST

    def _make_client(self) -> FsspecClient:
        with self._translated("use", self._shown):
            return make_client(self._url)

    @contextmanager
    def _translated(self, verb: str, path: str, limit: float | None = None) -> Iterator[None]:
        try:
            yield
        except BackupError:
            raise
        except Exception as error:  # each client has a family of its own, and some raise what their drivers do
            reason = _reason(error, limit or self._limit)
            raise StoreError(f"can't {verb} {path}: {reason}", path=path, retryable=retryable(error)) from error


def _reason(error: Exception, limit: float) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return f"not done within {limit:.3g} s"
    if isinstance(error, FileNotFoundError):
        return "there is no such file or bucket"
    return reason_of(error)
