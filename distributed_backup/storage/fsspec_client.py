"""Make the fsspec client for a URL, and hide where clients differ.

They differ in how they list an empty prefix, how they bound a call, and which threads they keep at the end of the
process. `fsspec_errors` hides how their errors differ. A client belongs to the process that made it.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, override
from urllib.parse import unquote

from distributed_backup.errors import ConfigError
from distributed_backup.randomness import isolate_rng
from distributed_backup.storage.fsspec_errors import status_of

# Scheme -> (the module that fsspec imports for it, our extra that installs the module).
_CLIENTS: Final = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "az": ("adlfs", "azure"),
    "abfs": ("adlfs", "azure"),
    "abfss": ("adlfs", "azure"),
}
# Protocol -> (packages, their modules that draw random numbers).
_DRAWING: Final = {
    "s3": (
        ("botocore", "aiobotocore", "aiohttp"),
        ("botocore.retryhandler", "botocore.retries.standard", "botocore.utils", "aiohttp.connector"),
    ),
    "gs": (
        ("gcsfs", "google", "aiohttp"),
        ("gcsfs.retry", "google.auth._exponential_backoff", "google.api_core.retry.retry_base", "aiohttp.connector"),
    ),
    "abfs": (
        ("azure", "aiohttp"),
        (
            "azure.core.pipeline.policies._authentication",
            "azure.core.pipeline.policies._authentication_async",
            "azure.storage.blob._shared.policies",
            "azure.storage.blob._shared.policies_async",
            "aiohttp.connector",
        ),
    ),
}
_READ_ONLY: Final = ("http", "https", "data", "github", "zip", "tar")
# Largest bodies of one request, in bytes: S3, then Azure.
_LARGEST_PUT: Final = 5 * 2**30
_LARGEST_BLOB: Final = 5000 * 2**20
# Files that one call removes at the same time.
_AT_A_TIME: Final = 64
# A listing must come from the store. fsspec would cache it, and share clients between users.
_FRESH: Final = {"use_listings_cache": False, "skip_instance_cache": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class FsspecClient:
    """An `fsspec.AbstractFileSystem`, and the path of the prefix in it."""

    fs: Any
    path: str

    @property
    def bounded(self) -> bool:
        """Return whether calls take a timeout. Clients of object stores do, those of file servers do not."""
        return bool(self.fs.async_impl)

    def sizes(self, limit: float) -> dict[str, int]:
        """Return the names and sizes of the files in the prefix.

        Raises:
            FileNotFoundError: The bucket is missing, and the client can tell.
        """
        return {
            name: int(entry.get("size") or 0)
            for entry in self._entries(limit)
            if entry["type"] == "file" and (name := entry["name"].rpartition("/")[2])
        }

    def _entries(self, limit: float) -> list[dict[str, Any]]:
        if "s3" in self.fs.protocol:
            from fsspec.asyn import sync

            # `ls` of an empty prefix would list its neighbours.
            found: list[dict[str, Any]] = sync(self.fs.loop, self.fs._lsdir, self.path, refresh=True, timeout=limit)  # noqa: SLF001
            return found
        try:
            return list(self.fs.ls(self.path, detail=True, **self.within(limit)))
        except FileNotFoundError as error:
            # Google's error quotes the missing part as in a URL: the prefix, or the bucket alone.
            if "gs" in self.fs.protocol and self.path.partition("/")[2] not in unquote(str(error)):
                raise
            return []

    def write(self, path: str, data: bytes, *, new: bool, limit: float) -> None:
        """Create or replace a file in one request. For bounded clients.

        Raises:
            FileExistsError: The file exists, and `new` is set.
        """
        # Above some size, these clients would send several requests. A cancelled upload leaves parts, which are billed.
        whole = {"chunksize": _LARGEST_PUT} if {"s3", "gs"} & set(self.fs.protocol) else {}
        try:
            self.fs.pipe_file(path, data, mode="create" if new else "overwrite", timeout=limit, **whole)
        except Exception as error:
            # S3-compatible stores do not name the condition that failed, and s3fs then raises an unrelated error.
            if new and status_of(error) == 412:
                raise FileExistsError(path) from error
            raise

    def read_ranges(self, ranges: list[tuple[str, int, int]], limit: float) -> bytes:
        """Return the bytes of ranges of files, joined: path, first byte, end. Bounded clients read many at a time.

        Raises:
            FileNotFoundError: A file is missing.
            OSError: A file is shorter than its range.
        """
        paths, starts, ends = ([each[at] for each in ranges] for at in range(3))
        found: list[bytes] = self.fs.cat_ranges(paths, starts, ends, on_error="raise", **self.within(limit))
        for data, (path, start, end) in zip(found, ranges, strict=True):
            if len(data) != end - start:
                raise OSError(f"{path.rpartition('/')[2]} changed during the read")
        return b"".join(found)

    def remove_all(self, paths: list[str], limit: float) -> None:
        """Remove files. Missing ones are no error. `limit` is the timeout of `_AT_A_TIME` files, where there is one."""
        if not self.bounded:
            for path in paths:
                with suppress(FileNotFoundError):
                    self.fs.rm_file(path)
            return
        from fsspec.asyn import sync

        async def remove(some: list[str]) -> None:
            # `rm` takes patterns for paths, and the one of s3fs ignores refusals.
            results = await asyncio.gather(*(self.fs._rm_file(path) for path in some), return_exceptions=True)  # noqa: SLF001
            for result in results:
                if isinstance(result, BaseException) and not isinstance(result, FileNotFoundError):
                    raise result

        for first in range(0, len(paths), _AT_A_TIME):
            sync(self.fs.loop, remove, paths[first : first + _AT_A_TIME], timeout=limit)

    def within(self, limit: float) -> dict[str, float]:
        """Return the argument that bounds a call. Empty if calls take no timeout."""
        return {"timeout": limit} if self.bounded else {}


def make_client(url: str) -> FsspecClient:
    """Return a new client for a URL."""
    if url.startswith(("gs://", "gcs://")):
        # gcsfs's default class first requests the bucket's type, which needs other rights. In a zonal bucket, it
        # ignores conditions.
        from gcsfs.core import GCSFileSystem

        fs = GCSFileSystem(**_FRESH)
        path = fs._strip_protocol(url)  # noqa: SLF001 - what url_to_fs does
    else:
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(url, **_FRESH)
    _isolate_rng(fs)
    if "abfs" in fs.protocol:
        # One request per write, as in `FsspecClient.write`. adlfs has no argument for that.
        fs.service_client._config.max_single_put_size = _LARGEST_BLOB  # noqa: SLF001
    if fs.async_impl:
        fs.loop.call_soon_threadsafe(fs.loop.set_default_executor, DaemonThreadExecutor())
    return FsspecClient(fs=fs, path=path)


def _isolate_rng(fs: Any) -> None:
    """Give a client's retries a random generator of their own. See `randomness`."""
    for protocol, (packages, modules) in _DRAWING.items():
        if protocol in fs.protocol:
            for name in modules:  # some would otherwise be loaded at the first failure
                with suppress(ImportError):
                    importlib.import_module(name)
            isolate_rng(*packages)


class DaemonThreadExecutor(ThreadPoolExecutor):
    """Runs each DNS look-up in a daemon thread of its own.

    At exit, the interpreter joins the threads of a usual executor and closes it to new work. A look-up that hangs would
    then keep a preempted process from exiting in time. And the last save may still need a connection.

    fsspec has one event loop for all clients of a process, so look-ups of other clients run here, too. The number of
    threads has no limit, so that look-ups that hang do not delay the others.
    """

    @override
    def submit[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - `future.result()` raises it
                future.set_exception(error)

        threading.Thread(target=run, name="distributed-backup-look-up", daemon=True).start()
        return future


def check_url(url: str) -> str:
    """Check a URL, and return it without credentials.

    Raises:
        ConfigError: The URL can't be used, or its client is not installed.
    """
    scheme, _, path = url.partition("://")
    shown = f"{scheme}://{_without_password(path).rstrip('/')}"
    if not path.strip("/"):
        raise ConfigError(f"{shown} names no place: give a bucket and a prefix, as in {scheme}://bucket/run-42")
    if "?" in path or "#" in path:
        raise ConfigError(f"{shown} goes on with a '?' or '#': settings come from the client's environment")
    if "@" in path and scheme.lower() in {"s3", "s3a", "gs", "gcs"}:
        raise ConfigError(f"{scheme}://…@… has an '@': credentials come from the client's environment")
    _check_client(scheme.lower(), shown)
    return shown


def _check_client(scheme: str, shown: str) -> None:
    if scheme in _READ_ONLY:
        raise ConfigError(f"{shown} can't be used as a backup directory: nothing can be written over {scheme}")
    if scheme in _CLIENTS:
        module, extra = _CLIENTS[scheme]
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{shown} needs {module}: pip install 'distributed-backup[{extra}]'")
        return
    try:
        from fsspec import get_filesystem_class

        get_filesystem_class(scheme)
    except ValueError:
        raise ConfigError(
            f"{shown} can't be used as a backup directory: the scheme is unknown; want a path, s3://, gs://, az://, "
            "file://, memory://, redis:// or what fsspec knows"
        ) from None
    except ImportError as error:
        raise ConfigError(f"{shown} needs a client that is not installed: {error}") from None


def _without_password(path: str) -> str:
    login, at, place = path.rpartition("@")
    # `container@account` of Azure is public. `user:password@host` of a file server is secret, and so are options.
    return re.split(r"[?#]", place if at and ":" in login else path, maxsplit=1)[0]
