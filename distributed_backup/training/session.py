"""One fit: connect the worker, the training state, the wrapped methods and the notices, and disconnect them.

However a fit ends, the session ends: at the end of training, by a notice, or by an exception that leaves `fit`. An
exception that a *callback* raises leaves `fit` unseen. Then the end of the asyncio task, the next fit of the same run
or the interpreter's exit ends the session.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from synalinks.src.utils.io_utils import print_msg

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import Clock
from distributed_backup.coordination.base import Coordinator
from distributed_backup.observability.events import Sink
from distributed_backup.position import Position
from distributed_backup.preemption.poller import NoticePoller
from distributed_backup.preemption.signals import SignalWatch
from distributed_backup.training.cancellation import CancelScope
from distributed_backup.training.description import describe
from distributed_backup.training.fast_forward import FastForward
from distributed_backup.training.fingerprint import data_parts, fingerprint
from distributed_backup.training.fit_journal import FitJournal
from distributed_backup.training.fit_start import fit_start
from distributed_backup.training.fit_worker import make_worker
from distributed_backup.training.forced_exit import ForcedExit, release_exits
from distributed_backup.training.running_fit import RunningFit
from distributed_backup.training.settings import SessionOptions
from distributed_backup.training.snapshots import Snapshots
from distributed_backup.training.standby_wait import StandbyWait
from distributed_backup.training.state import TrainingState
from distributed_backup.worker.fit_task import current_task
from distributed_backup.worker.start_point import StartPoint

logger = logging.getLogger(__name__)

# Seconds that a session which ends without a notice waits for commits that are due.
_DRAIN_LIMIT: Final = 30.0
# Seconds that a fresh start waits for its checkpoint, before the first answer is paid for.
_START_LIMIT: Final = 5.0
# Seconds between two reports of a fast-forward.
_PROGRESS_PERIOD: Final = 10.0

_open_sessions: list[FitSession] = []
"""Sessions of this process that have not ended, oldest first. A fit that died in a notebook still holds its lock."""


class FitSession:
    """One fit of one program as one worker.

    The program and its parameters are those that synalinks has given to `callback`. `callback` is called last of all
    callbacks. `sinks` receive the worker's events besides the event log and the metrics.
    """

    def __init__(
        self,
        callback: Any,
        *,
        store: CheckpointStore,
        coordinator: Coordinator,
        clock: Clock,
        options: SessionOptions,
        sinks: tuple[Sink, ...] = (),
    ) -> None:
        self._callback = callback
        self._program = callback.program
        self._params = callback.params or {}
        self.location = store.location
        self._options = options
        self._pid = os.getpid()
        self._task = current_task()
        self._running_fit = RunningFit.find(self._program)
        self._scope = CancelScope(clock)
        self._worker = make_worker(options, store, coordinator, clock, self._scope.set_deadline, sinks)
        self._state = TrainingState(self._program, options.state_of, self._running_fit.callbacks)
        self._snapshots = Snapshots(self._state, options)
        self._journal = FitJournal(self._worker, options, store=store, clock=clock)
        self._standby = StandbyWait(
            self._worker,
            options.worker,
            scope=self._scope,
            state=self._state,
            snapshots=self._snapshots,
            journal=self._journal,
        )
        self._fit = FastForward(self._program, scope=self._scope, standby=self._standby, listener=self)
        self._signals = SignalWatch(options.signals, on_notice=self._give_notice)
        self._forced_exit = ForcedExit(self._worker, options.worker, self._signals)
        self._sources = NoticePoller(
            options.notices.others,
            on_notice=self._give_notice,
            on_warning=self._worker.ask_for_save,
            grace_period=options.worker.grace_period,
            clock=clock,
        )
        self._clock, self._progress_due = clock, 0.0
        self._restored = StartPoint()
        self._position = Position(0)

    # ---------------------------------------------------------------- from the callback's hooks

    def begin(self) -> None:
        """Join, wait for the position to start from, and set the fit up to start there.

        Raises:
            BackupError: From `Worker.join` or `Worker.await_start`.
            Preempted: A notice arrived first.
        """
        for session in [each for each in _open_sessions if each.is_stale(self.location, self._task)]:
            logger.info("ending the session that an earlier fit left open directory=%s", session.location)
            session.end()
        release_exits()
        _open_sessions.append(self)
        atexit.register(self.end)
        if self._task is not None:
            self._task.add_done_callback(self._task_ended)
        with self._ended_by_errors():
            self._watch_for_notices()
            self._worker.join()
            self._restored = self._worker.await_start()
            self._prepare_fit()

    def is_stale(self, location: str, task: asyncio.Task[Any] | None) -> bool:
        """Whether the fit of this session is over: a new fit at `location` runs in `task`, the current task."""
        if self._task is not None and self._task is task and not self._running_fit.may_run():
            return True
        return self.location == location and self._is_over(task)

    @property
    def is_in_use(self) -> bool:
        """Whether the fit of this session runs, in another task than the caller's."""
        is_open = self in _open_sessions and os.getpid() == self._pid
        return is_open and not self._is_over(current_task())

    def _is_over(self, task: asyncio.Task[Any] | None) -> bool:
        mine = self._task
        return mine is None or mine is task or mine.done() or mine.get_loop().is_closed()

    def _watch_for_notices(self) -> None:
        if self._options.save_before_preemption:
            self._forced_exit.start()
            if self._options.notices.signal:
                self._signals.install()
            else:
                logger.warning(
                    "a SIGTERM ends this process without a save: 'signal' is not among the notices, which are %s",
                    ", ".join(source.name for source in self._options.notices.others),
                )
            self._sources.start()

    def _prepare_fit(self) -> None:
        data = data_parts(getattr(self._program, "_fit_inputs", None), self._params)
        self._snapshots.data, self._snapshots.description = fingerprint(data), describe(self._program, data)
        checkpoint = self._restored.checkpoint
        self._snapshots.restored = checkpoint
        loop = {} if checkpoint is None else self._state.loop_state(checkpoint.body)
        start = fit_start(
            self._restored,
            loop,
            data=self._snapshots.data,
            description=self._snapshots.description,
            params=self._params,
        )
        self._position = start.position
        frame = self._running_fit
        if not frame.is_found:
            logger.warning(
                "this program has a fit of its own: the state of its callbacks is not saved, so name them in state_of. "
                "A resume does not skip the data of earlier epochs, so skip it in the data"
            )
        frame.call_last(self._callback)
        if start.is_resumed and self._params.get("verbose"):
            print_msg(start.summary(self._restored.name or "", self._params.get("epochs") or 0))
        if not start.has_finished:
            # Of other data, nothing can be read again as it was.
            self._fit.read_data(frame, start.position, loop if start.data_is_known else {})
        if start.is_resumed:
            self._program._initial_epoch = start.epoch  # noqa: SLF001 - the documented way for a callback to set it
        self._worker.training_started(start.position)
        # Of another fit, the log has the answers to other requests.
        self._journal.begin(checkpoint if start.is_same_fit else None)
        self._fit.install(frame, start.position if start.is_resumed and not start.has_finished else None, loop)

    def epoch_begins(self, epoch: int) -> None:
        """Note the epoch that begins."""
        # `fit` has read it by now, and synalinks never resets it.
        self._program._initial_epoch = None  # noqa: SLF001
        self._fit.epoch_begins(epoch)

    def train_batch_ended(self, step: int) -> None:
        """Submit the boundary of a training batch."""
        with self._ended_by_errors():
            position = self._fit.train_batch_ended(step)
        if position is not None:
            self._boundary(position, due=self._snapshots.is_due(self._program.steps_per_execution))

    def test_begins(self) -> None:
        """Note that a validation begins."""
        self._fit.test_begins()

    def test_batch_ended(self, step: int) -> None:
        """Submit the boundary of a validation batch."""
        with self._ended_by_errors():
            position = self._fit.test_batch_ended(step)
        if position is not None:
            self._boundary(position, due=self._snapshots.is_due(self._program.steps_per_execution))

    def test_ended(self) -> None:
        """Note that a validation has ended."""
        self._fit.test_ended()

    def epoch_ended(self, epoch: int) -> None:
        """Submit the boundary of an epoch."""
        with self._ended_by_errors():
            position = self._fit.epoch_ended(epoch)
        if position is not None:
            self._boundary(position, due=self._snapshots.is_due_at_epoch_end())

    def train_ends(self) -> None:
        """Finish the run.

        Raises:
            Preempted: A notice arrived first, or a signal has arrived since and the final state is kept.
        """
        try:
            # Another worker may have begun to lead since the last await: hooks of other callbacks may take long.
            if self._standby.wait():
                self._snapshots.apply_final()
            self._journal.train_ends()
            self._worker.finish(self._snapshots.take_final())
        finally:
            self.end()
        self._forced_exit.handle_late_signal()

    def _boundary(self, position: Position, *, due: bool, wait: float = 0.0) -> None:
        self._signals.keep_in_front()
        with self._ended_by_errors():
            snapshot = self._snapshots.take(position, self._fit.loop_state())
            due = self._journal.boundary(position, self._state.captured_digests(), due=due)
            self._worker.boundary(snapshot, due=due, wait=wait)

    # ---------------------------------------------------------------- from the wrapped methods

    async def on_optimizer_reset(self) -> None:
        """Build all variables, apply the restored state, or take the first snapshot of a fresh start."""
        await self._state.build()
        if self._restored.synalinks_backup is not None:
            self._program.set_state_tree(self._restored.synalinks_backup.state_tree)
        elif self._restored.checkpoint is not None:
            self._state.apply(self._restored.checkpoint.body)
        else:
            # A notice during the first batch then has a boundary to save, and the journal a checkpoint to begin at.
            self._boundary(self._position, due=False, wait=_START_LIMIT)

    def on_target_reached(self, *, same_data: bool) -> None:
        """Apply the restored state again."""
        checkpoint = self._restored.checkpoint
        assert checkpoint is not None
        self._state.apply(checkpoint.body)
        if not same_data:
            logger.warning(
                "the data came in another order than before the interruption: samples of epoch %d may be trained twice "
                "or never checkpoint=%s. Shuffle with `random` or `numpy.random`, or seed your own generator with the "
                "epoch",
                checkpoint.position.epoch,
                checkpoint.name,
            )

    def on_batch_skipped(self, epoch: int, batches: int) -> None:
        """Report how far the data is read again, and leave if a notice has come."""
        now = self._clock.now()
        if now >= self._progress_due:
            if self._progress_due:
                logger.info("reading data again epoch=%d batches=%d", epoch, batches)
            self._progress_due = now + _PROGRESS_PERIOD
        self._worker.check()

    def on_deadline(self) -> BaseException:
        """Serve the notice whose deadline has cancelled training. Return the exit to raise."""
        preempted = self._worker.preempt()
        self.end()
        return preempted

    def on_error(self, error: BaseException) -> BaseException:
        """End the session of a fit that `error` leaves. Return the exit of a notice, or else `error`."""
        self._register_signal()
        if self._worker.notice_given and not self._worker.closed:
            return self.on_deadline()
        self._journal.failed(error)
        self.end()
        return error

    # ---------------------------------------------------------------- notices

    def _give_notice(self, reason: str, remaining: float | None = None) -> None:
        # Even if the notice can no longer be served: a hang during shutdown must not outlast the grace period.
        self._forced_exit.arm(remaining)
        self._worker.give_notice(reason, remaining)

    def _register_signal(self) -> None:
        """Give the notice of a signal whose thread has not run yet: a chained handler may exit before it does."""
        if self._signals.noted is not None:
            self._worker.give_notice(self._signals.noted)

    # ---------------------------------------------------------------- the end

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        """End the session if one of our own hooks raises, because the exception leaves `fit`."""
        try:
            yield
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Commit what is due and pending, leave the run, and restore handlers and methods. May be called again."""
        if os.getpid() != self._pid:
            return  # a forked child has neither our threads nor our lock
        try:
            self._leave()
        finally:
            # Also if Ctrl-C interrupts `_leave`: a later notice must not end a process that continues.
            self._restore_handlers()

    def _leave(self) -> None:
        self._register_signal()
        try:
            if self._worker.notice_given and not self._worker.closed:
                self._worker.preempt()
        finally:
            self._worker.close(timeout=_DRAIN_LIMIT, save_last=self._options.save_freq is not False)

    def _restore_handlers(self) -> None:
        self._sources.stop()
        if self._is_preempted:
            self._forced_exit.fit_is_left()
        else:
            self._forced_exit.release()
        self._fit.remove()
        self._journal.end()
        atexit.unregister(self.end)
        if self._task is not None:
            self._task.remove_done_callback(self._task_ended)
        if self in _open_sessions:
            _open_sessions.remove(self)

    @property
    def _is_preempted(self) -> bool:
        """Whether this process exits with `exit_code` because of a notice, see `ForcedExit.handle_late_signal`."""
        return self._worker.notice_given or (
            self._signals.noted is not None and not self._options.worker.delete_checkpoint
        )

    def _task_ended(self, _: asyncio.Task[Any]) -> None:
        # Another callback's exception has left `fit` unseen, and then the task.
        self.end()
