"""The outcomes of the stage that a followed log is in, as a restart finds them, and how many of them are usable.

A failure may be about to end the leader's fit. Then a restart does not find it, see `Failed`. So it becomes usable when
the leader has gone on after it. So do the answers behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from distributed_backup.checkpoints.journal_format import Failed, Outcome, Unanswered, Void, apply


class FollowedStage:
    """One stage. `used`: the outcomes at its beginning that this worker has used as a leader."""

    def __init__(self, used: Iterable[Outcome] = ()) -> None:
        self.outcomes = list(used)
        self.usable = len(self.outcomes)

    def add(self, outcome: Outcome) -> Iterator[Outcome]:
        """Add an outcome, and return those that are usable now. Each counts as usable once it is taken from there."""
        self.outcomes.append(outcome)
        if isinstance(outcome, Unanswered):
            return iter(())
        return self._up_to(len(self.outcomes) - 1 - outcome.since_failure)

    def rest(self) -> Iterator[Outcome]:
        """Return the others in the same way: the leader has gone on, or the log is continued as it is."""
        return self._up_to(len(self.outcomes))

    def _up_to(self, place: int) -> Iterator[Outcome]:
        """Yield what becomes usable, up to the first failure from `place` on."""
        while self.usable < len(self.outcomes):
            outcome = self.outcomes[self.usable]
            if isinstance(outcome, Unanswered) and self.usable >= place:
                return
            self.usable += 1
            yield outcome

    def take_back(self, record: Failed | Void) -> bool:
        """Change the outcomes as a restart does. Return False if one of them was usable."""
        before = self.outcomes[: self.usable]
        apply(record, self.outcomes)
        return self.outcomes[: self.usable] == before
