"""Write the journal in a thread of its own: many answers in one durable append, in the order of training.

`append` takes a record and returns. Its `done` is called when the record is durable, so that training sees an answer
after the journal has it. While an append fails, training goes on: `done` is called, records wait in memory, and the
append is repeated. If no retry can help, the segment is given up, and ends there.

A segment holds all that its writer has done since the segment's beginning. A worker that can't vouch for that writes
none: a follower that becomes leader, or a leader that has given its segment up. It needs a checkpoint to begin at, see
`wants_checkpoint`. Until then, the records since the last boundary (the stage) are kept in memory. They are written
when a notice commits that boundary. Under a new term, they begin the new segment.

When the lease has run out, another worker may lead and have read this segment. So nothing is appended until the next
heartbeat has found out, at most 5 seconds (`DOUBT_LOOKS`), and no longer than a close may take.

The limit: `_MAX_WAITING` bytes wait for a storage. With more, the segment is given up.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from distributed_backup.checkpoints.journal_format import (
    Boundary,
    Digests,
    Left,
    Link,
    Record,
    encode_record,
    is_answer,
)
from distributed_backup.checkpoints.open_segment import KeptStage, OpenSegment, SegmentStart
from distributed_backup.clock import Clock
from distributed_backup.errors import StoreError
from distributed_backup.once import OnceLogger
from distributed_backup.position import Position
from distributed_backup.storage.base import Storage

logger = logging.getLogger(__name__)

# Seconds between two tries of an append that failed.
_RETRY_PERIOD: Final = 0.5
# Bytes that wait for the storage, and bytes of one stage that are kept for a notice.
_MAX_WAITING: Final = 64 * 2**20
# Seconds between two looks at a lease that has run out, and the most looks. Counted, so that a suspension uses up one.
DOUBT_PERIOD: Final = 0.02
DOUBT_LOOKS: Final = 250
# With more steps waiting, the storage hangs, and the state of a boundary is not kept for its digests.
_MANY_STEPS: Final = 64

type Done = Callable[[], None]


class JournalWriter:
    """The journal of one worker.

    `term` returns the term to write under, None while this worker may not write. `run_id` returns the id of the run.
    `on_append` is called after each append, in the thread, which the first record starts. It must not block.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        worker_id: str,
        clock: Clock,
        term: Callable[[], int | None],
        run_id: Callable[[], str | None],
        on_append: Callable[[], None] = lambda: None,
    ) -> None:
        self._storage, self._worker_id, self._clock = storage, worker_id, clock
        self._term, self._run_id = term, run_id
        self._on_append = on_append
        self._warnings = OnceLogger(logger)
        self._condition = threading.Condition()
        self._steps: list[Callable[[], None]] = []
        self._waiting = 0
        self._is_urgent = self._stopped = self._is_replaying = self._is_deposed = False
        self._deadline = math.inf
        # Ends a pause of the thread: it waits until its next append.
        self._pause = threading.Event()
        self._thread: threading.Thread | None = None
        # Of the thread alone, from here on.
        self._segment: OpenSegment | None = None
        self._stage = KeptStage()
        self._lines: list[bytes] = []
        self._done: deque[Done] = deque()
        self.is_in_doubt: Callable[[], bool] = lambda: False
        """Returns whether the lease has run out since the last heartbeat."""
        self.answers = 0
        """Answers in what this worker has appended."""
        self.bytes = 0
        """Bytes that this worker has appended."""

    # ---------------------------------------------------------------- from the training thread

    @property
    def is_waited_for(self) -> bool:
        """Whether an answer waits for its append. Not where appends are expensive, as in a bucket."""
        return self._storage.append_interval == 0

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the next boundary must be committed, so that a segment can begin there."""
        return self._segment is None and not self._is_replaying and (self._term() is not None or self.is_in_doubt())

    def replay_begins(self) -> None:
        """Write nothing before `begin_at` or `continue_log`: what the fit does now is in a log already.

        Call it before the others.
        """
        self._is_replaying = True

    def begin_at(self, boundary: Boundary, records: Iterable[Record] = (), *, done: Done = lambda: None) -> None:
        """Begin a segment at a boundary whose checkpoint is durable or due, with what was recorded since then.

        It continues no log. It is written now, at once, then `done` is called.
        """
        start = SegmentStart(position=boundary.position, after=None, digests=boundary.digests)
        self._add(lambda: self._begin_at(start, records, done))

    def continue_log(self, link: Link, last: Boundary, *, mark: Record | None, done: Done = lambda: None) -> None:
        """Begin a segment that continues a log at its end, after the boundary `last`, with the record `mark` if any.

        It is written now, then `done` is called. Its header counts the starts that die in the replay after `last`.
        """
        start = SegmentStart(position=last.position, after=link, digests=None)
        self._add(lambda: self._begin_at(start, () if mark is None else (mark,), done))

    def append(self, record: Record, done: Done) -> None:
        """Append a record. `done` is called once, from any thread: when the record is durable, or will not be."""
        line = encode_record(record)
        if self._waiting > _MAX_WAITING:
            is_added = self._add(lambda: self._drop(done))
        else:
            is_added = self._add(lambda: self._append(line, done), size=len(line))
        if not is_added:
            done()

    def boundary(self, position: Position, digests: Callable[[], Digests], *, due: bool) -> None:
        """Mark a boundary, once. `due`: its checkpoint is about to be committed, so a new segment begins."""
        if len(self._steps) > _MANY_STEPS:
            made = digests()
            digests = lambda: made  # noqa: E731 - it forgets the state
        self._add(lambda: self._mark(Boundary(position=position, digests=digests()), due=due))

    def give_up(self) -> None:
        """Write nothing more before the next checkpoint: this fit does not follow the log any more."""
        self._add(self._abandon)

    def step_down(self) -> None:
        """Write nothing more before `continue_log`: another worker leads, and this fit follows its journal.

        What waits for its append is dropped.
        """
        self._is_replaying = self._is_deposed = True
        self._add(self._release_segment)

    def write_stage(self) -> None:
        """Write what was kept since the last boundary, under the term of now. From any thread."""
        if self._thread is not None:
            self._add(self._write_stage, urgent=True)

    def lead_again(self, *, timeout: float = 0.0) -> None:
        """Write what was kept since the last boundary under a new term, if a log or a checkpoint leads there.

        Wait so long for it, if at all. Then a segment begins even if nothing was kept. From any thread.
        """
        begun = threading.Event()
        if self._thread is not None and self._add(lambda: self._lead_again(begun.set, waits=timeout > 0), urgent=True):
            begun.wait(timeout)

    def close(self, *, timeout: float) -> None:
        """Append what waits within `timeout` seconds, and end the thread. May be called again."""
        if self._thread is not None:
            self._add(self._leave, urgent=True)
        with self._condition:
            if not self._stopped:
                self._deadline = self._clock.now() + timeout
            self._stopped = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)

    def _add(self, step: Callable[[], None], *, size: int = 0, urgent: bool = False) -> bool:
        """Have the thread take a step. Return False if it ends."""
        with self._condition:
            if self._stopped:
                return False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="distributed-backup-journal", daemon=True)
                self._thread.start()
            self._steps.append(step)
            self._waiting += size
            if urgent:
                self._is_urgent = True
                self._pause.set()
            self._condition.notify_all()
            return True

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._steps or self._stopped)
                steps, self._steps, self._waiting, self._is_urgent = self._steps, [], 0, False
                self._pause.clear()
                is_last = self._stopped
            for step in (*steps, self._flush):
                self._take(step)
            if is_last:
                return
            if self._storage.append_interval > 0 and not self._is_urgent:
                self._clock.wait(self._pause, self._storage.append_interval)

    def _take(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:
            # A dead thread would lose all later answers silently.
            logger.exception("the journal failed, and records nothing until the next checkpoint")
            self._lose()

    def _begin_at(self, start: SegmentStart, records: Iterable[Record], done: Done) -> None:
        self._done.append(done)
        self._is_replaying = False
        self._stage = KeptStage(start=start, is_reachable=True)
        lines = list(map(encode_record, records))
        self._stage.keep(*lines, limit=_MAX_WAITING)
        if self._begin():
            self._lines = lines
        # At once, so that no worker takes what a former leader appends late.
        self._flush(even_if_empty=True)

    def _append(self, line: bytes, done: Done) -> None:
        self._follow_term()
        self._stage.keep(line, limit=_MAX_WAITING)
        if self._segment is None:
            done()
            return
        self._lines.append(line)
        self._done.append(done)

    def _drop(self, done: Done) -> None:
        """Leave out a record. No segment may have a gap, so this one ends before it."""
        self._done.append(done)
        self._flush()
        self._lose()

    def _mark(self, boundary: Boundary, *, due: bool) -> None:
        after = None
        if self._segment is not None:
            self._lines.append(encode_record(boundary))
            after = self._segment.end(self._lines)
        start = SegmentStart(position=boundary.position, after=after, digests=boundary.digests)
        self._stage = KeptStage(start=start, is_reachable=after is not None)
        if due and not self._is_replaying:
            self._flush()
            self._begin()

    def _follow_term(self) -> None:
        """Write the stage to another segment if this worker leads under another term. Older ones count less."""
        # It needs no other segment at the last boundary, because another leader may have pruned them.
        term, segment = self._term(), self._segment
        if segment is not None and term is not None and term != segment.header.term:
            self._flush()
            # It may have been given up.
            if self._segment is not None or self._stage.is_reachable:
                self._segment = None
                self._begin_with_stage()
                # Without digests, a header counts as a start: see `continue_log`.
                self._flush(even_if_empty=self._stage.is_at_boundary)

    def _begin(self) -> bool:
        """Begin a segment if this worker may write. Else one that is open goes on, because all in it is true."""
        if self._term() is None:
            self._may_append()  # a leader in doubt has none at the moment
        term, run_id, start = self._term(), self._run_id(), self._stage.start
        if term is None or run_id is None or start is None:
            return False
        self._segment = start.open(run_id=run_id, term=term, worker_id=self._worker_id)
        return True

    def _write_stage(self) -> None:
        self._follow_term()
        self._begin_with_stage()

    def _lead_again(self, done: Done, *, waits: bool) -> None:
        self._follow_term()
        # The lease was lost before the segment could begin.
        if is_owed := self._segment is None and self._stage.is_reachable:
            self._begin_with_stage()
        self._done.append(done)
        self._flush(even_if_empty=waits or is_owed)

    def _begin_with_stage(self) -> None:
        if self._segment is None and not self._is_replaying and self._stage.lines is not None and self._begin():
            self._lines = self._stage.lines[:]

    def _leave(self) -> None:
        if self._segment is not None and (self._segment.size > 0 or self._lines):
            self._lines.append(encode_record(Left()))

    def _release_segment(self) -> None:
        # Again: a `continue_log` from before the change may have come between.
        self._is_replaying = True
        self._segment, self._lines, self._is_deposed = None, [], False
        self._release()

    def _abandon(self) -> None:
        self._flush()
        self._is_replaying = False
        self._lose()

    def _lose(self) -> None:
        """Give the segment and the stage up: they do not hold all that this worker does."""
        self._segment, self._stage.lines, self._lines = None, None, []
        self._release()

    def _flush(self, *, even_if_empty: bool = False) -> None:
        segment = self._segment
        while segment is not None and (self._lines or (even_if_empty and segment.size == 0)):
            if not self._may_append():
                self._segment, self._lines = None, []
                break
            data = segment.data(self._lines)
            try:
                self._storage.append(segment.header.name, data, at=segment.size)
            except StoreError as error:
                self._release()
                if self._must_give_up(error):
                    self._stage.cut_off(segment)
                    self._segment, self._lines = None, []
                    return
                continue
            segment.size += len(data)
            self.bytes += len(data)
            self.answers += sum(map(is_answer, self._lines))
            self._lines = []
            self._warnings.reset()
            self._on_append()
        self._release()

    def _may_append(self) -> bool:
        """Wait while it is in doubt who leads. Return False if another worker does: followers read what it has read."""
        for _ in range(DOUBT_LOOKS):
            if not self.is_in_doubt() or self._clock.now() + DOUBT_PERIOD > self._deadline:
                break
            self._clock.wait(threading.Event(), DOUBT_PERIOD)
        return not self._is_deposed

    def _must_give_up(self, error: StoreError) -> bool:
        """Wait for the next try of an append. Return True if there must be none."""
        is_over = self._clock.now() + _RETRY_PERIOD > self._deadline
        must = is_over or not error.retryable or self._waiting > _MAX_WAITING
        then = "Answers are not recorded until the next checkpoint" if must else "It is tried again"
        self._warnings.warning("the journal can't be written worker=%s reason=%s. %s", self._worker_id, error, then)
        if not must:
            self._clock.wait(self._pause, _RETRY_PERIOD)
            self._pause.clear()
        return must

    def _release(self) -> None:
        while self._done:
            self._done.popleft()()
