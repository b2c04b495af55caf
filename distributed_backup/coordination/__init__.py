"""One family: a contract, its implementations, and the way from a URL to one of them."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from distributed_backup.coordination.base import Coordinator
from distributed_backup.errors import ConfigError
from distributed_backup.urls import REDIS_SCHEMES, is_redis_url, is_url, without_credentials


def coordinator_from_url(url: str, *, backup_dir: str | os.PathLike[str] | None = None) -> Coordinator:
    """The coordinator that `url` names.

    Args:
        url: `file:` for a file lock in the backup directory, `file:///path` for one elsewhere, `memory:` for
            one in this object alone; `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://` for
            a lease on a server (see `redis_url`).
        backup_dir: The backup directory, for `file:`; one that is a URL can hold no lock, but one on a Redis deployment
            is led over the same.

    Raises:
        ConfigError: An unknown scheme, or `file:` without a backup directory.

    Example:
        >>> coordinator_from_url("redis://:secret@redis:6379/0")
        RedisCoordinator('redis://redis:6379/0')
        >>> coordinator_from_url("file:///tmp/run-42/coordinator").root
        PosixPath('/tmp/run-42/coordinator')
    """
    if url == "file:" and backup_dir is not None and is_url(backup_dir):
        url = _beside(str(backup_dir))
    if is_redis_url(url):
        from distributed_backup.coordination.redis import RedisCoordinator

        return RedisCoordinator(url)
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme == "memory" and url in {"memory:", "memory://"}:
        from distributed_backup.coordination.memory import MemoryCoordinator

        return MemoryCoordinator()
    if parts.scheme == "file" and not parts.netloc and not parts.query and not parts.fragment:
        from distributed_backup.coordination.file import FileCoordinator

        path = unquote(parts.path)
        if path.startswith("/"):
            return FileCoordinator(Path(path))
        if not path and backup_dir is not None:
            return FileCoordinator(Path(backup_dir) / "coordinator")
    raise ConfigError(
        "coordinator must be 'file:', 'file:///absolute/path', 'memory:' or a URL that begins with one of "
        f"{', '.join(f'{scheme}://' for scheme in REDIS_SCHEMES)}; got {without_credentials(url)!r}"
    )


def _beside(place: str) -> str:
    """The coordinator of a run whose backup directory is a URL and whose coordinator nobody named."""
    if is_redis_url(place):
        return place
    scheme, _, path = place.partition("://")
    if scheme.lower() in {"file", "local"}:
        return f"file://{path.rstrip('/')}/coordinator"
    raise ConfigError(
        f"{without_credentials(place)} can hold no lock, so name a coordinator: redis://… for the workers of many "
        "machines, file:///path for those of one, memory: for a single worker"
    )
