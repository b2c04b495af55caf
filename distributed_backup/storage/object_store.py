"""Keep files in an object store, over fsspec. Each write is one PUT, conditional where the store supports it.

    s3://bucket/prefix      distributed-backup[s3]       If-None-Match: *, see `s3fs`
    gs://bucket/prefix      distributed-backup[gcs]      ifGenerationMatch=0, see `gcsfs`
    az://container/prefix   distributed-backup[azure]    If-None-Match: *, see `adlfs`
    memory://name           in this process, for tests
    any other               the client that fsspec has for it

Settings come from the client's environment (`AWS_…`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_…`) or from
fsspec's (`FSSPEC_S3_ENDPOINT_URL`, …). The URL has none. A PUT is atomic, and durable when its reply arrives. A PUT
that timed out may still take effect later, and bring back a file that was removed or replaced in the meantime.

Files can't grow there, so each append is a file of its own, see `parts`. An append that timed out and takes effect
later changes nothing.

Some stores ignore conditions, so that two workers may claim one term there. A warning says so. Clients of file servers
(sftp and others) are as atomic as their rename. They have no conditional writes and no timeouts.
"""

from __future__ import annotations

import logging
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Final, Self, override

from distributed_backup.errors import BackupError, StoreError
from distributed_backup.per_process import PerProcess
from distributed_backup.storage.base import PARTIAL, PROBE, Chunks, Names, Storage
from distributed_backup.storage.fsspec_client import FsspecClient, check_url, make_client
from distributed_backup.storage.fsspec_errors import is_conflict, reason_of, retryable
from distributed_backup.storage.parts import Part, Piece, cut, length_of, part_name, parts_of, pieces_of, whole_names

logger = logging.getLogger(__name__)

# Bytes per second that a transfer must reach. A network within one region is many times as fast.
_SLOWEST: Final = 10e6
# Seconds until the retry of a write that met a concurrent one.
_PAUSE: Final = 0.1
# fsspec's memory client has one state per process, and its conditional write has two steps.
_one_at_a_time: Final = threading.Lock()


class ObjectStorage(Storage):
    """A prefix in a bucket.

    Args:
        url: The URL of the prefix, with its scheme in lower case.
        limit: Seconds that one request may take, with the client's retries. A file of N MB has N / 10 more.

    Raises:
        ConfigError: The URL can't be used, or its client is not installed.

    Example:
        >>> storage = ObjectStorage("memory://doctest", limit=10.0)
        >>> storage.create("a", b"1"), storage.create("a", b"2"), storage.read("a")
        (True, False, b'1')
        >>> storage.remove("a")
    """

    write_interval = 10.0
    append_interval = 1.0
    poll_interval = 1.0

    def __init__(self, url: str, *, limit: float) -> None:
        self._shown = check_url(url)
        self._url = url.rstrip("/")
        self._limit = limit
        self._client = PerProcess(self._make_client)
        # Sizes at the last listing and of later writes. They set the timeouts of downloads.
        self._sizes: dict[str, int] = {}
        # By file: the number of its newest append, and how many bytes it has at least. Its first append looks them up.
        self._newest_appends: dict[str, int] = {}
        self._lengths: dict[str, int] = {}
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
        # Buckets have no directories, and making a bucket is the user's task. File servers need the directory.
        if not client.bounded:
            with self._translated("create", self._shown):
                client.fs.makedirs(client.path, exist_ok=True)

    @override
    def exists(self) -> bool:
        return True

    @override
    def names(self) -> Names:
        with self._translated("list", self._shown):
            return whole_names(self._list())

    def _list(self) -> dict[str, int]:
        """Return the names and sizes of the stored files. `append` looks up the files again that are missing."""
        appended = list(self._lengths)
        found = self._client.get().sizes(self._limit)
        self._sizes = dict(found)
        for name in set(appended).difference(whole_names(found)):
            self._lengths.pop(name, None)
        return found

    @override
    def read(self, name: str) -> bytes:
        client = self._client.get()
        limit = self._limit_for(self._sizes.get(name, 0))
        with self._translated("read", self.path_of(name), limit):
            try:
                raw: bytes = client.fs.cat_file(f"{client.path}/{name}", **client.within(limit))
            except FileNotFoundError:
                raw = self._read_pieces(name, 0, sys.maxsize)
        return raw

    @override
    def read_from(self, name: str, offset: int, limit: int) -> bytes:
        with self._translated("read", self.path_of(name)):
            return self._read_pieces(name, offset, limit)

    def _read_pieces(self, name: str, offset: int, limit: int) -> bytes:
        if (pieces := self._pieces(name)) is None:
            raise FileNotFoundError(self.path_of(name))
        client = self._client.get()
        pieces = cut(pieces, offset, offset + limit)
        ranges = [(f"{client.path}/{piece.stored}", piece.start, piece.end) for piece in pieces]
        return client.read_ranges(ranges, self._limit_for(length_of(pieces))) if ranges else b""

    def _pieces(self, name: str) -> list[Piece] | None:
        """List the files, and return the pieces of one. None if it is missing."""
        sizes = self._list()
        if name in sizes:
            return [Piece(name, 0, sizes[name])]
        return pieces_of(parts_of(name, sizes))

    @override
    def size(self, name: str) -> int | None:
        client = self._client.get()
        with self._translated("read", self.path_of(name)):
            try:
                return int(client.fs.info(f"{client.path}/{name}", **client.within(self._limit))["size"])
            except FileNotFoundError:
                pieces = self._pieces(name)
                return None if pieces is None else length_of(pieces)

    @override
    def written_at(self, name: str) -> float | None:
        client = self._client.get()
        stamp = None
        with self._translated("read", self.path_of(name)), suppress(NotImplementedError, KeyError):
            stamp = client.fs.modified(f"{client.path}/{name}")
        return stamp.replace(tzinfo=stamp.tzinfo or UTC).timestamp() if isinstance(stamp, datetime) else None

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
        """Test once whether the store enforces conditions. Many S3-compatible stores ignore them."""
        if self._conditional is not None:
            return
        probe = f"{PROBE}{secrets.token_hex(8)}"
        with suppress(Exception):  # still unknown, and the write that follows reports the error
            try:
                # Even the first may be refused: the client repeats a request whose reply was lost.
                for _ in range(2):
                    self._write(probe, b"", new=True)
                self._conditional = False
            except FileExistsError:
                self._conditional = True
            except TimeoutError:
                # Removing the probe would take as long. If it arrived, it is removed with the run.
                return
        with suppress(StoreError):
            self.remove(probe)
        if self._conditional is False:
            logger.warning(
                "%s ignores conditional writes, so two workers that start together may make two run ids, and a "
                "coordinator that loses its data may grant a term twice: set run_id",
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
        """Write in one request. Repeat it within the timeout while it meets a concurrent one."""
        end = time.monotonic() + self._limit_for(len(data))
        while True:
            try:
                return client.write(path, data, new=new, limit=end - time.monotonic())
            except Exception as error:
                if not is_conflict(error) or time.monotonic() + _PAUSE >= end:
                    raise
            threading.Event().wait(_PAUSE)

    def _write_aside(self, client: FsspecClient, path: str, data: bytes, *, new: bool) -> None:
        """Write aside and rename: clients of file servers write in place, and a connection may break half-way."""
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
    def append(self, name: str, data: bytes, *, at: int) -> None:
        """Write as the contract says, in one PUT. The first append to a file lists the files before.

        If another process removes the file, an append fails after the next listing of this storage. Until then,
        appended bytes are lost.
        """
        path = self.path_of(name)
        with self._translated("append to", path, self._limit_for(len(data))):
            length = self._lengths.get(name)
            if length is None:
                length = self._look_up(name)
            if at and length is None:
                raise FileNotFoundError(path)
            if length is not None and length < at:
                raise OSError(f"it has {length} bytes, and {at} were written before")
            number = self._newest_appends[name] = self._newest_appends[name] + 1
            # If this attempt fails, it may still take effect and cut the file here.
            self._lengths[name] = at
            self._write(part_name(name, number, at), data, new=False)
            self._lengths[name] = at + len(data)

    def _look_up(self, name: str) -> int | None:
        """List the files, and return the length of an appended file. None if it is missing."""
        sizes = self._list()
        if name in sizes:
            raise FileExistsError("the file was written as a whole")
        parts = parts_of(name, sizes)
        # An attempt of this process that has not arrived yet has a higher number than those listed.
        self._newest_appends[name] = max([self._newest_appends.get(name, 0), *(part.number for part in parts)])
        pieces = pieces_of(parts)
        return None if pieces is None else length_of(pieces)

    @override
    def remove(self, name: str) -> None:
        client = self._client.get()
        parts: list[Part] = []
        with self._translated("remove", self.path_of(name)), suppress(FileNotFoundError):
            # A file that was listed needs no listing. Most have no parts.
            sizes = dict(self._sizes)
            parts = parts_of(name, sizes if name in sizes else self._list())
            # Without its first bytes, no part of a file counts. So a reader sees no earlier state of the file.
            for stored in (name, *(part.stored for part in parts if part.at == 0)):
                with suppress(FileNotFoundError):
                    client.fs.rm_file(f"{client.path}/{stored}", **client.within(self._limit))
            client.remove_all([f"{client.path}/{part.stored}" for part in parts if part.at > 0], self._limit)
        for stored in (name, *(part.stored for part in parts)):
            self._sizes.pop(stored, None)
        self._lengths.pop(name, None)

    @override
    def remove_if_empty(self) -> None:
        client = self._client.get()
        if not client.bounded:
            with suppress(Exception):  # it has other files, or is missing
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
        except Exception as error:  # each client has its own classes, and some raise those of drivers
            reason = _reason(error, limit or self._limit)
            raise StoreError(f"can't {verb} {path}: {reason}", path=path, retryable=retryable(error)) from error


def _reason(error: Exception, limit: float) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return f"not done within {limit:.3g} s"
    if isinstance(error, FileNotFoundError):
        return "there is no such file or bucket"
    return reason_of(error)
