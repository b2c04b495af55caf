"""Copy the segments of a run's journal to another place, in chunks of `_CHUNK` bytes.

A segment is copied up to its last record that verifies, and compared after that. Segments are copied oldest first,
because one that continues another must never be at the target without it. So an interrupted copy is the beginning of
the journal, and a repeated one goes on where it ended.
"""

from __future__ import annotations

from typing import Final

from distributed_backup.checkpoints.journal import segments_among
from distributed_backup.checkpoints.reader import Rows
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.cli.journal_report import Segment, read_segment, without_need
from distributed_backup.errors import ConfigError, StoreError
from distributed_backup.storage.base import Storage

# A bucket stores each append as a file of its own.
_CHUNK: Final = 16 * 2**20


def segments_to_copy(source: CheckpointStore, usable: Rows) -> list[Segment]:
    """Return the segments that continue one of these checkpoints, oldest first.

    Raises:
        StoreError: One of them can't be read.
    """
    names = source.storage.names()
    unneeded = without_need(names, usable)
    wanted = (name for name in reversed(segments_among(names)) if name not in unneeded)
    # Those that were pruned since the listing are needed no more.
    return [segment for name in wanted if (segment := read_segment(source.storage, name)) is not None]


def refuse_other_history(source: CheckpointStore, target: CheckpointStore, segments: list[Segment]) -> None:
    """Refuse a target with answers that the source lacks: a copied checkpoint would supersede them.

    Raises:
        ConfigError: It has such answers.
        StoreError: A place can't be read.
    """
    here = {segment.name: segment for segment in segments}
    oldest, highest = min(here, default=None), source.highest_term()
    for name in segments_among(target.storage.names()):
        there = read_segment(target.storage, name)
        if there is None or there.bytes == 0:
            continue
        if name in here:
            common = min(here[name].bytes, there.bytes)
            if not _are_equal(source.storage, target.storage, name, 0, common):
                raise ConfigError(f"{target.location} holds a different {name}: the run continued at both places")
        elif there.start[0] > highest or (oldest is not None and name > oldest):
            raise ConfigError(f"{target.location} is ahead of {source.location}: it holds {name}")


def copy_segments(
    source: CheckpointStore, target: CheckpointStore, segments: list[Segment], run_id: str
) -> tuple[list[str], list[str]]:
    """Copy what the target lacks of these segments, oldest first.

    A damaged segment is copied up to its first bad record. Segments that continue it behind that are left out: with
    them, a replay would leap over the answers in between.

    Returns:
        The names of the segments that were copied, and of those that were not copied as a whole.

    Raises:
        StoreError: A place can't be read or written, or a segment was pruned meanwhile.
    """
    copied, skipped = [], []
    lengths: dict[str, int] = {}
    for segment in segments:
        lengths[segment.name] = length = _length_that_counts(segment, lengths, run_id)
        if segment.reason is not None or length < segment.bytes:
            skipped.append(segment.name)
        if _copy(source.storage, target.storage, segment.name, length):
            copied.append(segment.name)
    return copied, skipped


def _length_that_counts(segment: Segment, lengths: dict[str, int], run_id: str) -> int:
    if segment.header is None or segment.header.run_id != run_id:
        return 0
    after = segment.header.after
    is_cut_off = after is not None and lengths.get(after.name, after.end) < after.end
    return 0 if is_cut_off else segment.bytes


def _copy(source: Storage, target: Storage, name: str, length: int) -> bool:
    """Copy the first `length` bytes of a segment, and return whether the target lacked some."""
    there = read_segment(target, name)
    begin = at = 0 if there is None else there.bytes
    if at >= length:
        return False
    while at < length:
        data = source.read_from(name, at, min(_CHUNK, length - at))
        if not data:
            raise StoreError(f"{source.path_of(name)} was cut during the copy: repeat the command", path=name)
        target.append(name, data, at=at)
        at += len(data)
    there = read_segment(target, name)
    if there is None or there.bytes != length or not _are_equal(source, target, name, begin, length):
        path = target.path_of(name)
        raise StoreError(f"{path} differs from the bytes that were written to it: check the storage", path=path)
    return True


def _are_equal(one: Storage, other: Storage, name: str, start: int, end: int) -> bool:
    for at in range(start, end, _CHUNK):
        limit = min(_CHUNK, end - at)
        if one.read_from(name, at, limit) != other.read_from(name, at, limit):
            return False
    return True
