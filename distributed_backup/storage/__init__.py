"""Where the files of a run are: the contract, its implementations, and the table that leads from a URL to one."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Final, cast

from distributed_backup.checks import MAX_PLACE, checked_path, checked_seconds, refuse_address, shown
from distributed_backup.errors import ConfigError
from distributed_backup.storage.base import Storage
from distributed_backup.storage.local import LocalStorage
from distributed_backup.urls import REDIS_SCHEMES, is_url, scheme_of

# Scheme -> (module of this package, class). A class is imported when a URL asks for it.
SCHEMES: Final[dict[str, tuple[str, str]]] = {
    "file": ("local", "LocalStorage"),
    "local": ("local", "LocalStorage"),
    **dict.fromkeys(REDIS_SCHEMES, ("redis", "RedisStorage")),
}
_ALL_OTHERS: Final = ("object_store", "ObjectStorage")
_LIMIT: Final = 30.0


def storage_from_url(place: str | os.PathLike[str], *, run_id: str | None = None, limit: float = _LIMIT) -> Storage:
    """Return the storage that `place` names.

    Args:
        place: The path of a directory (`~` is the home directory) or its `file:///path`. `s3://bucket/prefix`, `gs://bucket/prefix`,
            `az://container/prefix`, `memory://name` or any other URL that fsspec knows (see `object_store`). The URL
            of a Redis deployment (see `storage.redis`), which needs a run id.
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
    limit = checked_seconds("limit", limit)
    place = absolute_place(place)
    if not is_url(place):
        return LocalStorage(place)
    scheme = scheme_of(place)
    module, name = SCHEMES.get(scheme, _ALL_OTHERS)
    kind = cast(type[Storage], getattr(import_module(f"{__name__}.{module}"), name))
    return kind.from_url(scheme + place[len(scheme) :], run_id=run_id, limit=limit)


def absolute_place(place: str | os.PathLike[str]) -> str:
    """Return the text of `place`: a URL as it is, a path made absolute with `checked_path`.

    Raises:
        ConfigError: It is neither, or a URL that `Path` has changed.

    Example:
        >>> absolute_place("s3://bucket/run-42"), absolute_place("/mnt/shared/run-42")
        ('s3://bucket/run-42', '/mnt/shared/run-42')
    """
    if not isinstance(place, str | os.PathLike) or not isinstance(os.fspath(place), str):
        raise ConfigError(f"the backup directory must be a path or a URL, got {shown(place)}")
    if len(str(place)) > MAX_PLACE:
        raise ConfigError(f"the backup directory has {len(str(place))} characters, and at most {MAX_PLACE} are read")
    if is_url(place):
        return str(place)
    refuse_address(str(place))
    return str(checked_path("the backup directory", place))
