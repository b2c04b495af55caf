"""The background thread that owns all writing: newest snapshot in, commit out, only while leading.

Training hands over bytes and goes on; it is never held up by a disk. Work that waits is bounded: one commit
running, one snapshot that is due, and the last boundary in case of a notice; the newest wins. What is handed
over is not durable until `committed` says so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol

from distributed_backup.checkpoints.fencing import is_superseded
from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import Clock
from distributed_backup.errors import StaleTermError, StoreError
from distributed_backup.observability.events import Report, no_report

logger = logging.getLogger(__name__)

# Between two tries of a save that a notice asked for: a full disk or a lost mount may come back in time.
_RETRY_PERIOD = 0.2


class SaverListener(Protocol):
    """Who wants to know what became of the snapshots. Called from the saver's thread."""

    def on_committed(self, newest: CheckpointHeader | None, term: int, *, served: int) -> None:
        """`newest` is the newest durable checkpoint, as far as the writer of `term` knows.

        It is at least as new as the last boundary before each `save_now` up to ticket `served`.
        """

    def on_stale_term(self, term: int) -> None:
        """The store holds checkpoints of a newer term: whoever believes to lead under `term` does not count."""

    def on_commit_failed(self, error: StoreError) -> None:
        """A commit failed; earlier checkpoints are intact."""


class Saver:
    """Commits snapshots in a thread of its own.

    A snapshot that is not past the newest checkpoint is not committed, whoever wrote that one; see `is_superseded`.

    Args:
        store: Where checkpoints go.
        worker_id: Written into them.
        clock: Where time comes from.
        term: Gives the term to write under; None while we don't lead.
        listener: Told of what happens.
        report: Told of each commit, for people.
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
        self._reporter = report
        self._condition = threading.Condition()
        self._last: Snapshot | None = None
        self._due: Snapshot | None = None
        self._failed: Snapshot | None = None
        self._asked = 0
        self._served = 0
        self._report = False
        self._unreported = False
        # The term under which a commit was refused: nothing is tried again before we lead under another.
        self._refused: int | None = None
        # The newest checkpoint that is durable for sure.
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
        """Stop the thread after the commit that is running; what waits is given up, see `drain`."""
        with self._condition:
            self._stopped = True
            self._pause.set()
            self._condition.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def submit(self, snapshot: Snapshot, *, due: bool) -> None:
        """Take over the snapshot of the newest boundary.

        Args:
            snapshot: Not changed any more by the caller.
            due: Whether it is to be committed as soon as we lead; else only if a save is asked for.
        """
        with self._condition:
            self._last = snapshot
            # What failed is tried again at each boundary, until something newer is due.
            self._due = snapshot if due else self._due or self._failed
            self._failed = None
            self._report, self._unreported = self._report or self._unreported, False
            self._condition.notify_all()

    def request_save(self) -> int:
        """Ask for the newest boundary to be committed at once.

        Returns:
            A ticket; the listener hears when it was served, and so the boundary is durable.
        """
        with self._condition:
            self._asked += 1
            self._pause.set()
            self._condition.notify_all()
            return self._asked

    def request_announcement(self) -> None:
        """Tell the listener which checkpoint is the newest, as soon as we lead; commit what is due."""
        with self._condition:
            self._report = True
            self._condition.notify_all()

    def wake(self) -> None:
        """Whether and under which term we may write has changed."""
        with self._condition:
            self._condition.notify_all()

    def drain(self, timeout: float) -> bool:
        """Try once more what failed, and wait until nothing runs or can be tried.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether it came to rest; what failed again is `unsaved`.
        """
        with self._condition:
            self._due, self._failed = self._due or self._failed, None
            self._condition.notify_all()
            return self._condition.wait_for(lambda: not self._running and not self._ready(), timeout)

    def _ready(self) -> bool:
        wanted = self._due is not None or self._report or self._served < self._asked
        return wanted and self._usable_term() is not None

    def _usable_term(self) -> int | None:
        term = self._term()
        return None if term == self._refused else term

    def _run(self) -> None:
        while True:
            with self._condition:
                self._running = False
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._stopped or self._ready())
                if self._stopped:
                    return
                term = self._usable_term()
                if term is None:
                    continue
                asked, urgent = self._asked, self._served < self._asked
                snapshot, report = self._last if urgent else self._due, self._report
                self._due, self._report, self._running = None, False, True
                # Here, not before the wait: whoever calls during the commit must be able to end the pause after it.
                self._pause.clear()
            if self._commit(snapshot, term, asked):
                self._served = asked
                continue
            with self._condition:
                # Not before the next boundary, lest a full disk be tried without end; what is urgent, soon.
                self._failed, self._unreported = snapshot or self._failed, report or self._unreported
                waits = urgent and term != self._refused
            if waits:
                self._clock.wait(self._pause, _RETRY_PERIOD)

    def _commit(self, snapshot: Snapshot | None, term: int, asked: int) -> bool:
        try:
            newest = self._store.newest_header()
            if snapshot is not None and not is_superseded(snapshot, by=newest, term=term):
                newest = self._make_durable(snapshot, term)
            elif newest is not None and newest.name != self._durable:
                # Whoever wrote it may have died, or failed, before its name was durable.
                self._store.storage.sync()
            self._durable = "" if newest is None else newest.name
        except StaleTermError as error:
            # Another leads by now; the election will tell. What it commits is what counts.
            logger.warning("commit refused worker=%s reason=%s", self._worker_id, error)
            self._refused = term
            self._tell(partial(self._listener.on_stale_term, term))
            return False
        except StoreError as error:
            self._tell(partial(self._listener.on_commit_failed, error))
            return False
        except Exception as error:  # noqa: BLE001 - a dead saver would lose every later snapshot in silence
            failure = StoreError(f"commit failed: {error!r}", path=self._store.location)
            self._tell(partial(self._listener.on_commit_failed, failure))
            return False
        self._tell(partial(self._listener.on_committed, newest, term, served=asked))
        return True

    def _make_durable(self, snapshot: Snapshot, term: int) -> CheckpointHeader:
        began = self._clock.now()
        made = self._store.commit(snapshot, term=term, worker_id=self._worker_id)
        seconds = self._clock.now() - began
        self._reporter(
            "committed",
            checkpoint=made.name,
            term=term,
            epoch=made.epoch,
            batch=made.batch,
            bytes=made.length,
            seconds=round(seconds, 6),
        )
        return made

    def _tell(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            # A bug over there must not end the saving here.
            logger.exception("listener failed worker=%s", self._worker_id)

    @property
    def unsaved(self) -> bool:
        """Whether something waits to be committed, or failed to be."""
        with self._condition:
            return self._due is not None or self._failed is not None or self._running or self._served < self._asked

    @property
    def last(self) -> Snapshot | None:
        """The newest boundary handed over; None before the first."""
        return self._last
