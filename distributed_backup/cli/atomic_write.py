"""Files that a command writes where the user says.

A file is there whole or not at all, and one that was there stays until the new one is complete. It is not made durable.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path

from distributed_backup.errors import StoreError


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file beside `path`, and let it take its place.

    Raises:
        StoreError: It can't be written; what was there is as it was.
    """
    partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise StoreError(f"can't write {path}: {error.strerror or error}", path=str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
