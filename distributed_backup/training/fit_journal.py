"""The journal of one fit: from the checkpoint it begins with, through its boundaries, to its end.

It connects the requests to models (`model_calls`), what becomes of them (`answers`) and the log on the storage.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from distributed_backup.checkpoints.format import Checkpoint
from distributed_backup.checkpoints.journal import LogReader
from distributed_backup.checkpoints.journal_format import Boundary, Digests
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import Clock
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from distributed_backup.training.answers import Answers
from distributed_backup.training.model_calls import ModelCalls
from distributed_backup.training.settings import SessionOptions
from distributed_backup.training.state import TrainingState
from distributed_backup.worker.worker import Worker

logger = logging.getLogger(__name__)

# Seconds that a start waits for a storage that does not answer, before it asks for all answers again.
_READ_LIMIT: Final = 30.0
_READ_PERIOD: Final = 0.5


class FitJournal:
    """The journal of one fit. With `journal=False` it does nothing."""

    def __init__(self, worker: Worker, options: SessionOptions, *, store: CheckpointStore, clock: Clock) -> None:
        self._writer = worker.journal
        self._store = store
        self._clock = clock
        self._may_commit = options.save_freq is not False
        self._answers = Answers(worker.journal, worker.report) if options.journal else None
        self._calls = None if self._answers is None else ModelCalls(self._answers, options.journal_of)

    def begin(self, checkpoint: Checkpoint | None, state: TrainingState) -> None:
        """Record from now on, and replay what was recorded since `checkpoint`.

        `checkpoint` is None for a fit that follows no log: it starts from the beginning, or its data has changed.
        """
        if self._answers is None or self._calls is None:
            return
        if checkpoint is not None:
            start = Boundary(position=checkpoint.position, digests=state.digests(checkpoint.body))
            log = self._find_log(start)
            if log is None:
                self._writer.begin_at(start)
            else:
                self._answers.replay(log, start)
        self._calls.install()

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
        if self._answers is None:
            return due
        due = due or (self._may_commit and self._writer.wants_checkpoint)
        try:
            self._answers.boundary(position, digests, due=due)
        except StoreError as error:
            logger.warning("the rest of the journal can't be read, so its answers are asked for again: %s", error)
            self._answers.stop_replay()
        return due

    def mark(self) -> None:
        """Note this point of the fit for `rewind`."""
        if self._answers is not None:
            self._answers.mark()

    def rewind(self) -> None:
        """Go back to `mark`: what was answered since then is answered again, without a request."""
        if self._answers is not None:
            self._answers.rewind()

    def failed(self, error: BaseException) -> None:
        """Note that an exception has left the fit."""
        if self._answers is not None and isinstance(error, Exception):
            self._answers.failed(error)

    def end(self) -> None:
        """Leave the models as they were before the fit. May be called again."""
        if self._answers is not None and self._calls is not None:
            self._calls.remove()
            self._answers.close()
