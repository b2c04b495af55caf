"""The requests of a follower that wait for what its leader records of them. Used in the thread of its event loop."""

from __future__ import annotations

import asyncio

from distributed_backup.training.tickets import Ticket


class WaitingRequests:
    """The requests that wait. Equal ones in the order in which they were made."""

    def __init__(self) -> None:
        # A request that outlives its batch may have the ticket of a later one.
        self._waiting: dict[Ticket, list[asyncio.Future[int | None]]] = {}

    def __bool__(self) -> bool:
        return any(not future.done() for futures in self._waiting.values() for future in futures)

    def add(self, ticket: Ticket) -> asyncio.Future[int | None]:
        """Return a future for the place of the outcome. None as its result: the request must be sent."""
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(ticket, []).append(future)
        future.add_done_callback(lambda _: self._remove_ended(ticket))
        return future

    def _remove_ended(self, ticket: Ticket) -> None:
        futures = [future for future in self._waiting.pop(ticket, ()) if not future.done()]
        if futures:
            self._waiting[ticket] = futures

    def answer(self, ticket: Ticket, place: int) -> bool:
        """Give the first request with this ticket its place. Return False if none waits."""
        future = next((each for each in self._waiting.get(ticket, ()) if not each.done()), None)
        if future is None:
            return False
        future.set_result(place)
        return True

    def send_all(self) -> None:
        """Let the requests that wait be sent."""
        waiting, self._waiting = self._waiting, {}
        for futures in waiting.values():
            for future in futures:
                if not future.done():
                    future.set_result(None)
