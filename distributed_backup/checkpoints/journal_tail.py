"""Read a log while its writer appends, in a thread of its own, for a follower that takes the leader's answers.

The segments of a run change: a scheduled commit begins a new one, and so does a new leader. So the log is looked up
again when the list of segments changes, from the last boundary that was read. What was read since then must be its
beginning. Otherwise the new leader has not read all that this worker has, and the tail is lost. The list is read each
`_LISTING_PERIOD`. After a boundary each poll reads it, because the next answer may be in a new segment.

A leader that was suspended in an append may end it when its successor has read the log. So a record counts if no newer
term was claimed before it was read: each leader claims its term, and then reads the log. Otherwise the tail waits for
the segment of the new leader, which says what that leader has read.

A worker that starts does not wait for a claim that it finds. Its leader may replay the log for long before it writes.

The limits: what a slow follower has not come to waits in its memory. A worker that starts may read what the last leader
appends late. It is lost then.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from distributed_backup.checkpoints.fencing import highest_term_among
from distributed_backup.checkpoints.format import checkpoints_among, parse_name
from distributed_backup.checkpoints.journal import (
    Log,
    LogReader,
    Part,
    SegmentReader,
    find_log,
    segments_among,
    term_of_segment,
)
from distributed_backup.checkpoints.journal_format import (
    Answer,
    Boundary,
    Failed,
    Header,
    Link,
    LogEnd,
    Outcome,
    Record,
    Void,
    apply,
    parse_segment_name,
)
from distributed_backup.clock import Clock
from distributed_backup.errors import StoreError
from distributed_backup.once import OnceLogger
from distributed_backup.position import Position
from distributed_backup.storage.base import Names, Storage

logger = logging.getLogger(__name__)

# Seconds between two listings in the middle of a stage.
_LISTING_PERIOD: Final = 0.5
# Seconds for which the newest segment may not continue what was read.
_PATIENCE: Final = 2.0
# Seconds without any log to follow, after which a warning says so.
_WARN_LIMIT: Final = 30.0
# Records that are handed over at once.
_MOST_RECORDS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TailListener:
    """What a tail calls from its thread. Each of the last two ends the thread.

    `deliver` gets records. `ended` gets the end of the log after `finish`. `lost` gets the reason why the log can't be
    followed any more.
    """

    deliver: Callable[[list[Record]], None]
    ended: Callable[[LogEnd], None]
    lost: Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TailStart:
    """Where a tail begins: after `boundary`, and after the outcomes in `seen` that its worker has used since then.

    `led_by` is that worker if it has come to the boundary as a leader. None if the boundary is that of a checkpoint.
    """

    boundary: Boundary
    seen: Sequence[Outcome] = ()
    led_by: str | None = None


class LogTail:
    """The records after `start`, as they are appended."""

    def __init__(
        self,
        storage: Storage,
        *,
        run_id: str,
        start: TailStart,
        clock: Clock,
        listener: TailListener,
    ) -> None:
        self._storage = storage
        self._run_id = run_id
        self._last = start.boundary
        self._led_by = start.led_by
        self._clock = clock
        self._listener = listener
        self._wake = threading.Event()
        self._finishes = self._stopped = False
        self._names: Names = []
        self._listed_at: float | None = None
        self._reader: LogReader | None = None
        self._newest = ""
        # The end of what was delivered, and what was read since then, each record with its end.
        self._delivered: Link | None = None
        self._held: list[tuple[Record, Link]] = []
        # The newest term when the first look was taken. 0: this worker has led, and may find its own late append.
        self._known_term = None if start.led_by is None else 0
        self._strange_since: float | None = None
        self._warns_at = clock.now() + _WARN_LIMIT
        # Outcomes since the last boundary.
        self._seen = [_short(outcome) for outcome in start.seen]
        self._warnings = OnceLogger(logger)
        self._thread = threading.Thread(target=self._run, name="distributed-backup-tail", daemon=True)

    def start(self) -> None:
        """Start reading."""
        self._thread.start()

    def wake(self) -> None:
        """Look now for what was appended. Otherwise the next look comes after `Storage.poll_interval`."""
        self._wake.set()

    def finish(self) -> None:
        """Read what is there, then call `ended`: this worker leads, so what others append later does not count."""
        self._finishes = True
        self._wake.set()

    def stop(self) -> None:
        """Stop reading."""
        self._stopped = True
        self._wake.set()

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            self._read_all()
        except Exception as error:
            # Without its tail the follower would wait for ever.
            logger.exception("the journal can't be read")
            self._listener.lost(f"the journal can't be read: {error!r}")

    def _read_all(self) -> None:
        while not self._stopped:
            # First, so that what is noted after this look has begun wakes the next one.
            self._wake.clear()
            finishes = self._finishes
            self._warn_of_no_log()
            try:
                reason = self._locate(now=finishes)
                records = [] if reason is not None else self._read(finishes=finishes)
                newest = self._newest_position() if finishes and not records else Position(0)
            except StoreError as error:
                if finishes and isinstance(error.__cause__, FileNotFoundError):
                    # The others have finished and deleted the run while this worker was suspended.
                    self._listener.lost("its journal was removed")
                    return
                self._warn(error)
                self._clock.wait(self._wake, _LISTING_PERIOD)
                continue
            if reason is not None:
                self._listener.lost(reason)
                return
            if records:
                for record in records:
                    self._note(record)
                self._listener.deliver(records)
            elif finishes:
                link = None if self._reader is None else self._reader.end
                self._listener.ended(LogEnd(link=link, newest=newest))
                return
            elif self._reader is not None and self._reader.problem is not None and not self._held:
                self._listener.lost(f"the journal is damaged: {self._reader.problem}")
                return
            else:
                self._clock.wait(self._wake, self._storage.poll_interval)

    def _warn_of_no_log(self) -> None:
        if self._reader is not None or self._names:
            self._warns_at = math.inf
        if self._clock.now() > self._warns_at:
            self._warns_at = math.inf
            logger.warning(
                "no journal of the leader has been found in %g s, so this worker waits. If the leader runs with "
                "another journal= or save_freq= than this worker, give all workers the same",
                _WARN_LIMIT,
            )

    def _warn(self, error: StoreError) -> None:
        # After `stop` the fit has ended, and the worker closes the storage.
        if not self._stopped:
            self._warnings.warning("the journal can't be read, retrying: %s", error)

    def _read(self, *, finishes: bool) -> list[Record]:
        if self._reader is None:
            return []
        try:
            # There is nothing more to read before the new leader begins a segment.
            if not self._held:
                for record in islice(self._reader.more(), _MOST_RECORDS):
                    self._held.append((record, self._reader.end))
        except StoreError:
            # The reader is behind these records. The next call raises the error again.
            if not self._held:
                raise
        if not self._held or not (finishes or self._is_newest_term()):
            return []
        records = [record for record, _ in self._held]
        self._delivered, self._held = self._held[-1][1], []
        return records

    def _is_newest_term(self) -> bool:
        known = max(self._known_term or 0, term_of_segment(self._newest))
        return highest_term_among(self._storage.names()) <= known

    def _newest_position(self) -> Position:
        newest = map(parse_name, checkpoints_among(self._storage.names())[:1])
        return next((parsed[1] for parsed in newest if parsed is not None), Position(0))

    def _note(self, record: Record) -> None:
        if isinstance(record, Boundary):
            self._last, self._seen = record, []
        else:
            apply(_short(record), self._seen)

    def _locate(self, *, now: bool) -> str | None:
        """Find the log again if the segments have changed. Return why it can't be followed, or None."""
        instant = self._clock.now()
        is_listed = self._listed_at is not None and instant - self._listed_at < _LISTING_PERIOD
        if is_listed and not (now or self._awaits_segment):
            return None
        self._listed_at = instant
        found = self._storage.names()
        if self._known_term is None:
            self._known_term = highest_term_among(found)
        names = segments_among(found)
        if names == self._names and not (now and self._reader is None):
            return None
        log = find_log(self._storage, run_id=self._run_id, position=self._last.position, digests=self._last.digests)
        newest = self._newest_among(names)
        reason = None
        if log is not None and log.parts[-1].name == newest:
            reason = None if newest == self._newest else self._change_to(log)
        elif newest is not None and (rest := self._rest_up_to(newest, names)):
            self._reader = LogReader(self._storage, Log(position=self._last.position, parts=rest))
            self._newest = newest
        else:
            if self._held:
                # The new leader has not read them.
                self._reader, self._newest, self._held = None, "", []
            return self._reason_to_leave(newest, instant, now=now)
        # A header that is not complete may still become it.
        self._names, self._strange_since = names if newest == names[0] else [], None
        return reason

    @property
    def _awaits_segment(self) -> bool:
        """Whether the last record is a boundary. False while the log is unclear: a look at it may read all segments."""
        return bool(self._names) and not self._seen and self._strange_since is None

    def _rest_up_to(self, newest: str, names: Names) -> tuple[Part, ...]:
        """Return the segments in `names` that continue what was read, up to `newest`. Empty if one is missing.

        A new leader may have committed and pruned the segment that was read, between two listings. What it has not
        read of that segment is dropped.
        """
        rest: list[Part] = []
        name, end = newest, None
        while self._reader is not None and name in names and name > self._newest:
            header = SegmentReader(self._storage, name).header()
            if header is None or header.run_id != self._run_id or header.after is None:
                break
            rest.insert(0, Part(name=name, start=0, end=end))
            if (between := self._unread_before(header.after, names)) is not None:
                return (between, *rest)
            if header.after.name >= name:
                break
            name, end = header.after.name, header.after.end
        return ()

    def _unread_before(self, link: Link, names: Names) -> Part | None:
        """Return what is to be read before `link`, and drop what was read behind it. None if it leads elsewhere."""
        assert self._reader is not None
        reached = self._reader.end
        if link.name == reached.name and link.end > reached.end:
            return Part(name=link.name, start=reached.end, end=link.end) if link.name in names else None
        ends = [self._delivered, *(end for _, end in self._held)]
        if link not in ends:
            return None
        self._held = self._held[: ends.index(link)]
        return Part(name=link.name, start=link.end, end=link.end)

    def _newest_among(self, names: Names) -> str | None:
        """Return the newest segment with a complete header. A leader that was killed may have left one without."""
        return next((name for name in names if SegmentReader(self._storage, name).header() is not None), None)

    def _reason_to_leave(self, newest: str | None, instant: float, *, now: bool) -> str | None:
        """Return why the log can't be followed any more, if the newest segment does not continue it."""
        self._strange_since = instant if self._strange_since is None else self._strange_since
        if newest is not None and self._has_other_state(newest):
            return f"the leader has come to another state at {self._last.position}"
        # Of a log that others have brought further, this worker lacks the answers. It must not ask for them again.
        is_passed = newest is not None and (parse_segment_name(newest) or (0, Position(0)))[1] >= self._last.position
        # Its own state has no checkpoint, and a successor that was behind it may have asked for other answers.
        is_passed = is_passed or (now and newest is not None and self._is_of_successor(newest))
        # The leader of a start may have recorded nothing yet, and this worker may be ahead of a new leader.
        is_over = instant - self._strange_since > _PATIENCE and (is_passed or self._reader is not None)
        return "the leader has begun another log" if (is_passed if now else is_over) else None

    def _is_of_successor(self, name: str) -> bool:
        """Whether another worker has written this segment, since the worker of this tail has led."""
        header = SegmentReader(self._storage, name).header()
        return (
            self._reader is None
            and self._led_by is not None
            and header is not None
            and header.worker_id != self._led_by
        )

    def _has_other_state(self, name: str) -> bool:
        for record in SegmentReader(self._storage, name):
            if isinstance(record, Header | Boundary) and record.position == self._last.position:
                return record.digests not in (None, self._last.digests)
        return False

    def _change_to(self, log: Log) -> str | None:
        """Read this log from now on. Return why it can't be followed, or None."""
        count = self._count_seen(LogReader(self._storage, log).more())
        if count is None:
            return "the new leader has not recorded all answers that this worker has used"
        self._reader, self._newest, self._held = LogReader(self._storage, log), log.parts[-1].name, []
        deque(islice(self._reader.more(), count), maxlen=0)
        self._delivered = self._reader.end
        return None

    def _count_seen(self, records: Iterable[Record]) -> int | None:
        """Return how many of these records lead to what this worker has seen. None if they do not."""
        outcomes: list[Outcome] = []
        count = None if self._seen else 0
        for index, record in enumerate(records, start=1):
            if isinstance(record, Boundary) and record.position != self._last.position:
                break
            apply(_short(record), outcomes)
            if isinstance(record, Void) or (isinstance(record, Failed) and outcomes[: len(self._seen)] != self._seen):
                count = None
            if count is None and outcomes == self._seen:
                count = index
        return count


def _short[R: Record](record: R) -> R:
    """Return a record without the value of its answer, which may be large."""
    return replace(record, value=b"%d" % hash(record.value)) if isinstance(record, Answer) else record
