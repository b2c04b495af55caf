"""Serve the preemption of this worker: from the notice until its last boundary is durable.

The way of a SIGTERM, thread by thread. D is the kill, R is `shutdown_reserve`.

    main thread       signal handler: puts the signal into a queue, nothing else        preemption/signals.py
    signals thread    `FitSession._give_notice`                                         training/session.py
                        ExitWatchdog.arm           ends the process at D - R/4          preemption/watchdog.py
                        OwnPreemption.give_notice
                          Notices.request_save     the saver commits the last boundary  checkpoints/saver.py
                          stop_training_at         cancels the batch at D - R           training/cancellation.py
                          NoticePublisher.publish  so that the leader saves for a follower  worker/notices.py
                                                   or gives way, if it is behind the follower
    saver thread      commits, then `Worker.on_committed` acknowledges the notice       worker/worker.py
    elector thread    announces checkpoint and acknowledgement at its next tick         worker/announcer.py
    training thread   the batch in flight ends, or is cancelled
                        Worker.boundary            hands its end to the saver: a second commit
                        Worker.preempt
                          wait_until_saved         until D - R/2                        here
                          Shutdown.close           resigns and leaves, until D - R/4    worker/shutdown.py
                          Preempted                exit code 143, raised out of `fit`   preemption/exit.py

`next_step` decides how to wait, from what is known and without I/O. `OwnPreemption` takes the steps.

The limit: a worker without a lease can't save. If every worker is killed before one of them leads, the newest
checkpoint is what remains.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from distributed_backup.checkpoints.fencing import is_superseded
from distributed_backup.coordination.base import ClusterView
from distributed_backup.errors import StoreError
from distributed_backup.worker.context import WAIT_SLICE, WorkerContext
from distributed_backup.worker.notices import covers

logger = logging.getLogger(__name__)

# Seconds that a preempted leader waits for its own save before it publishes the notice. Both write to the same disk.
SAVE_HEAD_START: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionStatus:
    """What a preempted worker knows while it waits for the save.

    `may_lose_work`: it trains or leads. Before and after training, a follower has nothing that must be saved,
    and one that has lost its leader's journal has nothing that may be.
    `is_isolated`: it can't save, and no coordinator can tell it that another worker has. `time_left`: seconds until the
    wait must end.
    """

    may_lose_work: bool
    is_saved: bool
    is_isolated: bool
    time_left: float


@dataclass(frozen=True, slots=True)
class WaitForSave:
    """Wait for `seconds`. `look_in_storage`: look for a save of another worker meanwhile."""

    seconds: float
    look_in_storage: bool


def next_step(status: PreemptionStatus) -> WaitForSave | None:
    """Return how to wait for the save. None: leave now."""
    if not status.may_lose_work or status.is_saved or status.time_left <= 0:
        return None
    return WaitForSave(min(WAIT_SLICE, status.time_left), look_in_storage=status.is_isolated)


class OwnPreemption:
    """The preemption of one worker. `stop_training_at` is called with the instant to cancel training at."""

    def __init__(self, context: WorkerContext, stop_training_at: Callable[[float], None]) -> None:
        self._context = context
        self._stop_training_at = stop_training_at
        self._saved_by_other_writer = False
        self._look_running = False

    @property
    def is_noticed(self) -> bool:
        """Whether this worker is being preempted."""
        return self._context.notices.own is not None

    @property
    def reserve(self) -> float:
        """Seconds kept of the grace period for the last commit, for leaving, and for the interpreter's exit."""
        notice = self._context.notices.own
        return self._context.options.reserve if notice is None else notice.reserve

    @property
    def seconds_since_notice(self) -> float:
        """Seconds since the notice."""
        notice = self._context.notices.own
        assert notice is not None
        return self._context.clock.now() - notice.given

    def time_left(self, *, keep: float) -> float:
        """Return the seconds until the kill, less `keep`, a part of the reserve."""
        notice = self._context.notices.own
        assert notice is not None
        return notice.deadline - keep * notice.reserve - self._context.clock.now()

    def warn_of_long_lease(self) -> None:
        """Warn if a lease outlasts the grace period, so that no follower can take over and save in time."""
        timings, options = self._context.options.timings, self._context.options
        take_over = timings.duration + timings.retry_period
        if self._context.coordinator.has_expiry and take_over > options.grace_period - options.reserve / 2:
            logger.warning(
                "timings.duration of %g s is too long for a grace_period of %g s: if the leader dies while all workers "
                "are being preempted, no follower can take over in time to save. Shorten timings.duration",
                timings.duration,
                options.grace_period,
            )

    # ---------------------------------------------------------------- the notice

    def give_notice(self, reason: str, remaining: float | None, *, is_too_late: Callable[[], bool]) -> None:
        """Register that this worker will be killed in `remaining` seconds, or in the grace period if None.

        Order: request the save, bound the training, then publish, which may hang. Of several notices the earliest
        deadline counts. `is_too_late` is asked under the lock of the worker's state.
        """
        context = self._context
        seconds = context.options.grace_period if remaining is None else remaining
        now = context.clock.now()
        with context.state.condition:
            if is_too_late():
                return
            notice = context.notices.give(reason, now=now, remaining=seconds)
        if notice is None:
            self._shorten_deadline(reason, now, seconds)
            return
        context.notices.request_save(notice.notice_id)
        context.elector.resume_campaign()
        self._stop_training_at(notice.deadline - notice.reserve)
        context.report("notice", reason=reason, remaining=seconds)
        if context.elector.is_leader:
            with context.state.condition:
                context.state.condition.wait_for(lambda: context.notices.own_is_acknowledged, SAVE_HEAD_START)
        context.publisher.publish(context.state.view, context.last_boundary)
        context.elector.wake()
        self.stop_training_if_saved()
        context.state.notify_all()

    def _shorten_deadline(self, reason: str, now: float, remaining: float) -> None:
        notice = self._context.notices.shorten_deadline(now=now, remaining=remaining)
        if notice is not None:
            self._stop_training_at(notice.deadline - notice.reserve)
            logger.warning(
                "an earlier deadline was given worker=%s reason=%s remaining=%g",
                self._context.worker_id,
                reason,
                remaining,
            )
            self._context.state.notify_all()

    def stop_training_if_saved(self) -> None:
        """Cancel the batch in flight of a follower that is saved: it can't save more by training on.

        While no worker leads, this one may lead next. So a leader that gave way trains on until another one leads.
        """
        context, view = self._context, self._context.state.view
        another_leads = view is not None and view.holder not in {None, context.worker_id}
        is_follower = another_leads and not context.elector.is_leader
        if is_follower and context.notices.own_is_acknowledged and self._is_saved():
            self._stop_training_at(context.clock.now())

    def republish(self, view: ClusterView) -> None:
        """Keep the notice on record, with the newest boundary, until it is served."""
        if self.is_noticed and not self._is_saved():
            self._context.publisher.republish(view, self._context.last_boundary)

    # ---------------------------------------------------------------- the wait

    def wait_until_saved(self) -> bool:
        """Wait until the last boundary is durable, at most until half of the reserve is left. Return whether it is."""
        context = self._context
        notice = context.notices.own
        assert notice is not None
        context.notices.request_save(notice.notice_id)
        # This worker may have given way to one that has died since, and may have come further.
        context.elector.resume_campaign()
        while True:
            seen = context.state.changes
            step = next_step(self._status())
            if step is None:
                return self._is_saved()
            # The coordinator may have gone since the last look. Then this worker saves under its last term.
            context.saver.wake()
            if step.look_in_storage:
                self._start_look_in_storage()
            with _keyboard_interrupt_ignored():
                context.state.wait(step.seconds, since=seen)

    def _status(self) -> PreemptionStatus:
        context = self._context
        is_cut_off = context.elector.coordinator_error is not None and context.term_to_write_under() is None
        has_work = context.state.is_training or context.elector.is_leader
        return PreemptionStatus(
            may_lose_work=has_work and not context.state.is_lost,
            is_saved=self._is_saved(),
            is_isolated=is_cut_off and context.saver.last is not None,
            time_left=self.time_left(keep=1 / 2),
        )

    def _is_saved(self) -> bool:
        if self._saved_by_other_writer:
            return True
        if not self._context.notices.own_is_acknowledged:
            return False
        last, term = self._context.saver.last, self._context.term_to_write_under()
        if last is None or term is None:
            return covers(self._context.newest_known()[0], self._context.last_boundary)
        # A worker that may write must have its own last boundary in it: it may have come further since.
        return is_superseded(last, by=self._context.announcer.newest, term=term)

    def _start_look_in_storage(self) -> None:
        """Look in a thread of its own: where the storage is unreachable too, the look outlasts the time left."""
        if not self._look_running:
            self._look_running = True
            threading.Thread(target=self._look_in_storage, name="distributed-backup-look", daemon=True).start()

    def _look_in_storage(self) -> None:
        last = self._context.saver.last
        with suppress(StoreError):
            newest = self._context.store.newest_header()
            # As a later leader would see it: a checkpoint of other data supersedes nothing.
            if newest is not None and last is not None and is_superseded(last, by=newest, term=newest.term + 1):
                self._context.announcer.newest = newest
                self._saved_by_other_writer = True
        self._look_running = False
        # A look that found nothing must not end the wait: the next one would start at once, at full speed.
        if self._saved_by_other_writer:
            self._context.state.notify_all()


@contextmanager
def _keyboard_interrupt_ignored() -> Iterator[None]:
    """Continue after Ctrl-C while a save is under way: the user wants the save most."""
    try:
        yield
    except KeyboardInterrupt:
        logger.warning("Ctrl-C during the save before a preemption: the save continues")
