"""Checkpoints taken elsewhere: a run copied to another place, and variables exported for `program.load_variables`.

Both only add. A copy is read back and verified before it is called one, and its source stays as it was. It is a copy of
what was there at the time: of a run that goes on meanwhile, a state that it had. An export is less than a checkpoint:
synalinks' own format has no random generators, flattens empty dictionaries away, and matches what belongs to the
optimizer by path.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from distributed_backup.checkpoints.format import decode, parse_name
from distributed_backup.checkpoints.reader import Rows
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import BackupError, ConfigError, StoreError
from distributed_backup.observability.events import is_event_log

_EXPORT_SUFFIX: Final = ".variables.json"
# Our groups of variables to those of `Program.get_state_tree` (synalinks 0.10).
_GROUPS: Final = {
    "trainable": "trainable_variables",
    "non_trainable": "non_trainable_variables",
    "optimizer_trainable": "optimizer_trainable_variables",
    "optimizer_non_trainable": "optimizer_non_trainable_variables",
    "metrics": "metrics_variables",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What `copy_run` did.

    Args:
        run_id: Of the run, at both places.
        source: Where it was copied from.
        target: Where to.
        copied: Names of the checkpoints that were copied, newest first.
        present: Names of those that were at the target already.
        skipped: Names of those that do not verify and were left behind, and of event logs that can't be read.
    """

    run_id: str
    source: str
    target: str
    copied: tuple[str, ...]
    present: tuple[str, ...]
    skipped: tuple[str, ...]


def copy_run(source: CheckpointStore, target: CheckpointStore) -> Copied:
    """Copy every usable checkpoint of a run to another place, and have its terms go on there.

    Order: the run's id; the claim of the highest term, so that no term is granted there again; the checkpoints, oldest
    first, each read back and verified; the event logs. Stopped at any point, it may be repeated.

    Args:
        source: Of the run.
        target: Made with the same run id; empty, or holding an older state of the same run.

    Raises:
        ConfigError: There is nothing to copy, or the target has come further, or elsewhere: it holds a newer term, or a
            position beyond the source's newest that the source does not have, or other bytes under the same name.
        RunMismatchError: The target belongs to another run.
        StoreError: A place can't be read or written.
    """
    if source.location == target.location:
        raise ConfigError(f"{source.location} is where the run is: name another place")
    rows = source.list()
    usable = [row.name for row in rows if row.valid]
    if not usable:
        raise ConfigError(f"{source.location} has no usable checkpoint to copy")
    run_id = target.open_run()
    there = target.list()
    _refuse_to_go_back(source, target, rows, there)
    present = {row.name for row in there if row.valid}
    _claim(target, source.highest_term())
    copied = [name for name in reversed(usable) if name not in present and _copy(source, target, name)]
    if not copied and present.isdisjoint(usable):
        raise StoreError(f"{source.location} was pruned while it was read: try again", path=source.location)
    unread = [name for name in filter(is_event_log, source.storage.names()) if not _copy_log(source, target, name)]
    return Copied(
        run_id=run_id,
        source=source.location,
        target=target.location,
        copied=tuple(reversed(copied)),
        present=tuple(name for name in usable if name in present),
        skipped=(*(row.name for row in rows if not row.valid), *unread),
    )


def run_id_of(source: CheckpointStore) -> str:
    """The id of the run in `source`, which stays as it is: `open_run` would keep an id that is lost.

    Raises:
        ConfigError: Nothing there tells it.
        StoreError: It can't be read.
    """
    run_id = source.read_run_id()
    if run_id is None and (newest := source.newest_header()) is not None:
        run_id = newest.run_id
    if run_id is None:
        raise ConfigError(f"{source.location} has no usable checkpoint to copy")
    return run_id


def _refuse_to_go_back(source: CheckpointStore, target: CheckpointStore, rows: Rows, there: Rows) -> None:
    """Refuse a target that holds what the copy would put out of use: the next commit there would remove it."""
    usable = {row.name: row for row in rows if row.valid}
    newest = next(iter(usable.values()))
    for row in there:
        # A newer term orders an older state above a newer one: the position is what training would lose.
        further = row.valid and row.name not in usable and row.position > newest.position
        if further or row.name > newest.name:
            raise ConfigError(f"{target.location} has come further than {source.location}: it holds {row.name}")
    for row in there:
        same = usable.get(row.name, row)
        if row.header is not None and same.header is not None and same.header.digest != row.header.digest:
            raise ConfigError(f"{target.location} has another {row.name}: the run went on at both places")


def _claim(target: CheckpointStore, term: int) -> None:
    if term > target.highest_term():
        target.claim_term(term)


def _copy(source: CheckpointStore, target: CheckpointStore, name: str) -> bool:
    """Copy one checkpoint; False if it was pruned since it was listed."""
    try:
        raw = source.storage.read(name)
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise
    decode(raw, path=source.storage.path_of(name))
    target.storage.put(name, [raw])
    if target.storage.read(name) != raw:
        raise StoreError(f"{target.storage.path_of(name)} is not what was written to it", path=target.location)
    return True


def _copy_log(source: CheckpointStore, target: CheckpointStore, name: str) -> bool:
    """Copy an event log, unless it was tidied away since it was listed; False if it can't be read."""
    try:
        raw = source.storage.read(name)
    except StoreError as error:
        # For looking at only: the checkpoints are there.
        return isinstance(error.__cause__, FileNotFoundError)
    target.storage.put(name, [raw])
    return True


def _is_run(directory: Path) -> bool:
    with suppress(OSError):  # where it can't be read, or is not there, the write tells
        return any(child.name == RUN_FILE or parse_name(child.name) for child in directory.iterdir())
    return False


def _json(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, allow_nan=False, ensure_ascii=False, indent=2).encode()


def _nested(paths: list[str], values: list[Any], name: str) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in zip(paths, values, strict=True):
        *parents, last = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        if last in place:
            raise BackupError(f"{name} has two variables called {path}, which synalinks' format can't tell apart")
        place[last] = value
    return tree
