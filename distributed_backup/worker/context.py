"""What the parts of one worker share: store, coordinator, threads, and how far the worker has come.

Each part owns its own state. Here is only what several parts read.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.checkpoints.saver import Saver
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import Clock
from distributed_backup.coordination.base import ClusterView, Coordinator, has_another_led
from distributed_backup.coordination.election import Elector
from distributed_backup.errors import BackupError, StoreError
from distributed_backup.observability.reporter import Reporter
from distributed_backup.once import OnceLogger
from distributed_backup.position import Position
from distributed_backup.worker.announcer import Announcer
from distributed_backup.worker.append_hints import AppendHints
from distributed_backup.worker.followers import Followers
from distributed_backup.worker.notices import NoticePublisher, Notices
from distributed_backup.worker.options import WorkerOptions

logger = logging.getLogger(__name__)

# Seconds between two looks of a wait. A notification ends the wait earlier.
WAIT_SLICE: Final = 0.5

Phase = Literal["new", "joined", "training", "standby", "failed", "finishing", "finished", "deleting"]
"""How far a worker has come.

"joined": it waits for its start position. "standby": it has trained, and waits because another worker leads, see
`standby`. "failed": an error has left the fit, the last boundary is being committed.
"finishing": the fit is complete, the last commits are under way. "finished": all is committed, the worker finds out
whether it is the last one out. "deleting": it is. Leaving the run is no phase: a worker may leave in each of them.
"""


class WorkerState:
    """The phase of one worker, its newest view of the cluster, and a condition to wait for changes."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.changes = 0
        """How many notifications there were."""
        self.phase: Phase = "new"
        self.view: ClusterView | None = None
        self.led: int | None = None
        """The last term that this worker trained under. None before it trains, and while it follows the journal."""
        self.is_lost = False
        """Whether this fit has lost the journal of its leader: it is in a state that no other worker has."""
        self.start_is_unsaved = False
        """Whether this worker leads a fresh start, whose checkpoint is not durable yet."""
        self.commit_error: StoreError | None = None
        """The failed commit that ends the fit, with `on_save_error="raise"`."""

    @property
    def is_training(self) -> bool:
        """Whether the worker has started from a position and may have boundaries that must be saved."""
        return self.phase in {"training", "standby", "failed", "finishing"}

    @property
    def is_over(self) -> bool:
        """Whether no further boundary will come: the fit is complete, or an error has left it."""
        return self.phase in {"failed", "finishing", "finished", "deleting"}

    def wait(self, timeout: float, *, since: int) -> None:
        """Wait until `changes` differs from `since`, at most `timeout` seconds.

        A loop reads `changes` before it decides. Then a notification between the decision and the wait is not lost.
        """
        with self.condition:
            self.condition.wait_for(lambda: self.changes != since, timeout)

    def notify_all(self) -> None:
        """End all waits."""
        with self.condition:
            self.changes += 1
            self.condition.notify_all()


@dataclass(slots=True, kw_only=True)
class WorkerContext:
    """The parts of one worker, for each other. Each is made once."""

    store: CheckpointStore
    coordinator: Coordinator
    clock: Clock
    options: WorkerOptions
    report: Reporter
    elector: Elector
    saver: Saver
    state: WorkerState = field(default_factory=WorkerState)
    journal: JournalWriter = field(init=False)
    append_hints: AppendHints = field(init=False)
    notices: Notices = field(init=False)
    announcer: Announcer = field(init=False)
    publisher: NoticePublisher = field(init=False)

    def __post_init__(self) -> None:
        self.append_hints = AppendHints(self.coordinator)
        self.journal = JournalWriter(
            storage=self.store.storage,
            worker_id=self.worker_id,
            clock=self.clock,
            term=self.journal_term,
            run_id=lambda: self.store.run_id,
            on_append=self.append_hints.note,
        )
        self.journal.is_in_doubt = lambda: self.elector.is_in_doubt
        if self.options.follows_journal:
            followers = Followers(self.coordinator, self.clock, self.worker_id, appended=lambda: self.journal.bytes)
            self.store.slowest_follower = followers.slowest
        self.notices = Notices(self.request_save)
        self.announcer = Announcer(self.coordinator, self.worker_id, acknowledged=lambda: self.notices.acknowledged)
        self.publisher = NoticePublisher(
            self.coordinator, self.notices, elector=self.elector, worker_id=self.worker_id, clock=self.clock
        )

    def close_journal(self, timeout: float) -> None:
        """Append what waits within `timeout` seconds, and write nothing more."""
        deadline = self.clock.now() + timeout
        self.journal.close(timeout=timeout)
        self.append_hints.close(timeout=max(deadline - self.clock.now(), 0.0))

    def request_save(self) -> int:
        """Request a commit of the last boundary, and of the answers since then. Return the saver's ticket."""
        self.journal.write_stage()
        return self.saver.request_save()

    def wait_until_durable(self, seconds: float) -> None:
        """Wait for what is due, also while it is in doubt who leads. A suspension uses up one look of the wait."""
        for _ in range(math.ceil(seconds / WAIT_SLICE)):
            seen = self.state.changes
            if self.saver.drain(WAIT_SLICE):
                if not self.elector.is_in_doubt:
                    break
                self.elector.wake()
                self.state.wait(WAIT_SLICE, since=seen)

    @property
    def worker_id(self) -> str:
        """Id of this incarnation."""
        return self.report.worker_id

    @property
    def last_boundary(self) -> Position | None:
        """The last boundary that this worker has come to. None before the first."""
        last = self.saver.last
        return None if last is None else last.position

    def term_to_write_under(self) -> int | None:
        """Return the term that commits are made under. None if this worker may not commit.

        Coordination may fail, saving must not. With the coordinator out of reach, a worker whose
        fit is preempted or over commits under the last term it led under. See `checkpoints.fencing`.
        A standby that has trained commits nothing before it knows how far the others have come. A fit that
        has lost the journal of its leader commits nothing.
        """
        if self.state.phase == "standby" and (self.state.is_lost or self.notices.own is None):
            return None
        term = self.elector.term
        if term is None and (self.notices.own is not None or self.state.is_over):
            term = self.elector.term_of_last_resort
        return term

    def journal_term(self) -> int | None:
        """Return the term that the journal is written under. None if another worker has led since this one did.

        Then this one must read that worker's journal first, see `Standby.observe`.
        """
        term, led = self.term_to_write_under(), self.state.led
        if term is None or led is None or not self.options.follows_journal:
            return term
        another_led = has_another_led(worker_id=self.worker_id, led=led, holder=self.worker_id, term=term)
        return None if another_led else term

    def newest_known(self) -> tuple[Position | None, str | None]:
        """Return position and name of the newest checkpoint that this worker knows to be durable."""
        view = self.state.view
        return self.announcer.newest_known(None if view is None else view.announcement)


def position_fields(position: Position | None) -> dict[str, int | None]:
    """Return a position as fields of an event."""
    return {"epoch": None, "batch": None} if position is None else {"epoch": position.epoch, "batch": position.batch}


@contextmanager
def errors_logged(what: str, *, once: OnceLogger | None = None) -> Iterator[None]:
    """Continue after an error of store or coordinator: saving and shutting down must not depend on coordination.

    `once` is for what is retried at each tick.
    """
    try:
        yield
    except BackupError as error:
        (once or logger).warning("%s failed: %s", what, error)
    else:
        if once is not None:
            once.reset()
