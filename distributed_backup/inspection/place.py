"""Choose the checks for what a user names: a directory, a bucket or a server."""

from __future__ import annotations

from collections.abc import Generator

from distributed_backup.checks import checked_seconds
from distributed_backup.errors import ConfigError
from distributed_backup.inspection.finding import Finding
from distributed_backup.storage import absolute_place, storage_from_url
from distributed_backup.storage.local import LocalStorage
from distributed_backup.urls import is_redis_url, is_url, scheme_of, without_credentials


def findings_about(place: str, *, wait: float | None) -> Generator[Finding]:
    """Yield the findings about a place, each as soon as it is made.

    Args:
        place: A path or a URL, as `storage_from_url` takes it.
        wait: Seconds to wait for another machine that performs the same checks. None to check with this one only.

    Raises:
        ConfigError: The place can't be checked, or the URL is malformed.
        NotMetError: No other machine came.
    """
    if wait is not None:
        checked_seconds("--wait", wait)
    if place == "file:" or scheme_of(place) == "memory":
        raise ConfigError(
            f"{without_credentials(place)} names nothing that can be checked: name the backup directory, a bucket or "
            "the URL of a server"
        )
    if is_redis_url(place):
        if wait is not None:
            raise ConfigError(
                "--wait is for directories and buckets: run the command against the server on each machine"
            )
        from distributed_backup.inspection.server import server_checks

        yield from server_checks(place)
        return
    from distributed_backup.inspection.bucket import bucket_checks
    from distributed_backup.inspection.directory import directory_checks

    place = absolute_place(place)
    storage = storage_from_url(place)
    if isinstance(storage, LocalStorage):
        yield from directory_checks(storage.root, wait=wait)
    else:
        yield from bucket_checks(place, wait=wait)


def is_shared(place: str) -> bool:
    """Return whether two machines may see a place differently: a directory or a bucket.

    Example:
        >>> is_shared("/mnt/shared"), is_shared("redis://redis:6379")
        (True, False)
    """
    return not (is_url(place) and is_redis_url(place))
