"""Shut a worker down: commit what is due, find out whether it is the last one out, leave the run in time.

A run that has finished is deleted by its last worker, and never by a worker that is being preempted. `flush_step` and
`deletion_step` decide, from what is known and without I/O. `Shutdown` takes the steps.

If the final state is kept, no worker finishes before it is durable. So the first one that succeeds may end the job.

The limits: a member that died silently counts until its membership expires. Until then no worker is the last one out. A
worker whose leader has far to go waits for it, and for ever if both run in one event loop.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Final, Literal

from distributed_backup.checkpoints.format import Snapshot, is_final, parse_name
from distributed_backup.checkpoints.synalinks_backup import remove_synalinks_backup
from distributed_backup.errors import BackupError, CoordinatorError, StoreError
from distributed_backup.preemption.exit import Preempted
from distributed_backup.worker.context import WAIT_SLICE, WorkerContext, errors_logged, position_fields
from distributed_backup.worker.fit_task import FitTask
from distributed_backup.worker.notices import covers
from distributed_backup.worker.preemption import OwnPreemption

logger = logging.getLogger(__name__)

# A worker is the last one out if it saw no other member for this many ticks: more than one tick with its jitter.
QUIET_TICKS_BEFORE_DELETE: Final = 1.5
# Seconds for which a finished worker retries a refused commit, and the fewest tries: a suspension may use the time up.
_FINISH_LIMIT: Final = 30.0
_FEWEST_TRIES: Final = 5
# Seconds that a leaving worker waits for its last events, and for the last answers, to be written.
EVENT_LOG_FLUSH_TIMEOUT: Final = 2.0
JOURNAL_FLUSH_TIMEOUT: Final = 5.0


# -------------------------------------------------------------------- the decisions


def flush_step(
    *, is_pending: bool, awaits_final: bool, gives_up: bool, seconds_left: float
) -> Literal["done", "failed", "drain", "wait"]:
    """Return what a finished worker does about its pending commits, and about those of its leader.

    `is_pending`: a commit is due that no other worker will make. `awaits_final`: the final state is kept, and another
    worker must commit it. `gives_up`: the result no longer matters.
    """
    if gives_up:
        return "done"
    if is_pending:
        return "failed" if seconds_left < 0 else "drain"
    return "wait" if awaits_final else "done"


def deletion_step(
    ages: Sequence[float], *, now: float, left_at: float, quiet_since: float, quiet_period: float
) -> Literal["keep", "delete", "wait"]:
    """Return what a finished worker does about the backup.

    `ages` are the seconds since the last heartbeat of each other member, as seen at `now`. A member that sent one after
    `left_at` goes on, so the backup stays. With no other member since `quiet_since`, for `quiet_period` seconds, the
    worker is the last one out.
    """
    if any(now - age > left_at for age in ages):
        return "keep"
    if not ages and now - quiet_since > quiet_period:
        return "delete"
    return "wait"


# -------------------------------------------------------------------- taking the steps


class Shutdown:
    """The end of one worker's part in a run. `stop_listening` ends its subscription to hints."""

    def __init__(self, context: WorkerContext, preemption: OwnPreemption, fit_task: FitTask) -> None:
        self._context, self._preemption, self._fit_task = context, preemption, fit_task
        self._closing = threading.Lock()
        self.stop_listening: Callable[[], None] = lambda: None

    @property
    def has_begun(self) -> bool:
        """Whether this worker is leaving the run, or has left it."""
        return self._closing.locked()

    def is_too_late_for_notice(self) -> bool:
        """Whether a notice that comes now must write nothing: this worker is leaving, or deletes the run."""
        return self.has_begun or self._context.state.phase == "deleting"

    # ---------------------------------------------------------------- after a notice

    def preempt(self) -> Preempted:
        """Serve the notice, then leave. Return the exit to raise out of `fit`."""
        context = self._context
        is_saved = self._preemption.wait_until_saved()
        position, name = context.newest_known()
        context.report(
            "preempted",
            saved=None if context.saver.last is None else is_saved,
            checkpoint=name,
            **position_fields(position),
            seconds=round(self._preemption.seconds_since_notice, 3),
        )
        self.close(timeout=0.0)
        return self.preempted(self._preemption.seconds_since_notice)

    def preempted(self, seconds: float) -> Preempted:
        """Return the exit of a preempted worker, `seconds` after its notice."""
        position, name = self._context.newest_known()
        return Preempted(self._context.options.exit_code, position=position, checkpoint=name, seconds=seconds)

    def preempted_at_the_end(self, seconds: float) -> Preempted:
        """Return the exit for a notice that came `seconds` ago, after this worker had finished."""
        preempted = self.preempted(seconds)
        what = "the notice came after the fit had finished worker=%s checkpoint=%s seconds=%.3f"
        logger.info(what, self._context.worker_id, preempted.checkpoint, seconds)
        return preempted

    # ---------------------------------------------------------------- after the fit

    def finish(self, final: Snapshot | None = None) -> None:
        """End a complete fit: commit what is due, announce the end, leave. The last one out deletes if asked to.

        `final` is the state that `fit` returns with. None if the last boundary is to stand for it.

        Raises:
            Preempted: A notice came before anything was deleted. Then nothing is.
            CancelledError: The fit was cancelled while this worker waited for its leader.
            StoreError: A commit failed and `on_save_error` is "raise".
        """
        context, state = self._context, self._context.state
        deadline = context.clock.now() + _FINISH_LIMIT
        if final is not None:
            self._commit_boundaries(deadline)
            context.saver.submit(final, due=False)
        self._flush(deadline)
        self._raise_if_noticed()
        context.report("finished", **position_fields(context.elector.position))
        term = context.elector.term
        if term is not None:
            with errors_logged("announcing the end"):
                context.announcer.note(term, finished=True)
                context.announcer.publish(term)
        context.elector.stop()
        state.phase = "finished"
        if context.options.delete_checkpoint:
            # Other workers may delete the run from now on. No write of this worker may follow.
            context.report.close(EVENT_LOG_FLUSH_TIMEOUT)
            context.close_journal(JOURNAL_FLUSH_TIMEOUT)
            is_last = self._leave_and_check_last()
            with state.condition:
                if is_last and not self._preemption.is_noticed:
                    state.phase = "deleting"
            self._raise_if_noticed()
            if state.phase == "deleting":
                with errors_logged("deleting the backup"):
                    self._delete_run()
        self.close(timeout=0.0)

    def _raise_if_noticed(self) -> None:
        if self._preemption.is_noticed:
            raise self.preempt()

    def _commit_boundaries(self, deadline: float) -> None:
        """Commit what is due before the final state, which is larger: the storage may have no room for that."""
        tries = 0
        while tries < _FEWEST_TRIES or self._context.clock.now() <= deadline:
            tries += 1
            if self._preemption.is_noticed or self._context.saver.drain(WAIT_SLICE):
                return

    def _flush(self, deadline: float) -> None:
        context, state = self._context, self._context.state
        if context.options.keeps_final_state:
            # Other workers return with the final state, or come back to it, so it is committed whatever the schedule.
            context.saver.request_save()
        state.phase = "finishing"
        context.saver.wake()
        if not self._commits_last() and self._awaits_final():
            logger.info("training is complete, waiting until the final state is saved worker=%s", context.worker_id)
        tries = 0
        while True:
            seen = state.changes
            is_ours = self._commits_last()
            step = flush_step(
                is_pending=is_ours and context.saver.unsaved,
                awaits_final=not is_ours and self._awaits_final(),
                gives_up=self._preemption.is_noticed or state.commit_error is not None,
                seconds_left=deadline - context.clock.now() if tries >= _FEWEST_TRIES else math.inf,
            )
            if step == "wait":
                self._fit_task.raise_if_cancelled()
                state.wait(context.elector.period, since=seen)
                # Should this worker lead next, it has all of the time.
                deadline = context.clock.now() + _FINISH_LIMIT
                continue
            if step != "drain":
                break
            tries += 1
            is_saved = context.saver.drain(WAIT_SLICE) and not context.saver.unsaved
            # After `drain`: commits that failed in it must not end the wait, or the next ones follow at full speed.
            seen = state.changes
            if not is_saved and not self._preemption.is_noticed:
                state.wait(context.elector.period, since=seen)
        if step == "failed":
            self._final_state_failed()
        if state.commit_error is not None:
            raise state.commit_error

    def _commits_last(self) -> bool:
        """Whether this worker makes the last commits: it leads, or no other does, and it led last or can't lead."""
        elector, view = self._context.elector, self._context.state.view
        is_free = view is None or view.holder in {None, self._context.worker_id}
        is_last = is_free and (elector.last_term or elector.campaign_error) is not None
        return (elector.is_leader or is_last) and not self._context.saver.is_refused

    def _awaits_final(self) -> bool:
        """Whether the final state is to be kept, is not durable, and is not given up by a leader that has finished."""
        context = self._context
        if not context.options.keeps_final_state:
            return False
        announced = None if context.state.view is None else context.state.view.announcement
        newest = context.newest_known()[1] or ""
        if context.elector.coordinator_error is not None:
            # Then the leader commits under its last term, and can't announce it.
            with errors_logged("looking for the final state"):
                newest = next(iter(context.store.names()), newest)
        is_over = is_final(newest) or (announced is not None and announced.finished)
        parsed = parse_name(newest) if is_over else None
        return parsed is None or not covers(parsed[1], context.elector.position)

    def _final_state_failed(self) -> None:
        location = self._context.store.location
        error = StoreError(
            f"the final state could not be saved in {location} within {_FINISH_LIMIT:g} s. Make room there or restore "
            "access, and start this worker again: it continues from the last checkpoint",
            path=location,
        )
        logger.error("%s worker=%s", error, self._context.worker_id)
        if self._context.options.on_save_error == "raise":
            self._context.state.commit_error = error

    def _leave_and_check_last(self) -> bool:
        """Leave the run, then return whether no other worker goes on or is about to finish."""
        context = self._context
        left_at = quiet_since = context.clock.now()
        quiet_period = QUIET_TICKS_BEFORE_DELETE * context.elector.period
        try:
            context.coordinator.leave(context.worker_id)
            while True:
                seen = context.state.changes
                if self._preemption.is_noticed:
                    return False
                # Before the call: a reply that was long on its way must not make a member look alive.
                now = context.clock.now()
                ages = [m.age for m in context.coordinator.members() if m.worker_id != context.worker_id]
                step = deletion_step(ages, now=now, left_at=left_at, quiet_since=quiet_since, quiet_period=quiet_period)
                if step == "keep":
                    logger.info("backup kept for other workers worker=%s others=%d", context.worker_id, len(ages))
                if step != "wait":
                    return step == "delete"
                if ages:
                    quiet_since = now
                context.state.wait(context.elector.period, since=seen)
        except CoordinatorError as error:
            logger.warning("backup kept, the coordinator failed worker=%s reason=%s", context.worker_id, error)
        return False

    def _delete_run(self) -> None:
        """Delete the backup of a finished run. The lease goes last: a worker that joins meanwhile waits for it."""
        store = self._context.store
        store.check_run()  # refuses a directory that another run has taken
        remove_synalinks_backup(store.storage)
        store.delete()
        self._context.coordinator.erase()
        # Only an empty directory: a new run may have begun here since.
        store.storage.remove_if_empty()
        self._context.report("deleted")

    # ---------------------------------------------------------------- leaving

    def close(self, *, timeout: float, save_last: bool = False) -> None:
        """Commit what is pending within `timeout` seconds, resign, leave, stop the threads. May be called again.

        `save_last`: commit the last boundary too, if an error has left the fit and this worker leads. After a notice,
        closing takes no longer than the grace period allows, whatever hangs.
        """
        state, saver = self._context.state, self._context.saver
        with state.condition:  # a notice comes before this point, or is too late
            if not self._closing.acquire(blocking=False):
                return
        try:
            if save_last and state.phase == "training" and saver.last is not None:
                state.phase = "failed"
                self._context.journal.write_stage()
                saver.submit(saver.last, due=True)
            if timeout > 0 and not saver.drain(timeout):
                logger.warning("left with a commit pending worker=%s", self._context.worker_id)
        finally:
            # Also after Ctrl-C: a worker that stays would renew its lease for ever, and no other could lead.
            self._leave_in_time()

    def _leave_in_time(self) -> None:
        self.stop_listening()
        limit = self._preemption.time_left(keep=1 / 4) if self._preemption.is_noticed else None
        self._context.report("left")
        if not run_with_timeout(lambda: self._leave(limit), limit):
            what = "could not leave cleanly: within %.1f s the coordinator or the disk did not respond worker=%s"
            logger.warning(what, max(limit or 0.0, 0.0), self._context.worker_id)

    def _leave(self, limit: float | None) -> None:
        context, began = self._context, self._context.clock.now()
        # First: the next leader reads the journal when the lease is free. Heartbeats keep the lease meanwhile.
        context.close_journal(JOURNAL_FLUSH_TIMEOUT if limit is None else min(JOURNAL_FLUSH_TIMEOUT, limit / 2))
        limit = None if limit is None else limit - (context.clock.now() - began)
        context.elector.stop()
        # A worker that never opened the coordinator is no member and leads nothing.
        is_member = context.state.phase != "new"
        # Two calls to a server that does not answer cost their time limits, a retry period each. If the kill is nearer,
        # they are skipped: lease and membership expire. A file lock does not expire, and is always released.
        is_near = limit is not None and limit < 2 * context.options.timings.retry_period
        may_skip = is_near and context.coordinator.has_expiry
        answers = not may_skip or context.elector.coordinator_error is None
        may_leave = is_member and answers and (self._resign() or not may_skip)
        # After what other workers wait for, and as a member still: then no other worker deletes the run meanwhile.
        context.report.close(EVENT_LOG_FLUSH_TIMEOUT if limit is None else min(EVENT_LOG_FLUSH_TIMEOUT, limit / 2))
        if may_leave:
            with errors_logged("leaving"):
                context.coordinator.leave(context.worker_id)
        context.saver.stop()
        context.store.storage.close()
        if is_member:
            context.coordinator.close()

    def _resign(self) -> bool:
        """Announce what is new, and give the lease back. Return whether the coordinator answered."""
        term, view = self._context.elector.term, self._context.state.view
        if term is not None:
            with errors_logged("announcing"):
                self._context.announcer.publish(term, on_record=None if view is None else view.announcement)
        try:
            self._context.elector.resign()
        except BackupError as error:
            logger.warning("resigning failed: %s", error)
            return False
        return True


def run_with_timeout(work: Callable[[], None], timeout: float | None) -> bool:
    """Run work that may hang, and continue after `timeout` seconds without it. None waits for its end.

    Returns:
        Whether it has ended. If not, it goes on in a thread that ends with the process.
    """
    if timeout is None:
        work()
        return True
    thread = threading.Thread(target=work, name="distributed-backup-leaving", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # an interpreter that exits starts no thread
        work()
        return True
    thread.join(max(timeout, 0.0))
    return not thread.is_alive()
