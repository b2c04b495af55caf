"""Small JSON records in files that have one writer each, and any number of readers.

A record is replaced in one step, so that a reader sees the old one or the new one and never half of it. Nothing is
fsynced: what is kept this way is about living processes, and none of them survives a power cut.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson

from distributed_backup.atomic import replace_file


def inode(status: os.stat_result) -> tuple[int, int]:
    """What tells one file from another, whatever its name."""
    return (status.st_dev, status.st_ino)


def identity_of(path: Path) -> tuple[int, int] | None:
    """The inode of the file at `path` now; None if there is none."""
    try:
        return inode(path.stat())
    except FileNotFoundError:
        return None


def read_record(path: Path) -> dict[str, Any] | None:
    """The object in `path`; None if it is gone, or was claimed and not written yet."""
    try:
        fields = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
    return fields if isinstance(fields, dict) else None


def replace_record(path: Path, fields: dict[str, Any]) -> None:
    """Write an object in one step. The folder is made if it is missing."""
    data = orjson.dumps(fields)
    try:
        replace_file(path, data, mode=0o600)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data, mode=0o600)
