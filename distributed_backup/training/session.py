"""One fit: ties the worker, the training state, the wrapped methods and the signals together, and unties them.

However a fit ends, the session ends: at the end of training, by a notice, by an exception that leaves `fit`, at the
next fit of the same run, or at the interpreter's exit. An exception that a *callback* raises leaves `fit` unseen;
then the last two apply.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from distributed_backup.checkpoints.format import Snapshot
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import Clock
from distributed_backup.coordination.base import Coordinator
from distributed_backup.observability.event_log import EventLog
from distributed_backup.observability.events import Reporter, Sink
from distributed_backup.observability.log_sink import LogSink
from distributed_backup.position import Position
from distributed_backup.preemption.grace import shutdown_reserve
from distributed_backup.preemption.poller import NoticePoller
from distributed_backup.preemption.signals import SignalWatch
from distributed_backup.preemption.watchdog import ExitWatchdog
from distributed_backup.training.cancellation import CancelScope
from distributed_backup.training.fast_forward import FastForward
from distributed_backup.training.fingerprint import fingerprint
from distributed_backup.training.running_fit import RunningFit
from distributed_backup.training.settings import SessionOptions
from distributed_backup.training.state import TrainingState
from distributed_backup.worker.start_point import StartPoint
from distributed_backup.worker.worker import Worker

logger = logging.getLogger(__name__)

# How long a session that ends without a notice waits for commits that are due.
_DRAIN_LIMIT: Final = 30.0

_open_sessions: dict[str, list[FitSession]] = {}
"""Sessions of this process that have not ended, by directory: a fit that died in a notebook holds its lock still."""


class FitSession:
    """One fit of one program as one worker.

    Args:
        callback: The callback, to be called last.
        program: The program that is fitted.
        params: What synalinks tells callbacks about the fit.
        store: The run's checkpoints.
        coordinator: The run's coordinator.
        worker_id: Id of this incarnation.
        clock: Where time comes from.
        options: How to behave.
    """

    def __init__(
        self,
        *,
        callback: Any,
        program: Any,
        params: Mapping[str, Any],
        store: CheckpointStore,
        coordinator: Coordinator,
        worker_id: str,
        clock: Clock,
        options: SessionOptions,
    ) -> None:
        self._callback = callback
        self._program = program
        self._params = params
        self._place = store.location
        self._options = options
        self._pid = os.getpid()
        self._task = _current_task()
        self._scope = CancelScope(clock)
        self._worker = Worker(
            store=store,
            coordinator=coordinator,
            worker_id=worker_id,
            clock=clock,
            options=options.worker,
            stop_training_at=self._scope.set_deadline,
            reporter=Reporter(worker_id, *self._sinks(store, clock)),
        )
        self._state = TrainingState(program, options.state_of)
        self._fit = FastForward(program, scope=self._scope, listener=self)
        self._watchdog = ExitWatchdog(self._force_exit)
        self._signals = SignalWatch(options.signals, on_notice=self._give_notice)
        self._sources = NoticePoller(
            options.notices.others,
            on_notice=self._give_notice,
            on_warning=self._worker.ask_for_save,
            grace_period=options.worker.grace_period,
            clock=clock,
        )
        self._start = StartPoint()
        self._data: str | None = None
        self._since_save = 0

    def _sinks(self, store: CheckpointStore, clock: Clock) -> Iterator[Sink]:
        yield LogSink()
        yield EventLog(store.storage, clock=clock)
        if self._options.metrics_port is not None:
            from distributed_backup.observability.metrics import (  # its client, only for those who use it
                WorkerMetrics,
                metrics_at,
            )

            metrics = metrics_at(self._options.metrics_port)
            yield WorkerMetrics(metrics, lease_left=lambda: self._worker.lease_left)

    # ---------------------------------------------------------------- from the callback's hooks

    def begin(self) -> None:
        """Join, wait for the position to start from, and set the fit up to start there.

        Raises:
            BackupError: What `Worker.join` and `Worker.await_start` raise.
            Preempted: A notice came first.
        """
        _end_stale_sessions(self._place, self._task)
        _open_sessions.setdefault(self._place, []).append(self)
        atexit.register(self.end)
        if self._task is not None:
            self._task.add_done_callback(self._task_ended)
        with self._ended_by_errors():
            self._watch_for_notices()
            self._worker.join()
            self._start = self._worker.await_start()
            self._prepare_fit(RunningFit.find(self._program))

    def _watch_for_notices(self) -> None:
        if self._options.save_before_preemption:
            if self._options.notices.signal:
                self._signals.install()
            else:
                logger.warning(
                    "a SIGTERM ends this process without a save: 'signal' is not among the notices, which are %s",
                    ", ".join(source.name for source in self._options.notices.others),
                )
            self._sources.start()

    def _prepare_fit(self, frame: RunningFit) -> None:
        self._data = fingerprint(getattr(self._program, "_fit_inputs", None), self._params)
        position = self._start_position()
        checkpoint = self._start.checkpoint
        loop = {} if checkpoint is None else self._state.loop_state(checkpoint.body)
        # A callback may have ended the training with the epoch that ended at this position.
        ended = checkpoint is not None and checkpoint.position.batch == 0 and loop.get("stop_training", False)
        finished = self._start.finished or ended
        frame.call_last(self._callback)
        epoch = position.epoch
        if finished:
            epoch = max(epoch, self._params.get("epochs") or 0)
        elif self._has_start:
            frame.replay(epoch)
        if self._has_start:
            self._program._initial_epoch = epoch  # noqa: SLF001 - the documented way for a callback to set it
        self._worker.training_started(position)
        if self._has_start and not finished:
            self._fit.install(position, loop)
        else:
            self._fit.install(None)

    @property
    def _has_start(self) -> bool:
        return self._start.checkpoint is not None or self._start.synalinks_backup is not None

    def _start_position(self) -> Position:
        checkpoint, synalinks_backup = self._start.checkpoint, self._start.synalinks_backup
        if synalinks_backup is not None:
            return synalinks_backup.position
        if checkpoint is None:
            return Position(self._params.get("initial_epoch") or 0)
        position = checkpoint.position
        if checkpoint.header.data == self._data:
            return position
        if position.batch == 0:
            logger.warning("data or batch size is not what it was when %s was saved: going on with it", checkpoint.name)
        else:
            logger.warning(
                "data or batch size is not what it was when %s was saved: resuming at the start of epoch %d "
                "instead of its batch %d",
                checkpoint.name,
                position.epoch,
                position.batch,
            )
        return Position(position.epoch)

    def epoch_begins(self, epoch: int) -> None:
        """An epoch begins."""
        self._program._initial_epoch = None  # noqa: SLF001 - it was read by now, and is never reset otherwise
        self._fit.epoch_begins(epoch)

    def train_batch_ended(self, step: int) -> None:
        """A training batch ended."""
        with self._ended_by_errors():
            position = self._fit.train_batch_ended(step)
        if position is None:
            return
        save_freq = self._options.save_freq
        self._since_save += self._program.steps_per_execution
        due = isinstance(save_freq, int) and save_freq is not False and self._since_save >= save_freq
        if due:
            self._since_save = 0
        self._boundary(position, due=due)

    def test_begins(self) -> None:
        """A validation begins."""
        self._fit.test_begins()

    def test_batch_ended(self, step: int) -> None:
        """A validation batch ended."""
        with self._ended_by_errors():
            position = self._fit.test_batch_ended(step)
        if position is not None:
            self._boundary(position, due=False)

    def test_ended(self) -> None:
        """The validation ended."""
        self._fit.test_ended()

    def epoch_ended(self, epoch: int) -> None:
        """An epoch ended."""
        with self._ended_by_errors():
            position = self._fit.epoch_ended(epoch)
        self._boundary(position, due=self._options.save_freq == "epoch")

    def train_ends(self) -> None:
        """The fit is complete.

        Raises:
            Preempted: A notice came first; or a signal came since, and the final state is there to come back to.
        """
        try:
            self._worker.finish()
        finally:
            self.end()
        self._handle_late_signal()

    def _handle_late_signal(self) -> None:
        """A signal that came while we were leaving: we have taken it, and nobody sends it again."""
        late = self._signals.noted
        if late is None:
            return
        if not self._options.worker.delete_checkpoint:
            raise self._worker.preempted_at_the_end(self._signals.seconds_since)
        logger.warning(
            "%s came when the fit was complete: end this process soon, and as a success, for a job that is started "
            "again would train again",
            late,
        )

    def _boundary(self, position: Position, *, due: bool) -> None:
        with self._ended_by_errors():
            # An epoch may be the last one, after which there is no time to take it.
            last = position.batch == 0 and self._options.worker.keeps_final_state
            if due or last or self._options.save_before_preemption or self._options.worker.standby:
                snapshot = Snapshot(
                    position=position, body=self._state.capture(self._fit.loop_state()), data=self._data
                )
                self._worker.boundary(snapshot, due=due)
            else:
                self._worker.check()

    # ---------------------------------------------------------------- from the wrapped methods

    async def prepare(self) -> None:
        """After the optimizer's reset: build, apply the restored state, take the first snapshot."""
        await self._state.prepare()
        if self._start.synalinks_backup is not None:
            self._program.set_state_tree(self._start.synalinks_backup.state_tree)
        elif self._start.checkpoint is not None:
            self._state.apply(self._start.checkpoint.body)
        else:
            # So that a notice during the very first batch finds a boundary to save.
            self._boundary(self._start_position(), due=False)

    def apply(self) -> None:
        """At the boundary of the restored position: apply the restored state again."""
        assert self._start.checkpoint is not None
        self._state.apply(self._start.checkpoint.body)

    def cut_off(self) -> BaseException:
        """Training was cut off by a notice."""
        preempted = self._worker.preempt()
        self.end()
        return preempted

    def failed(self, error: BaseException) -> BaseException:
        """An exception leaves `fit`: end the session, with what a notice still asks for."""
        self._register_signal()
        if self._worker.notice_given and not self._worker.closed:
            return self.cut_off()
        self.end()
        return error

    # ---------------------------------------------------------------- the end

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        """What one of our own hooks raises leaves `fit`, and so ends the session."""
        try:
            yield
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Commit what is due and pending, leave the run, and put everything back. May be called again."""
        if os.getpid() != self._pid:
            return  # a forked child has neither our threads nor our lock
        try:
            self._leave()
        finally:
            # Also if Ctrl-C ends the leaving: a notice that comes later must not end a process that goes on.
            self._restore_handlers()

    def _leave(self) -> None:
        self._register_signal()
        try:
            if self._worker.notice_given and not self._worker.closed:
                self._worker.preempt()
        finally:
            self._worker.close(timeout=_DRAIN_LIMIT)

    def _restore_handlers(self) -> None:
        self._sources.stop()
        self._signals.uninstall()
        self._watchdog.disarm()
        self._fit.remove()
        atexit.unregister(self.end)
        if self._task is not None:
            self._task.remove_done_callback(self._task_ended)
        sessions = _open_sessions.get(self._place, [])
        if self in sessions:
            sessions.remove(self)

    def _give_notice(self, reason: str, remaining: float | None = None) -> None:
        # Also when it is too late to serve it: what hangs as we leave must not outlast the grace period.
        seconds = self._options.worker.grace_period if remaining is None else remaining
        self._watchdog.arm(seconds - shutdown_reserve(seconds) / 4)
        self._worker.give_notice(reason, remaining)

    def _register_signal(self) -> None:
        # A handler that was there before may leave the process faster than a thread can give the notice.
        if self._signals.noted is not None:
            self._worker.give_notice(self._signals.noted)

    def _task_ended(self, _: asyncio.Task[Any]) -> None:
        # An exception of another callback left `fit` unseen, and then the task.
        self.end()

    def is_orphan(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this session's fit is over, as seen from a new fit that runs in `task`."""
        mine = self._task
        return mine is None or mine is task or mine.done() or mine.get_loop().is_closed()

    def _force_exit(self) -> None:
        """The training thread did not come back in time: it blocks the event loop, or code of the user's goes on.

        The kill is a moment away and would show another exit code, which a job's failure policy may go by. Raising in
        the main thread is no way out: synalinks' retries of language-model calls swallow even SystemExit (tenacity).
        """
        logger.warning("grace period almost over and the fit has not come to its end: leaving the process now")
        if self._worker.notice_given:
            leaving = threading.Thread(target=self._worker.preempt, daemon=True)
            leaving.start()
            leaving.join(self._worker.reserve / 8)  # whatever hangs, a disk or a coordinator, hangs there
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(self._options.worker.exit_code)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _end_stale_sessions(place: str, task: asyncio.Task[Any] | None) -> None:
    for session in list(_open_sessions.get(place, ())):
        if session.is_orphan(task):
            logger.info("an earlier fit of this process did not end its session, ending it now directory=%s", place)
            session.end()
