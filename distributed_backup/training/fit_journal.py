"""The journal of one fit: from the checkpoint it begins with, through its boundaries, to its end.

It connects the requests to models (`model_calls`), what becomes of them (`answers`), the log on the storage, and the
election: the leader asks and records, and followers take its answers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from distributed_backup.checkpoints.format import Checkpoint
from distributed_backup.checkpoints.journal import LogReader
from distributed_backup.checkpoints.journal_format import Boundary, Digests, Link, Record
from distributed_backup.checkpoints.journal_tail import LogTail
from distributed_backup.checkpoints.state_digests import digests_in
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import Clock
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from distributed_backup.training.answers import Answers
from distributed_backup.training.model_calls import ModelCalls
from distributed_backup.training.replay import Replay
from distributed_backup.training.settings import SessionOptions
from distributed_backup.worker.worker import Worker

logger = logging.getLogger(__name__)

# Seconds that a start waits for a storage that does not answer, before it asks for all answers again.
_READ_LIMIT: Final = 30.0
_READ_PERIOD: Final = 0.5


class FitJournal:
    """The journal of one fit. With `journal=False` it does nothing."""

    def __init__(self, worker: Worker, options: SessionOptions, *, store: CheckpointStore, clock: Clock) -> None:
        self._worker = worker
        self._writer = worker.journal
        self._store = store
        self._clock = clock
        self._is_kept = options.journal
        self._may_commit = options.save_freq is not False
        self._may_follow = options.worker.follows_journal
        self._replay = Replay(self._writer, worker.report, self._on_lost)
        self._answers = Answers(self._writer, self._replay)
        self._calls = ModelCalls(self._answers, options.journal_of)
        self._tail: LogTail | None = None

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Record from now on, and follow what was recorded since `checkpoint`.

        `checkpoint` is None for a fit that follows no log: it starts from the beginning, or its data has changed.
        """
        if not self._is_kept:
            return
        self._calls.install()
        self._replay.delivery.touch()
        if checkpoint is not None:
            start = Boundary(position=checkpoint.position, digests=digests_in(checkpoint.body))
            self._answers.start(start)
            if self._may_follow and not self._worker.leads:
                self._follow()
            else:
                self._begin_log(start)
        if self._may_follow:
            self._worker.standby.on_elected = self._on_elected
            self._worker.standby.on_deposed = partial(self._replay.delivery.call_from_thread, self._step_down)
            self._finish_if_leading()

    def _begin_log(self, start: Boundary) -> None:
        log = self._find_log(start)
        if log is None:
            self._writer.begin_at(start)
        else:
            self._replay.begin(log, start)

    def _find_log(self, start: Boundary) -> LogReader | None:
        deadline = self._clock.now() + _READ_LIMIT
        while True:
            try:
                return self._store.find_log(start.position, start.digests)
            except StoreError as error:
                if not error.retryable or self._clock.now() > deadline:
                    logger.warning("the journal can't be read, so its answers are asked for again: %s", error)
                    return None
            self._clock.wait(threading.Event(), _READ_PERIOD)

    def boundary(self, position: Position, digests: Callable[[], Digests], *, due: bool) -> bool:
        """Note a boundary of the fit. Return whether to commit it: if it is due, or a segment needs its checkpoint."""
        if not self._is_kept:
            return due
        due = due or (self._may_commit and self._writer.wants_checkpoint)
        try:
            self._answers.boundary(position, digests, due=due)
        except StoreError as error:
            self._replay.diverged(f"the rest of the journal can't be read: {error}")
        return due

    def mark(self) -> None:
        """Note this point of the fit for `rewind`."""
        self._answers.mark()

    def rewind(self) -> None:
        """Go back to `mark`: what was answered since then is answered again, without a request."""
        self._answers.rewind()

    def failed(self, error: BaseException) -> None:
        """Note that an exception has left the fit."""
        if self._is_kept and isinstance(error, Exception):
            self._answers.failed(error)

    def end(self) -> None:
        """Leave the models as they were before the fit. May be called again."""
        if self._is_kept:
            self._stop_tail()
            self._calls.remove()
            self._answers.close()

    # ---------------------------------------------------------------- following the leader

    def _follow(self) -> None:
        """Take the answers of the leader from now on."""
        run_id = self._store.run_id
        assert run_id is not None
        in_loop = self._replay.delivery.call_from_thread
        start, seen = self._answers.since_boundary()

        def deliver(records: list[Record]) -> None:
            in_loop(lambda: self._replay.extend(records))

        def ended(link: Link | None) -> None:
            in_loop(lambda: self._replay.end_of_log(link))

        self._replay.follow(start)
        self._tail = LogTail(
            self._store.storage,
            run_id=run_id,
            start=start,
            seen=seen,
            clock=self._clock,
            deliver=deliver,
            ended=ended,
            lost=lambda reason: in_loop(lambda: self._replay.diverged(reason)),
        )
        self._tail.start()

    def _finish_if_leading(self) -> None:
        if self._worker.leads:
            self._on_elected()

    def _on_elected(self) -> None:
        if self._tail is not None:
            self._tail.finish()

    def _step_down(self) -> None:
        """Follow the worker that leads in the place of this one."""
        if self._worker.leads or self._replay.is_following or not self._answers.is_open:
            return
        self._stop_tail()
        self._writer.step_down()
        self._follow()
        # It may lead again by now.
        self._finish_if_leading()

    def _on_lost(self, reason: str) -> None:
        self._stop_tail()
        self._worker.standby.stand_down(reason)

    def _stop_tail(self) -> None:
        if self._tail is not None:
            self._tail.stop()
            self._tail = None
