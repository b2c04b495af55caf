"""Where a worker starts: the restore protocol, as far as it is a decision.

The leader takes the newest checkpoint that verifies. Everybody else takes what the leader of *this* incarnation of the
run announced: a record of workers that were killed may still be there, and their lease may not have run out. It decides
from what it is shown; waiting and announcing are `arrival`'s.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from distributed_backup.checkpoint import Checkpoint, Position, parse_name
from distributed_backup.coordinators.base import Announcement, ClusterView
from distributed_backup.errors import NotSharedError, RunMismatchError, StoreError
from distributed_backup.legacy import LegacyBackup, find_legacy
from distributed_backup.store import CheckpointStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPoint:
    """Where training starts.

    Args:
        checkpoint: What to restore; None for a fresh start or a backup of synalinks' own callback.
        legacy: A backup of synalinks' own callback to restore; None if there is a checkpoint, or nothing.
        finished: Whether the run is complete, so that nothing is left to train.
    """

    checkpoint: Checkpoint | None = None
    legacy: LegacyBackup | None = None
    finished: bool = False

    @property
    def position(self) -> Position | None:
        """The restored position; None for a fresh start."""
        source = self.checkpoint or self.legacy
        return None if source is None else source.position

    @property
    def name(self) -> str | None:
        """The name of what is restored; None for a fresh start."""
        source = self.checkpoint or self.legacy
        return None if source is None else source.name

    @property
    def digest(self) -> str | None:
        """The digest of what is restored; None for a fresh start."""
        if self.checkpoint is not None:
            return self.checkpoint.header.digest
        return None if self.legacy is None else self.legacy.digest


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
        legacy = None if checkpoint is not None else find_legacy(self._store.storage)
        announced = view.announcement
        if announced is not None and self._is_elsewhere(announced):
            raise NotSharedError(
                f"{announced.worker_id} announced {announced.checkpoint}, which is not in {self._store.location} here: "
                "is the directory shared by all workers?"
            )
        finished = self._standby and announced is not None and self._is_the_end(announced)
        if checkpoint is None and legacy is None and self._store.was_led_before(view.term):
            logger.warning(
                "%s was led before and has no checkpoint: nothing was saved, or it was removed; "
                "starting from the beginning",
                self._store.location,
            )
        return StartPoint(checkpoint=checkpoint, legacy=legacy, finished=finished)

    def as_follower(self, view: ClusterView) -> StartPoint | str | None:
        """What the leader announced; its name if it can't be found here; None if it is too early.

        Raises:
            StoreError: The directory can't be read.
        """
        announced = view.announcement
        if announced is None or not self._is_current(announced, view):
            return None
        if self._standby and announced.kind != "finished":
            return None
        start = self._find(announced)
        if start is None and self._store.names()[:1] > [announced.checkpoint or ""]:
            return None  # pruned after a newer commit, which will be announced
        # It may have been pruned since: then there is a newer announcement, or will be.
        return start if start is not None and start.digest == announced.digest else announced.checkpoint

    def _find(self, announced: Announcement) -> StartPoint | None:
        finished = self._standby and announced.kind == "finished"
        self.problem = None
        if announced.checkpoint is None:
            return StartPoint(finished=finished)
        if parse_name(announced.checkpoint) is None:
            return StartPoint(legacy=find_legacy(self._store.storage), finished=finished)
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
        return announced.kind == "finished" and self._is_live(announced.term)

    def _is_live(self, term: int) -> bool:
        return term in self._live_terms or (self._first_term is not None and term > self._first_term)
