"""How a worker comes: it tries, again and again, to learn the position that all workers start from.

Where to start is decided by `start`; here it is tried, announced if we lead, and given up with the reason when it takes
too long. A standby never gives up: to wait is what it is for.
"""

from __future__ import annotations

import logging

from distributed_backup.announcer import Announcer
from distributed_backup.clock import Clock
from distributed_backup.config import WorkerOptions
from distributed_backup.coordinators.base import ClusterView
from distributed_backup.election import Elector
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
from distributed_backup.start import StartPoint, StartProtocol

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
        self._borne = ""
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
        if isinstance(self._elector.problem, ConfigError):
            raise self._elector.problem
        try:
            start = self._try(view)
        except StoreError as error:
            self._bear_with(error)
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

    def _bear_with(self, error: StoreError) -> None:
        """What can't be read just now may be read in a moment: a store that is busy, a mount that comes back."""
        final = isinstance(error, NoUsableCheckpointError | RunMismatchError | CorruptCheckpointError)
        if final or (self._clock.now() > self._deadline and not self._options.standby):
            raise error
        if str(error) != self._borne:
            self._borne = str(error)
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
        if term is None:
            logger.info("restored worker=%s from=%s", self._worker_id, start.name)
        else:
            logger.info("restored worker=%s term=%d from=%s", self._worker_id, term, start.name)
        return start

    def _announce(self, start: StartPoint, term: int) -> bool:
        try:
            return self._announcer.start(start, term)
        except CoordinatorUnavailableError as error:
            logger.warning("announcing the start failed, trying again worker=%s reason=%s", self._worker_id, error)
            return False

    def _timeout_message(self, view: ClusterView | None) -> str:
        nothing = f"no position was announced within {self._options.restore_timeout:g} s"
        if self._elector.obstacle is not None:
            return f"{nothing}, and we can't lead: {self._elector.obstacle}"
        if self._elector.problem is not None:
            return f"{nothing}, and the coordinator does not answer: {self._elector.problem}"
        if view is None:
            return f"{nothing}, and the coordinator has not answered yet; is it reachable from here?"
        return (
            f"{nothing}: term {view.term} is held by {view.holder or 'nobody'}; is that worker stopped, or still "
            "restoring? raise restore_timeout if so"
        )
