"""The state of each process, derived from its messages. The scenario, the screen and the verdict read it.

A message changes one record. Messages of two processes are in the order of their instants, whatever their order of
arrival.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from distributed_backup.demo.messages import REFERENCE, Message
from distributed_backup.position import Position

Status = Literal["starting", "leader", "follower", "exiting", "exited", "finished", "training"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A checkpoint that was durable at the instant `at`."""

    at: float
    term: int
    position: Position


@dataclass(slots=True, kw_only=True)
class ProcessRecord:
    """One incarnation of a worker, or the reference run.

    `term` is the last term that it led. Training began at `start` and has reached the boundary `position`. `calls_at`
    holds the calls begun when it reached each boundary, `elections` the instant of each election by term.
    `final_state`, a digest of each part, is there after a complete fit.
    """

    name: str
    incarnation: int
    pid: int = 0
    status: Status = "starting"
    term: int | None = None
    start: Position = field(default_factory=lambda: Position(0))
    position: Position = field(default_factory=lambda: Position(0))
    calls: int = 0
    calls_at: dict[Position, int] = field(default_factory=lambda: {Position(0): 0})
    elections: dict[int, float] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    exit_code: int | None = None
    exited_at: float | None = None
    final_state: dict[str, str] | None = None

    @property
    def is_training(self) -> bool:
        """Whether it has reached a boundary after its start and continues."""
        return self.status in {"leader", "follower", "training"} and self.position > self.start

    @property
    def has_batch_in_flight(self) -> bool:
        """Whether it has begun calls after its last boundary."""
        return self.calls > self.calls_at.get(self.position, 0)

    def apply(self, message: Message) -> None:
        """Update the record."""
        self.calls = max(self.calls, message.calls)
        if message.kind == "boundary":
            self._reach(message)
        elif message.kind == "restored":
            self.start = self.position = _position_in(message)
            self.calls_at[self.start] = message.calls
        elif message.kind == "committed":
            self.commits.append(Commit(at=message.at, term=message.fields["term"], position=_position_in(message)))
        elif message.kind == "elected":
            self.term = message.fields["term"]
            self.elections[self.term] = message.at
        elif message.kind == "completed":
            self.final_state = dict(message.fields)
        elif message.kind == "exited":
            self.exit_code, self.exited_at = message.fields["code"], message.at
        self.status = self._status_after(message)

    def _reach(self, message: Message) -> None:
        # A resumed fit passes the completed batches again without calls. They don't count.
        if message.position is not None and message.position > self.position:
            self.position = message.position
            self.calls_at.setdefault(message.position, message.calls)

    def _status_after(self, message: Message) -> Status:
        if self.final_state is not None:
            return "finished"  # threads of the process may still report
        if message.kind == "ready":
            return "training" if self.name == REFERENCE else "starting"
        if message.kind == "restored" and self.status == "starting":
            return "follower"
        if self.status == "exiting" and message.kind != "exited":
            return "exiting"
        changes: dict[str, Status] = {
            "elected": "leader",
            "lost": "follower",
            "resigned": "follower",
            "notice": "exiting",
            "exited": "exited",
        }
        return changes.get(message.kind, self.status)


class ProcessTable:
    """The records of all processes, by name in the order of their first start."""

    def __init__(self) -> None:
        self.records: dict[str, list[ProcessRecord]] = {}

    def add(self, record: ProcessRecord) -> None:
        """Add the next incarnation of a name."""
        self.records.setdefault(record.name, []).append(record)

    def apply(self, message: Message) -> None:
        """Update the record that a message belongs to."""
        self.records[message.name][message.incarnation - 1].apply(message)

    def workers(self) -> Iterator[list[ProcessRecord]]:
        """Yield the incarnations of each worker, without the reference run."""
        return (records for name, records in self.records.items() if name != REFERENCE)

    def current(self) -> list[ProcessRecord]:
        """Return the newest incarnation of each worker."""
        return [records[-1] for records in self.workers()]

    def leader(self) -> ProcessRecord | None:
        """Return the worker that leads."""
        return next((record for record in self.current() if record.status == "leader"), None)

    def reference(self) -> ProcessRecord | None:
        """Return the uninterrupted run."""
        return next(iter(self.records.get(REFERENCE, [])), None)

    def next_election(self, after: float, *, not_by: ProcessRecord) -> float | None:
        """Return the instant of the first election of another worker from `after` on."""
        instants = (
            at
            for records in self.workers()
            for record in records
            if record is not not_by
            for at in record.elections.values()
            if at >= after
        )
        return min(instants, default=None)


def _position_in(message: Message) -> Position:
    return Position(message.fields["epoch"], message.fields["batch"])
