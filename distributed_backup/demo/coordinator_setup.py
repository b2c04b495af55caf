"""How the workers of a demonstration elect a leader: by a lock in the directory, or by a lease on a server.

The server is used once before any process starts, so that a wrong password is an error of the command. The
demonstration deletes its keys from the server at the end. Its run id is random, so other runs there are unaffected.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
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

# Short, so that the demonstration waits only 3 s for a lease. Four heartbeats fit into the renew deadline.
_TIMINGS: Final = LeaseTimings(duration=3.0, renew_deadline=2.0, retry_period=0.5)
# Seconds. With faster calls the fit would end before the lease of the killed leader runs out.
_MIN_LATENCY: Final = 0.15


class CoordinatorSetup:
    """The coordination of one demonstration. `coordinator` is open for its run, None without a server."""

    def __init__(self, coordination: Coordination, coordinator: RedisCoordinator | None = None) -> None:
        self.coordination = coordination
        self._coordinator = coordinator

    def leftovers(self) -> tuple[str, ...]:
        """Describe the records of the run that are still on the server."""
        if self._coordinator is None:
            return ()
        term, members = self._coordinator.view().term, self._coordinator.members()
        return tuple([f"term {term} on the server"] * (term > 0) + [f"{len(members)} member(s)"] * bool(members))


@contextmanager
def coordinator_for(choice: str, plan: Plan, *, scratch: Path) -> Iterator[CoordinatorSetup]:
    """Set up the coordination of the user's choice until the block ends.

    `choice` is "file:", the URL of a Redis deployment, or "embedded-redis" for a server that runs until the block ends
    and has its socket in `scratch`.

    Raises:
        ConfigError: The choice is unknown, the password is wrong, or there is no server to start.
        CoordinatorUnavailableError: The server can't be reached.
    """
    if choice == FILE:
        yield CoordinatorSetup(Coordination())
        return
    if choice != EMBEDDED and not is_redis_url(choice):
        raise ConfigError(
            "--coordinator must be 'file:', 'embedded-redis' or a Redis URL as redis://host:6379/0, "
            f"got {without_credentials(choice)!r}"
        )
    if plan.latency < _MIN_LATENCY:
        raise ConfigError(
            f"--latency must be at least {_MIN_LATENCY:g} with a server, got {plan.latency:g}: with faster calls the "
            f"fit ends before the lease of the killed leader runs out, {_TIMINGS.duration:g} s after its last renewal"
        )
    with ExitStack() as stack:
        if choice == EMBEDDED:
            binary = find_server()
            url = stack.enter_context(running_server(binary, scratch))
            name, place = EMBEDDED, f"a server for this demonstration, {binary}"
        else:
            url, name, place = choice, without_credentials(choice), without_credentials(choice)
        from distributed_backup.coordination.redis import RedisCoordinator  # optional driver

        coordination = Coordination(url=url, name=name, place=place, timings=_TIMINGS)
        coordinator = stack.enter_context(closing(RedisCoordinator(coordination.url)))
        coordinator.open(coordination.run_id, _TIMINGS)
        # A heartbeat needs the right to write, too.
        beat = Heartbeat(worker_id="demo", campaign=False, floor=0, duration=_TIMINGS.duration)
        coordinator.heartbeat(beat)
        coordinator.leave(beat.worker_id)
        try:
            yield CoordinatorSetup(coordination, coordinator)
        finally:
            # A kept backup or an interrupted demonstration leaves its records there.
            with suppress(CoordinatorError):
                coordinator.erase()
