"""Who leads: the contract of a coordinator, its implementations, and the table that leads from a URL to one."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Final, cast

from distributed_backup.checks import MAX_PLACE, refuse_address, shown
from distributed_backup.coordination.base import Coordinator
from distributed_backup.errors import ConfigError
from distributed_backup.urls import REDIS_SCHEMES, is_url, scheme_of, without_credentials

# Scheme -> (module of this package, class, forms of its URL). A class is imported when a URL asks for it.
SCHEMES: Final[dict[str, tuple[str, str, tuple[str, ...]]]] = {
    "file": ("file", "FileCoordinator", ("file:", "file:///absolute/path")),
    "memory": ("memory", "MemoryCoordinator", ("memory:",)),
    **{scheme: ("redis", "RedisCoordinator", (f"{scheme}://…",)) for scheme in REDIS_SCHEMES},
}


def coordinator_from_url(url: str, *, backup_dir: str | os.PathLike[str] | None = None) -> Coordinator:
    """Return the coordinator that `url` names.

    Args:
        url: `file:` for a file lock in the backup directory, `file:///path` for one elsewhere. `memory:` for the
            workers that share the returned object. `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or
            `redis+cluster://` for a lease on a server (see `redis_client.address`).
        backup_dir: The backup directory, for `file:`. If it is on a Redis deployment, `file:` means a lease on that
            deployment. Other URLs can hold no lock.

    Raises:
        ConfigError: The scheme or the form is unknown, or `file:` has no backup directory.

    Example:
        >>> coordinator_from_url("redis://:secret@redis:6379/0")
        RedisCoordinator('redis://redis:6379/0')
        >>> coordinator_from_url("file:///tmp/run-42/coordinator").root
        PosixPath('/tmp/run-42/coordinator')
    """
    if len(url) > MAX_PLACE:
        raise ConfigError(f"coordinator has {len(url)} characters, and at most {MAX_PLACE} are read")
    if url == "file:" and backup_dir is not None and is_url(backup_dir):
        url = _beside(str(backup_dir))
    elif backup_dir is not None and not is_url(backup_dir):
        refuse_address(str(backup_dir))
    kind = _class_for(url)
    made = None if kind is None else kind.from_url(url, backup_dir)
    if made is None:
        if not is_url(url):
            refuse_address(url)
        forms = [form for *_, forms in SCHEMES.values() for form in forms]
        raise ConfigError(
            f"coordinator has an unknown form, got {shown(without_credentials(url))}: use one of {', '.join(forms)}"
        )
    return made


def is_server_url(url: str) -> bool:
    """Return whether `url` names a server that coordinates runs.

    Example:
        >>> is_server_url("redis://redis:6379/0"), is_server_url("file:"), is_server_url("/mnt/run-42")
        (True, False, False)
    """
    kind = _class_for(url)
    return kind is not None and kind.is_server and is_url(url)


def _class_for(url: str) -> type[Coordinator] | None:
    scheme = scheme_of(url)
    if scheme not in SCHEMES:
        return None
    module, name, _ = SCHEMES[scheme]
    return cast(type[Coordinator], getattr(import_module(f"{__name__}.{module}"), name))


def _beside(backup_dir: str) -> str:
    """Return the URL of the coordinator for a backup directory that is a URL."""
    if is_server_url(backup_dir):
        return backup_dir
    scheme, _, path = backup_dir.partition("://")
    if scheme.lower() in {"file", "local"}:
        return f"file://{path.rstrip('/')}/coordinator"
    raise ConfigError(
        f"{without_credentials(backup_dir)} can hold no lock, so name a coordinator: redis://… for the workers of many "
        "machines, file:///path for those of one, memory: for a single worker"
    )
