"""Durations of a lease."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distributed_backup.errors import ConfigError

if TYPE_CHECKING:
    pass
from distributed_backup.checks import is_number

# Of the grace period, for a lease to run out and be taken; the rest is for the save, and for leaving.
_LEASE_PART = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimings:
    """How long a lease lasts and how often it is renewed, in seconds.

    Args:
        duration: How long others must wait before they take over from a leader that fell silent. Longer
            survives longer pauses of a healthy leader; shorter hands over sooner. Also how long a worker
            that died without a word still counts as a member.
        renew_deadline: How long the leader goes on without a successful renewal before it stands down. Must
            be shorter than `duration`, so that it stands down before anyone else may take over.
        retry_period: How often each worker talks to the coordinator. At least two tries fit into
            `renew_deadline` when it is half of it or less. A file coordinator ticks faster: its tick is a
            system call, not a round trip.

    The defaults are those of kubernetes/client-go `tools/leaderelection`.

    Raises:
        ConfigError: Unless 0 < retry_period < renew_deadline < duration, all finite.

    Example:
        >>> LeaseTimings(duration=6.0, renew_deadline=4.0, retry_period=1.0).duration
        6.0
    """

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0

    def __post_init__(self) -> None:
        numbers = all(is_number(value) for value in (self.retry_period, self.renew_deadline, self.duration))
        if not numbers or not 0 < self.retry_period < self.renew_deadline < self.duration < math.inf:
            raise ConfigError(
                "want 0 < retry_period < renew_deadline < duration, got "
                f"{self.retry_period!r}, {self.renew_deadline!r}, {self.duration!r}"
            )

    @classmethod
    def for_grace_period(cls, grace_period: float) -> LeaseTimings:
        """The defaults, shortened where a grace period is short.

        If the leader is killed while all workers are being preempted, a follower can take over and save only if the
        lease runs out early enough: it and one tick may take 0.6 of the grace period.

        Args:
            grace_period: Seconds between a notice and the kill.

        Example:
            >>> LeaseTimings.for_grace_period(30.0) == LeaseTimings()
            True
            >>> LeaseTimings.for_grace_period(10.0).duration < 6.0
            True
        """
        usual = cls()
        part = min(1.0, _LEASE_PART * grace_period / (usual.duration + usual.retry_period))
        return cls(
            duration=part * usual.duration,
            renew_deadline=part * usual.renew_deadline,
            retry_period=part * usual.retry_period,
        )
