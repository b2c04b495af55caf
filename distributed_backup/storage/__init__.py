"""One family: a contract, its implementations, and the way from a path or URL to one of them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from distributed_backup.checks import checked_seconds
from distributed_backup.errors import ConfigError
from distributed_backup.storage.base import Storage
from distributed_backup.storage.local import LocalStorage
from distributed_backup.urls import is_redis_url, is_url, without_credentials

_LIMIT = 30.0
# A URL that became a path; a directory of such a name would have to be called "./s3:".
_ONE_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")


def storage_from_url(place: str | os.PathLike[str], *, run_id: str | None = None, limit: float = _LIMIT) -> Storage:
    """The storage that `place` names.

    Args:
        place: The path of a directory or its `file:///path`; `s3://bucket/prefix`, `gs://bucket/prefix`,
            `az://container/prefix`, `memory://name` or any other URL that fsspec knows (see `objects`); or the URL of a
            Redis deployment (see `redis`), which needs a run id.
        run_id: Id of the run.
        limit: Seconds that one request to a server may take.

    Raises:
        ConfigError: It is none of these, or the client for it is not installed.

    Example:
        >>> storage_from_url("/mnt/shared/run-42").location
        '/mnt/shared/run-42'
        >>> storage_from_url("redis://:secret@redis:6379/0", run_id="run-42").location
        'redis://redis:6379/0/run-42'
    """
    if not isinstance(place, str | os.PathLike):
        raise ConfigError(f"the backup directory must be a path or a URL, got {place!r}")
    limit = checked_seconds("limit", limit)
    if not is_url(place):
        if _ONE_SLASH.match(str(place)):
            shown = without_credentials(str(place).replace(":/", "://", 1))
            raise ConfigError(f"{shown} has lost a slash, as a URL does that is made a path: give it as text")
        return LocalStorage(place)
    scheme, separator, rest = str(place).partition("://")
    url = scheme.lower() + separator + rest
    if is_redis_url(url):
        from distributed_backup.storage.redis import RedisStorage

        return RedisStorage(url, run_id=run_id, limit=limit)
    if url.startswith(("file://", "local://")):
        return LocalStorage(_path_of(url))
    from distributed_backup.storage.object_store import ObjectStorage

    return ObjectStorage(url, limit=limit)


def _path_of(url: str) -> Path:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc or parts.query or parts.fragment or not path.startswith("/"):
        raise ConfigError(f"a directory is named by its absolute path, file:///path; got {without_credentials(url)!r}")
    return Path(path)
