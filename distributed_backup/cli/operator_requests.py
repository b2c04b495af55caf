"""What an operator asks of a run: a save now, or another leader; and looking again and again.

Who asks takes no part in the run. A notice goes to the coordinator, the leader acts on it at its next tick at the
latest, and what the coordinator shows after that is the answer. A request is taken back when the wait for it is over,
however it ends; should that fail, or the asking process be killed, it is over with its time limit. Nobody here can make
a leader act that is stopped, cut off, or can't write: then the wait ends with what was seen.
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
from distributed_backup.coordination.base import ClusterView, Coordinator, Notice
from distributed_backup.errors import BackupError, CoordinatorError, CoordinatorUnavailableError
from distributed_backup.worker.options import new_worker_id

logger = logging.getLogger(__name__)

_REASON: Final = "operator"
_ELSEWHERE: Final = "; if it is led over a server, name it with --coordinator"
# Between two looks, where the coordinator has no tick of its own and hints may be lost.
_PERIOD: Final = 0.5
# What is left to a request that is taken back: it is over before anybody could act on it.
EXPIRED: Final = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What is durable since a save was asked for.

    Args:
        checkpoint: The newest checkpoint; None if the run has none, for no batch is complete yet.
        epoch: Epochs that are completed in it.
        batch: Batches of the next epoch that are completed in it.
        leader: Who saved.
        term: The leader's term.
        seconds: How long it took.
    """

    checkpoint: str | None
    epoch: int
    batch: int
    leader: str
    term: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """Another worker leads.

    Args:
        leader: Who leads now.
        term: Its term.
        previous: Who was asked to let another lead.
        seconds: How long it took.
    """

    leader: str
    term: int
    previous: str
    seconds: float


def ask_for_save(coordinator: Coordinator, *, timeout: float, clock: Clock) -> Saved:
    """Ask the leader for a save now, and wait until it is durable. Stops nobody.

    Args:
        coordinator: The run's, opened.
        timeout: Seconds to wait.
        clock: Where time comes from.

    Raises:
        BackupError: Nobody takes part, or no save was reported in time.
        ConfigError: `timeout` is no positive number of seconds.
    """
    checked_seconds("--timeout", timeout)
    asked = clock.now()
    if coordinator.view().holder is None and not coordinator.members():
        raise BackupError(f"nobody takes part in the run: there is nobody to ask{_ELSEWHERE}")
    notice = Notice(notice_id=_new_id(), worker_id=new_worker_id(_REASON), reason=_REASON, remaining=timeout)

    def is_answered(view: ClusterView) -> bool:
        return view.announcement is not None and notice.notice_id in view.announcement.answers

    with _taken_back(lambda: coordinator.leave(notice.worker_id)):
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
    """Ask the leader to save and to let another worker lead, and wait until one does. Stops nobody.

    Args:
        coordinator: The run's, opened.
        timeout: Seconds to wait.
        clock: Where time comes from.

    Raises:
        BackupError: Nobody leads, nobody else could, or nobody else did in time.
        ConfigError: `timeout` is no positive number of seconds.
    """
    checked_seconds("--timeout", timeout)
    asked, previous = clock.now(), coordinator.view().holder
    if previous is None:
        raise BackupError(f"nobody leads the run: there is nobody to ask{_ELSEWHERE}")
    if all(member.worker_id == previous for member in coordinator.members()):
        raise BackupError(f"no other worker could take over from {previous}")
    notice = Notice(notice_id=_new_id(), worker_id=previous, reason=_REASON, remaining=timeout, action="resign")
    with _taken_back(lambda: _cut_short(coordinator, notice)):
        request = _Request(coordinator, notice, clock)
        view = request.wait_until(lambda view: view.holder not in {None, previous})
    if view is None or view.holder is None:
        raise BackupError(f"no other worker took over from {previous} within {timeout:g} s: {request.last_seen}")
    return HandedOver(leader=view.holder, term=view.term, previous=previous, seconds=round(clock.now() - asked, 3))


def poll[T](look: Callable[[], T], *, period: float, clock: Clock) -> Iterator[tuple[T, BackupError | None]]:
    """What `look` returns, and once in a period what it returns by then, without end.

    Args:
        look: Its first error is raised; a later one is given with what was returned last.
        period: Seconds between two looks.
        clock: Where time comes from.
    """
    never = threading.Event()
    seen, error = look(), None
    while True:
        yield seen, error
        clock.wait(never, period)
        try:
            seen, error = look(), None
        except BackupError as problem:
            error = problem


class _Request:
    """A notice that is kept on record until what it asks for has come true, or its time is over.

    Args:
        coordinator: The run's.
        notice: Its time begins now.
        clock: Where time comes from.
    """

    def __init__(self, coordinator: Coordinator, notice: Notice, clock: Clock) -> None:
        self._coordinator = coordinator
        self._notice = notice
        self._clock = clock
        self._deadline = clock.now() + notice.remaining
        self._period = 2 * coordinator.heartbeat_interval if coordinator.heartbeat_interval else _PERIOD
        self._posted = False
        self._view: ClusterView | None = None
        self._problem: CoordinatorError | None = None

    def wait_until(self, is_granted: Callable[[ClusterView], bool]) -> ClusterView | None:
        """The view that shows it; None if none did in time."""
        changed = threading.Event()
        stop_listening = self._coordinator.subscribe(lambda hint: None if hint == "noticed" else changed.set())
        try:
            while True:
                # Before the look: what changes during it is worth another.
                changed.clear()
                try:
                    view = self._coordinator.view()
                    self._view, self._problem = view, None
                    if is_granted(view):
                        return view
                    self._keep_on_record(view)
                except CoordinatorUnavailableError as error:
                    self._problem = error
                left = self._left
                if left <= 0:
                    return None
                self._clock.wait(changed, min(self._period, left))
        finally:
            stop_listening()

    def _keep_on_record(self, view: ClusterView) -> None:
        """Post it; and again where a server lost its data, and the request with them."""
        # But not where nobody leads any more: the run may be over and erased.
        posted = self._posted and view.holder is None
        if not posted and not _is_on_record(view, self._notice) and self._left > 0:
            self._coordinator.notify(replace(self._notice, remaining=self._left))
            self._posted = True

    @property
    def _left(self) -> float:
        return self._deadline - self._clock.now()

    @property
    def last_seen(self) -> str:
        """In words, what may be the reason that it was not granted."""
        view = self._view
        if self._problem is not None or view is None:
            return f"the coordinator does not answer: {self._problem}"
        if view.holder is None:
            return "nobody leads"
        age = "never heard of" if view.holder_age is None else f"last heard of {view.holder_age:.1f} s ago"
        return f"{view.holder} leads under term {view.term}, {age}"


@contextmanager
def _taken_back(take_back: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    finally:
        try:
            take_back()
        except BackupError as error:
            # What was asked for may have come true all the same.
            logger.warning("the request could not be taken back, it ends with its time limit: %s", error)


def _cut_short(coordinator: Coordinator, notice: Notice) -> None:
    """Take back a notice that stands in another's name, who must stay a member and so can't be made to leave."""
    # Only what is there: the run may be over, and nothing of it should be made anew.
    if _is_on_record(coordinator.view(), notice):
        coordinator.notify(replace(notice, remaining=EXPIRED))


def _is_on_record(view: ClusterView, notice: Notice) -> bool:
    return any(known.notice_id == notice.notice_id for known in view.notices)


def _new_id() -> str:
    return f"notice-{secrets.token_hex(8)}"
