"""Write the journal in a thread of its own: many answers in one durable append, in the order of training.

`append` takes a record and returns. Its `done` is called when the record is durable, so that training sees an answer
after the journal has it. While an append fails, records wait in memory and the append is repeated.

A segment must hold all that its writer has done since the segment's beginning. So a worker that can't vouch for that
writes none: a follower that becomes leader, or a leader whose segment was removed. It needs a checkpoint to begin at,
see `wants_checkpoint`. Until then, the records of the current stage are kept in memory. A notice that commits the
last boundary writes them, too.

The limit: `_MAX_WAITING` bytes wait. With more, the segment is given up.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from distributed_backup.checkpoints.journal_format import (
    Boundary,
    Digests,
    Header,
    Left,
    Link,
    Record,
    encode_record,
    is_answer,
)
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

type Done = Callable[[], None]


@dataclass(slots=True, kw_only=True)
class _Segment:
    """The segment that is appended to. Its first append creates it, and begins with the header."""

    header: Header
    size: int = 0


class JournalWriter:
    """The journal of one worker.

    `term` returns the term to write under, None while this worker may not write. `run_id` returns the id of the run.
    The thread is started by the first record, so a worker without a journal has none.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        worker_id: str,
        clock: Clock,
        term: Callable[[], int | None],
        run_id: Callable[[], str | None],
    ) -> None:
        self._storage = storage
        self._worker_id = worker_id
        self._clock = clock
        self._term = term
        self._run_id = run_id
        self._warnings = OnceLogger(logger)
        self._condition = threading.Condition()
        self._steps: list[Callable[[], None]] = []
        self._waiting = 0
        self._is_urgent = self._stopped = False
        self._pause = threading.Event()
        self._thread: threading.Thread | None = None
        # Of the thread alone, from here on.
        self._segment: _Segment | None = None
        self._is_replaying = False
        self._last: Boundary | None = None
        self._stage: list[bytes] | None = []
        self._stage_size = 0
        self._lines: list[bytes] = []
        self._done: list[Done] = []
        self.answers = 0
        """Answers that this worker has recorded."""
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
        return self._segment is None and not self._is_replaying and self._term() is not None

    def replay_begins(self) -> None:
        """Write nothing before `continue_log`: what the fit does now is in a log already. Call it before the others."""
        self._is_replaying = True

    def begin_at(self, boundary: Boundary) -> None:
        """Begin a segment at a boundary whose checkpoint is durable. No log continues it."""
        self._add(lambda: self._begin_at(boundary))

    def continue_log(self, link: Link, last: Boundary, *, mark: Record | None) -> None:
        """Begin a segment that continues a log at its end, after the boundary `last`, with the record `mark` if any.

        The header is written now. It counts the starts that die in the replay of what follows `last`.
        """
        self._add(lambda: self._continue(link, last, mark))

    def append(self, record: Record, done: Done) -> None:
        """Append a record. `done` is called from the thread when it is durable, or when nothing waits for that."""
        line = encode_record(record)
        self._add(lambda: self._append(line, done), size=len(line))

    def note_replayed(self, record: Record) -> None:
        """Count a record of the log to the current stage."""
        line = encode_record(record)
        self._add(lambda: self._keep(line), size=len(line))

    def boundary(self, position: Position, digests: Callable[[], Digests], *, due: bool) -> None:
        """Mark a boundary. `due`: its checkpoint is about to be committed, so a new segment begins."""
        self._add(lambda: self._mark(Boundary(position=position, digests=digests()), due=due))

    def give_up(self) -> None:
        """Write nothing more before the next checkpoint: this fit does not follow the log any more."""
        self._add(self._abandon)

    def step_down(self) -> None:
        """Write nothing more before `continue_log`: another worker leads, and this fit follows its journal."""
        self._is_replaying = True
        self._add(self._release_segment)

    def write_stage(self) -> None:
        """Write what was kept since the last boundary, whose checkpoint is about to be committed. From any thread."""
        if self._thread is not None:
            self._add(self._write_stage, urgent=True)

    def close(self, *, timeout: float) -> None:
        """Append what waits within `timeout` seconds, and end the thread. May be called again."""
        if self._thread is not None:
            self._add(self._leave)
        with self._condition:
            self._stopped = True
            self._pause.set()
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)

    def _add(self, step: Callable[[], None], *, size: int = 0, urgent: bool = False) -> None:
        with self._condition:
            if self._stopped:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="distributed-backup-journal", daemon=True)
                self._thread.start()
            self._steps.append(step)
            self._waiting += size
            self._is_urgent = self._is_urgent or urgent
            if urgent:
                self._pause.set()
            self._condition.notify_all()

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._steps or self._stopped)
                steps, self._steps = self._steps, []
                self._waiting, self._is_urgent = 0, False
                self._pause.clear()
                is_last = self._stopped
            for step in steps:
                step()
            self._flush()
            if is_last:
                return
            if self._storage.append_interval > 0:
                self._clock.wait(self._pause, self._storage.append_interval)

    def _begin_at(self, boundary: Boundary) -> None:
        self._set_last(boundary)
        self._begin(boundary.position, after=None, digests=boundary.digests)

    def _set_last(self, boundary: Boundary) -> None:
        self._last, self._stage, self._stage_size = boundary, [], 0

    def _continue(self, link: Link, last: Boundary, mark: Record | None) -> None:
        self._is_replaying = False
        self._set_last(last)
        if self._begin(last.position, after=link, digests=None):
            self._lines = [] if mark is None else [encode_record(mark)]
            self._flush(even_if_empty=True)

    def _append(self, line: bytes, done: Done) -> None:
        self._keep(line)
        if self._segment is None:
            done()
            return
        self._follow_term()
        self._lines.append(line)
        self._done.append(done)

    def _keep(self, line: bytes) -> None:
        if self._stage is not None:
            self._stage.append(line)
            self._stage_size += len(line)
            if self._stage_size > _MAX_WAITING:
                self._stage = None

    def _mark(self, boundary: Boundary, *, due: bool) -> None:
        self._set_last(boundary)
        if self._is_replaying:
            return
        if self._segment is not None:
            self._follow_term()
            self._lines.append(encode_record(boundary))
        if due:
            self._flush()
            after = None if self._segment is None else Link(name=self._segment.header.name, end=self._segment.size)
            self._begin(boundary.position, after=after, digests=boundary.digests)

    def _follow_term(self) -> None:
        """Begin another segment if this worker leads under another term: older ones do not count beside it."""
        segment, term, last = self._segment, self._term(), self._last
        if segment is None or last is None or term is None or term == segment.header.term:
            return
        self._flush()
        if self._segment is not None:
            self._begin(last.position, after=Link(name=segment.header.name, end=segment.size), digests=None)

    def _begin(self, position: Position, *, after: Link | None, digests: Digests | None) -> bool:
        """Begin a segment if this worker may write. Else one that is open goes on, because all in it is true."""
        term, run_id = self._term(), self._run_id()
        if term is None or run_id is None:
            return False
        header = Header(
            run_id=run_id,
            term=term,
            worker_id=self._worker_id,
            position=position,
            after=after,
            digests=digests,
        )
        self._segment = _Segment(header=header)
        return True

    def _write_stage(self) -> None:
        if self._segment is not None or self._is_replaying or self._last is None or self._stage is None:
            return
        if self._begin(self._last.position, after=None, digests=self._last.digests):
            self._lines = self._stage[:]

    def _leave(self) -> None:
        if self._segment is not None and (self._segment.size > 0 or self._lines):
            self._lines.append(encode_record(Left()))

    def _release_segment(self) -> None:
        self._flush()
        self._segment = None

    def _abandon(self) -> None:
        self._flush()
        self._is_replaying = False
        self._segment, self._stage = None, None

    def _flush(self, *, even_if_empty: bool = False) -> None:
        segment = self._segment
        while segment is not None and (self._lines or (even_if_empty and segment.size == 0)):
            data = b"".join(self._lines)
            if segment.size == 0:
                data = encode_record(segment.header) + data
            try:
                self._storage.append(segment.header.name, data, at=segment.size)
            except StoreError as error:
                self._release()
                if self._must_give_up(error):
                    self._segment, self._lines = None, []
                    return
                continue
            segment.size += len(data)
            self.bytes += len(data)
            self.answers += sum(map(is_answer, self._lines))
            self._lines = []
            self._warnings.reset()
            even_if_empty = False
        self._release()

    def _must_give_up(self, error: StoreError) -> bool:
        """Wait for the next try of an append. Return whether there must be none."""
        with self._condition:
            is_over = self._stopped or self._waiting > _MAX_WAITING or not error.retryable
        self._warnings.warning(
            "the journal can't be written worker=%s reason=%s. %s",
            self._worker_id,
            error,
            "Answers are not recorded until the next checkpoint" if is_over else "It is tried again",
        )
        return is_over or (self._clock.wait(self._pause, _RETRY_PERIOD) and self._stopped)

    def _release(self) -> None:
        done, self._done = self._done, []
        for each in done:
            each()
