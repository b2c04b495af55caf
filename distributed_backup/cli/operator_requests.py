"""Ask a run for a save or for another leader, and poll a run.

A request is a notice at the coordinator, and the requesting process does not join the run. The leader acts at its next
heartbeat. The coordinator's view then shows the result. A request is withdrawn when the wait ends, also on an error. If
that fails, or the requesting process is killed, the request expires with its timeout. A leader that is stopped, cut off
or unable to write serves no request: the wait then ends with an error that describes the last view.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from distributed_backup.checks import checked_seconds
from distributed_backup.clock import Clock
from distributed_backup.coordination.base import ClusterView, Coordinator, Notice, has_another_led
from distributed_backup.errors import BackupError, CoordinatorError, CoordinatorUnavailableError
from distributed_backup.worker.options import new_worker_id

logger = logging.getLogger(__name__)

_REASON: Final = "operator"
_REMEDY: Final = "if a server coordinates the run, name it with --coordinator"
# Seconds between two views of the coordinator.
_PERIOD: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Result of `ask_for_save`: the newest checkpoint, and the leader that reported it.

    `checkpoint` is None if no batch is complete yet. `seconds` counts from the request to the report.
    """

    checkpoint: str | None
    epoch: int
    batch: int
    leader: str
    term: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """Result of `ask_to_resign`: the new leader, and the previous one that handed over."""

    leader: str
    term: int
    previous: str
    seconds: float


def ask_for_save(coordinator: Coordinator, *, timeout: float, clock: Clock) -> Saved:
    """Ask the leader for a save now and wait `timeout` seconds until it is durable. No worker stops.

    Raises:
        BackupError: The run has no workers, or no save was reported in time.
        ConfigError: `timeout` is not a positive number.
    """
    checked_seconds("--timeout", timeout)
    asked = clock.now()
    if coordinator.view().holder is None and not coordinator.members():
        raise BackupError(f"the run has no workers, so none can save: {_REMEDY}")
    notice = Notice(notice_id=_new_id(), worker_id=new_worker_id(_REASON), reason=_REASON, remaining=timeout)

    def is_answered(view: ClusterView) -> bool:
        return view.announcement is not None and notice.notice_id in view.announcement.acknowledged

    with _withdrawing(lambda: coordinator.leave(notice.worker_id)):
        request = _Request(coordinator, notice, clock)
        view = request.wait_until(is_answered)
    if view is None or view.announcement is None:
        raise BackupError(f"no save was reported within {timeout:g} s: {request.last_seen}")
    made = view.announcement
    return Saved(
        checkpoint=made.checkpoint,
        epoch=made.position.epoch,
        batch=made.position.batch,
        leader=made.worker_id,
        term=made.term,
        seconds=round(clock.now() - asked, 3),
    )


def ask_to_resign(coordinator: Coordinator, *, timeout: float, clock: Clock) -> HandedOver:
    """Ask the leader to save and hand over, and wait `timeout` seconds until another worker leads. No worker stops.

    Raises:
        BackupError: The run has no leader, has no other worker, or no other worker took over in time.
        ConfigError: `timeout` is not a positive number.
    """
    checked_seconds("--timeout", timeout)
    asked, before = clock.now(), coordinator.view()
    previous = before.holder
    if previous is None:
        raise BackupError(f"the run has no leader, so none can hand over: {_REMEDY}")
    if all(member.worker_id == previous for member in coordinator.members()):
        raise BackupError(f"no other worker could take over from {previous}: it is the only worker of the run")
    notice = Notice(notice_id=_new_id(), worker_id=previous, reason=_REASON, remaining=timeout, action="resign")

    def is_handed_over(view: ClusterView) -> bool:
        # Another worker may also have led between two views.
        return has_another_led(worker_id=previous, led=before.term, holder=view.holder, term=view.term)

    with _withdrawing(lambda: _expire(coordinator, notice)):
        request = _Request(coordinator, notice, clock)
        view = request.wait_until(is_handed_over)
    if view is not None and view.holder == previous:
        raise BackupError(
            f"{previous} handed over, and leads again under term {view.term}: the worker that led in between has left. "
            "To learn why, see `distributed-backup events`"
        )
    if view is None or view.holder is None:
        raise BackupError(f"no other worker took over from {previous} within {timeout:g} s: {request.last_seen}")
    return HandedOver(leader=view.holder, term=view.term, previous=previous, seconds=round(clock.now() - asked, 3))


def poll[T](read: Callable[[], T], *, period: float, clock: Clock) -> Iterator[tuple[T, BackupError | None]]:
    """Yield `read()` every `period` seconds, forever.

    The first error is raised. A later one is yielded with the last value that was read.
    """
    never = threading.Event()
    seen, error = read(), None
    while True:
        yield seen, error
        clock.wait(never, period)
        try:
            seen, error = read(), None
        except BackupError as problem:
            error = problem


class _Request:
    """Keep a notice on record until its request is granted or its time, counted from now, is over."""

    def __init__(self, coordinator: Coordinator, notice: Notice, clock: Clock) -> None:
        self._coordinator = coordinator
        self._notice = notice
        self._clock = clock
        self._deadline = clock.now() + notice.remaining
        self._posted = False
        self._view: ClusterView | None = None
        self._problem: CoordinatorError | None = None

    def wait_until(self, is_granted: Callable[[ClusterView], bool]) -> ClusterView | None:
        """Return the view that grants the request, or None after the timeout."""
        never = threading.Event()
        while True:
            try:
                view = self._coordinator.view()
                self._view, self._problem = view, None
                if is_granted(view):
                    return view
                self._keep_on_record(view)
            except CoordinatorUnavailableError as error:
                self._problem = error
            if (remaining := self._remaining) <= 0:
                return None
            self._clock.wait(never, min(_PERIOD, remaining))

    def _keep_on_record(self, view: ClusterView) -> None:
        """Post the notice, and post it again if a server lost its data."""
        # Without a leader the run may have ended: a second post would recreate its record.
        may_have_ended = self._posted and view.holder is None
        if not may_have_ended and not _is_on_record(view, self._notice) and self._remaining > 0:
            self._coordinator.notify(replace(self._notice, remaining=self._remaining))
            self._posted = True

    @property
    def _remaining(self) -> float:
        return self._deadline - self._clock.now()

    @property
    def last_seen(self) -> str:
        """Describe the last view, which may show why the request was not granted."""
        view = self._view
        if self._problem is not None or view is None:
            return f"the coordinator does not respond: {self._problem}"
        if view.holder is None:
            return "the run has no leader"
        age = "of unknown age" if view.holder_age is None else f"{view.holder_age:.1f} s ago"
        return f"{view.holder} leads under term {view.term}, last heartbeat {age}"


@contextmanager
def _withdrawing(withdraw: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    finally:
        try:
            withdraw()
        except BackupError as error:
            # The request itself may have been granted, so this is not an error.
            logger.warning("the request could not be withdrawn and expires with its timeout: %s", error)


def _expire(coordinator: Coordinator, notice: Notice) -> None:
    """Withdraw a notice in a worker's name. `leave` would also end that worker's membership."""
    # The run may have ended: only a notice on record may be overwritten.
    if _is_on_record(coordinator.view(), notice):
        coordinator.notify(replace(notice, remaining=0.0))


def _is_on_record(view: ClusterView, notice: Notice) -> bool:
    return any(known.notice_id == notice.notice_id for known in view.notices)


def _new_id() -> str:
    return f"notice-{secrets.token_hex(8)}"
