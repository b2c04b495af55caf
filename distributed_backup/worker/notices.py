"""Preemption notices and operators' requests: what one worker knows of them, and how it publishes its own.

A notice is acknowledged once a commit that began after the notice was known is durable. The saver's tickets tell. An
acknowledgement stays true whichever worker leads later, and notice ids are unique.

A notice concerns the whole run: the leader saves for it. The save serves the preempted worker only if it `covers` that
worker's last boundary. So the notice carries its position, and a leader that is behind gives way to the worker.

A published notice may be lost with the coordinator's data, so it is published again when the term or the position
changes. Nothing here waits. An error of the coordinator is a line in the log.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from distributed_backup.clock import Clock
from distributed_backup.coordination.base import ClusterView, Coordinator, Notice
from distributed_backup.coordination.election import Elector
from distributed_backup.coordination.giving_way import fresh_seconds
from distributed_backup.errors import BackupError
from distributed_backup.once import OnceLogger
from distributed_backup.position import Position
from distributed_backup.preemption.grace import shutdown_reserve

logger = logging.getLogger(__name__)

# Seconds for which a request for a save waits for a leader.
_REQUEST_LIFETIME: Final = 300.0
# A preempted worker may miss its chance to take the lease: a lost reply, a busy machine.
_TIMES_TO_GIVE_WAY: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnNotice:
    """The preemption of this worker. Instants are those of its own clock."""

    notice_id: str
    reason: str
    given: float
    deadline: float
    """When the kill comes."""
    reserve: float
    """Seconds kept before the deadline for the last commit, for leaving, and for the interpreter's exit."""


def covers(saved: Position | None, boundary: Position | None) -> bool:
    """Whether a run that is saved up to `saved` has all that a worker at `boundary` could save.

    Replicas get different answers, so two states of one position differ. Here, the one is as good as the other.
    """
    return boundary is None or (saved is not None and saved >= boundary)


def new_notice_id() -> str:
    """Return an id that no other notice has."""
    return f"notice-{secrets.token_hex(8)}"


class Notices:
    """The notices that one worker knows, each with the ticket of the save that acknowledges it.

    Thread-safe. `request_save` returns a ticket. It is called with a lock held and must not call back.
    """

    def __init__(self, request_save: Callable[[], int]) -> None:
        self._request_save = request_save
        self._lock = threading.Lock()
        self._own: OwnNotice | None = None
        self._tickets: dict[str, int] = {}
        self._acknowledged: set[str] = set()

    @property
    def own(self) -> OwnNotice | None:
        """The preemption of this worker. None while there is none."""
        return self._own

    def give(self, reason: str, *, now: float, remaining: float) -> OwnNotice | None:
        """Register the preemption of this worker. None if there was a notice already, see `shorten_deadline`."""
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
        """Register another notice of the same preemption. None unless its deadline is earlier than the known one."""
        with self._lock:
            if self._own is None or now + remaining >= self._own.deadline:
                return None
            self._own = replace(self._own, deadline=now + remaining, reserve=shutdown_reserve(remaining))
            return self._own

    def request_save(self, notice_id: str) -> None:
        """Request the save that acknowledges a notice. May be repeated."""
        # Under the lock: the ticket must be on record before its commit is reported.
        with self._lock:
            ticket = self._request_save()
            # The save that was requested first acknowledges the notice.
            self._tickets.setdefault(notice_id, ticket)

    def pending(self, view: ClusterView) -> list[str]:
        """Return the ids in `view` that no save was requested for. Notices that are over are forgotten."""
        with self._lock:
            current = {notice.notice_id for notice in view.notices}
            if self._own is not None:
                current.add(self._own.notice_id)
            self._tickets = {notice_id: ticket for notice_id, ticket in self._tickets.items() if notice_id in current}
            self._acknowledged &= current
            return [notice.notice_id for notice in view.notices if notice.notice_id not in self._tickets]

    def mark_served(self, ticket: int) -> bool:
        """Acknowledge all notices up to `ticket`. Return whether one was acknowledged for the first time."""
        with self._lock:
            served = {notice_id for notice_id, asked in self._tickets.items() if asked <= ticket}
            new = served - self._acknowledged
            self._acknowledged |= served
            return bool(new)

    def add_acknowledged(self, notice_ids: Iterable[str]) -> None:
        """Register acknowledgements that another worker has announced."""
        with self._lock:
            self._acknowledged.update(notice_ids)

    @property
    def own_is_acknowledged(self) -> bool:
        """Whether a save for this worker's own preemption is durable."""
        return self._own is not None and self._own.notice_id in self._acknowledged

    @property
    def acknowledged(self) -> tuple[str, ...]:
        """Ids of the notices that saves of this worker have acknowledged."""
        with self._lock:
            return tuple(sorted(self._acknowledged & self._tickets.keys()))


class NoticePublisher:
    """Publishes one worker's notices and acts on operators' requests. Thread-safe as far as the coordinator is."""

    def __init__(
        self, coordinator: Coordinator, notices: Notices, *, elector: Elector, worker_id: str, clock: Clock
    ) -> None:
        self._coordinator = coordinator
        self._notices = notices
        self._elector = elector
        self._worker_id = worker_id
        self._clock = clock
        self._warnings = OnceLogger(logger)
        # The term at which the notice was published last, and the position in it.
        self._published: tuple[int, Position | None] | None = None
        self._was_published = threading.Event()
        # The last request to resign that was acted on, and the notices that this worker gave way for.
        self._handled = ""
        self._gave_way: Counter[tuple[str, Position | None]] = Counter()

    def publish(self, view: ClusterView | None, position: Position | None) -> None:
        """Publish the preemption of this worker. From then on `republish` repeats it."""
        self._publish(0 if view is None else view.term, position)
        self._was_published.set()

    def republish(self, view: ClusterView, position: Position | None) -> None:
        """Publish the notice again if term or position changed: the coordinator may have lost it, or never got it."""
        if self._was_published.is_set() and (view.term, position) != self._published:
            self._publish(view.term, position)

    def _publish(self, term: int, position: Position | None) -> None:
        own = self._notices.own
        assert own is not None
        remaining = own.deadline - self._clock.now()
        notice = self._notice(own.notice_id, own.reason, remaining)
        if remaining > 0 and self._notify(replace(notice, position=position), what="publishing the notice"):
            self._published = (term, position)

    def request_save(self, reason: str) -> bool:
        """Request a save of the leader, as an operator does. Return whether a leader will see the request."""
        notice_id = new_notice_id()
        leads = self._elector.is_leader
        if leads:
            # Now, because the coordinator may not answer, and would show the request at the next tick only.
            self._notices.request_save(notice_id)
        notice = self._notice(notice_id, reason, _REQUEST_LIFETIME)
        return self._notify(notice, what="requesting a save") or leads

    def _notice(self, notice_id: str, reason: str, remaining: float) -> Notice:
        return Notice(notice_id=notice_id, worker_id=self._worker_id, reason=reason, remaining=remaining)

    def _notify(self, notice: Notice, *, what: str) -> bool:
        try:
            self._coordinator.notify(notice)
        except BackupError as error:
            # `republish` retries at each tick.
            self._warnings.warning("%s failed worker=%s reason=%s", what, self._worker_id, error)
            return False
        self._warnings.reset()
        return True

    def handle_resign_requests(self, view: ClusterView, longest: float) -> None:
        """Resign for an operator once the last boundary is durable.

        Each request is handled once. The leader campaigns again after `longest` seconds, because only the leader would
        see that the request was withdrawn.
        """
        for notice in view.notices:
            asked = notice.action == "resign" and notice.worker_id == self._worker_id
            if asked and notice.notice_id in self._notices.acknowledged and notice.notice_id != self._handled:
                self._handled = notice.notice_id
                if self._notices.own is None:
                    self._elector.pause_campaign(min(notice.remaining, longest))

    def give_way(self, view: ClusterView, *, saved: Position | None, last: Position | None) -> None:
        """Resign for preempted workers that have come further than `saved`, the newest checkpoint of any leader.

        The farthest of them takes the lease, see `giving_way`, and saves its own boundary. This happens at most three
        times for each boundary of a notice (`_TIMES_TO_GIVE_WAY`), because the worker may be unable to lead. A leader
        that is being preempted gives way too: the run goes on from the farthest state.
        """
        for notice in view.notices:
            is_served = notice.notice_id in self._notices.acknowledged
            if not is_served or notice.worker_id == self._worker_id or covers(saved, notice.position):
                continue
            if covers(last, notice.position):
                # This worker has caught up since it saved.
                self._notices.request_save(notice.notice_id)
            elif self._may_give_way(notice):
                self._gave_way[notice.notice_id, notice.position] += 1
                logger.info("giving way to a preempted worker worker=%s ahead=%s", self._worker_id, notice.worker_id)
                self._elector.pause_campaign(min(notice.remaining, fresh_seconds(self._elector.period)))

    def _may_give_way(self, notice: Notice) -> bool:
        """Whether the worker of `notice` can still take the lease: it has not had its chances, and is alive."""
        if self._gave_way[notice.notice_id, notice.position] >= _TIMES_TO_GIVE_WAY:
            return False
        fresh = fresh_seconds(self._elector.period)
        try:
            return any(one.worker_id == notice.worker_id and one.age < fresh for one in self._coordinator.members())
        except BackupError:
            return False  # the next tick looks again
