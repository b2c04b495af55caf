"""The journal of one fit: from the checkpoint it begins with, through its boundaries, to its end.

It connects the requests to models (`model_calls`), what becomes of them (`answers`), the log on the storage, and the
election: the leader asks and records, and followers take its answers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from distributed_backup.checkpoints.format import Checkpoint
from distributed_backup.checkpoints.journal_format import Boundary, Digests, LogEnd
from distributed_backup.checkpoints.journal_tail import LogTail, TailListener, TailStart
from distributed_backup.checkpoints.state_digests import digests_in
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import Clock
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from distributed_backup.training.answers import Answers
from distributed_backup.training.doubt import Doubt
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
        doubt = Doubt(
            is_certain=self._leads_for_certain,
            exists=self._is_in_doubt,
            may_ask=lambda: not worker.stands_by,
            give_up=worker.standby.give_up_doubt,
        )
        self._replay = Replay(self._writer, worker.report, self._on_lost, doubt)
        self._answers = Answers(self._writer, self._replay, doubt)
        # Set while `_step_down` waits for its turn in the event loop.
        self._is_deposed = False
        # Set from the end of a log that can't be continued until the fit has come there.
        self._begins_log = False
        self._calls = ModelCalls(self._answers, options.journal_of)
        self._tail: LogTail | None = None

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Record from now on, and follow what was recorded since `checkpoint`.

        `checkpoint` is None for a fit that follows no log: it starts from the beginning, or differs from the saved one.

        Raises:
            StoreError: The log can't be read, and no retry can help.
        """
        if not self._is_kept:
            return
        self._calls.install()
        self._replay.delivery.touch()
        if self._may_follow:
            # First, so that no change of the leader is missed.
            self._worker.standby.on_elected = self._on_elected
            self._worker.standby.on_appended = self._on_appended
            self._worker.standby.on_deposed = self._on_deposed
        if checkpoint is None:
            self._begin_without_log()
            return
        start = Boundary(position=checkpoint.position, digests=digests_in(checkpoint.body))
        self._answers.start(start)
        if self._may_follow and not self._worker.standby.leads_since_start:
            # Also if it leads by now: a former leader may have come further than what this worker has restored.
            self._follow(TailStart(boundary=start))
        elif not self._replay_from(start):
            self._writer.begin_at(start)

    def _begin_without_log(self) -> None:
        standby = self._worker.standby
        if not self._may_follow or standby.leads_since_start:
            return
        if standby.began_at.term is not None:
            # Another worker has led before `on_deposed` was set, and its start is another one.
            self._on_deposed()
        elif not self._worker.trains_as_leader:
            logger.warning(
                "this worker follows no journal, so it asks the models itself and pays a bill of its own. Give all "
                "workers the same program, data, journal= and save_freq="
            )

    def _replay_from(self, start: Boundary) -> bool:
        """Replay the log that follows `start`. Return False if there is none, or if the storage does not answer.

        Raises:
            StoreError: It can't be read, and no retry can help.
        """
        deadline = self._clock.now() + _READ_LIMIT
        while True:
            try:
                log = self._store.find_log(start.position, start.digests)
                if log is not None:
                    self._replay.begin(log, start)
            except StoreError as error:
                # A successor may have removed a segment since it was listed. Then another look finds the rest.
                if not error.retryable and not isinstance(error.__cause__, FileNotFoundError):
                    raise StoreError(
                        f"{error}. It may hold answers that were paid for. Make it readable, or remove it to ask for "
                        "them again",
                        path=error.path,
                    ) from error
                if self._clock.now() > deadline:
                    logger.warning("the journal can't be read, so its answers are asked for again: %s", error)
                    return False
            else:
                return log is not None
            self._clock.wait(threading.Event(), _READ_PERIOD)

    def boundary(self, position: Position, digests: Callable[[], Digests], *, due: bool) -> bool:
        """Note a boundary of the fit. Return whether to commit it: if it is due, or a segment needs its checkpoint."""
        if not self._is_kept:
            return due
        due = due or (self._may_commit and self._writer.wants_checkpoint)
        try:
            self._answers.boundary(position, digests, due=due)
        except StoreError:
            self._replay_again(Boundary(position=position, digests=digests()))
        return self._has_begun_log() or due

    def _replay_again(self, start: Boundary) -> None:
        reason = "the rest of the journal can't be read"
        try:
            found = self._replay_from(start)
        except StoreError as error:
            found, reason = False, str(error)
        if not found:
            self._replay.cut_off(reason)

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

    def train_ends(self) -> None:
        """Note that nothing more is asked for. A follower reports what it has replayed."""
        self._replay.end()

    def end(self) -> None:
        """Leave the models as they were before the fit. May be called again."""
        if self._is_kept:
            self._stop_tail()
            self._calls.remove()
            self._answers.close()

    # ---------------------------------------------------------------- following the leader

    def _follow(self, start: TailStart) -> None:
        """Take the outcomes of the leader from now on."""
        run_id = self._store.run_id
        assert run_id is not None

        def in_loop(call: Callable[[Any], None], value: object) -> None:
            # What an earlier tail has read is not of this log.
            self._replay.delivery.call_from_thread(lambda: call(value) if self._tail is tail else None)

        self._replay.follow(start.boundary, used=start.seen)
        self._tail = tail = LogTail(
            self._store.storage,
            run_id=run_id,
            start=start,
            clock=self._clock,
            listener=TailListener(
                deliver=partial(in_loop, self._replay.extend),
                ended=partial(in_loop, self._lead),
                lost=partial(in_loop, self._replay.cut_off),
            ),
        )
        # It may have been elected before. The hold comes before all that the tail reads, so that none takes its place.
        if self._worker.trains_as_leader:
            self._on_elected()
        tail.start()

    def _on_elected(self) -> None:
        tail = self._tail
        if tail is not None:
            # First, because what the tail reads from now on counts when this worker has a segment of its own.
            self._replay.delivery.call_from_thread(self._hold)
            tail.finish()

    def _hold(self) -> None:
        # After the end of the log the hold of the segment counts. `_follow` and `observe` may both report an election.
        if self._replay.is_following:
            self._replay.delivery.hold()

    def _lead(self, end: LogEnd) -> None:
        self._begins_log = end.link is None
        self._replay.end_of_log(end)
        if self._has_begun_log():
            self._worker.standby.save_last_boundary()

    def _has_begun_log(self) -> bool:
        """Whether this worker has begun a log at the last boundary, since the last call.

        No segment leads to it, so a worker finds it only from a checkpoint of that boundary.
        """
        has_begun = self._begins_log and not self._replay.is_following
        self._begins_log = self._begins_log and not has_begun
        return has_begun

    def _on_appended(self) -> None:
        tail = self._tail
        if tail is not None:
            tail.wake()

    def _on_deposed(self) -> None:
        self._is_deposed = True
        self._replay.delivery.call_from_thread(self._step_down)

    def _leads_for_certain(self) -> bool:
        return not self._is_deposed and self._worker.standby.leads_for_certain

    def _is_in_doubt(self) -> bool:
        return self._is_deposed or self._worker.standby.is_in_doubt

    def _step_down(self) -> None:
        """Follow the worker that leads in the place of this one, or has led since. This one may lead again by now."""
        self._is_deposed = False
        if self._replay.is_lost or not self._answers.is_open:
            return
        self._answers.withdraw()
        since = self._answers.since_boundary()
        if since is None:
            self._on_lost("another worker began to lead before this one came to its first boundary")
            return
        self._stop_tail()
        # Again: it may have begun to lead between the change and now.
        self._writer.step_down()
        boundary, seen = since
        self._follow(TailStart(boundary=boundary, seen=seen, led_by=self._worker.worker_id))

    def _on_lost(self, reason: str) -> None:
        self._stop_tail()
        self._worker.standby.stand_down(reason)

    def _stop_tail(self) -> None:
        if self._tail is not None:
            self._tail.stop()
            self._tail = None
