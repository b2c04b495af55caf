"""Number the equal requests since the last boundary, so that each finds its own outcome in the log.

A request that fails gives its number back, so its retry has the same ticket.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

type Ticket = tuple[str, int]
"""The key of a request, and its number among the equal ones since the last boundary."""


class Tickets:
    """The numbers of equal requests since the last boundary."""

    def __init__(self, taken: Mapping[str, int] | None = None) -> None:
        self._taken = dict(taken or {})
        self._returned: dict[str, list[int]] = {}

    def take(self, key: str) -> Ticket:
        """Return the ticket of a request that is made now."""
        returned = self._returned.get(key)
        if returned:
            return key, heapq.heappop(returned)
        number = self._taken.get(key, 0)
        self._taken[key] = number + 1
        return key, number

    def give_back(self, ticket: Ticket) -> None:
        """Let the next equal request have this number: the request failed, so its retry takes its place."""
        heapq.heappush(self._returned.setdefault(ticket[0], []), ticket[1])

    def copy(self) -> Tickets:
        """Return the tickets as they are now."""
        made = Tickets(self._taken)
        made._returned = {key: numbers[:] for key, numbers in self._returned.items()}
        return made
