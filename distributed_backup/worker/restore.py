"""Where a worker starts: the restore protocol, as far as it is a decision.

The leader takes the newest checkpoint that verifies. Everybody else takes what the leader of *this* incarnation of the
run announced: a record of workers that were killed may still be there, and their lease may not have run out. It decides
from what it is shown; waiting and announcing are `arrival`'s.
"""

from __future__ import annotations

import logging

from distributed_backup.checkpoints.format import parse_name
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.checkpoints.synalinks_backup import find_synalinks_backup
from distributed_backup.clock import Clock
from distributed_backup.coordination.base import Announcement, ClusterView
from distributed_backup.coordination.election import Elector
from distributed_backup.errors import (
    ConfigError,
    CoordinatorUnavailableError,
    CorruptCheckpointError,
    NotSharedError,
    NoUsableCheckpointError,
    RestoreTimeoutError,
    RunMismatchError,
    StoreError,
)
from distributed_backup.worker.announcer import Announcer
from distributed_backup.worker.options import WorkerOptions
from distributed_backup.worker.start_point import StartPoint

logger = logging.getLogger(__name__)


class StartProtocol:
    """Decides where one worker starts.

    Args:
        store: The run's checkpoints.
        worker_id: Id of this incarnation.
        standby: Whether the worker only waits while another leads.
    """

    def __init__(self, store: CheckpointStore, *, worker_id: str, standby: bool) -> None:
        self._store = store
        self._worker_id = worker_id
        self._standby = standby
        self._first_term: int | None = None
        self._live_terms: set[int] = set()
        self.problem: StoreError | None = None
        """Why the announced checkpoint could not be read at the last try."""

    def observe(self, view: ClusterView, *, since_joined: float) -> None:
        """Learn which terms are of this incarnation: granted, or their holder heard of, since we joined.

        Args:
            view: What the coordinator says.
            since_joined: Seconds since we joined the run.
        """
        if self._first_term is None:
            self._first_term = view.term if view.holder != self._worker_id else view.term - 1
        if view.holder_age is not None and view.holder_age < since_joined:
            self._live_terms.add(view.term)

    def as_leader(self, view: ClusterView) -> StartPoint:
        """The newest checkpoint that verifies, or a backup of synalinks' callback, or a fresh start.

        Raises:
            NotSharedError: A leader that was alive when we joined announced a checkpoint that is not here.
            StoreError: No checkpoint is usable, or the directory can't be read.
        """
        checkpoint = self._store.latest()
        synalinks_backup = None if checkpoint is not None else find_synalinks_backup(self._store.storage)
        announced = view.announcement
        if announced is not None and self._is_elsewhere(announced):
            raise NotSharedError(
                f"{announced.worker_id} announced {announced.checkpoint}, which is not in {self._store.location} here: "
                "is the directory shared by all workers?"
            )
        finished = self._standby and announced is not None and self._is_the_end(announced)
        if checkpoint is None and synalinks_backup is None and self._store.was_led_before(view.term):
            logger.warning(
                "%s was led before and has no checkpoint: nothing was saved, or it was removed; "
                "starting from the beginning",
                self._store.location,
            )
        return StartPoint(checkpoint=checkpoint, synalinks_backup=synalinks_backup, finished=finished)

    def as_follower(self, view: ClusterView) -> StartPoint | str | None:
        """What the leader announced; its name if it can't be found here; None if it is too early.

        Raises:
            StoreError: The directory can't be read.
        """
        announced = view.announcement
        if announced is None or not self._is_current(announced, view):
            return None
        if self._standby and not announced.finished:
            return None
        start = self._find(announced)
        if start is None and self._store.names()[:1] > [announced.checkpoint or ""]:
            return None  # pruned after a newer commit, which will be announced
        # It may have been pruned since: then there is a newer announcement, or will be.
        return start if start is not None and start.digest == announced.digest else announced.checkpoint

    def _find(self, announced: Announcement) -> StartPoint | None:
        finished = self._standby and announced.finished
        self.problem = None
        if announced.checkpoint is None:
            return StartPoint(finished=finished)
        if parse_name(announced.checkpoint) is None:
            return StartPoint(synalinks_backup=find_synalinks_backup(self._store.storage), finished=finished)
        try:
            return StartPoint(checkpoint=self._store.load(announced.checkpoint), finished=finished)
        except RunMismatchError:
            raise
        except StoreError as error:
            self.problem = error
            return None

    def _is_elsewhere(self, announced: Announcement) -> bool:
        """Whether the run has come further than our directory: to start from what is here would pay for it again."""
        name = announced.checkpoint
        if name is None or parse_name(name) is None or not self._is_live(announced.term):
            return False
        return self._store.names()[:1] < [name]

    def _is_current(self, announced: Announcement, view: ClusterView) -> bool:
        if self._is_the_end(announced):
            return True
        return view.holder is not None and announced.term == view.term and self._is_live(announced.term)

    def _is_the_end(self, announced: Announcement) -> bool:
        """Whether the run has finished while we waited; whoever said so may have left by now."""
        return announced.finished and self._is_live(announced.term)

    def _is_live(self, term: int) -> bool:
        return term in self._live_terms or (self._first_term is not None and term > self._first_term)


logger = logging.getLogger(__name__)

# How long an announced checkpoint may stay invisible before we say that the directory is not shared: longer
# than the attribute cache of a network file system holds on to a listing (nfs(5): acdirmax, 60 s, is for
# entries that don't change; a lookup of a new name goes to the server).
_VISIBILITY_LIMIT = 5.0


class Arrival:
    """One worker's wait for its start; it begins now.

    Args:
        protocol: Decides where to start.
        elector: Tells whether we lead, and why not.
        announcer: Announces what we restore, if we lead.
        worker_id: Who waits.
        place: Where the run is, for messages.
        options: How long to wait, and whether as a standby.
        clock: Where time comes from.
    """

    def __init__(
        self,
        *,
        protocol: StartProtocol,
        elector: Elector,
        announcer: Announcer,
        worker_id: str,
        place: str,
        options: WorkerOptions,
        clock: Clock,
    ) -> None:
        self._protocol = protocol
        self._elector = elector
        self._announcer = announcer
        self._worker_id = worker_id
        self._place = place
        self._options = options
        self._clock = clock
        self._deadline = clock.now() + options.restore_timeout
        self._last_warning = ""
        # Since when what is announced is missing here, whatever its name.
        self._missing_since: float | None = None

    def attempt(self, view: ClusterView | None) -> StartPoint | None:
        """Where to start; None if it is too early to tell.

        Args:
            view: The newest one; None before the first.

        Raises:
            RestoreTimeoutError: Nobody announced anything in time.
            NotSharedError: The announced checkpoint can't be seen in our directory.
            CorruptCheckpointError: The announced checkpoint is damaged.
            StoreError: No checkpoint is usable, or the directory can't be read, all the time.
            ConfigError: The coordinator refuses us, and always will.
        """
        if isinstance(self._elector.coordinator_error, ConfigError):
            raise self._elector.coordinator_error
        try:
            start = self._try(view)
        except StoreError as error:
            self._retry_or_raise(error)
            return None
        if isinstance(start, StartPoint):
            return start
        now = self._clock.now()
        if start is None:
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since > _VISIBILITY_LIMIT:
            if isinstance(self._protocol.problem, CorruptCheckpointError):
                raise self._protocol.problem
            raise NotSharedError(
                f"the leader announced {start}, which is not in {self._place} here: is the directory shared by all "
                "workers?"
            )
        if now > self._deadline and not self._options.standby:
            raise RestoreTimeoutError(self._timeout_message(view))
        return None

    def _retry_or_raise(self, error: StoreError) -> None:
        """What can't be read just now may be read in a moment: a store that is busy, a mount that comes back."""
        final = isinstance(error, NoUsableCheckpointError | RunMismatchError | CorruptCheckpointError)
        if final or (self._clock.now() > self._deadline and not self._options.standby):
            raise error
        if str(error) != self._last_warning:
            self._last_warning = str(error)
            logger.warning("can't restore yet, trying again worker=%s reason=%s", self._worker_id, error)

    def _try(self, view: ClusterView | None) -> StartPoint | str | None:
        """The start point; or the name of an announced checkpoint that is missing; or None if it is too early."""
        term = self._elector.term
        # What we see must be of the term we lead under: the elector knows of it a moment before the view is here.
        leads = term is not None and view is not None and (view.term, view.holder) == (term, self._worker_id)
        if view is None or (term is not None and not leads):
            return None
        start = self._protocol.as_leader(view) if leads else self._protocol.as_follower(view)
        if not isinstance(start, StartPoint):
            return start
        self._announcer.newest = None if start.checkpoint is None else start.checkpoint.header
        if term is not None and not self._announce(start, term):
            return None
        return start

    def _announce(self, start: StartPoint, term: int) -> bool:
        try:
            return self._announcer.start(start, term)
        except CoordinatorUnavailableError as error:
            logger.warning("announcing the start failed, trying again worker=%s reason=%s", self._worker_id, error)
            return False

    def _timeout_message(self, view: ClusterView | None) -> str:
        nothing = f"no position was announced within {self._options.restore_timeout:g} s"
        if self._elector.campaign_error is not None:
            return f"{nothing}, and we can't lead: {self._elector.campaign_error}"
        if self._elector.coordinator_error is not None:
            return f"{nothing}, and the coordinator does not answer: {self._elector.coordinator_error}"
        if view is None:
            return f"{nothing}, and the coordinator has not answered yet; is it reachable from here?"
        return (
            f"{nothing}: term {view.term} is held by {view.holder or 'nobody'}; is that worker stopped, or still "
            "restoring? raise restore_timeout if so"
        )
