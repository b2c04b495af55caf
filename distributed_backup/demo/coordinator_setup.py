"""How the workers of a demonstration agree on a leader: by a lock in the directory, or by a lease on a server.

A server is asked before anything is started, so that a wrong password shows at once; and nothing of a demonstration
stays on it. The run's id is made for this demonstration alone: who else uses the server is not disturbed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from distributed_backup.coordination.base import Heartbeat
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.demo.messages import Coordination, Plan
from distributed_backup.demo.redis_server import find_server, running_server
from distributed_backup.errors import ConfigError, CoordinatorError
from distributed_backup.urls import is_redis_url, without_credentials

if TYPE_CHECKING:
    from distributed_backup.coordination.redis import RedisCoordinator

FILE: Final = "file:"
EMBEDDED: Final = "embedded-redis"

# Short, so that nobody has to wait for long; a tick is a quarter of what a slow machine may miss.
_TIMINGS: Final = LeaseTimings(duration=3.0, renew_deadline=2.0, retry_period=0.5)
# Seconds: with faster calls the fit would be over before the lease of the killed leader has run out.
_LEAST_LATENCY: Final = 0.15


class Arrangement:
    """What was arranged, and what is left of it.

    Args:
        coordination: What the workers are told.
        coordinator: Opened for the run; None where there is no server.
    """

    def __init__(self, coordination: Coordination, coordinator: RedisCoordinator | None = None) -> None:
        self.coordination = coordination
        self._coordinator = coordinator

    def left_behind(self) -> tuple[str, ...]:
        """What the run's workers have left on the server, in words."""
        if self._coordinator is None:
            return ()
        term, members = self._coordinator.view().term, self._coordinator.members()
        return tuple([f"term {term} on the server"] * (term > 0) + [f"{len(members)} member(s)"] * bool(members))


@contextmanager
def arranged(choice: str, plan: Plan, *, scratch: Path) -> Iterator[Arrangement]:
    """Arrange for the coordination that the user has chosen, until the block ends.

    Args:
        choice: "file:", the URL of a Redis deployment, or "embedded-redis" for a server of our own.
        plan: What is to be trained.
        scratch: Where a server of our own has its socket.

    Raises:
        ConfigError: It can't be used: another URL, a wrong password, no server to start.
        CoordinatorUnavailableError: The server can't be reached.
    """
    if choice == FILE:
        yield Arrangement(Coordination())
        return
    if choice != EMBEDDED and not is_redis_url(choice):
        raise ConfigError(
            "--coordinator must be 'file:', 'embedded-redis' or a Redis URL as redis://host:6379/0, "
            f"got {without_credentials(choice)!r}"
        )
    if plan.latency < _LEAST_LATENCY:
        raise ConfigError(
            f"--latency must be at least {_LEAST_LATENCY:g} where leases count, got {plan.latency:g}: else the fit is "
            f"over before the lease of a killed leader, {_TIMINGS.duration:g} s, has run out"
        )
    if choice != EMBEDDED:
        with _on_server(Coordination(url=choice, name=without_credentials(choice), timings=_TIMINGS)) as arrangement:
            yield arrangement
        return
    binary = find_server()
    with running_server(binary, scratch) as url:
        place = f"a server started for this, {binary}"
        with _on_server(Coordination(url=url, name=EMBEDDED, place=place, timings=_TIMINGS)) as arrangement:
            yield arrangement


@contextmanager
def _on_server(coordination: Coordination) -> Iterator[Arrangement]:
    from distributed_backup.coordination.redis import RedisCoordinator  # its driver, only for those who use it

    coordinator = RedisCoordinator(coordination.url)
    coordinator.open(coordination.run_id, coordination.timings)
    try:
        # Not only a look: it shows whether we may write, too.
        beat = Heartbeat(worker_id="director", campaign=False, floor=0, duration=coordination.timings.duration)
        coordinator.heartbeat(beat)
        coordinator.leave(beat.worker_id)
        try:
            yield Arrangement(coordination, coordinator)
        finally:
            # With a backup that is kept, or when it was interrupted, no worker has done so.
            with suppress(CoordinatorError):
                coordinator.erase()
    finally:
        coordinator.close()
