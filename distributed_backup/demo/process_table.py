"""The state of each process, derived from its messages. The scenario, the screen and the verdict read it.

A message changes one record. Messages of two processes are in the order of their instants, whatever their order of
arrival.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from distributed_backup.demo.messages import REFERENCE, Message, OwnKind
from distributed_backup.observability.events import Kind
from distributed_backup.position import Position

Status = Literal["starting", "leader", "follower", "exiting", "exited", "finished", "training"]

_STATUS_AFTER: Final[Mapping[str, Status]] = {
    "elected": "leader",
    "lost": "follower",
    "resigned": "follower",
    "notice": "exiting",
    "exited": "exited",
    "completed": "finished",
}


@dataclass(slots=True, kw_only=True)
class ProcessRecord:
    """One incarnation of a worker, or the reference run.

    `term` is the last term that it led. Training began at `start` and has reached the boundary `position`.
    `has_batch_in_flight` is true if it has asked the language model since. `asked` counts the calls that it has begun,
    and `answers` those that the model has answered, by request. `diverged` holds why a state differed from the
    journal's. `elections` holds the instants of its elections, `commits` the instant and the position of each durable
    checkpoint. `final_state`, a digest of each part, is empty before a complete fit.
    """

    name: str
    incarnation: int
    pid: int = 0
    status: Status = "starting"
    term: int | None = None
    start: Position = field(default_factory=lambda: Position(0))
    position: Position = field(default_factory=lambda: Position(0))
    has_batch_in_flight: bool = False
    asked: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    diverged: list[str] = field(default_factory=list)
    elections: list[float] = field(default_factory=list)
    commits: list[tuple[float, Position]] = field(default_factory=list)
    exit_code: int | None = None
    exited_at: float | None = None
    final_state: dict[str, str] = field(default_factory=dict)

    @property
    def is_training(self) -> bool:
        """Whether it has reached a boundary after its start and continues."""
        return self.status in {"leader", "follower", "training"} and self.position > self.start

    def apply(self, message: Message) -> None:
        """Update the record."""
        position = message.position
        if message.kind == "asked":
            self.asked += 1
            self.has_batch_in_flight = True
        elif message.kind == "answered":
            self.answers[message.fields["request"]] += 1
        elif message.kind == "diverged":
            self.diverged.append(message.fields["reason"])
        # A resumed fit passes the completed batches again without calls. They don't count.
        elif message.kind == "boundary" and position is not None and position > self.position:
            self.position, self.has_batch_in_flight = position, False
        elif message.kind == "restored" and position is not None:
            self.start = self.position = position
        elif message.kind == "committed" and position is not None:
            self.commits.append((message.at, position))
        elif message.kind == "elected":
            self.term = message.fields["term"]
            self.elections.append(message.at)
        elif message.kind == "completed":
            self.final_state = dict(message.fields)
        elif message.kind == "exited":
            self.exit_code, self.exited_at = message.fields["code"], message.at
        self.status = self._status_after(message.kind)

    def _status_after(self, kind: OwnKind | Kind) -> Status:
        if self.status == "finished":
            return "finished"  # threads of the process may still report
        if self.status == "exiting" and kind not in {"exited", "completed"}:
            return "exiting"
        if self.status == "starting" and kind == "ready" and self.name == REFERENCE:
            return "training"
        if self.status == "starting" and kind == "restored":
            return "follower"
        return _STATUS_AFTER.get(kind, self.status)


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

    def reference(self) -> ProcessRecord:
        """Return the uninterrupted run."""
        return self.records[REFERENCE][0]

    def next_election(self, after: float, *, not_by: ProcessRecord) -> float | None:
        """Return the instant of the first election of another worker from `after` on."""
        instants = (
            at
            for records in self.workers()
            for record in records
            if record is not not_by
            for at in record.elections
            if at >= after
        )
        return min(instants, default=None)
