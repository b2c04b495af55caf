"""The requests of a follower that wait for what its leader records of them. Used in the thread of its event loop."""

from __future__ import annotations

import asyncio

from distributed_backup.training.tickets import Ticket


class WaitingRequests:
    """The requests that wait, in the order in which they were made."""

    def __init__(self) -> None:
        # A request that outlives its batch may have the ticket of a later one.
        self._waiting: list[tuple[Ticket, asyncio.Future[int | None]]] = []

    def __bool__(self) -> bool:
        return any(not future.done() for _, future in self._waiting)

    def add(self, ticket: Ticket) -> asyncio.Future[int | None]:
        """Return a future for the place of the outcome. None as its result: the request must be sent."""
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((ticket, future))
        future.add_done_callback(lambda _: self._remove((ticket, future)))
        return future

    def _remove(self, entry: tuple[Ticket, asyncio.Future[int | None]]) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)

    def answer(self, ticket: Ticket, place: int) -> bool:
        """Give the first request with this ticket its place. Return False if none waits."""
        entry = next((each for each in self._waiting if each[0] == ticket and not each[1].done()), None)
        if entry is None:
            return False
        self._waiting.remove(entry)
        entry[1].set_result(place)
        return True

    def send_all(self) -> None:
        """Let the requests that wait be sent."""
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if not future.done():
                future.set_result(None)
