"""Collect the values that `journal show` and `journal verify` print, and count the answers since a checkpoint.

Reading changes nothing and works while the run is training. Segments that are pruned during the read are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from distributed_backup.checkpoints.abandoned import find_abandoned
from distributed_backup.checkpoints.format import Checkpoint
from distributed_backup.checkpoints.journal import Log, find_log, segments_among, unneeded_segments
from distributed_backup.checkpoints.journal_format import (
    Answer,
    Boundary,
    Failed,
    Header,
    Left,
    Record,
    Unanswered,
    Unrecorded,
    Void,
    parse_segment_name,
)
from distributed_backup.checkpoints.journal_scan import SegmentScan
from distributed_backup.checkpoints.reader import CheckpointReader, Rows
from distributed_backup.checkpoints.state_digests import digests_in
from distributed_backup.cli.export import reading_state
from distributed_backup.errors import BackupError, StoreError
from distributed_backup.position import Position
from distributed_backup.storage.base import Storage

# Above each term.
_ANY_TERM: Final = 10**10


@dataclass(slots=True, kw_only=True)
class Segment:
    """One segment, as it was read.

    `bytes` counts the bytes that verify, `torn` those of an incomplete record behind them. `reason` says why the record
    behind them does not verify. `continued_at` has the ends that later segments name, `record_ends` those among them at
    which a record of this segment ends.
    """

    name: str
    continued_at: frozenset[int] = frozenset()
    header: Header | None = None
    bytes: int = 0
    torn: int = 0
    answers: int = 0
    boundaries: int = 0
    last: Boundary | None = None
    unanswered: int = 0
    unrecorded: int = 0
    failed: int = 0
    error: str | None = None
    void: int = 0
    left: bool = False
    reason: str | None = None
    record_ends: set[int] = field(default_factory=set)

    @property
    def start(self) -> tuple[int, Position]:
        """The term and the position in the name."""
        return parse_segment_name(self.name) or (0, Position(0))

    def add(self, record: Record) -> str | None:
        """Count a record. Return why it can't be where it is, or None."""
        if self.header is None:
            return self._add_header(record)
        match record:
            case Header():
                return "there is a second header"
            case Answer():
                self.answers += 1
            case Boundary():
                self.boundaries, self.last = self.boundaries + 1, record
            case Unanswered():
                self.unanswered += 1
            case Unrecorded():
                self.unrecorded += 1
            case Failed(error=error):
                self.failed, self.error = self.failed + 1, error
            case Void():
                self.void += 1
            case Left():
                self.left = True
        return None

    def _add_header(self, record: Record) -> str | None:
        if not isinstance(record, Header):
            return "the first record is not a header"
        if record.name != self.name:
            return f"the header is that of {record.name}"
        self.header = record
        if record.digests is not None:
            self.last = Boundary(position=record.position, digests=record.digests)
        return None


def read_segment(storage: Storage, name: str, continued_at: Iterable[int] = ()) -> Segment | None:
    """Read one segment. None if it is missing.

    Raises:
        StoreError: It can't be read.
    """
    segment = Segment(name=name, continued_at=frozenset(continued_at))
    scan = SegmentScan(storage, name)
    try:
        for scanned in scan:
            segment.reason = segment.add(scanned.record)
            if segment.reason is not None:
                return segment
            segment.bytes = scanned.end
            if scanned.end in segment.continued_at:
                segment.record_ends.add(scanned.end)
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    segment.torn, segment.reason = scan.torn, scan.problem
    return segment


def read_journal(storage: Storage) -> list[Segment]:
    """Read all segments, oldest first. One that can't be read has the error as its reason.

    Raises:
        StoreError: The files can't be listed.
    """
    continued_at: dict[str, set[int]] = {}
    segments = []
    # Links lead to older segments, so the newest is read first.
    for name in segments_among([*storage.names(), *storage.irregular()]):
        try:
            segment = read_segment(storage, name, continued_at.get(name, ()))
        except StoreError as error:
            segment = Segment(name=name, reason=str(error))
        if segment is None:
            continue
        segments.append(segment)
        if segment.header is not None and (after := segment.header.after) is not None:
            continued_at.setdefault(after.name, set()).add(after.end)
    return segments[::-1]


# -------------------------------------------------------------------- what does not verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Why a segment does not verify, and from which byte on."""

    offset: int
    reason: str


def damage_in(store: CheckpointReader, segments: list[Segment]) -> dict[str, Damage]:
    """Return what is wrong with each of these segments, by name. A torn tail is normal.

    Raises:
        StoreError: The checkpoints can't be listed.
    """
    by_name = {segment.name: segment for segment in segments}
    usable = [row for row in store.list() if row.valid]
    run_id = store.find_run_id()
    damage = {}
    for segment in segments:
        found = _own_damage(segment, run_id) or _damage_of_link(segment, by_name)
        if isinstance(found, str):
            if _begins_before(segment, usable) or found in without_need([*by_name, found], usable):
                continue  # it was pruned
            found = Damage(offset=0, reason=f"it continues {found}, which is missing")
        if found is not None:
            damage[segment.name] = found
    return damage


def without_need(names: Iterable[str], usable: Rows) -> set[str]:
    """Return the segments among `names` that continue none of these checkpoints, as a prune would find."""
    if not usable:
        return set()
    return set(unneeded_segments(names, kept=[(row.term, row.position) for row in usable], term=_ANY_TERM))


def _begins_before(segment: Segment, usable: Rows) -> bool:
    """Whether a segment begins before each of these checkpoints, so that their logs need no older one."""
    return bool(usable) and all(segment.start[1] < row.position for row in usable)


def _own_damage(segment: Segment, run_id: str | None) -> Damage | None:
    if segment.reason is not None:
        return Damage(offset=segment.bytes, reason=segment.reason)
    if segment.header is not None and run_id not in {None, segment.header.run_id}:
        return Damage(offset=0, reason=f"it is of the run {segment.header.run_id}")
    return None


def _damage_of_link(segment: Segment, by_name: dict[str, Segment]) -> Damage | str | None:
    """Return what is wrong with the link to the segment before, or that segment's name if it is missing."""
    after = None if segment.header is None else segment.header.after
    if after is None:
        return None
    if after.name >= segment.name:
        return Damage(offset=0, reason=f"it continues {after.name}, which is not older")
    before = by_name.get(after.name)
    if before is None:
        return after.name
    if after.end in before.record_ends:
        return None
    where = f"it continues {after.name} at byte {after.end}"
    end = "where no record ends" if after.end < before.bytes else f"and only {before.bytes} bytes of that verify"
    return Damage(offset=0, reason=f"{where}, {end}")


# -------------------------------------------------------------------- the log of a checkpoint


def log_of(store: CheckpointReader, checkpoint: Checkpoint) -> Log | None:
    """Return the log that continues a checkpoint, None if there is none.

    Raises:
        BackupError: The body is not a training state of this version, or the storage can't be read.
    """
    with reading_state(checkpoint):
        digests = digests_in(checkpoint.body)
    header = checkpoint.header
    return find_log(store.storage, run_id=header.run_id, position=checkpoint.position, digests=digests)


def count_answers(storage: Storage, log: Log) -> int:
    """Return the number of answers in a log that count. Void ones do not.

    Raises:
        StoreError: The storage can't be read.
    """
    total = stage = 0
    position = log.position
    for part in log.parts:
        scan = SegmentScan(storage, part.name, start=part.start, end=part.end)
        for scanned in scan:
            match scanned.record:
                case Answer():
                    stage += 1
                case Void():
                    stage = 0
                case Boundary(position=reached) if reached != position:
                    position = reached
                    total, stage = total + stage, 0
        is_short = part.end is not None and scan.offset < part.end
        if is_short or scan.problem is not None:
            break
    return total + stage


def answers_since(store: CheckpointReader, name: str) -> int | None:
    """Return the number of answers that a restart from a checkpoint would replay. None if it can't be read."""
    try:
        log = log_of(store, store.load(name))
        return 0 if log is None else count_answers(store.storage, log)
    except BackupError:
        # The checkpoint was pruned, or the journal is readable by the workers' user only.
        return None


def newest_log(store: CheckpointReader) -> dict[str, Any]:
    """Return the name of the newest usable checkpoint, and where its log begins, for `journal verify --json`.

    Also the answers that can't follow it.
    """
    try:
        checkpoint = store.latest()
        log = None if checkpoint is None else log_of(store, checkpoint)
        answers = 0 if log is None else count_answers(store.storage, log)
        lost = find_abandoned(
            store.storage, run_id=store.find_run_id(), newest=None if checkpoint is None else checkpoint.header
        )
    except BackupError as error:
        return {"checkpoint": None, "log": None, "log_problem": str(error), "abandoned": None}
    found = None if log is None else {"name": log.parts[0].name, "offset": log.parts[0].start, "answers": answers}
    return {
        "checkpoint": None if checkpoint is None else checkpoint.name,
        "log": found,
        "log_problem": None,
        "abandoned": None if lost is None else {"name": lost.name, "answers": lost.count},
    }


# -------------------------------------------------------------------- rows


def segment_row(segment: Segment, damage: Damage | None) -> dict[str, Any]:
    """Return one row of `journal show --json`."""
    term, position = segment.start
    after = None if segment.header is None else segment.header.after
    last = segment.last
    return {
        "name": segment.name,
        "term": term,
        "epoch": position.epoch,
        "batch": position.batch,
        "worker_id": None if segment.header is None else segment.header.worker_id,
        "answers": segment.answers,
        "bytes": segment.bytes,
        "boundaries": segment.boundaries,
        "after": None if after is None else {"name": after.name, "bytes": after.end},
        "last_boundary": None if last is None else _boundary_row(last),
        "unanswered": segment.unanswered,
        "unrecorded": segment.unrecorded,
        "failed": segment.failed,
        "error": segment.error,
        "void": segment.void,
        "left": segment.left,
        "continued_at": max(segment.continued_at, default=None),
        "torn": segment.torn,
        "problem": None if damage is None else {"offset": damage.offset, "reason": damage.reason},
    }


def _boundary_row(boundary: Boundary) -> dict[str, Any]:
    position = boundary.position
    return {"epoch": position.epoch, "batch": position.batch, "digests": dict(boundary.digests)}


def totals(segments: list[Segment]) -> dict[str, int]:
    """Return the sums over all segments."""
    return {
        "answers": sum(segment.answers for segment in segments),
        "bytes": sum(segment.bytes for segment in segments),
        "boundaries": sum(segment.boundaries for segment in segments),
    }
