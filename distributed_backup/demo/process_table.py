"""What is known of the processes, from the messages they sent: read by the director, the screen and the verdict.

A message changes one life and nothing else; the order between processes is that of the messages' instants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from distributed_backup.demo.messages import REFERENCE, Message
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

    def apply(self, message: Message) -> None:
        """Learn of a message."""
        self.calls = max(self.calls, message.calls)
        if message.kind == "boundary":
            self._reached(message)
        elif message.kind == "restored":
            self.resumed = self.position = _position_in(message)
            self.calls_at[self.resumed] = message.calls
        elif message.kind == "committed":
            self.commits.append(Commit(at=message.at, term=message.fields["term"], position=_position_in(message)))
        elif message.kind == "elected":
            self.term = message.fields["term"]
            self.elected[self.term] = message.at
        elif message.kind == "done":
            self.state = dict(message.fields)
        elif message.kind == "gone":
            self.code, self.ended = message.fields["code"], message.at
        self.part = self._part_after(message)

    def _reached(self, message: Message) -> None:
        # A resumed fit runs through the batches that are done already, without a call; they are no news.
        if message.position is not None and message.position > self.position:
            self.position = message.position
            self.calls_at.setdefault(message.position, message.calls)

    def _part_after(self, message: Message) -> Part:
        if self.state is not None:
            return "finished"  # whatever its threads still report
        if message.kind == "ready":
            return "training" if self.name == REFERENCE else "starting"
        if message.kind == "restored" and self.part == "starting":
            return "follower"
        if self.part == "leaving" and message.kind != "gone":
            return "leaving"
        changes: dict[str, Part] = {
            "elected": "leader",
            "lost": "follower",
            "resigned": "follower",
            "notice": "leaving",
            "gone": "gone",
        }
        return changes.get(message.kind, self.part)


class Cast:
    """All lives of all names, in the order of their first appearance."""

    def __init__(self) -> None:
        self.lives: dict[str, list[Life]] = {}

    def enter(self, life: Life) -> None:
        """A life begins."""
        self.lives.setdefault(life.name, []).append(life)

    def apply(self, message: Message) -> Life:
        """Give a message to the life it is of."""
        life = self.lives[message.name][message.life - 1]
        life.apply(message)
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


def _position_in(message: Message) -> Position:
    return Position(message.fields["epoch"], message.fields["batch"])
