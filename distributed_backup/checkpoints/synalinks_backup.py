"""Backups that synalinks' own `BackupAndRestore` left in a directory, read so that changing one import is enough.

Its state is two files, each written in place, so they may be torn; with `double_checkpoint` the previous pair
is beside them. Only what that callback saved can be restored: the program's variables and the epoch. The
batch in its metadata counts differently and is not used.
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
        position: The epoch to go on with.
        digest: BLAKE2b-256 of the variables' file, in hex.
        state_tree: For `Program.set_state_tree`.
    """

    name: str
    position: Position
    digest: str
    state_tree: dict[str, Any]


def find_synalinks_backup(storage: Storage) -> SynalinksBackup | None:
    """The backup of synalinks' callback in `storage`, the previous one if the newest can't be read; None without any.

    Raises:
        NoUsableCheckpointError: There is one, and it is torn, and so is the previous one if there is any.
        StoreError: The files can't be read.
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
                continue  # another worker has finished meanwhile
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
    """Remove the files of synalinks' callback; those that are not there are no error.

    Raises:
        StoreError: A file could not be removed.
    """
    found = storage.names()
    for name in (VARIABLES, METADATA, VARIABLES + _PREVIOUS, METADATA + _PREVIOUS):
        if name in found:
            storage.remove(name)
