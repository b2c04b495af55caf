"""Read the journal of a run: find the log that continues a checkpoint, and read it stage by stage.

The journal is one log of records, cut into segments: see `journal_format`. The leader appends to a segment of its own.
A new term, and each scheduled commit, begins a new one. Its header names the segment that it continues and how many
bytes of it count. So what a paused old leader appends later is never read, although its file grows.

`find_log` takes the newest segment whose chain of headers leads to the boundary of the checkpoint, with the digests of
the checkpoint's state. A log of another history is not used, even if it has the same positions.

A stage is what was recorded between two boundaries. Answers of an earlier stage are part of the state at a later one.

The limit: a log is cut off at the first record that does not verify. Answers after it are asked for again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from distributed_backup.checkpoints.journal_format import (
    MAX_RECORD,
    Answer,
    BadRecordError,
    Boundary,
    Digests,
    Failed,
    Header,
    Left,
    Link,
    Outcome,
    Record,
    Unanswered,
    Void,
    apply,
    decode_record,
    parse_segment_name,
)
from distributed_backup.checkpoints.journal_scan import SegmentScan
from distributed_backup.errors import StoreError
from distributed_backup.once import OnceLogger
from distributed_backup.position import Position
from distributed_backup.regular_file import IrregularFileError
from distributed_backup.storage.base import Names, Storage

logger = logging.getLogger(__name__)

# Bytes that one read asks for.
_CHUNK: Final = 2**20
_MAX_HEADER: Final = 2**16


def segments_among(names: Iterable[str]) -> Names:
    """Return those of `names` that are names of segments, newest first."""
    return sorted(set(filter(parse_segment_name, names)), reverse=True)


def term_of_segment(name: str) -> int:
    """Return the term in the name of a segment, 0 for any other name."""
    return _start_of(name)[0]


def unneeded_segments(names: Iterable[str], *, kept: Iterable[tuple[int, Position]], term: int) -> Names:
    """Return the segments that hold nothing after the checkpoints `kept`, as (term, position), oldest first.

    For each one, they are those before the last segment of its term that starts before it. Its boundary is in that
    segment, or its writer has given that segment up and begun anew. Later segments may continue that segment. Without
    such a segment, the boundary may be in any older one: the writer had another term, or none, when it came there.

    None are returned if a term above `term` has a segment: it may continue any older one.

    The limit: two workers may have come to the state of an older checkpoint in `kept`, and both gone on. Only the log
    of the one that has committed it is certain to stay.
    """
    found = segments_among(names)
    if found and _start_of(found[0])[0] > term:
        return []
    needed = [max((name for name in found if _is_before(name, checkpoint)), default="") for checkpoint in kept]
    return [name for name in reversed(found) if name < min(needed)]


def _is_before(name: str, checkpoint: tuple[int, Position]) -> bool:
    """Whether a segment is of the checkpoint's term, and starts before it."""
    own_term, start = _start_of(name)
    return own_term == checkpoint[0] and start < checkpoint[1]


def _start_of(name: str) -> tuple[int, Position]:
    return parse_segment_name(name) or (0, Position(0))


def is_of_another_run(storage: Storage, name: str, run_id: str | None) -> bool:
    """Whether the header of a segment verifies and names another run than `run_id`."""
    try:
        header = SegmentReader(storage, name).header()
    except StoreError:
        return False
    return header is not None and run_id is not None and header.run_id != run_id


class SegmentReader:
    """The records of one segment, from `start` to `end` or to the last one that is complete.

    Iterating again reads what was appended since. `offset` is the end of the last record that was read. `problem` says
    why a record does not verify, and nothing behind it is read. A torn tail is no problem: its writer may go on.
    """

    def __init__(self, storage: Storage, name: str, *, start: int = 0, end: int | None = None) -> None:
        self._storage = storage
        self.name = name
        self.offset = start
        self._end = end
        self.problem: str | None = None

    def __iter__(self) -> Iterator[Record]:
        return self.records()

    @property
    def is_short(self) -> bool:
        """Whether the last record that was read ends before `end`."""
        return self._end is not None and self.offset < self._end

    def records(self) -> Iterator[Record]:
        """Yield the next records.

        Raises:
            StoreError: The segment can't be read.
        """
        pending: list[bytes] = []
        read = self.offset
        while self.problem is None:
            limit = _CHUNK if self._end is None else min(_CHUNK, self._end - read)
            chunk = self._storage.read_from(self.name, read, limit) if limit > 0 else b""
            if not chunk:
                return
            read += len(chunk)
            *lines, rest = chunk.split(b"\n")
            if lines:
                lines[0] = b"".join([*pending, lines[0]])
                pending = []
            pending.append(rest)
            for line in lines:
                record = self._decoded(line)
                if record is None:
                    return
                self.offset += len(line) + 1
                yield record
            if read - self.offset > MAX_RECORD:
                self.problem = f"a record is longer than {MAX_RECORD >> 20} MB"

    def _decoded(self, line: bytes) -> Record | None:
        try:
            return decode_record(line)
        except BadRecordError as error:
            self.problem = str(error)
            return None

    def header(self) -> Header | None:
        """Return the first record. None if the segment does not begin with a sound header of its own name."""
        try:
            line, newline, _ = self._storage.read_from(self.name, 0, _MAX_HEADER).partition(b"\n")
            first = decode_record(line) if newline else None
        except BadRecordError:
            return None
        except StoreError as error:
            if not isinstance(error.__cause__, IrregularFileError):
                raise
            self.problem = str(error)
            return None
        return first if isinstance(first, Header) and first.name == self.name else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a log: the bytes of one segment from `start` on, to `end` or to its last sound record."""

    name: str
    start: int
    end: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What follows a checkpoint: the parts in the order in which they were written."""

    position: Position
    parts: tuple[Part, ...]


def find_log(storage: Storage, *, run_id: str, position: Position, digests: Digests) -> Log | None:
    """Return the newest log that continues the state with these digests at `position`. None if there is none.

    Raises:
        StoreError: The storage can't be read.
    """
    headers: dict[str, Header | None] = {}

    def header_of(name: str) -> Header | None:
        if name not in headers:
            headers[name] = _header(storage, name, run_id)
        return headers[name]

    for name in segments_among(storage.names()):
        chain = [Part(name=name, start=0, end=None)]
        while (header := header_of(chain[-1].name)) is not None and header.after is not None:
            # A segment whose link leads forwards is damage, and would end in a circle.
            if header.after.name >= header.name:
                break
            chain.append(Part(name=header.after.name, start=0, end=header.after.end))
        chain = [part for part in reversed(chain) if header_of(part.name) is not None]
        log = _from(storage, _last_reaching(chain, headers, position), position, digests)
        if log is not None:
            return log
    return None


def _header(storage: Storage, name: str, run_id: str) -> Header | None:
    reader = SegmentReader(storage, name)
    try:
        header = reader.header()
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None  # pruned since the listing, or before its successor
        raise
    if header is None or header.run_id != run_id:
        reason = f"it is of the run {header.run_id}" if header else reader.problem or "its first record does not verify"
        logger.warning("journal segment skipped name=%s reason=%s", name, reason)
        return None
    return header


def _last_reaching(chain: list[Part], headers: dict[str, Header | None], position: Position) -> list[Part]:
    """Return the end of a chain, from the last segment on that begins at a boundary up to `position`."""
    for index in reversed(range(len(chain))):
        header = headers[chain[index].name]
        assert header is not None
        if header.position < position or (header.position == position and header.digests is not None):
            return chain[index:]
    return []


def _from(storage: Storage, chain: list[Part], position: Position, digests: Digests) -> Log | None:
    """Return the part of a chain that follows the boundary at `position`."""
    for index, part in enumerate(chain):
        for scanned in SegmentScan(storage, part.name, end=part.end):
            found = _boundary_of(scanned.record)
            if found is None or found.position != position:
                continue
            if dict(found.digests) != dict(digests):
                logger.warning(
                    "journal not used: segment %s has another state of %s than the checkpoint. Its answers are asked "
                    "for again",
                    part.name,
                    position,
                )
                return None
            rest = Part(name=part.name, start=scanned.end, end=part.end)
            return Log(position=position, parts=(rest, *chain[index + 1 :]))
    return None


def _boundary_of(record: Record) -> Boundary | None:
    if isinstance(record, Header):
        return None if record.digests is None else Boundary(position=record.position, digests=record.digests)
    return record if isinstance(record, Boundary) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What was recorded between two boundaries. `end` is the second one. None if the log ends before it.

    Requests that have failed right before an exception left the fit are the likely cause of it, and no answer is. So
    they are not among the outcomes and are sent again, and the exception does not count.

    `failures` counts the other exceptions that have left the fit in this stage. `deaths` counts the last starts in a
    row that replayed it, recorded nothing more, and did not leave in order.
    """

    outcomes: tuple[Outcome, ...]
    end: Boundary | None
    failures: int = 0
    deaths: int = 0

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The outcomes that are answers."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Answer))


class LogReader:
    """The stages of a log, in order."""

    def __init__(self, storage: Storage, log: Log) -> None:
        self._storage = storage
        self._parts = list(log.parts)
        self._position = log.position
        self._warnings = OnceLogger(logger)
        self._reader = self._next_reader()
        self._records = self._all_records()

    @property
    def end(self) -> Link:
        """The end of what was read."""
        return Link(name=self._reader.name, end=self._reader.offset)

    @property
    def problem(self) -> str | None:
        """Why a record does not verify, and nothing behind it is read. None if there is no such record."""
        return self._reader.problem

    def next_stage(self) -> Stage:
        """Return the next stage.

        Raises:
            StoreError: The storage can't be read.
        """
        outcomes: list[Outcome] = []
        failures = deaths = 0
        for record in self._records:
            match record:
                case Answer() | Unanswered() | Left():
                    deaths = 0
                case Header():
                    deaths += record.digests is None
                case Failed():
                    failures, deaths = failures + (not record.causes(outcomes)), 0
                case Void():
                    failures = deaths = 0
                case Boundary() if record.position != self._position:
                    self._position = record.position
                    return Stage(outcomes=tuple(outcomes), end=record)
            apply(record, outcomes)
        return Stage(outcomes=tuple(outcomes), end=None, failures=failures, deaths=deaths)

    def more(self) -> Iterator[Record]:
        """Yield what was appended since the last call, for a log that grows.

        Raises:
            StoreError: The storage can't be read.
        """
        return self._all_records()

    def _next_reader(self) -> SegmentReader:
        part = self._parts.pop(0)
        return SegmentReader(self._storage, part.name, start=part.start, end=part.end)

    def _all_records(self) -> Iterator[Record]:
        while True:
            reader = self._reader
            yield from reader.records()
            if reader.problem is not None or reader.is_short:
                # What the next segment continues is not all here. A shared file system may show it later.
                self._warn(reader.problem or "bytes are missing that the next segment continues")
                return
            if not self._parts:
                return
            self._reader = self._next_reader()

    def _warn(self, problem: str) -> None:
        self._warnings.warning(
            "journal cut off at byte %d of %s: %s. The answers after it are asked for again",
            self._reader.offset,
            self._reader.name,
            problem,
        )
