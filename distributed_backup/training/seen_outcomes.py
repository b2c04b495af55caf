"""Keep the outcomes of a stage in the order in which they stand in the journal.

A follower's tail begins behind them, so it must find exactly these. New ones stand behind all of the log, although one
may be recorded while an outcome of the log still waits for its request.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from distributed_backup.checkpoints.journal_format import Outcome


@dataclass(slots=True)
class SeenOutcomes:
    """What training has seen of a log since the last boundary, and what was recorded behind it since then."""

    replayed: list[Outcome] = field(default_factory=list)
    recorded: list[Outcome] = field(default_factory=list)

    def in_order(self) -> list[Outcome]:
        """Return all of them."""
        return [*self.replayed, *self.recorded]

    def end_recording(self, withdrawn: Iterable[Outcome | None]) -> None:
        """Take these out of what was recorded. What another worker records comes behind the rest."""
        gone = set(map(id, withdrawn))
        self.replayed += [record for record in self.recorded if id(record) not in gone]
        self.recorded = []
