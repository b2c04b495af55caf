"""Give way: a worker that campaigns leaves a free lease to a live member whose training has come further.

The run goes on from what its leader saves. With a leader that is epochs behind, the run would lose what the other
replicas have done and paid for.

The limit: a worker gives way once per vacancy, for `hold_back_seconds`. Then it campaigns as if it were alone, so the
election never depends on a member that has died, is paused or can't lead. A coordinator that was emptied or out of
reach knows no live member, so the first heartbeat takes the lease. Positions are compared and nothing else.
"""

from __future__ import annotations

from typing import Final

from distributed_backup.coordination.base import Heartbeat, Member

# A thread on a busy machine may be this many seconds late. Where a tick is much longer, it does not matter.
_LATE: Final = 0.5


def fresh_seconds(tick: float) -> float:
    """Return how old the last heartbeat of a live member may be: two ticks with their jitter."""
    return max(2.5 * tick, 2 * _LATE)


def hold_back_seconds(tick: float) -> float:
    """Return for how long a worker gives way: the longest tick with its jitter, and the time for a reply."""
    return max(1.25 * tick, _LATE)


def is_ahead(member: Member, beat: Heartbeat) -> bool:
    """Whether the sender of `beat` leaves a free lease to `member`.

    A member whose role is "leader" while the lease is free has died or resigned.
    """
    if member.worker_id == beat.worker_id or member.role == "leader" or member.position is None:
        return False
    return member.age < beat.gives_way_to and (beat.position is None or member.position > beat.position)


class HoldBack:
    """For how long one worker still gives way in the present vacancy. `tick` is its period in seconds.

    A vacancy ends when a holder is seen, and at no other sign: a member that can't lead may take the lease and give it
    back at each of its ticks.
    """

    def __init__(self, tick: float) -> None:
        self._tick = tick
        # None if the worker has not given way in this vacancy.
        self._until: float | None = None

    def observe(self, sent: float, *, campaigned: bool, is_free: bool) -> None:
        """Learn from the reply to a heartbeat. A worker that campaigned, and left the lease free, has given way."""
        if not is_free:
            self._until = None
        elif campaigned and self._until is None:
            self._until = sent + hold_back_seconds(self._tick)

    def gives_way_to(self, now: float) -> float:
        """Return what the next heartbeat says, see `Heartbeat.gives_way_to`."""
        return fresh_seconds(self._tick) if self._until is None or now < self._until else 0.0

    def left(self, now: float) -> float | None:
        """Return the seconds until this worker takes a free lease in any case. None if it gives way to none now."""
        return None if self._until is None or now >= self._until else self._until - now
