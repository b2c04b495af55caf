"""Give way: a worker that campaigns leaves a free lease to a live member whose training has come further.

The run goes on from what its leader saves. With a leader that is epochs behind, the run would lose what the other
replicas have done and paid for.

The limit: a worker gives way once per vacancy, for `hold_back_seconds`. Then it campaigns as if it were alone, so the
election never depends on a member that has died, is paused or can't lead. Positions are compared and nothing else.
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


def hold_back_until(known: float | None, *, held_back: bool, has_holder: bool, now: float, tick: float) -> float | None:
    """Return the instant until which a worker gives way in this vacancy. None if it has not begun to.

    `known` is the instant before this reply. `held_back`: the reply left the lease free though the worker campaigned.
    A vacancy ends when a holder is seen, and at no other sign: a member that can't lead may take the lease and give it
    back at each of its ticks.
    """
    if has_holder:
        return None
    return now + hold_back_seconds(tick) if known is None and held_back else known
