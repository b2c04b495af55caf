"""Leases in memory, for several workers of one process and for tests.

The reference for the contract. It coordinates the workers that share the instance. In two processes with a
`MemoryCoordinator` each, both lead.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from typing import Self, override

from distributed_backup.clock import Clock, SystemClock
from distributed_backup.coordination.base import Announcement, ClusterView, Coordinator, Heartbeat, Member, Notice
from distributed_backup.coordination.giving_way import is_ahead


@dataclass(slots=True)
class _Membership:
    member: Member
    heard: float
    expires: float


class MemoryCoordinator(Coordinator):
    """A coordinator in memory.

    Example:
        >>> from distributed_backup.coordination.base import Heartbeat
        >>> coordinator = MemoryCoordinator()
        >>> coordinator.heartbeat(Heartbeat(worker_id="a", campaign=True, floor=0, duration=15.0)).holder
        'a'
    """

    heartbeat_interval = 0.1
    has_expiry = True

    @classmethod
    @override
    def from_url(cls, url: str, backup_dir: str | os.PathLike[str] | None) -> Self | None:
        return cls() if url == "memory:" else None

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._term = 0
        self._holder: str | None = None
        self._expires = 0.0
        self._announcement: Announcement | None = None
        self._members: dict[str, _Membership] = {}
        self._notices: dict[str, tuple[Notice, float]] = {}

    @override
    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        with self._lock:
            now = self._clock.now()
            member = Member(worker_id=beat.worker_id, role=beat.role, position=beat.position, age=0.0)
            self._members[beat.worker_id] = _Membership(member, now, now + beat.duration)
            held = self._holder is not None and now < self._expires
            if not held and beat.campaign and not any(is_ahead(other, beat) for other in self._live(now)):
                self._term = max(self._term, beat.floor) + 1
                self._holder = beat.worker_id
                held = True
            if self._holder == beat.worker_id and held:
                self._expires = now + beat.duration
            return self._view(now)

    @override
    def view(self) -> ClusterView:
        with self._lock:
            return self._view(self._clock.now())

    def _view(self, now: float) -> ClusterView:
        holder = self._holder if now < self._expires else None
        membership = self._members.get(holder) if holder else None
        self._notices = {key: entry for key, entry in self._notices.items() if now < entry[1]}
        return ClusterView(
            term=self._term,
            holder=holder,
            holder_age=None if membership is None else now - membership.heard,
            remaining=self._expires - now if holder else None,
            announcement=self._announcement,
            notices=tuple(replace(notice, remaining=end - now) for notice, end in self._notices.values()),
        )

    @override
    def members(self) -> tuple[Member, ...]:
        with self._lock:
            return self._live(self._clock.now())

    def _live(self, now: float) -> tuple[Member, ...]:
        self._members = {key: entry for key, entry in self._members.items() if now < entry.expires}
        return tuple(replace(entry.member, age=now - entry.heard) for _, entry in sorted(self._members.items()))

    @override
    def announce(self, announcement: Announcement) -> bool:
        with self._lock:
            holds = (
                self._holder == announcement.worker_id
                and self._term == announcement.term
                and self._clock.now() < self._expires
            )
            if holds:
                self._announcement = announcement
                if (membership := self._members.get(announcement.worker_id)) is not None:
                    membership.heard = self._clock.now()
            return holds

    @override
    def notify(self, notice: Notice) -> None:
        with self._lock:
            self._notices[notice.notice_id] = (notice, self._clock.now() + notice.remaining)

    @override
    def resign(self, worker_id: str) -> None:
        with self._lock:
            if self._holder == worker_id:
                self._holder, self._expires = None, 0.0

    @override
    def leave(self, worker_id: str) -> None:
        with self._lock:
            self._members.pop(worker_id, None)
            self._notices = {key: entry for key, entry in self._notices.items() if entry[0].worker_id != worker_id}

    @override
    def erase(self) -> None:
        with self._lock:
            self._forget()
