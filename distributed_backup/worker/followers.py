"""Find out how far the workers are that follow the leader's journal, so that its segments stay until they have passed.

The limit: a follower that makes no progress for `_PATIENCE` seconds is not waited for. It may find its segment removed.
"""

from __future__ import annotations

import logging
from typing import Final

from distributed_backup.clock import Clock
from distributed_backup.coordination.base import Coordinator, Member
from distributed_backup.errors import CoordinatorError
from distributed_backup.position import Position

logger = logging.getLogger(__name__)

# A batch of slow models may take minutes.
_PATIENCE: Final = 1800.0


class Followers:
    """The other workers of the run, as the worker `worker_id` sees them."""

    def __init__(self, coordinator: Coordinator, clock: Clock, worker_id: str) -> None:
        self._coordinator = coordinator
        self._clock = clock
        self._worker_id = worker_id
        # Worker -> its position, and the instant at which it was first seen there.
        self._seen: dict[str, tuple[Position, float]] = {}

    def slowest(self) -> Position | None:
        """Return the position of the slowest follower. None if there is none, or if the coordinator does not answer."""
        try:
            members = self._coordinator.members()
        except CoordinatorError as error:
            logger.warning("the positions of the followers are not known: %s", error)
            return None
        now = self._clock.now()
        self._seen = {member.worker_id: self._with_instant(member, now) for member in members if self._follows(member)}
        return min((place for place, since in self._seen.values() if now - since < _PATIENCE), default=None)

    def _follows(self, member: Member) -> bool:
        return member.worker_id != self._worker_id and member.role != "standby"

    def _with_instant(self, member: Member, now: float) -> tuple[Position, float]:
        # One that has not started may start from the oldest checkpoint.
        position = member.position or Position(0)
        before = self._seen.get(member.worker_id)
        return before if before is not None and before[0] == position else (position, now)
