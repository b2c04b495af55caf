"""Check a bucket, or another place that fsspec reaches: its files, and what two processes see of each other there.

All files are below a prefix of the test alone, and are removed at the end.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from distributed_backup.errors import BackupError
from distributed_backup.inspection.directory import MEETING
from distributed_backup.inspection.files import file_checks, shows_no_use
from distributed_backup.inspection.finding import NOT_MADE, Finding
from distributed_backup.inspection.pairs import checks_with_machine, checks_with_process
from distributed_backup.storage import storage_from_url
from distributed_backup.storage.base import PROBE, Storage

# Bytes of the file that shows how fast a large state is saved.
_LARGE: Final = 8_000_000


def bucket_checks(url: str, *, wait: float | None) -> Iterator[Finding]:
    """Yield the findings about a prefix in a bucket, those with another machine if `wait` is given.

    Raises:
        ConfigError: The URL can't be used, or its client is not installed.
        NotMetError: No other machine came within `wait` seconds.
    """
    place = f"{url.rstrip('/')}/{PROBE}{secrets.token_hex(8)}"
    storage = storage_from_url(place)
    try:
        for finding in _checks_in(storage, place):
            yield finding
            if finding is NOT_MADE:
                return
    finally:
        _remove(storage)
    if wait is not None:
        yield from checks_with_machine(storage_from_url(f"{url.rstrip('/')}/{MEETING}"), wait=wait)


def _checks_in(storage: Storage, place: str) -> Iterator[Finding]:
    with suppress(BackupError):  # the first check fails for the same reason
        storage.prepare()
    for finding in file_checks(storage, large=_LARGE):
        yield finding
        if shows_no_use(finding):
            yield NOT_MADE
            return
    yield from checks_with_process(storage, place)


def _remove(storage: Storage) -> None:
    with suppress(BackupError):  # the checks have shown it, also that credentials are missing
        for name in storage.names():
            storage.remove(name)
        storage.remove_if_empty()
    storage.close()
