"""One worker's part in a run: join, start at the agreed position, save, serve notices, finish.

`Worker` composes the parts of the protocol and connects them. It passes boundaries to the saver, and it passes on what
the elector and the saver report. The parts own the rest: `restore` the start, `preemption` the way of a notice,
`shutdown` the end.

It promises that all workers start from one checkpoint, that a notice to any worker leads to a save, and that no worker
deletes the run while another takes part. The limit: if every worker is killed without notice, the newest checkpoint is
what remains.

Threads: training calls in from its own. The elector and the saver have one each, and call the listener methods here.
Locks are taken in one order: the elector's, publishing, the coordinator's. Notices come before the saver's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot
from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.checkpoints.saver import Saver
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import Clock
from distributed_backup.coordination.base import ClusterView, Coordinator, Hint
from distributed_backup.coordination.election import Elector, LeaseLoss
from distributed_backup.errors import StoreError
from distributed_backup.observability.reporter import Reporter
from distributed_backup.once import OnceLogger
from distributed_backup.position import Position
from distributed_backup.preemption.exit import Preempted
from distributed_backup.worker.context import WorkerContext, WorkerState, errors_logged, position_fields
from distributed_backup.worker.fit_task import FitTask
from distributed_backup.worker.options import WorkerOptions
from distributed_backup.worker.preemption import OwnPreemption
from distributed_backup.worker.restore import LiveTerms, Restore, open_run
from distributed_backup.worker.shutdown import Shutdown
from distributed_backup.worker.standby import Standby
from distributed_backup.worker.start_point import StartPoint

logger = logging.getLogger(__name__)

# Seconds between two reports of progress within an epoch.
_PROGRESS_PERIOD: Final = 10.0


class Worker:
    """One worker of a run. Its id is that of `report`.

    `stop_training_at` is called from any thread with the instant, by `clock`, at which a notice requires training to be
    cancelled. It may be called again with an earlier instant.
    """

    def __init__(
        self,
        *,
        store: CheckpointStore,
        coordinator: Coordinator,
        clock: Clock,
        options: WorkerOptions,
        report: Reporter,
        stop_training_at: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._elector = Elector(
            candidate=options.candidate(report.worker_id),
            coordinator=coordinator,
            clock=clock,
            listener=self,
            terms=store.terms,
            report=report,
        )
        self._saver = Saver(
            store=store,
            worker_id=report.worker_id,
            clock=clock,
            term=lambda: self._context.term_to_write_under(),  # noqa: PLW0108 - made after the saver
            listener=self,
            report=report,
        )
        self._context = WorkerContext(
            store=store,
            coordinator=coordinator,
            clock=clock,
            options=options,
            report=report,
            elector=self._elector,
            saver=self._saver,
        )
        self._preemption = OwnPreemption(self._context, stop_training_at)
        self.standby = Standby(self._context, stop_training_at)
        self._fit_task = FitTask()
        self._shutdown = Shutdown(self._context, self._preemption, self._fit_task)
        self._live_terms = LiveTerms(report.worker_id)
        self._joined_at = self._progress_due = 0.0
        self._announced_term = 0
        self._announce_warnings = OnceLogger(logger)
        self._commits_fail = False
        self.report = report

    @property
    def worker_id(self) -> str:
        """Id of this incarnation."""
        return self._context.worker_id

    @property
    def notice_given(self) -> bool:
        """Whether this worker is being preempted."""
        return self._preemption.is_noticed

    @property
    def closed(self) -> bool:
        """Whether this worker is leaving the run, or has left it."""
        return self._shutdown.has_begun

    @property
    def stands_by(self) -> bool:
        """Whether this worker has started, and must wait because another one leads."""
        return self.standby.is_due

    @property
    def lease_left(self) -> float:
        """Seconds until this worker stands down unless it renews. 0 while it does not lead."""
        return self._elector.lease_left

    @property
    def trains_as_leader(self) -> bool:
        """Whether this worker trains as the leader: it has led, and no other since. Its lease may have run out."""
        return self._state.led is not None

    @property
    def journal(self) -> JournalWriter:
        """The writer of this worker's journal."""
        return self._context.journal

    @property
    def _state(self) -> WorkerState:
        return self._context.state

    # ---------------------------------------------------------------- the start, from the training thread

    def join(self) -> None:
        """Open the run and start to campaign.

        Raises:
            Preempted: A notice came while the store was unreachable.
            RunMismatchError: The directory belongs to another run.
            StoreError: The directory can't be used, or the store was unreachable for `restore_timeout`.
            ConfigError: The coordinator serves another run.
        """
        context = self._context
        run_id = open_run(context, self._raise_if_ended)
        context.coordinator.open(run_id, context.options.timings)
        self._state.phase = "joined"
        self._preemption.warn_of_long_lease()
        self._joined_at = context.clock.now()
        context.report("joined", run=run_id, standby=context.options.standby, directory=context.store.location)
        self._shutdown.stop_listening = context.coordinator.subscribe(self._on_hint)
        self._saver.start()
        self._elector.start()

    def await_start(self) -> StartPoint:
        """Wait for the position that all workers start from.

        Raises:
            Preempted: A notice came first.
            BackupError: As `Restore.attempt` raises it.
        """
        start = Restore(self._context, self._live_terms).wait(self._raise_if_ended)
        self.standby.begin(start)
        with self._state.condition:
            self._state.phase = "training"
        return start

    def training_started(self, position: Position) -> None:
        """Report that training goes on from `position`, with the restored state applied."""
        self._context.announcer.start_position = position
        self._elector.position = position
        self._context.report("restored", checkpoint=self.standby.began_at.name, **position_fields(position))

    # ---------------------------------------------------------------- training, from the training thread

    def boundary(self, snapshot: Snapshot, *, due: bool, wait: float = 0.0) -> None:
        """Hand over the state at a batch boundary. `due`: commit it by the schedule, if this worker leads.

        `wait` is for how many seconds to wait until what is due is durable.

        Raises:
            Preempted: A notice came. This boundary was saved if the grace period allowed it.
            StoreError: An earlier commit failed and `on_save_error` is "raise".
        """
        if not self._state.is_lost:
            self._elector.position = snapshot.position
        self._saver.submit(snapshot, due=due)
        if wait > 0:
            self._context.wait_until_durable(wait)
        now = self._context.clock.now()
        if snapshot.position.batch == 0 or now >= self._progress_due:
            self._progress_due = now + _PROGRESS_PERIOD
            self._context.report("progress", **position_fields(snapshot.position))
        self.check()

    def check(self) -> None:
        """Leave if a notice has come.

        Raises:
            Preempted: A notice has come.
            StoreError: An earlier commit failed and `on_save_error` is "raise".
        """
        self._raise_if_noticed()
        error, self._state.commit_error = self._state.commit_error, None
        if error is not None:
            raise error

    def stand_by(self) -> StartPoint | None:
        """Wait while another worker leads. Return the final state of a run that has finished.

        None: train on, or wait again if `stands_by`.

        Raises:
            Preempted: A notice came, or this worker must be started again.
            BackupError: As from `await_start`.
        """
        return self.standby.end_wait(Restore(self._context, self._live_terms).wait(self._raise_if_ended))

    def _raise_if_ended(self) -> None:
        self._raise_if_noticed()
        self._fit_task.raise_if_cancelled()

    def _raise_if_noticed(self) -> None:
        if self.notice_given:
            raise self.preempt()

    # ---------------------------------------------------------------- the end, from the training thread

    def preempt(self) -> Preempted:
        """Serve the notice to its end, and leave. Return the exit to raise out of `fit`."""
        return self._shutdown.preempt()

    def preempted_at_the_end(self, seconds: float) -> Preempted:
        """Return the exit for a notice that came `seconds` ago, after this worker had finished."""
        return self._shutdown.preempted_at_the_end(seconds)

    def finish(self, final: Snapshot | None = None) -> None:
        """End a complete fit, see `Shutdown.finish`."""
        self._shutdown.finish(final)

    def close(self, *, timeout: float, save_last: bool = False) -> None:
        """Leave the run, see `Shutdown.close`."""
        self._shutdown.close(timeout=timeout, save_last=save_last)

    # ---------------------------------------------------------------- notices, from any thread

    def give_notice(self, reason: str, remaining: float | None = None) -> None:
        """Register that this worker will be killed in `remaining` seconds, or in the grace period if None."""
        self._preemption.give_notice(reason, remaining, is_too_late=self._shutdown.is_too_late_for_notice)

    def ask_for_save(self, reason: str) -> bool:
        """Request a save of the run, and train on: this worker may be in danger.

        Returns:
            Whether a leader will see the request. If not, try again: the coordinator is unreachable, or there is
            nothing to save yet.
        """
        if self.closed or self.notice_given:
            return True
        is_cut_off = self._elector.coordinator_error is not None and not self._elector.is_leader
        if is_cut_off or not self._state.is_training:
            return False
        logger.warning("save requested worker=%s reason=%s", self.worker_id, reason)
        return self._context.publisher.request_save(reason)

    # ---------------------------------------------------------------- from the elector's thread

    def elected(self, term: int) -> None:
        """Announce where the run stands, and commit what is due."""
        self.standby.observe(self.worker_id, term)
        self._announce_once(term)
        self._saver.wake()
        self._state.notify_all()

    def lost(self, loss: LeaseLoss) -> None:  # noqa: ARG002 - the listener's signature
        """Go on training without the lease. Scheduled commits stop. A notice may still commit under the last term."""
        self._saver.wake()
        self._state.notify_all()

    def observed(self, view: ClusterView) -> None:
        """Learn of notices, acknowledgements and announcements."""
        context = self._context
        self._live_terms.observe(view, since_joined=context.clock.now() - self._joined_at)
        self._state.view = view
        if view.announcement is not None:
            context.notices.add_acknowledged(view.announcement.acknowledged)
        term = self._elector.term
        if term is not None:
            for notice_id in context.notices.pending(view):
                context.notices.request_save(notice_id)
            self._keep_announced(term, view)
            context.publisher.handle_resign_requests(view, context.options.timings.duration)
            context.publisher.give_way(view, saved=context.newest_known()[0], last=context.last_boundary)
        self._preemption.republish(view)
        self._saver.wake()
        self._preemption.stop_training_if_saved()
        self.standby.observe(view.holder, view.term)
        self._state.notify_all()

    def _keep_announced(self, term: int, view: ClusterView) -> None:
        """Announce again if the record differs: workers may join at any time, and a reply may have been lost."""
        with errors_logged("announcing", once=self._announce_warnings):
            if not self._context.announcer.publish(term, on_record=view.announcement):
                self._announce_once(term)

    def _announce_once(self, term: int) -> None:
        # Once for each term: the saver repeats an announcement that failed at the next boundary.
        if self._state.is_training and self._announced_term != term:
            self._announced_term = term
            self._saver.request_announcement()

    def _on_hint(self, hint: Hint) -> None:
        """Do between two ticks what the hint asks for, if it matters to this worker."""
        if hint == "appended":
            self.standby.on_appended()
        is_awaited = self.notice_given or self._state.phase == "finishing" or self.standby.awaits(hint)
        is_announcement = hint in {"announced", "finished"} and is_awaited
        if is_announcement or (hint == "noticed" and self._elector.is_leader):
            self._elector.wake()
        elif hint == "free":
            self._elector.lease_released()

    # ---------------------------------------------------------------- from the saver's thread

    def on_committed(self, newest: CheckpointHeader | None, term: int, *, served: int) -> None:
        """Announce the newest checkpoint and the notices that it acknowledges."""
        context = self._context
        if self._commits_fail:
            context.report("commit_recovered")
            self._commits_fail = False
        context.announcer.newest = newest
        if newest is not None:
            self._state.start_is_unsaved = False
        acknowledged = context.notices.mark_served(served)
        # Before this worker's own start there is nothing to announce but that a checkpoint is there.
        is_started = self._state.is_training and not self._state.start_is_unsaved
        if is_started or (acknowledged and newest is not None):
            # The elector's thread publishes it: a coordinator that hangs must not delay the next commit.
            context.announcer.note(term)
            self._elector.wake()
        self._preemption.stop_training_if_saved()
        self._state.notify_all()

    def on_stale_term(self, term: int) -> None:
        """Give up the term: two coordinators serve one directory, or checkpoints were copied into it."""
        self._elector.invalidate_term(term)

    def on_commit_failed(self, error: StoreError) -> None:
        """Report a commit that failed."""
        if self._context.options.on_save_error == "raise":
            self._state.commit_error = error
        self._commits_fail = True
        if self._state.start_is_unsaved:
            # Others start without it, and can't follow the journal.
            self._state.start_is_unsaved = False
            self._saver.request_announcement()
        self._context.report("commit_failed", reason=str(error), intact=self._context.store.storage.exists())
        self._state.notify_all()
