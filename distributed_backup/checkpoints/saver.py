"""The background thread that writes all checkpoints: the newest snapshot in, a commit out, only while leading.

Training hands over bytes and goes on. It never waits for a disk. The waiting work is bounded: one commit runs, one
snapshot is due, and the last boundary is kept for a notice. The newest wins. The limit: a snapshot that was handed over
is durable only when `on_committed` says so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

from distributed_backup.checkpoints.fencing import is_superseded
from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import Clock
from distributed_backup.errors import StaleTermError, StoreError
from distributed_backup.observability.events import Report, no_report

logger = logging.getLogger(__name__)

# Seconds between two tries of a requested save: a full disk or a lost mount may come back within the grace period.
_RETRY_PERIOD: Final = 0.2


class SaverListener(Protocol):
    """The listener of a saver. Called from the saver's thread."""

    def on_committed(self, newest: CheckpointHeader | None, term: int, *, served: int) -> None:
        """`newest` is the newest durable checkpoint, as far as the writer of `term` knows.

        It is at least as new as the last boundary before each `request_save` up to ticket `served`.
        """

    def on_stale_term(self, term: int) -> None:
        """A commit under `term` was refused: the store holds checkpoints of a newer term."""

    def on_commit_failed(self, error: StoreError) -> None:
        """A commit failed. Earlier checkpoints are intact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a saver has to do. What failed is retried at the next boundary, unless something newer is due by then."""

    due: Snapshot | None = None
    announce: bool = False
    failed: Snapshot | None = None
    announce_failed: bool = False

    def at_boundary(self, snapshot: Snapshot, *, due: bool) -> Work:
        """Return the work after a new boundary."""
        return Work(due=snapshot if due else self.due or self.failed, announce=self.announce or self.announce_failed)

    def retried(self) -> Work:
        """Return the work with the failed snapshot due again."""
        return replace(self, due=self.due or self.failed, failed=None)

    def taken(self) -> Work:
        """Return the work that is left once the thread has taken what is due."""
        return replace(self, due=None, announce=False)

    def after_failure(self, snapshot: Snapshot | None, *, announce: bool) -> Work:
        """Return the work after a failed commit."""
        return replace(self, failed=snapshot or self.failed, announce_failed=announce or self.announce_failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitTask:
    """One commit: up to which ticket it serves, and whether a notice waits for it."""

    snapshot: Snapshot | None
    term: int
    ticket: int
    is_urgent: bool
    announce: bool


class Saver:
    """Commits snapshots in a thread of its own.

    A snapshot that the newest checkpoint supersedes is not committed, see `is_superseded`. `term` returns the term to
    write under. None while this worker may not write.
    """

    def __init__(
        self,
        *,
        store: CheckpointStore,
        worker_id: str,
        clock: Clock,
        term: Callable[[], int | None],
        listener: SaverListener,
        report: Report = no_report,
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._clock = clock
        self._term = term
        self._listener = listener
        self._report = report
        self._condition = threading.Condition()
        self._last: Snapshot | None = None
        self._pending = Work()
        self._requested = 0
        self._served = 0
        # The term under which a commit was refused. Nothing is retried before this worker leads under another.
        self._stale_term: int | None = None
        # The newest checkpoint that is certainly durable.
        self._durable = ""
        self._running = False
        self._stopped = False
        self._pause = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread that commits."""
        self._thread = threading.Thread(target=self._run, name="distributed-backup-saver", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the running commit. Pending work is dropped, see `drain`."""
        with self._condition:
            self._stopped = True
            self._pause.set()
            self._condition.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def submit(self, snapshot: Snapshot, *, due: bool) -> None:
        """Take over the snapshot of the newest boundary. `due`: commit it as soon as this worker leads."""
        with self._condition:
            self._last = snapshot
            self._pending = self._pending.at_boundary(snapshot, due=due)
            self._condition.notify_all()

    def request_save(self) -> int:
        """Request a commit of the newest boundary now.

        Returns:
            A ticket. The listener hears when it was served, and so the boundary is durable.
        """
        with self._condition:
            self._requested += 1
            self._pause.set()
            self._condition.notify_all()
            return self._requested

    def request_announcement(self) -> None:
        """Report the newest checkpoint to the listener as soon as this worker leads. Commit what is due."""
        with self._condition:
            self._pending = replace(self._pending, announce=True)
            self._condition.notify_all()

    def wake(self) -> None:
        """Look again whether this worker may write, and under which term."""
        with self._condition:
            self._condition.notify_all()

    def drain(self, timeout: float) -> bool:
        """Retry once what failed, then wait until nothing runs and nothing can be tried.

        Returns:
            Whether that was within `timeout` seconds. What failed again is `unsaved`.
        """
        with self._condition:
            self._pending = self._pending.retried()
            self._condition.notify_all()
            return self._condition.wait_for(lambda: not self._running and not self._ready(), timeout)

    @property
    def unsaved(self) -> bool:
        """Whether a snapshot waits for its commit, or failed to be committed."""
        with self._condition:
            waits = self._pending.due is not None or self._pending.failed is not None
            return waits or self._running or self._served < self._requested

    @property
    def is_refused(self) -> bool:
        """Whether another worker has committed under a later term than this one may write under."""
        return self._stale_term is not None and self._stale_term == self._term()

    @property
    def last(self) -> Snapshot | None:
        """The newest boundary that was handed over. None before the first."""
        return self._last

    # ---------------------------------------------------------------- the thread

    def _ready(self) -> bool:
        wanted = self._pending.due is not None or self._pending.announce or self._served < self._requested
        return wanted and self._usable_term() is not None

    def _usable_term(self) -> int | None:
        term = self._term()
        return None if term == self._stale_term else term

    def _run(self) -> None:
        while True:
            with self._condition:
                self._running = False
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._stopped or self._ready())
                if self._stopped:
                    return
                task = self._take()
            if task is None:
                continue
            if self._commit(task):
                self._served = task.ticket
                continue
            with self._condition:
                # Retry at the next boundary, not in a loop: the disk may be full. A requested save is retried sooner.
                self._pending = self._pending.after_failure(task.snapshot, announce=task.announce)
            if task.is_urgent and task.term != self._stale_term:
                self._clock.wait(self._pause, _RETRY_PERIOD)

    def _take(self) -> CommitTask | None:
        """Take the work that is due. None if the term was lost just now."""
        term = self._usable_term()
        if term is None:
            return None
        is_urgent = self._served < self._requested
        task = CommitTask(
            snapshot=self._last if is_urgent else self._pending.due,
            term=term,
            ticket=self._requested,
            is_urgent=is_urgent,
            announce=self._pending.announce,
        )
        self._pending = self._pending.taken()
        self._running = True
        # Here and not before the pause: a request during the commit must be able to end the pause after it.
        self._pause.clear()
        return task

    def _commit(self, task: CommitTask) -> bool:
        try:
            newest = self._make_durable(task)
        except StaleTermError as error:
            # Another worker leads, and the election will show it. Its commits count.
            logger.warning("commit refused worker=%s reason=%s", self._worker_id, error)
            self._stale_term = task.term
            self._call(partial(self._listener.on_stale_term, task.term))
            return False
        except StoreError as error:
            self._call(partial(self._listener.on_commit_failed, error))
            return False
        except Exception as error:  # noqa: BLE001 - a dead saver would lose every later snapshot silently
            failure = StoreError(f"commit failed: {error!r}", path=self._store.location)
            self._call(partial(self._listener.on_commit_failed, failure))
            return False
        self._call(partial(self._listener.on_committed, newest, task.term, served=task.ticket))
        return True

    def _make_durable(self, task: CommitTask) -> CheckpointHeader | None:
        """Commit the snapshot unless it is superseded. Return the newest checkpoint, durable now."""
        newest = self._store.newest_header()
        if task.snapshot is not None and not is_superseded(task.snapshot, by=newest, term=task.term):
            newest = self._write(task.snapshot, task.term)
        else:
            self._store.check_run()  # another run's checkpoint may have the same name
            if newest is not None and newest.name != self._durable:
                # Its writer may have died, or failed, before the name was durable.
                self._store.storage.sync()
                if newest.term == task.term:
                    self._store.check_final(newest)
        self._durable = "" if newest is None else newest.name
        return newest

    def _write(self, snapshot: Snapshot, term: int) -> CheckpointHeader:
        began = self._clock.now()
        made = self._store.commit(snapshot, term=term, worker_id=self._worker_id)
        seconds = self._clock.now() - began
        self._report(
            "committed",
            checkpoint=made.name,
            term=term,
            epoch=made.epoch,
            batch=made.batch,
            bytes=made.length,
            seconds=round(seconds, 6),
        )
        return made

    def _call(self, listener: Callable[[], None]) -> None:
        try:
            listener()
        except Exception:
            # A bug in the listener must not end the saving.
            logger.exception("listener failed worker=%s", self._worker_id)
