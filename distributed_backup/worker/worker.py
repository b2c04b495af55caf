"""One worker's part in a run: join, start at the agreed position, save, serve notices, finish.

This is the protocol and its policy; it knows nothing of synalinks. It promises that all workers start from one
checkpoint, that a notice to any worker leads to a save, and that nobody deletes while another worker is there. It
can't promise a save when every worker is killed without notice: then the last commit is what is left. Nor does it keep
a finished run's backup for a worker that is away.

Threads: training calls in from its own; the elector and the saver have one each and call the listener methods here.
Locks are taken in one order: the elector's, announcing, the coordinator's; notices, the saver's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from distributed_backup.checkpoints.fencing import is_superseded
from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot
from distributed_backup.checkpoints.saver import Saver
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import Clock
from distributed_backup.coordination.base import ClusterView, Coordinator, Hint
from distributed_backup.coordination.election import Elector, LeaseLoss
from distributed_backup.errors import BackupError, StoreError
from distributed_backup.observability.events import Reporter
from distributed_backup.observability.log_sink import LogSink
from distributed_backup.position import Position
from distributed_backup.preemption.exit import Preempted
from distributed_backup.worker.announcer import Announcer
from distributed_backup.worker.notices import NoticePublisher, Notices
from distributed_backup.worker.options import WorkerOptions
from distributed_backup.worker.restore import Arrival, StartProtocol
from distributed_backup.worker.shutdown import delete_run, flush_pending, leave_and_check_last, run_with_timeout
from distributed_backup.worker.start_point import StartPoint

logger = logging.getLogger(__name__)

_WAIT_SLICE = 0.5

# How long a leader that is preempted keeps its notice to itself, for the sake of its own save.
SAVE_HEAD_START = 0.1

# Between two reports of progress within an epoch.
_PROGRESS_PERIOD = 10.0

# How long a worker that leaves waits for its last events to be written.
EVENT_LOG_FLUSH_TIMEOUT = 2.0


class Worker:
    """One worker of a run.

    Args:
        store: The run's checkpoints.
        coordinator: The run's coordinator.
        worker_id: Id of this incarnation.
        clock: Where time comes from.
        options: How it behaves.
        stop_training_at: Called from any thread with the instant, by `clock`, at which training must be cut
            off because of a notice; may be called again with an earlier one.
        reporter: Told of each transition, for people; closed before the worker leaves.
    """

    def __init__(
        self,
        *,
        store: CheckpointStore,
        coordinator: Coordinator,
        worker_id: str,
        clock: Clock,
        options: WorkerOptions,
        stop_training_at: Callable[[float], None] = lambda _: None,
        reporter: Reporter | None = None,
    ) -> None:
        self._store = store
        self._coordinator = coordinator
        self._worker_id = worker_id
        self._clock = clock
        self._options = options
        self._stop_training_at = stop_training_at
        self._report = reporter or Reporter(worker_id, LogSink())
        self._elector = Elector(
            coordinator=coordinator,
            worker_id=worker_id,
            timings=options.timings,
            clock=clock,
            listener=self,
            terms=store.terms,
            idle_role="standby" if options.standby else "follower",
            report=self._report,
        )
        self._saver = Saver(
            store=store,
            worker_id=worker_id,
            clock=clock,
            term=self._term_to_write_under,
            listener=self,
            report=self._report,
        )
        self._notices = Notices(self._saver.request_save)
        self._start = StartProtocol(store, worker_id=worker_id, standby=options.standby)
        self._condition = threading.Condition()
        self._training = False
        self._closed = False
        self._joined_at = 0.0
        self._view: ClusterView | None = None
        self._reported_term = 0
        self._start_name: str | None = None
        self._progress_due = 0.0
        self._error: StoreError | None = None
        self._commits_fail = False
        self._announcer = Announcer(coordinator, worker_id, answers=lambda: self._notices.answers)
        self._publisher = NoticePublisher(
            coordinator, self._notices, elector=self._elector, worker_id=worker_id, clock=clock
        )
        self._stop_listening: Callable[[], None] = lambda: None
        self._opened = False
        self._finishing = False
        self._deletes = False
        self._saved_by_others = self._looks = False

    # ---------------------------------------------------------------- from the training thread

    @property
    def worker_id(self) -> str:
        """Id of this incarnation."""
        return self._worker_id

    @property
    def notice_given(self) -> bool:
        """Whether this worker is being preempted."""
        return self._notices.own is not None

    @property
    def reserve(self) -> float:
        """Seconds kept of the time that is left after a notice, for the last commit and for leaving."""
        notice = self._notices.own
        return self._options.reserve if notice is None else notice.reserve

    @property
    def closed(self) -> bool:
        """Whether this worker has left the run."""
        return self._closed

    @property
    def lease_left(self) -> float:
        """Seconds until this worker stands down unless it renews; 0 while it does not lead."""
        return self._elector.lease_left

    def join(self) -> None:
        """Open the run and start to campaign.

        Raises:
            Preempted: A notice came while the store could not be reached.
            RunMismatchError: The directory belongs to another run.
            StoreError: The directory can't be used, or the store could not be reached for `restore_timeout`.
            ConfigError: The coordinator serves another run.
        """
        run_id = self._open_run()
        self._coordinator.open(run_id, self._options.timings)
        self._opened = True
        self._warn_of_long_leases()
        self._joined_at = self._clock.now()
        self._report("joined", run=run_id, standby=self._options.standby, directory=self._store.location)
        self._stop_listening = self._coordinator.subscribe(self._on_hint)
        self._saver.start()
        self._elector.start()

    def _open_run(self) -> str:
        """Settle which run this is; a store that is away for a while is waited for, as the coordinator is."""
        # Another worker may have deleted the run of an earlier fit of this process.
        self._store.forget()
        deadline, said = self._clock.now() + self._options.restore_timeout, ""
        while True:
            try:
                return self._store.open_run()
            except StoreError as error:
                if not error.retryable or self._clock.now() > deadline:
                    raise
                if str(error) != said:
                    said = str(error)
                    logger.warning("can't join yet, trying again worker=%s reason=%s", self._worker_id, error)
            if self.notice_given:
                raise self.preempt()
            self._wait(_WAIT_SLICE)

    def _warn_of_long_leases(self) -> None:
        timings, grace_period = self._options.timings, self._options.grace_period
        if (
            self._coordinator.has_expiry
            and timings.duration + timings.retry_period > grace_period - self._options.reserve / 2
        ):
            logger.warning(
                "lease of %g s and grace period of %g s: if the leader is killed when all are preempted, nobody takes "
                "over in time to save; a shorter timings.duration cures it",
                timings.duration,
                grace_period,
            )

    def await_start(self) -> StartPoint:
        """Wait for the position that all workers start from.

        The leader takes the newest checkpoint that verifies and announces it. Everybody else waits for an
        announcement under the current holder's term and takes the same checkpoint. A standby waits until it
        leads or the run has finished.

        Raises:
            Preempted: A notice came first.
            RestoreTimeoutError: Nobody announced anything in time.
            NotSharedError: The announced checkpoint can't be seen in our directory.
            CorruptCheckpointError: The announced checkpoint is damaged.
            StoreError: No checkpoint is usable, or the directory can't be read.
            ConfigError: The coordinator refuses us, and always will.
        """
        arrival = Arrival(
            protocol=self._start,
            elector=self._elector,
            announcer=self._announcer,
            worker_id=self._worker_id,
            place=self._store.location,
            options=self._options,
            clock=self._clock,
        )
        while True:
            if self.notice_given:
                raise self.preempt()
            start = arrival.attempt(self._view)
            if start is not None:
                self._start_name = start.name
                with self._condition:
                    self._training = True
                return start
            self._wait(_WAIT_SLICE)

    def training_started(self, position: Position) -> None:
        """Training goes on from `position`, with the restored state applied."""
        self._announcer.start_position = position
        self._elector.position = position
        self._report("restored", checkpoint=self._start_name, **_at(position))

    def boundary(self, snapshot: Snapshot, *, due: bool) -> None:
        """Hand over the state at a batch boundary; leave if a notice has come.

        Args:
            snapshot: The state.
            due: Whether it is to be committed by the schedule, if we lead.

        Raises:
            Preempted: A notice has come, and this boundary was saved as far as the grace period allowed.
            StoreError: An earlier commit failed and `on_save_error` is "raise".
        """
        self._elector.position = snapshot.position
        self._saver.submit(snapshot, due=due)
        self._report_progress(snapshot.position)
        self.check()

    def _report_progress(self, position: Position) -> None:
        now = self._clock.now()
        if position.batch == 0 or now >= self._progress_due:
            self._progress_due = now + _PROGRESS_PERIOD
            self._report("progress", **_at(position))

    def check(self) -> None:
        """Leave if a notice has come; raise what a commit reported.

        Raises:
            Preempted: A notice has come.
            StoreError: An earlier commit failed and `on_save_error` is "raise".
        """
        if self.notice_given:
            raise self.preempt()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def preempt(self) -> Preempted:
        """Serve the notice to its end.

        Saves the last boundary if it is ours to save, else waits until it was saved; resigns; leaves.

        Returns:
            The exit to raise out of `fit`.
        """
        notice = self._notices.own
        assert notice is not None
        self._notices.ask(notice.notice_id)
        # Before and after training a follower has nothing that must be saved; who has something saves it.
        while (self._training or self._elector.is_leader) and not self._is_served() and self._time_left(1 / 2) > 0:
            # The coordinator may have gone since: then it is ours to save under the last term.
            self._saver.wake()
            self._look_for_saves_of_others()
            with _uninterrupted():
                self._wait(min(_WAIT_SLICE, self._time_left(1 / 2)))
        served = self._is_served()
        nothing_to_save = self._saver.last is None
        position, name = self._newest_known()
        self._report(
            "preempted",
            saved=None if nothing_to_save else served,
            checkpoint=name,
            **_at(position),
            seconds=round(self._clock.now() - notice.given, 3),
        )
        self.close(timeout=0.0)
        position, name = self._newest_known()
        seconds = self._clock.now() - notice.given
        return Preempted(self._options.exit_code, position=position, checkpoint=name, seconds=seconds)

    def _look_for_saves_of_others(self) -> None:
        """If no coordinator can tell that we are answered: whether what we could save is there. In a thread of its own.

        To look may take longer than there is time, where the store is out of reach as well.
        """
        alone = self._elector.coordinator_error is not None and self._term_to_write_under() is None
        if alone and self._saver.last is not None and not self._looks:
            self._looks = True
            threading.Thread(target=self._look_for_saves, name="distributed-backup-look", daemon=True).start()

    def _look_for_saves(self) -> None:
        last = self._saver.last
        with suppress(StoreError):
            newest = self._store.newest_header()
            # As a later leader would see it: a checkpoint of other data makes nothing needless.
            if newest is not None and last is not None and is_superseded(last, by=newest, term=newest.term + 1):
                self._announcer.newest = newest
                self._saved_by_others = True
        self._looks = False
        self._notify_all()

    def preempted_at_the_end(self, seconds: float) -> Preempted:
        """The exit after a notice that came when this worker had finished and was leaving.

        Args:
            seconds: Since the notice.
        """
        position, name = self._newest_known()
        logger.info("the notice came after the fit had finished worker=%s newest=%s", self._worker_id, name)
        return Preempted(self._options.exit_code, position=position, checkpoint=name, seconds=seconds)

    def _newest_known(self) -> tuple[Position | None, str | None]:
        return self._announcer.newest_known(None if self._view is None else self._view.announcement)

    def _is_served(self) -> bool:
        if self._saved_by_others:
            return True
        if not self._notices.own_is_answered:
            return False
        last, term = self._saver.last, self._term_to_write_under()
        # Ours to save: then the last boundary must be in it, which may have been reached since the answer.
        return last is None or term is None or is_superseded(last, by=self._announcer.newest, term=term)

    def finish(self) -> None:
        """The fit is complete: save what is due, say so, leave; the last one out deletes if asked to.

        Raises:
            Preempted: A notice came before anything was deleted; then nothing is.
        """
        self._finish_saving()
        if self.notice_given:
            raise self.preempt()
        self._report("finished", **_at(self._elector.position))
        term = self._elector.term
        if term is not None:
            with _logged("announcing the end"):
                self._announcer.note(term, finished=True)
                self._announcer.say(term)
        self._elector.stop()
        self._training = False
        if self._options.delete_checkpoint:
            # Before others may delete the run: nothing of ours must come after.
            self._report.close(EVENT_LOG_FLUSH_TIMEOUT)
            last = self._is_last_one_out()
            # A notice that comes from here on finds nothing to save, and must write nothing where all is deleted.
            with self._condition:
                self._deletes = last and not self.notice_given
            if self.notice_given:
                raise self.preempt()
            if last:
                with _logged("deleting the backup"):
                    delete_run(self._store, self._coordinator)
                    self._report("deleted")
        self.close(timeout=0.0)

    def _finish_saving(self) -> None:
        if self._options.keeps_final_state:
            # Others return with it, or come back to it, so it must be there whatever the schedule.
            self._saver.request_save()
        self._finishing = True
        self._saver.wake()
        failure = flush_pending(
            self._saver,
            self._store,
            clock=self._clock,
            is_ours=self._is_ours_to_save,
            wait=lambda: self._wait(self._elector.period),
            give_up=lambda: self.notice_given or self._error is not None,
        )
        if failure is not None:
            logger.error("%s worker=%s", failure, self._worker_id)
            if self._options.on_save_error == "raise":
                self._error = failure
        if self._error is not None:
            raise self._error

    def _is_ours_to_save(self) -> bool:
        """Whether something due waits that nobody else will save: we lead, or led last and nobody does now."""
        holder = None if self._view is None else self._view.holder
        ours = self._elector.is_leader or (self._elector.last_term is not None and holder in {None, self._worker_id})
        return ours and self._saver.unsaved

    def _is_last_one_out(self) -> bool:
        return leave_and_check_last(
            self._coordinator,
            self._worker_id,
            clock=self._clock,
            period=self._elector.period,
            wait=lambda: self._wait(self._elector.period),
            give_up=lambda: self.notice_given,
        )

    def close(self, *, timeout: float) -> None:
        """Commit what is due and pending, resign, leave, stop the threads. May be called again.

        Before a kill it takes no longer than the grace period allows, whatever hangs.

        Args:
            timeout: Seconds to wait for pending commits.
        """
        with self._condition:
            if self._closed:
                return
            self._closed = True
        try:
            if timeout > 0 and not self._saver.drain(timeout):
                logger.warning("left with a commit pending worker=%s", self._worker_id)
        finally:
            # Also if Ctrl-C ends the wait: who stays would renew its lease for ever, and nobody else could lead.
            self._stop_and_leave()

    def _stop_and_leave(self) -> None:
        self._stop_listening()
        limit = self._time_left(1 / 4) if self.notice_given else None
        self._report("left")
        if not run_with_timeout(limit, lambda: self._leave(limit)):
            logger.warning("left without a word, the coordinator or the disk hangs worker=%s", self._worker_id)

    def _leave(self, limit: float | None) -> None:
        self._elector.stop()
        term, view = self._elector.term, self._view
        if term is not None:
            with _logged("announcing"):
                self._announcer.say(term, on_record=None if view is None else view.announcement)
        with _logged("resigning"):
            self._elector.resign()
        # After what others wait for, and while we count as a member: then nobody deletes the run under it.
        self._report.close(EVENT_LOG_FLUSH_TIMEOUT if limit is None else min(EVENT_LOG_FLUSH_TIMEOUT, limit / 2))
        with _logged("leaving"):
            self._coordinator.leave(self._worker_id)
        self._saver.stop()
        self._store.storage.close()
        if self._opened:
            self._coordinator.close()

    # ---------------------------------------------------------------- notices

    def give_notice(self, reason: str, remaining: float | None = None) -> None:
        """This worker is going to be killed. From any thread; the first one counts, and the earliest deadline.

        Order: ask our own saver, for it may be ours to save; bound the training; then what may hang: tell the others.

        Args:
            reason: What told it.
            remaining: Seconds until then; None for the grace period.
        """
        grace_period = self._options.grace_period if remaining is None else remaining
        now = self._clock.now()
        with self._condition:
            if self._closed or self._deletes:
                return
            notice = self._notices.give(reason, now=now, remaining=grace_period)
        if notice is None:
            self._shorten_deadline(reason, now, grace_period)
            return
        self._notices.ask(notice.notice_id)
        self._elector.resume_campaign()
        self._stop_training_at(notice.deadline - notice.reserve)
        self._report("notice", reason=reason, remaining=grace_period)
        if self._elector.is_leader:
            # Telling writes to the same disk as saving does; for this moment nobody else has anything to do about it.
            with self._condition:
                self._condition.wait_for(lambda: self._notices.own_is_answered, SAVE_HEAD_START)
        self._publisher.publish(notice, self._view)
        self._elector.wake()
        self._cut_off_if_answered()
        self._notify_all()

    def _shorten_deadline(self, reason: str, now: float, remaining: float) -> None:
        """Notice came again; less time may be left than was thought."""
        notice = self._notices.shorten_deadline(now=now, remaining=remaining)
        if notice is not None:
            self._stop_training_at(notice.deadline - notice.reserve)
            logger.warning("notice came again worker=%s reason=%s grace=%g", self._worker_id, reason, remaining)
            self._notify_all()

    def _time_left(self, kept: float) -> float:
        """Seconds until the kill, less a part of the reserve; known by our own notice only."""
        notice = self._notices.own
        assert notice is not None
        return notice.deadline - kept * notice.reserve - self._clock.now()

    def ask_for_save(self, reason: str) -> bool:
        """Something may happen to this worker: have the run saved now, and train on. From any thread.

        The leader treats it as an operator's request for a save.

        Returns:
            False if nobody could be told, or there is nothing to save yet: worth another try.
        """
        if self._closed or self.notice_given:
            return True
        unheard = self._elector.coordinator_error is not None and not self._elector.is_leader
        if unheard or not self._training:
            return False
        logger.warning("warning worker=%s reason=%s", self._worker_id, reason)
        return self._publisher.ask_for_save(reason)

    def _cut_off_if_answered(self) -> None:
        """A follower whose notice was answered has nothing more to gain by training on."""
        if self._notices.own_is_answered and not self._elector.is_leader:
            self._stop_training_at(self._clock.now())

    def _term_to_write_under(self) -> int | None:
        term = self._elector.term
        if term is None and (self.notice_given or self._finishing):
            # Coordination may fail; saving must not.
            term = self._elector.term_of_last_resort
        return term

    # ---------------------------------------------------------------- from the elector's thread

    def elected(self, term: int) -> None:
        """We lead: tell the others where the run stands, commit what is due."""
        self._report_once(term)
        self._saver.wake()
        self._notify_all()

    def lost(self, loss: LeaseLoss) -> None:  # noqa: ARG002 - the listener's signature
        """We no longer lead; training goes on, commits wait, but for one that a notice asked for."""
        self._saver.wake()
        self._notify_all()

    def observed(self, view: ClusterView) -> None:
        """Learn what is: notices of others, answers to ours, announcements."""
        self._start.observe(view, since_joined=self._clock.now() - self._joined_at)
        self._view = view
        if view.announcement is not None:
            self._notices.add_acknowledged(view.announcement.answers)
        term = self._elector.term
        if term is not None:
            for notice_id in self._notices.pending(view):
                self._notices.ask(notice_id)
            self._keep_announced(term, view)
            self._publisher.handle_resign_requests(view, self._options.timings.duration)
        self._publisher.republish(view)
        self._saver.wake()
        self._cut_off_if_answered()
        self._notify_all()

    def _keep_announced(self, term: int, view: ClusterView) -> None:
        """What we have to say must be on record: others may join at any time, and a reply may have been lost."""
        with _logged("announcing"):
            if not self._announcer.say(term, on_record=view.announcement):
                self._report_once(term)

    def _on_hint(self, hint: Hint) -> None:
        """Something has changed; whether that is worth a heartbeat between two ticks."""
        waits = not self._training if hint == "finished" else not (self._training or self._options.standby)
        announced = hint in {"announced", "finished"} and (waits or self.notice_given)
        if announced or (hint == "noticed" and self._elector.is_leader):
            self._elector.wake()
        elif hint == "free":
            self._elector.lease_released()

    def _report_once(self, term: int) -> None:
        # Once: a report that fails is made again by the saver at the next boundary.
        if self._training and self._reported_term != term:
            self._reported_term = term
            self._saver.request_announcement()

    # ---------------------------------------------------------------- from the saver's thread

    def on_committed(self, newest: CheckpointHeader | None, term: int, *, served: int) -> None:
        """Have the newest checkpoint announced, and which notices it answers."""
        if self._commits_fail:
            self._report("commit_recovered")
            self._commits_fail = False
        self._announcer.newest = newest
        answers = self._notices.mark_served(served)
        # Before our own start there is nothing to say but that a checkpoint is there.
        if self._training or (answers and newest is not None):
            # Said by the elector's thread: a coordinator that hangs must not hold up the next commit.
            self._announcer.note(term)
            self._elector.wake()
        self._cut_off_if_answered()
        self._notify_all()

    def on_stale_term(self, term: int) -> None:
        """Stop believing that we lead: two coordinators serve one directory, or checkpoints were copied into it."""
        self._elector.invalidate_term(term)

    def on_commit_failed(self, error: StoreError) -> None:
        """Report a commit that failed."""
        if self._options.on_save_error == "raise":
            self._error = error
        self._commits_fail = True
        self._report("commit_failed", reason=str(error), intact=self._store.storage.exists())
        self._notify_all()

    # ---------------------------------------------------------------- waiting

    def _wait(self, timeout: float) -> None:
        with self._condition:
            self._condition.wait(timeout)

    def _notify_all(self) -> None:
        with self._condition:
            self._condition.notify_all()


def _at(position: Position | None) -> dict[str, int | None]:
    """A position as fields of an event."""
    return {"epoch": None, "batch": None} if position is None else {"epoch": position.epoch, "batch": position.batch}


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """Go on after an error of store or coordinator: leaving and saving must not hang on coordination."""
    try:
        yield
    except BackupError as error:
        logger.warning("%s failed: %s", what, error)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C while a save is under way: the save is what the user would want most."""
    try:
        yield
    except KeyboardInterrupt:
        logger.warning("interrupted while saving before a preemption: the save goes on")
