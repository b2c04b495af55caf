"""Read and remove backups of synalinks' own `BackupAndRestore`, so that a user only changes one import.

A backup is two files, each written in place, so a kill can tear them. With `double_checkpoint`, the previous pair has
the suffix `.bkp`. It contains the program's variables and the epoch, and no other state. Its batch counts differently
and is not used.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any, Final

import orjson

from distributed_backup.errors import NoUsableCheckpointError, StoreError
from distributed_backup.position import Position
from distributed_backup.storage.base import Names, Storage

logger = logging.getLogger(__name__)

VARIABLES: Final = "latest.variables.json"
METADATA: Final = "training_metadata.json"
_PREVIOUS: Final = ".bkp"


@dataclass(frozen=True, slots=True, kw_only=True)
class SynalinksBackup:
    """A backup of synalinks' own callback.

    Args:
        name: File name of the variables.
        position: The start of the epoch to continue with.
        digest: BLAKE2b-256 of the variables' file, in hex.
        state_tree: For `Program.set_state_tree`.
    """

    name: str
    position: Position
    digest: str
    state_tree: dict[str, Any]


def find_synalinks_backup(storage: Storage) -> SynalinksBackup | None:
    """Return the newest backup of synalinks' callback in `storage` that can be read, None if there is none.

    Raises:
        NoUsableCheckpointError: There is a backup, and each pair of files is torn.
        StoreError: A file can't be read, and no other pair can be used.
    """
    found = storage.names()
    problems, unreadable = [], None
    for suffix in ("", _PREVIOUS):
        name = VARIABLES + suffix
        if name not in found:
            continue
        try:
            return _read(storage, name, METADATA + suffix, found)
        except (ValueError, KeyError, TypeError) as error:
            problem = str(error)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                continue  # another worker has finished and removed it
            unreadable = unreadable or error
            problem = str(error)
        logger.warning("backup skipped name=%s reason=%s", name, problem)
        problems.append(f"{name}: {problem}")
    if unreadable is not None:
        raise unreadable
    if problems:
        raise NoUsableCheckpointError(path=storage.location, reasons=tuple(problems))
    return None


def _read(storage: Storage, variables: str, metadata: str, found: Names) -> SynalinksBackup:
    raw = storage.read(variables)
    state_tree = orjson.loads(raw)
    if not isinstance(state_tree, dict):
        raise TypeError("not a state tree")
    epoch = orjson.loads(storage.read(metadata))["epoch"] if metadata in found else 0
    return SynalinksBackup(
        name=variables,
        position=Position(epoch),
        digest=hashlib.blake2b(raw, digest_size=32).hexdigest(),
        state_tree=state_tree,
    )


def remove_synalinks_backup(storage: Storage) -> None:
    """Remove the files of synalinks' callback, if there are any.

    Raises:
        StoreError: A file could not be removed.
    """
    found = storage.names()
    for name in (VARIABLES, METADATA, VARIABLES + _PREVIOUS, METADATA + _PREVIOUS):
        if name in found:
            storage.remove(name)
