"""What is known of the processes, from the events they sent: read by the director, the screen and the verdict.

An event changes one life and nothing else; the order between processes is that of the events' instants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from distributed_backup.checkpoints.format import parse_name
from distributed_backup.demo.messages import REFERENCE, Event
from distributed_backup.position import Position

Part = Literal["starting", "leader", "follower", "leaving", "gone", "finished", "training"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A checkpoint that became durable.

    Args:
        at: When the writer knew.
        term: The term it was committed under.
        position: How far it goes.
    """

    at: float
    term: int
    position: Position


@dataclass(slots=True, kw_only=True)
class Life:
    """One incarnation of a worker, or the reference run.

    Attributes:
        part: What it does just now.
        term: The term it leads or has last led under.
        resumed: Where it started from.
        position: The last boundary it reached.
        calls: Calls of the language model that it has begun.
        calls_at: The same when it reached each boundary.
        elected: When it was elected, by term.
        commits: What it made durable.
        code: Its exit code; None while it runs.
        ended: When it was gone.
        state: A digest of each part of its final state; None unless its fit was completed.
    """

    name: str
    number: int
    pid: int = 0
    part: Part = "starting"
    term: int | None = None
    resumed: Position = field(default_factory=lambda: Position(0))
    position: Position = field(default_factory=lambda: Position(0))
    calls: int = 0
    calls_at: dict[Position, int] = field(default_factory=lambda: {Position(0): 0})
    elected: dict[int, float] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    code: int | None = None
    ended: float | None = None
    state: dict[str, str] | None = None

    @property
    def is_training(self) -> bool:
        """Whether it has reached a boundary of its own and goes on."""
        return self.part in {"leader", "follower", "training"} and self.position > self.resumed

    @property
    def has_batch_in_flight(self) -> bool:
        """Whether it has begun calls beyond its last boundary."""
        return self.calls > self.calls_at.get(self.position, 0)

    def apply(self, event: Event) -> None:
        """Learn of an event."""
        self.calls = max(self.calls, event.calls)
        if event.kind == "boundary":
            self._reached(event)
        elif event.kind == "restored":
            _, self.resumed = _checkpoint(event.fields.get("from", ""))
            self.position = self.resumed
            self.calls_at[self.resumed] = event.calls
        elif event.kind == "committed":
            term, position = _checkpoint(event.fields.get("name", ""))
            self.commits.append(Commit(at=event.at, term=term, position=position))
        elif event.kind == "elected":
            self.term = int(event.fields["term"])
            self.elected[self.term] = event.at
        elif event.kind == "done":
            self.state = event.fields
        elif event.kind == "gone":
            self.code, self.ended = int(event.fields["code"]), event.at
        self.part = self._part_after(event)

    def _reached(self, event: Event) -> None:
        # A resumed fit runs through the batches that are done already, without a call; they are no news.
        if event.position is not None and event.position > self.position:
            self.position = event.position
            self.calls_at.setdefault(event.position, event.calls)

    def _part_after(self, event: Event) -> Part:
        if event.kind == "ready":
            return "training" if self.name == REFERENCE else "starting"
        if event.kind == "restored" and self.part == "starting":
            return "leader" if "term" in event.fields else "follower"
        if self.part == "leaving" and event.kind != "gone":
            return "leaving"
        if event.kind == "boundary" and self.part == "starting":
            return "follower"  # a follower's fresh start is not logged
        changes: dict[str, Part] = {
            "elected": "leader",
            "lease": "follower",
            "resigned": "follower",
            "notice": "leaving",
            "done": "finished",
            "gone": "finished" if self.state is not None else "gone",
        }
        return changes.get(event.kind, self.part)


class Cast:
    """All lives of all names, in the order of their first appearance."""

    def __init__(self) -> None:
        self.lives: dict[str, list[Life]] = {}

    def enter(self, life: Life) -> None:
        """A life begins."""
        self.lives.setdefault(life.name, []).append(life)

    def apply(self, event: Event) -> Life:
        """Give an event to the life it is of."""
        life = self.lives[event.name][event.life - 1]
        life.apply(event)
        return life

    def workers(self) -> Iterator[list[Life]]:
        """The lives of each worker; the reference run is none."""
        return (lives for name, lives in self.lives.items() if name != REFERENCE)

    def current(self) -> list[Life]:
        """The last life of each worker."""
        return [lives[-1] for lives in self.workers()]

    def leader(self) -> Life | None:
        """The worker that leads."""
        return next((life for life in self.current() if life.part == "leader"), None)

    def reference(self) -> Life | None:
        """The run that nothing happens to."""
        return next(iter(self.lives.get(REFERENCE, [])), None)

    def next_election(self, after: float, *, not_by: Life) -> float | None:
        """When the first worker but `not_by` was elected after an instant; None if none was."""
        instants = (
            at
            for lives in self.workers()
            for life in lives
            if life is not not_by
            for at in life.elected.values()
            if at >= after
        )
        return min(instants, default=None)


def _checkpoint(name: str) -> tuple[int, Position]:
    return parse_name(name) or (0, Position(0))
