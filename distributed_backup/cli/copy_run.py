"""Copy a run to another place, where its workers can continue.

Each copied file is read back and compared, and the source is not changed. Commits during the copy are missed, so a copy
of a training run holds an earlier state.

Order: the claim of the highest term, the journal, the checkpoints, the event logs, each oldest first. A checkpoint is
the commit point of what belongs to it. So a run that starts at the target of an interrupted copy has all answers since
the checkpoint that it restores, and pays for none of them again. Before the first checkpoint arrives, it finds no run
to resume, and logs a warning about that.
"""

from __future__ import annotations

from dataclasses import dataclass

from distributed_backup.checkpoints.format import decode
from distributed_backup.checkpoints.reader import Rows
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.cli.copy_journal import copy_segments, refuse_other_history, segments_to_copy
from distributed_backup.errors import ConfigError, StoreError
from distributed_backup.observability.events import is_event_log


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """Result of `copy_run`: locations, and names with the newest first.

    `present` were at the target already. `segments` are those of the journal of which the target lacked a part.
    `skipped` are checkpoints that do not verify, segments that were not copied as a whole, and unreadable event logs.
    """

    run_id: str
    source: str
    target: str
    copied: tuple[str, ...]
    present: tuple[str, ...]
    segments: tuple[str, ...]
    skipped: tuple[str, ...]


def copy_run(source: CheckpointStore, target: CheckpointStore) -> Copied:
    """Copy the run id, the highest term, the journal, every usable checkpoint and the event logs of a run.

    The claim of the highest term comes first, so that no term is granted again at the target. A copy that was
    interrupted can be repeated.

    Raises:
        ConfigError: The source has no usable checkpoint. Or the target is ahead: it holds a newer term, a later
            position or answers that the source lacks, or other bytes under the same name.
        RunMismatchError: The target belongs to another run.
        StoreError: A place can't be read or written.
    """
    if source.location == target.location:
        raise ConfigError(f"{source.location} is both source and target: choose another TARGET")
    rows = source.list()
    usable_rows = [row for row in rows if row.valid]
    usable = [row.name for row in usable_rows]
    if not usable:
        raise ConfigError(f"{source.location} has no usable checkpoint to copy")
    run_id = target.open_run()
    there = target.list()
    _refuse_to_go_back(source, target, rows, there)
    segments = segments_to_copy(source, usable_rows)
    refuse_other_history(source, target, segments)
    present = {row.name for row in there if row.valid}
    if (term := source.highest_term()) > target.highest_term():
        target.claim_term(term)
    appended, cut_off = copy_segments(source, target, segments, run_id)
    copied = [name for name in reversed(usable) if name not in present and _copy(source, target, name)]
    if not copied and present.isdisjoint(usable):
        raise StoreError(f"{source.location} was pruned during the copy: repeat the command", path=source.location)
    unread = [name for name in filter(is_event_log, source.storage.names()) if not _copy_log(source, target, name)]
    return Copied(
        run_id=run_id,
        source=source.location,
        target=target.location,
        copied=tuple(reversed(copied)),
        present=tuple(name for name in usable if name in present),
        segments=tuple(reversed(appended)),
        skipped=(*(row.name for row in rows if not row.valid), *reversed(cut_off), *unread),
    )


def _refuse_to_go_back(source: CheckpointStore, target: CheckpointStore, rows: Rows, there: Rows) -> None:
    """Refuse a target with checkpoints that the copy would supersede: its next commit would prune them."""
    usable = {row.name: row for row in rows if row.valid}
    newest = next(iter(usable.values()))
    for row in there:
        # Under a newer term an earlier position has the greater name, so compare the positions, too.
        is_ahead = row.valid and row.name not in usable and row.position > newest.position
        if is_ahead or row.name > newest.name:
            raise ConfigError(f"{target.location} is ahead of {source.location}: it holds {row.name}")
    for row in there:
        same = usable.get(row.name, row)
        if row.header is not None and same.header is not None and same.header.digest != row.header.digest:
            raise ConfigError(f"{target.location} holds a different {row.name}: the run continued at both places")


def _copy(source: CheckpointStore, target: CheckpointStore, name: str) -> bool:
    """Copy one checkpoint and return True, or False if it was pruned after the listing."""
    try:
        raw = source.storage.read(name)
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise
    decode(raw, path=source.storage.path_of(name))
    target.storage.put(name, [raw])
    if target.storage.read(name) != raw:
        path = target.storage.path_of(name)
        raise StoreError(f"{path} differs from the bytes that were written to it: check the storage", path=path)
    return True


def _copy_log(source: CheckpointStore, target: CheckpointStore, name: str) -> bool:
    """Copy one event log and return True. Return False if it can't be read, but True if it was removed meanwhile."""
    try:
        raw = source.storage.read(name)
    except StoreError as error:
        # A log is for inspection only, so a missing log does not stop the copy.
        return isinstance(error.__cause__, FileNotFoundError)
    target.storage.put(name, [raw])
    return True
