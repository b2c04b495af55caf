"""Durations of a lease, checked once and scaled to a grace period."""

from __future__ import annotations

from dataclasses import dataclass

from distributed_backup.checks import MAX_SECONDS, is_number, shown
from distributed_backup.errors import ConfigError

# Part of the grace period in which a lease expires and is taken over. The rest is for the save and the shutdown.
_LEASE_PART = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimings:
    """How long a lease lasts and how often it is renewed, in seconds.

    Args:
        duration: Seconds after the last renewal until another worker may take over. A longer lease survives longer
            pauses of a healthy leader. A shorter one is taken over earlier. A dead worker counts as a member for as
            long.
        renew_deadline: Seconds without a successful renewal after which the leader stands down. It must be shorter
            than `duration`, so that the leader stands down before another worker takes over.
        retry_period: Seconds between two heartbeats of a worker. With half of `renew_deadline` or less, at least two
            fit into it. A file coordinator has an interval of 0.1 s, because its heartbeat is a few system calls.

    The defaults are those of kubernetes/client-go `tools/leaderelection`.

    Raises:
        ConfigError: Unless 0 < retry_period < renew_deadline < duration, all finite numbers that Python can wait for.

    Example:
        >>> LeaseTimings(duration=6.0, renew_deadline=4.0, retry_period=1.0).duration
        6.0
    """

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0

    def __post_init__(self) -> None:
        numbers = all(is_number(value) for value in (self.retry_period, self.renew_deadline, self.duration))
        if not numbers or not 0 < self.retry_period < self.renew_deadline < self.duration <= MAX_SECONDS:
            raise ConfigError(
                "want 0 < retry_period < renew_deadline < duration, got "
                f"{shown(self.retry_period)}, {shown(self.renew_deadline)}, {shown(self.duration)}"
            )

    @classmethod
    def for_grace_period(cls, grace_period: float) -> LeaseTimings:
        """Return the defaults, shortened if the grace period is short.

        The leader may be killed while all workers are being preempted. A follower can take over and save only if the
        lease expires in time: the lease and one tick may take 0.6 of the grace period.

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
