"""fsspec's clients: which of them a URL needs, how it is made, and where they differ.

A client belongs to the process that made it. What each says of a prefix where nothing is, of time, of threads at the
end of the process, and of what has failed is not the same for all; here it is made so.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, override
from urllib.parse import unquote

from distributed_backup.errors import ConfigError
from distributed_backup.randomness import isolate_rng

# Scheme to the module that fsspec needs for it, and to our extra that brings it.
_CLIENTS: Final = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "az": ("adlfs", "azure"),
    "abfs": ("adlfs", "azure"),
    "abfss": ("adlfs", "azure"),
}
# Of these packages, the modules that draw random numbers.
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
# What S3 takes in one request, and what Azure does.
_LARGEST_PUT: Final = 5 * 2**30
_LARGEST_BLOB: Final = 5000 * 2**20
# What S3 says to one of two that write the same at once.
_CONFLICTS: Final = frozenset({"ConditionalRequestConflict", "OperationAborted"})
# Answers of a server that is asked too often, or by two at once; those from 500 on are its own failures, but for 501.
_PASSING_STATUS: Final = frozenset({408, 409, 425, 429})
# Answers that are final whatever the words: others in words that s3fs does not know may be those of a busy store.
_REFUSING_STATUS: Final = frozenset({400, 401, 403, 501})
# Errors of drivers that can't reach a server, by name as none is imported here; those that are an OSError need none.
_PASSING_NAMES: Final = frozenset(
    {
        "ChecksumError",
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionError",
        "HTTPClientError",
        "IncompleteReadError",
        "ResponseParserError",
        "ServiceRequestError",
        "ServiceResponseError",
        "TransportError",
        "error_temp",
    }
)
# What the system refuses whenever it is asked.
_FINAL_ERRNO: Final = frozenset(
    {
        errno.EINVAL,
        errno.EISDIR,
        errno.EMSGSIZE,
        errno.ENAMETOOLONG,
        errno.ENOSYS,
        errno.ENOTDIR,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EROFS,
    }
)
_GOOGLE_REFUSALS: Final = ("Forbidden", "Bad Request")
# fsspec's answers about what is there must be the store's, not those of an hour ago.
_FRESH: Final = {"use_listings_cache": False, "skip_instance_cache": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class FsspecClient:
    """A client, and the path that a URL means to it.

    Args:
        fs: The `fsspec.AbstractFileSystem`.
        path: Of the prefix.
    """

    fs: Any
    path: str

    @property
    def bounded(self) -> bool:
        """Whether calls can be given a time limit: those of object stores, not those of file servers."""
        return bool(self.fs.async_impl)

    def sizes(self, limit: float) -> dict[str, int]:
        """Names and sizes of the files in the prefix; none if there is nothing.

        Raises:
            FileNotFoundError: The bucket is not there, where the client can tell.
        """
        return {
            name: int(entry.get("size") or 0)
            for entry in self._entries(limit)
            if entry["type"] == "file" and (name := entry["name"].rpartition("/")[2])
        }

    def _entries(self, limit: float) -> list[dict[str, Any]]:
        if "s3" in self.fs.protocol:
            from fsspec.asyn import sync

            # `ls` would list all that is beside a prefix where nothing is.
            found: list[dict[str, Any]] = sync(self.fs.loop, self.fs._lsdir, self.path, refresh=True, timeout=limit)  # noqa: SLF001
            return found
        try:
            return list(self.fs.ls(self.path, detail=True, **self.within(limit)))
        except FileNotFoundError as error:
            # Google's names what is missing, as in a URL: the prefix, or only the bucket.
            if "gs" in self.fs.protocol and self.path.partition("/")[2] not in unquote(str(error)):
                raise
            return []

    def write(self, path: str, data: bytes, *, new: bool, limit: float) -> None:
        """Make or replace a file in one request, where calls are bounded.

        Raises:
            FileExistsError: It must be new and is there.
        """
        # From some size on, these would make many requests, and what is given up leaves parts behind, which are billed.
        whole = {"chunksize": _LARGEST_PUT} if {"s3", "gs"} & set(self.fs.protocol) else {}
        try:
            self.fs.pipe_file(path, data, mode="create" if new else "overwrite", timeout=limit, **whole)
        except Exception as error:
            # What only speaks like S3 does not say which condition, and s3fs makes a bad argument of that.
            if new and _status_of(error) == 412:
                raise FileExistsError(path) from error
            raise

    def within(self, limit: float) -> dict[str, float]:
        """The argument that bounds a call, where calls can be bounded."""
        return {"timeout": limit} if self.bounded else {}


def make_client(url: str) -> FsspecClient:
    """The client for a URL."""
    if url.startswith(("gs://", "gcs://")):
        # Not what gcsfs takes by default: that asks for the kind of the bucket first, in another way and with other
        # rights, and in a bucket of one zone ignores conditions.
        from gcsfs.core import GCSFileSystem

        fs = GCSFileSystem(**_FRESH)
        path = fs._strip_protocol(url)  # noqa: SLF001 - what url_to_fs does
    else:
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(url, **_FRESH)
    _isolate_rng(fs)
    if "abfs" in fs.protocol:
        # As in `Client.write`; adlfs has no argument for it.
        fs.service_client._config.max_single_put_size = _LARGEST_BLOB  # noqa: SLF001
    if fs.async_impl:
        fs.loop.call_soon_threadsafe(fs.loop.set_default_executor, DaemonThreadExecutor())
    return FsspecClient(fs=fs, path=path)


def _isolate_rng(fs: Any) -> None:
    """Have a client draw the pauses between its tries apart: it would change what the training draws."""
    for protocol, (packages, modules) in _DRAWING.items():
        if protocol in fs.protocol:
            for name in modules:  # some of them would be loaded at the first failure only
                with suppress(ImportError):
                    importlib.import_module(name)
            isolate_rng(*packages)


class DaemonThreadExecutor(ThreadPoolExecutor):
    """Looks up names in threads that nobody waits for.

    The interpreter joins the threads of an executor when it ends: a look-up that hangs would keep a process that was
    preempted from leaving in time; and it takes no more work by then, though the last save may need a connection.

    fsspec has one loop for all clients of a process: what others look up over it is done here, too. Each has a thread
    of its own, as many as there are at once: were there few, those that hang would hold up the rest.
    """

    @override
    def submit[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - who waits for it raises it
                future.set_exception(error)

        threading.Thread(target=run, name="distributed-backup-look-up", daemon=True).start()
        return future


def check_url(url: str) -> str:
    """Refuse a URL that can't be used.

    Returns:
        The URL as it may be shown.

    Raises:
        ConfigError: It can't be used, or its client is not installed.
    """
    scheme, _, path = url.partition("://")
    shown = f"{scheme}://{_without_password(path).rstrip('/')}"
    if not path.strip("/"):
        raise ConfigError(f"{shown} names no place: a bucket, and a prefix for the run")
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
    # `container@account` of Azure is no secret; `user:password@host` of a file server is, and so are options.
    return re.split(r"[?#]", place if at and ":" in login else path, maxsplit=1)[0]


def _google_refusal(said: str) -> str | None:
    return next((refusal for refusal in _GOOGLE_REFUSALS if said.startswith(f"{refusal}: http")), None)


def _status_of(error: Exception) -> int | None:
    """The HTTP status of the answer that an error is about: each family of clients has it elsewhere."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        told = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        for status in (told, *(getattr(cause, name, None) for name in ("status_code", "status", "code"))):
            if isinstance(status, int | str) and re.fullmatch(r"[1-5]\d\d", str(status)):
                return int(status)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
