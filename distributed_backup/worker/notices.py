"""The notices that one worker knows of: its own and others', asked for and answered.

A notice is answered once a commit has started after it was known and become durable: the saver's ticket tells. An
answer is a fact and stays one, whoever leads by then; the ids are unique.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from distributed_backup.clock import Clock
from distributed_backup.coordination.base import ClusterView, Coordinator, Notice
from distributed_backup.coordination.election import Elector
from distributed_backup.errors import BackupError
from distributed_backup.preemption.grace import shutdown_reserve


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnNotice:
    """This worker is being preempted.

    Args:
        notice_id: Unique to the notice.
        reason: What told it.
        given: When it came, by our clock.
        deadline: When the kill comes, by our clock.
        reserve: Seconds kept before the deadline for the last commit, for leaving, and for the interpreter's exit.
    """

    notice_id: str
    reason: str
    given: float
    deadline: float
    reserve: float


def new_notice_id() -> str:
    """An id that no other notice has."""
    return f"notice-{secrets.token_hex(8)}"


class Notices:
    """Keeps track of notices. Thread-safe; calls `save_now` with its lock held, which must not call back.

    Args:
        save_now: Asks the saver; returns its ticket.
    """

    def __init__(self, request_save: Callable[[], int]) -> None:
        self._save_now = request_save
        self._lock = threading.Lock()
        self._own: OwnNotice | None = None
        self._asked: dict[str, int] = {}
        self._answered: set[str] = set()

    @property
    def own(self) -> OwnNotice | None:
        """Our own notice; None while there is none."""
        return self._own

    def give(self, reason: str, *, now: float, remaining: float) -> OwnNotice | None:
        """Take note of our own preemption; None if it was known, see `hasten`."""
        with self._lock:
            if self._own is not None:
                return None
            self._own = OwnNotice(
                notice_id=new_notice_id(),
                reason=reason,
                given=now,
                deadline=now + remaining,
                reserve=shutdown_reserve(remaining),
            )
            return self._own

    def shorten_deadline(self, *, now: float, remaining: float) -> OwnNotice | None:
        """Another notice of our preemption: the earlier deadline counts; None if that is the one that was known."""
        with self._lock:
            if self._own is None or now + remaining >= self._own.deadline:
                return None
            self._own = replace(self._own, deadline=now + remaining, reserve=shutdown_reserve(remaining))
            return self._own

    def ask(self, notice_id: str) -> None:
        """Ask for the save that answers a notice, again if it was asked for."""
        # Under the lock, so that the ticket is on record before its commit can be reported.
        with self._lock:
            ticket = self._save_now()
            # What answers the first time of asking answers the notice.
            self._asked.setdefault(notice_id, ticket)

    def pending(self, view: ClusterView) -> list[str]:
        """The notices in `view` that nobody here has asked for; those that are over are forgotten."""
        with self._lock:
            current = {notice.notice_id for notice in view.notices}
            if self._own is not None:
                current.add(self._own.notice_id)
            self._asked = {notice_id: ticket for notice_id, ticket in self._asked.items() if notice_id in current}
            self._answered &= current
            return [notice.notice_id for notice in view.notices if notice.notice_id not in self._asked]

    def mark_served(self, ticket: int) -> bool:
        """All that was asked for up to `ticket` is durable; whether that answers anything."""
        with self._lock:
            served = {notice_id for notice_id, asked in self._asked.items() if asked <= ticket}
            new = served - self._answered
            self._answered |= served
            return bool(new)

    def add_acknowledged(self, answers: Iterable[str]) -> None:
        """Others have announced these answers."""
        with self._lock:
            self._answered.update(answers)

    @property
    def own_is_answered(self) -> bool:
        """Whether our own notice was answered."""
        return self._own is not None and self._own.notice_id in self._answered

    @property
    def answers(self) -> tuple[str, ...]:
        """Ids of the notices that were answered here."""
        with self._lock:
            return tuple(sorted(self._answered & self._asked.keys()))


logger = logging.getLogger(__name__)

# Seconds for which a request for a save waits for somebody to lead.
_REQUEST_LASTS = 300.0


class NoticePublisher:
    """One worker's messages about notices. Thread-safe as far as the coordinator is.

    Args:
        coordinator: The run's coordinator.
        notices: Those that the worker knows of.
        elector: Of the worker.
        worker_id: Of the worker.
        clock: Where time comes from.
    """

    def __init__(
        self, coordinator: Coordinator, notices: Notices, *, elector: Elector, worker_id: str, clock: Clock
    ) -> None:
        self._coordinator = coordinator
        self._notices = notices
        self._elector = elector
        self._worker_id = worker_id
        self._clock = clock
        # The term at which the others were told of our notice; None while they were not.
        self._told_at: int | None = None
        self._told = threading.Event()
        # The request to let another lead that we have obeyed.
        self._obeyed = ""

    def publish(self, notice: OwnNotice, view: ClusterView | None) -> None:
        """Tell the others that this worker is going to be killed; from then on, again where that may be lost."""
        self._publish(notice, 0 if view is None else view.term)
        self._told.set()

    def republish(self, view: ClusterView) -> None:
        """The coordinator was away when we told the others, or may have lost its data since."""
        notice = self._notices.own
        if notice is None or self._notices.own_is_answered or view.term == self._told_at:
            return
        if self._told.is_set() and notice.deadline > self._clock.now():
            self._publish(notice, view.term)

    def _publish(self, notice: OwnNotice, term: int) -> None:
        remaining = notice.deadline - self._clock.now()
        if self._notify(notice.notice_id, notice.reason, remaining, what="telling the others of the notice"):
            self._told_at = term

    def ask_for_save(self, reason: str) -> bool:
        """Ask whoever leads for a save, as an operator does; nobody leaves.

        Returns:
            Whether the request is on record, or is our own to obey.
        """
        notice_id = new_notice_id()
        leads = self._elector.is_leader
        if leads:
            # At once; the coordinator may not answer, and shows it to ourselves at the next tick only.
            self._notices.ask(notice_id)
        return self._notify(notice_id, reason, _REQUEST_LASTS, what="asking for a save") or leads

    def _notify(self, notice_id: str, reason: str, remaining: float, *, what: str) -> bool:
        notice = Notice(notice_id=notice_id, worker_id=self._worker_id, reason=reason, remaining=remaining)
        try:
            self._coordinator.notify(notice)
        except BackupError as error:
            logger.warning("%s failed: %s", what, error)
            return False
        return True

    def handle_resign_requests(self, view: ClusterView, longest: float) -> None:
        """An operator wants another worker to lead: once our last boundary is durable, let one; once, if in vain.

        Args:
            view: The newest one.
            longest: Seconds to stand back at most: that the request was taken back is told to the leader only.
        """
        for notice in view.notices:
            asked = notice.action == "resign" and notice.worker_id == self._worker_id
            if asked and notice.notice_id in self._notices.answers and notice.notice_id != self._obeyed:
                self._obeyed = notice.notice_id
                if self._notices.own is None:
                    self._elector.pause_campaign(min(notice.remaining, longest))
