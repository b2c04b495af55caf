"""Invented messages of a demonstration, and the recording that they make. No process is started."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from distributed_backup.checkpoints.format import checkpoint_name
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.demo.messages import REFERENCE, Coordination, Message, OwnKind, Plan
from distributed_backup.demo.process_table import ProcessRecord, ProcessTable
from distributed_backup.demo.scenario import Recording, SentSignal
from distributed_backup.observability.events import Kind
from distributed_backup.position import Position
from distributed_backup.worker.context import position_fields

PLAN = Plan(epochs=2, batch_size=12, grace_period=5.0)  # 2 training batches and 1 validation batch an epoch
ON_REDIS = replace(
    PLAN,
    coordination=Coordination(
        url="redis://:secret@host/0",
        name="redis://host/0",
        timings=LeaseTimings(duration=3.0, renew_deadline=2.0, retry_period=0.5),
    ),
)
CALLS = 10
STATE = {"program_trainable": "aa", "metrics": "bb"}


def restored(position: Position | None, term: int = 1) -> dict[str, Any]:
    """Fields of a start from the checkpoint of `position`, or of a fresh start."""
    if position is None:
        return {"checkpoint": None, **position_fields(Position(0))}
    return {"checkpoint": checkpoint_name(term, position), **position_fields(position)}


def committed(term: int, position: Position) -> dict[str, Any]:
    """Fields of a commit."""
    return {**restored(position, term), "term": term, "bytes": 1_000, "seconds": 0.1}


class Story:
    """Invents the messages of a demonstration, one each 10 ms. Each batch has `CALLS` requests."""

    def __init__(self) -> None:
        self.table = ProcessTable()
        self.now = 100.0

    def start(self, name: str) -> ProcessRecord:
        record = ProcessRecord(name=name, incarnation=len(self.table.records.get(name, ())) + 1)
        self.table.add(record)
        return record

    def add(
        self,
        record: ProcessRecord,
        kind: OwnKind | Kind,
        fields: dict[str, Any] | None = None,
    ) -> Message:
        self.now += 0.01
        message = Message(
            at=self.now,
            name=record.name,
            incarnation=record.incarnation,
            kind=kind,
            fields=fields or {},
        )
        self.table.apply(message)
        return message

    def train(self, record: ProcessRecord, *boundaries: Position) -> None:
        for position in boundaries:
            self.answer(record, position, range(CALLS if position.batch else 0))
            self.follow(record, position)

    def follow(self, record: ProcessRecord, *boundaries: Position) -> None:
        for position in boundaries:
            self.add(record, "boundary", position_fields(position))

    def answer(self, record: ProcessRecord, batch: Position, numbers: Iterable[int]) -> None:
        """Let the model answer requests of the batch that ends at the position `batch`."""
        for number in numbers:
            self.add(record, "asked")
            self.add(record, "answered", {"request": f"{batch}: {number}"})

    def finish(self, record: ProcessRecord) -> None:
        self.add(record, "completed", STATE)
        self.add(record, "exited", {"code": 0})


def boundaries(after: Position) -> list[Position]:
    every = [Position(epoch, batch) for epoch in range(2) for batch in (1, 2, 3)] + [Position(1), Position(2)]
    return [position for position in sorted(every) if position > after]


def whole_story() -> tuple[Story, Recording]:
    """Worker 1 leads, is preempted after (1, 1) and restarted there. Worker 2 takes over, is killed and restarted.

    The leader asks, and the other worker follows. Each signal cuts a call off. No call is repeated.
    """
    story = Story()
    one, two, reference = story.start("worker-1"), story.start("worker-2"), story.start(REFERENCE)
    story.add(reference, "ready")
    story.train(reference, *boundaries(Position(0)))
    story.finish(reference)
    story.add(one, "elected", {"term": 1})
    story.add(one, "restored", restored(None))
    story.train(one, *(item for item in boundaries(Position(0)) if item <= Position(1, 1)))
    story.add(one, "committed", committed(1, Position(1)))
    story.follow(two, *(item for item in boundaries(Position(0)) if item <= Position(1, 1)))
    story.answer(one, Position(1, 2), range(2))
    story.add(one, "asked")
    sigterm: dict[str, Any] = {"at": story.now, "record": one, "last_boundary": one.position, "on_disk": Position(1, 1)}
    story.add(one, "notice")
    story.add(one, "committed", committed(1, Position(1, 1)))
    story.add(one, "exited", {"code": 143})
    sigterm["next_leader_at"] = story.add(two, "elected", {"term": 2}).at
    again = story.start("worker-1")
    story.add(again, "restored", restored(Position(1, 1)))
    story.answer(two, Position(1, 2), range(2, 5))
    story.add(two, "asked")
    sigkill: dict[str, Any] = {"at": story.now, "record": two, "last_boundary": two.position, "on_disk": Position(1, 1)}
    story.add(two, "exited", {"code": -9})
    sigkill["next_leader_at"] = story.add(again, "elected", {"term": 3}).at
    story.answer(again, Position(1, 2), range(5, CALLS))
    story.follow(again, Position(1, 2))
    story.train(again, *boundaries(Position(1, 2)))
    successor = story.start("worker-2")
    story.add(successor, "restored", restored(Position(1)))
    story.follow(successor, *boundaries(Position(1)))
    story.finish(again)
    story.finish(successor)
    return story, Recording(table=story.table, sigterm=SentSignal(**sigterm), sigkill=SentSignal(**sigkill))


def record_of(recording: Recording, name: str, number: int = -1) -> ProcessRecord:
    """Return a record of a worker, by default its newest."""
    return recording.table.records[name][number]
