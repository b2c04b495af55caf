"""Backups that synalinks' own `BackupAndRestore` left in a directory, read so that changing one import is enough.

Its state is two files, each written in place, so they may be torn; with `double_checkpoint` the previous pair
is beside them. Only what that callback saved can be restored: the program's variables and the epoch. The
batch in its metadata counts differently and is not used.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from distributed_backup.checkpoint import Position
from distributed_backup.errors import NoUsableCheckpointError, StoreError

logger = logging.getLogger(__name__)

VARIABLES: Final = "latest.variables.json"
METADATA: Final = "training_metadata.json"
_PREVIOUS: Final = ".bkp"


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyBackup:
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


def find_legacy(root: Path) -> LegacyBackup | None:
    """The backup of synalinks' callback in `root`, the previous one if the newest can't be read; None without any.

    Raises:
        NoUsableCheckpointError: There is one, and it is torn, and so is the previous one if there is any.
        StoreError: The files can't be read.
    """
    problems, unreadable = [], None
    for suffix in ("", _PREVIOUS):
        variables, metadata = root / (VARIABLES + suffix), root / (METADATA + suffix)
        try:
            return _read(variables, metadata)
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError) as error:
            problem = str(error)
        except OSError as error:
            path = str(error.filename or variables)
            unreadable = unreadable or StoreError(f"can't read {path}: {error.strerror}", path=path)
            problem = str(error)
        logger.warning("backup skipped name=%s reason=%s", variables.name, problem)
        problems.append(f"{variables.name}: {problem}")
    if unreadable is not None:
        raise unreadable
    if problems:
        raise NoUsableCheckpointError(path=str(root), reasons=tuple(problems))
    return None


def _read(variables: Path, metadata: Path) -> LegacyBackup:
    raw = variables.read_bytes()
    state_tree = orjson.loads(raw)
    if not isinstance(state_tree, dict):
        raise TypeError("not a state tree")
    epoch = orjson.loads(metadata.read_bytes())["epoch"] if metadata.exists() else 0
    return LegacyBackup(
        name=variables.name,
        position=Position(epoch),
        digest=hashlib.blake2b(raw, digest_size=32).hexdigest(),
        state_tree=state_tree,
    )


def remove_legacy(root: Path) -> None:
    """Remove the files of synalinks' callback; those that are not there are no error.

    Raises:
        StoreError: A file could not be removed.
    """
    for name in (VARIABLES, METADATA, VARIABLES + _PREVIOUS, METADATA + _PREVIOUS):
        try:
            (root / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"can't remove {root / name}: {error.strerror}", path=str(root / name)) from error
