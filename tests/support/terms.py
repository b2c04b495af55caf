"""A record of terms for tests."""

from __future__ import annotations

from distributed_backup.errors import StoreError


class Terms:
    """Keeps in memory what a store keeps on the disk, and fails on request.

    Several electors of one run share one.
    """

    def __init__(self) -> None:
        self.highest = 0
        self.error: StoreError | None = None
        self.asked = 0

    def highest_term(self) -> int:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.highest

    def claim_term(self, term: int) -> bool:
        if self.error is not None:
            raise self.error
        if term <= self.highest:
            return False
        self.highest = term
        return True
