"""Keep files in a directory of this machine, or of a shared file system.

Bytes are written aside, fsynced and renamed, and the directory is fsynced. An append to an existing file is written in
place and fsynced. Each system call of a commit or an append is one method, so that tests can crash in between. A disk
that ignores fsync can lose durable files. On a shared file system, link(2), O_EXCL and rename(2) must be atomic across
its machines.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, override
from urllib.parse import unquote, urlsplit

from distributed_backup.atomic import follow, make_directories, temporary
from distributed_backup.checks import checked_path
from distributed_backup.errors import ConfigError, StoreError
from distributed_backup.regular_file import opened, read_file
from distributed_backup.storage.base import PARTIAL, Chunks, Names, Storage
from distributed_backup.urls import without_credentials


class LocalStorage(Storage):
    """A directory.

    Args:
        root: The directory. `prepare` makes it, with its parents.

    Raises:
        ConfigError: `root` is empty, has a null byte, or names an unknown home directory.

    Example:
        >>> import tempfile
        >>> storage = LocalStorage(tempfile.mkdtemp())
        >>> storage.put("a", [b"1", b"2"])
        >>> storage.names(), storage.read("a"), storage.create("a")
        (['a'], b'12', False)
    """

    write_interval = 0.2
    poll_interval = 0.01
    # The disk reports that the bytes are lost.
    permanent_errnos = frozenset({errno.EIO})

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = checked_path("the backup directory", root)

    @classmethod
    @override
    def from_url(cls, url: str, *, run_id: str | None, limit: float) -> Self:
        try:
            parts = urlsplit(url)
        except ValueError:  # a bracket without its pair
            parts = urlsplit("")
        path = unquote(parts.path)
        if parts.netloc or parts.query or parts.fragment or not path.startswith("/"):
            shown = without_credentials(url)
            raise ConfigError(f"a directory is named by its absolute path, got {shown!r}: use file:///path")
        return cls(Path(path))

    @property
    @override
    def location(self) -> str:
        return str(self._root)

    @property
    def root(self) -> Path:
        """The directory."""
        return self._root

    @override
    def prepare(self) -> None:
        with self._translated("create", self._root):
            for path in make_directories(self._root):
                self._sync_parent(path)

    @override
    def exists(self) -> bool:
        return os.path.isdir(self._root)  # noqa: PTH112 - Path.is_dir raises where access is denied

    @override
    def names(self) -> Names:
        return [name for name, is_file in self._entries() if is_file]

    @override
    def irregular(self) -> Names:
        return [name for name, is_file in self._entries() if not is_file]

    def _entries(self) -> list[tuple[str, bool]]:
        with self._translated("list", self._root):
            try:
                with os.scandir(self._root) as entries:
                    return [(entry.name, _is_file_or_was(entry)) for entry in entries]
            except FileNotFoundError:
                return []

    @override
    def read(self, name: str) -> bytes:
        path = self._root / name
        with self._translated("read", path):
            return read_file(path)

    @override
    def size(self, name: str) -> int | None:
        path = self._root / name
        with self._translated("read", path):
            try:
                return path.lstat().st_size
            except FileNotFoundError:
                return None

    @override
    def written_at(self, name: str) -> float | None:
        path = self._root / name
        with self._translated("read", path):
            return path.lstat().st_mtime

    @override
    def create(self, name: str, data: bytes = b"") -> bool:
        path = self._root / name
        with self._translated("write", path):
            try:
                if data:
                    self._link(path, data)
                else:
                    os.close(self._make(path))
            except FileExistsError:
                return False
        return True

    def _link(self, path: Path, data: bytes) -> None:
        """Write the bytes aside and link them into place: readers see all bytes. link(2) fails if `path` exists."""
        partial = self._root / f"{PARTIAL}{path.name}-{secrets.token_hex(8)}"
        try:
            self._stage(partial, [data], durable=True)
            os.link(partial, path)
            self._sync_directory()
        finally:
            partial.unlink(missing_ok=True)

    @override
    def put(self, name: str, chunks: Chunks, *, new: bool = False, durable: bool = True) -> None:
        path = self._root / name
        partial = self._root / f"{PARTIAL}{name}-{secrets.token_hex(4)}"
        with self._translated("write", path), temporary(partial):
            self._stage(partial, chunks, durable=durable)
            self._publish(partial, path)
            if durable:
                self._sync_directory()

    @override
    def append(self, name: str, data: bytes, *, at: int) -> None:
        if at == 0:
            self.put(name, [data])
            return
        path = self._root / name
        # Like a rename, writing must not follow a link that another user has planted.
        with self._translated("append to", path), opened(path, os.O_WRONLY | os.O_NOFOLLOW) as descriptor:
            size = os.fstat(descriptor).st_size
            if size < at:
                raise OSError(f"it has {size} bytes, and {at} were written before")
            # A failed attempt may be longer than this one, so its bytes go first.
            if size > at:
                self._cut(descriptor, at)
            os.lseek(descriptor, at, os.SEEK_SET)
            self._write(descriptor, data)
            self._sync(descriptor)

    @override
    def read_from(self, name: str, offset: int, limit: int) -> bytes:
        path = self._root / name
        with self._translated("read", path), opened(path) as descriptor:
            # A read allocates all that it is asked for.
            rest = max(0, os.fstat(descriptor).st_size - offset)
            with open(descriptor, "rb", closefd=False) as file:
                file.seek(offset)
                return file.read(min(limit, rest))

    @override
    def remove(self, name: str) -> None:
        path = self._root / name
        with self._translated("remove", path):
            self._unlink(path)

    @override
    def sync(self) -> None:
        with self._translated("sync", self._root):
            self._sync_directory()

    @override
    def remove_if_empty(self) -> None:
        with suppress(OSError):
            self._root.rmdir()

    # ------------------------------------------------- one system call each, for tests that crash in between

    def _stage(self, partial: Path, chunks: Chunks, *, durable: bool) -> None:
        with open(self._make(partial), "wb", buffering=0) as file:
            for chunk in chunks:
                self._write(file.fileno(), chunk)
            if durable:
                self._sync(file.fileno())

    def _make(self, path: Path) -> int:
        directory = self._root.stat()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        follow(descriptor, directory)
        return descriptor

    def _write(self, descriptor: int, chunk: bytes | memoryview) -> None:
        view = memoryview(chunk)
        while view:
            view = view[os.write(descriptor, view) :]

    def _sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def _cut(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def _publish(self, partial: Path, path: Path) -> None:
        partial.rename(path)

    def _sync_directory(self) -> None:
        _sync_names(self._root)

    def _sync_parent(self, made: Path) -> None:
        with suppress(PermissionError):  # the parent may be writable and not readable
            _sync_names(made.parent)

    def _unlink(self, path: Path) -> None:
        with suppress(IsADirectoryError):  # no writer of ours has made it
            path.unlink(missing_ok=True)

    @contextmanager
    def _translated(self, verb: str, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"can't {verb} {path}: {error.strerror or error}", path=str(path)) from error


def _is_file_or_was(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry counts as a file: a regular file, or a broken link, whose target may be away."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110 - a DirEntry
    except OSError:
        return entry.is_symlink()


def _sync_names(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
