"""Find out how far the workers are that follow the leader's journal, so that its segments stay until they have passed.

The limit: a follower that makes no progress for `_PATIENCE` seconds or `_MOST_BYTES` of the journal is not waited for.
It may find its segment removed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from distributed_backup.clock import Clock
from distributed_backup.coordination.base import Coordinator, Member
from distributed_backup.errors import CoordinatorError
from distributed_backup.position import Position

logger = logging.getLogger(__name__)

# A batch of slow models may take minutes.
_PATIENCE: Final = 1800.0
# The disk must not fill up for one worker.
_MOST_BYTES: Final = 2**30


@dataclass(frozen=True, slots=True)
class _Sighting:
    """Where a follower is, when it was first seen there, and how many bytes this worker had appended by then."""

    position: Position
    instant: float
    bytes: int


class Followers:
    """The other workers of the run, as worker `worker_id` sees them. `appended` returns the bytes it has appended."""

    def __init__(self, coordinator: Coordinator, clock: Clock, worker_id: str, *, appended: Callable[[], int]) -> None:
        self._coordinator = coordinator
        self._clock = clock
        self._worker_id = worker_id
        self._appended = appended
        self._seen: dict[str, _Sighting] = {}

    def slowest(self) -> Position | None:
        """Return the position of the slowest follower. None if there is none.

        It is the start of the run if the coordinator does not answer: a leader that it leaves alone stands down anyway.
        """
        try:
            members = self._coordinator.members()
        except CoordinatorError as error:
            logger.warning("the positions of the followers are not known: %s", error)
            return Position(0)
        self._seen = {member.worker_id: self._sighting(member) for member in members if self._follows(member)}
        return min((seen.position for seen in self._seen.values() if self._waits_for(seen)), default=None)

    def _follows(self, member: Member) -> bool:
        return member.worker_id != self._worker_id and member.role != "standby"

    def _waits_for(self, seen: _Sighting) -> bool:
        is_recent = self._clock.now() - seen.instant < _PATIENCE
        return is_recent and self._appended() - seen.bytes < _MOST_BYTES

    def _sighting(self, member: Member) -> _Sighting:
        # One that has not started may start from the oldest checkpoint.
        position = member.position or Position(0)
        before = self._seen.get(member.worker_id)
        if before is not None and before.position == position:
            return before
        return _Sighting(position, self._clock.now(), self._appended())
