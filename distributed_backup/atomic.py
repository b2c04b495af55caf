"""Replace files in one step: a reader finds the old bytes or the new ones.

The bytes are written to a file beside the target, which is then renamed. Nothing here calls fsync, so a power cut may
lose the new bytes. `storage.local` adds what a checkpoint needs.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distributed_backup.errors import StoreError


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Yield `path`, and remove the file of that name after an error. On a full disk each try would else leave one."""
    try:
        yield path
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def replace_file(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write `data` to `path` in one step, with the permissions `mode` less the umask.

    Raises:
        OSError: The file can't be written. `path` is unchanged.
    """
    with temporary(path.with_name(f".{path.name}-{secrets.token_hex(4)}")) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(data)
        partial.replace(path)


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file that the user has named, in one step.

    Raises:
        StoreError: The file can't be written. `path` is unchanged.
    """
    try:
        replace_file(path, data)
    except OSError as error:
        raise StoreError(f"can't write {path}: {error.strerror or error}", path=str(path)) from error
