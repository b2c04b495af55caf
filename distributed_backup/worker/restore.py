"""Decide which checkpoint a worker starts from, and load it.

The leader restores the newest checkpoint that verifies, and announces it. A follower restores what the current holder
announced, so that all workers start from one checkpoint. A standby waits until it leads or the run has finished.

`next_step` decides, from what is known and without I/O. `Restore` takes the steps: it loads, announces, and retries
until `restore_timeout`. A standby retries without limit.

The limit: the record may hold an announcement of workers that were killed, and their lease may not have run out. So
only terms of this incarnation of the run count, see `LiveTerms`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from distributed_backup.checkpoints.abandoned import find_abandoned
from distributed_backup.checkpoints.format import Checkpoint, parse_name
from distributed_backup.checkpoints.synalinks_backup import find_synalinks_backup
from distributed_backup.coordination.base import Announcement, ClusterView
from distributed_backup.errors import (
    BackupError,
    ConfigError,
    CoordinatorUnavailableError,
    CorruptCheckpointError,
    NotSharedError,
    NoUsableCheckpointError,
    RestoreTimeoutError,
    RunMismatchError,
    StoreError,
)
from distributed_backup.once import OnceLogger
from distributed_backup.worker.context import WAIT_SLICE, WorkerContext
from distributed_backup.worker.start_point import StartPoint

logger = logging.getLogger(__name__)

# Seconds for which an announced checkpoint may be invisible before the directory counts as not shared. A network file
# system shows a new name at the next lookup. Its attribute cache (nfs(5), acdirmax: 60 s) delays listings only.
_VISIBILITY_LIMIT: Final = 5.0

_NOT_SHARED: Final = "which is not in {location} here: is the directory shared by all workers?"
_DELETED: Final = "If it is, the run was complete and was deleted while this worker was away: start again for a new run"


def open_run(context: WorkerContext, check: Callable[[], None]) -> str:
    """Open the run and return its id. Retry for `restore_timeout` where the store may come back.

    `check` is called between two attempts, and may raise to end the wait.
    """
    # Another worker may have deleted the run of an earlier fit of this process.
    context.store.forget()
    deadline, warnings = context.clock.now() + context.options.restore_timeout, OnceLogger(logger)
    while True:
        seen = context.state.changes
        try:
            return context.store.open_run()
        except StoreError as error:
            if not error.retryable or context.clock.now() > deadline:
                raise
            warnings.warning("can't join yet, retrying worker=%s reason=%s", context.worker_id, error)
        check()
        context.state.wait(WAIT_SLICE, since=seen)


class LiveTerms:
    """The terms of this incarnation of the run.

    A term is live if it was granted, or its holder sent a heartbeat, after this worker joined.
    """

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._first: int | None = None
        self._live: set[int] = set()

    def observe(self, view: ClusterView, *, since_joined: float) -> None:
        """Learn from a view of the cluster, taken `since_joined` seconds after this worker joined."""
        if self._first is None:
            self._first = view.term if view.holder != self._worker_id else view.term - 1
        if view.holder_age is not None and view.holder_age < since_joined:
            self._live.add(view.term)

    def __contains__(self, term: int) -> bool:
        return term in self._live or (self._first is not None and term > self._first)


# -------------------------------------------------------------------- the decision


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreStatus:
    """What a worker knows while it waits for its start position. `term` is the term that it leads under."""

    worker_id: str
    standby: bool
    term: int | None
    view: ClusterView | None
    live_terms: LiveTerms


@dataclass(frozen=True, slots=True)
class RestoreNewest:
    """As the leader of `term`: restore the newest checkpoint and announce it. `finished`: the run is complete."""

    term: int
    announced: Announcement | None
    finished: bool


@dataclass(frozen=True, slots=True)
class RestoreAnnounced:
    """As a follower: restore what the leader announced. `finished`: the run is complete."""

    announced: Announcement
    finished: bool


RestoreStep = RestoreNewest | RestoreAnnounced | None


def next_step(status: RestoreStatus) -> RestoreStep:
    """Return what a worker does next. None: wait for another view."""
    view, term = status.view, status.term
    if view is None:
        return None
    announced = view.announcement
    has_ended = announced is not None and announced.finished and announced.term in status.live_terms
    if term is not None:
        # The elector learns of a term before its view arrives here. Only a view of that very term counts.
        if (view.term, view.holder) != (term, status.worker_id):
            return None
        return RestoreNewest(term, announced, finished=status.standby and has_ended)
    if announced is None:
        return None
    # The leader that announced the end may have left by now.
    is_current = view.holder is not None and announced.term == view.term and announced.term in status.live_terms
    if not (is_current or has_ended) or (status.standby and not announced.finished):
        return None
    return RestoreAnnounced(announced, finished=status.standby and announced.finished)


# -------------------------------------------------------------------- taking the steps


class Restore:
    """The wait of one worker for its start position. It begins when this is made."""

    def __init__(self, context: WorkerContext, live_terms: LiveTerms) -> None:
        self._context = context
        self._live_terms = live_terms
        self._deadline = context.clock.now() + context.options.restore_timeout
        self._warnings = OnceLogger(logger)
        self._abandoned_warnings = OnceLogger(logger)
        self._missing_since: float | None = None
        self._load_error: StoreError | None = None

    def wait(self, check: Callable[[], None]) -> StartPoint:
        """Return where to start. `check` is called before each attempt, and may raise to end the wait.

        Raises:
            BackupError: As `attempt` raises it.
        """
        state = self._context.state
        while True:
            seen = state.changes
            check()
            start = self.attempt()
            if start is not None:
                return start
            state.wait(WAIT_SLICE, since=seen)

    def attempt(self) -> StartPoint | None:
        """Return where to start. None: retry after the next change.

        Raises:
            RestoreTimeoutError: No position was announced in time.
            NotSharedError: The announced checkpoint is not in this worker's directory.
            CorruptCheckpointError: The announced checkpoint is damaged.
            StoreError: No checkpoint is usable, or the directory can't be read until the timeout.
            ConfigError: The coordinator refuses this worker, and a retry can't help.
        """
        if isinstance(error := self._context.elector.coordinator_error, ConfigError):
            raise error
        status = RestoreStatus(
            worker_id=self._context.worker_id,
            standby=self._waits,
            term=self._context.elector.term,
            view=self._context.state.view,
            live_terms=self._live_terms,
        )
        step = next_step(status)
        try:
            start = self._take(step)
        except StoreError as error:
            self._retry_or_raise(error)
            return None
        if isinstance(start, StartPoint):
            return start
        self._raise_if_missing(start)
        if self._is_late:
            raise RestoreTimeoutError(self._timeout_message(status.view))
        return None

    def _take(self, step: RestoreStep) -> StartPoint | str | None:
        """Return the start point, or the name of an announced checkpoint that is missing, or None to wait."""
        match step:
            case None:
                return None
            case RestoreNewest():
                start = self._newest(step)
            case RestoreAnnounced():
                found = self._announced(step)
                if not isinstance(found, StartPoint):
                    return found
                start = found
        self._context.announcer.newest = None if start.checkpoint is None else start.checkpoint.header
        if isinstance(step, RestoreNewest):
            if self._context.options.follows_journal and start.position is None:
                # Announced with its checkpoint, so that followers have the same variables and generators.
                self._context.state.start_is_unsaved = True
            elif not self._announce(start, step.term):
                return None
        return start

    def _newest(self, step: RestoreNewest) -> StartPoint:
        store = self._context.store
        checkpoint = store.latest()
        backup = None if checkpoint is not None else find_synalinks_backup(store.storage)
        if step.announced is not None and self._is_ahead(step.announced):
            announced = f"{step.announced.worker_id} announced {step.announced.checkpoint}"
            text = f"{announced}, {_NOT_SHARED.format(location=store.location)}"
            raise NotSharedError(f"{text} {_DELETED}" if step.announced.finished else text)
        if checkpoint is None and backup is None and store.terms.was_led_before(step.term):
            logger.warning(
                "%s was led before and has no checkpoint: nothing was saved, or it was removed; "
                "starting from the beginning",
                store.location,
            )
        self._warn_of_abandoned(checkpoint)
        return StartPoint(checkpoint=checkpoint, synalinks_backup=backup, finished=step.finished, term=step.term)

    def _warn_of_abandoned(self, newest: Checkpoint | None) -> None:
        store = self._context.store
        # If the journal can't be read, the fit says so where it needs it.
        with suppress(StoreError):
            header = None if newest is None else newest.header
            found = find_abandoned(store.storage, run_id=store.run_id, newest=header)
            if found is not None:
                self._abandoned_warnings.warning("%s", found)

    def _is_ahead(self, announced: Announcement) -> bool:
        """Whether the run has come further than this directory. Starting from here would pay again for the rest."""
        name = announced.checkpoint
        if name is None or parse_name(name) is None or announced.term not in self._live_terms:
            return False
        return self._context.store.names()[:1] < [name]

    def _announced(self, step: RestoreAnnounced) -> StartPoint | str | None:
        announced = step.announced
        start = self._find(announced, finished=step.finished)
        if start is not None and start.digest == announced.digest:
            return start
        if start is None and self._context.store.names()[:1] > [announced.checkpoint or ""]:
            # It was pruned after a newer commit, whose announcement follows.
            return None
        return announced.checkpoint

    def _find(self, announced: Announcement, *, finished: bool) -> StartPoint | None:
        self._load_error = None
        store = self._context.store
        if announced.checkpoint is None:
            return StartPoint(finished=finished)
        if parse_name(announced.checkpoint) is None:
            return StartPoint(synalinks_backup=find_synalinks_backup(store.storage), finished=finished)
        try:
            return StartPoint(checkpoint=store.load(announced.checkpoint), finished=finished)
        except RunMismatchError:
            raise
        except StoreError as error:
            self._load_error = error
            return None

    def _announce(self, start: StartPoint, term: int) -> bool:
        try:
            return self._context.announcer.announce_start(start, term)
        except CoordinatorUnavailableError as error:
            self._warnings.warning(
                "could not announce the start position, retrying worker=%s reason=%s", self._context.worker_id, error
            )
            return False

    # ---------------------------------------------------------------- giving up

    @property
    def _waits(self) -> bool:
        """Whether this worker waits until it leads, or the run has finished."""
        return self._context.options.standby or self._context.state.phase == "standby"

    @property
    def _is_late(self) -> bool:
        return not self._waits and self._context.clock.now() > self._deadline

    def _retry_or_raise(self, error: StoreError) -> None:
        """Retry where the next read may succeed: a store that is busy, a mount that comes back."""
        if self._is_late or isinstance(error, NoUsableCheckpointError | RunMismatchError | CorruptCheckpointError):
            raise error
        self._warnings.warning("can't restore yet, retrying worker=%s reason=%s", self._context.worker_id, error)

    def _raise_if_missing(self, name: str | None) -> None:
        now = self._context.clock.now()
        if name is None:
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since > _VISIBILITY_LIMIT:
            if isinstance(self._load_error, CorruptCheckpointError):
                raise self._load_error
            location = self._context.store.location
            raise NotSharedError(f"the leader announced {name}, {_NOT_SHARED.format(location=location)}")

    def _timeout_message(self, view: ClusterView | None) -> str:
        nothing = f"no position was announced within {self._context.options.restore_timeout:g} s"
        elector = self._context.elector
        reasons: tuple[tuple[str, BackupError | None], ...] = (
            ("this worker can't lead", elector.campaign_error),
            ("the coordinator does not answer", elector.coordinator_error),
        )
        for text, error in reasons:
            if error is not None:
                return f"{nothing}, and {text}: {error}"
        if view is None:
            return f"{nothing}, and the coordinator has not answered yet; is it reachable from here?"
        return (
            f"{nothing}: term {view.term} is held by {view.holder or 'no worker'}; is that worker stopped, or still "
            "restoring? raise restore_timeout if so"
        )
