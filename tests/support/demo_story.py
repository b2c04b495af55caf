"""Invented messages of a demonstration, and the recording that they make. No process is started."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distributed_backup.checkpoints.format import checkpoint_name
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.demo.messages import REFERENCE, Coordination, Message, OwnKind, Plan
from distributed_backup.demo.process_table import ProcessRecord, ProcessTable
from distributed_backup.demo.scenario import Recording, SentSignal
from distributed_backup.observability.events import Kind
from distributed_backup.position import Position

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
        return {"checkpoint": None, "epoch": 0, "batch": 0}
    return {"checkpoint": checkpoint_name(term, position), "epoch": position.epoch, "batch": position.batch}


def committed(term: int, position: Position) -> dict[str, Any]:
    """Fields of a commit."""
    return {**restored(position, term), "term": term, "bytes": 1_000, "seconds": 0.1}


class Story:
    """Invents the messages of a demonstration, one each 10 ms. Each batch costs `CALLS` calls."""

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
        *,
        position: Position | None = None,
        calls: int = 0,
    ) -> Message:
        self.now += 0.01
        message = Message(
            at=self.now,
            name=record.name,
            incarnation=record.incarnation,
            kind=kind,
            position=position,
            calls=calls or record.calls,
            fields=fields or {},
        )
        self.table.apply(message)
        return message

    def train(self, record: ProcessRecord, *boundaries: Position) -> None:
        for position in boundaries:
            calls = record.calls if position.batch == 0 else record.calls + CALLS
            self.add(record, "boundary", position=position, calls=calls)

    def finish(self, record: ProcessRecord) -> None:
        self.add(record, "completed", STATE)
        self.add(record, "exited", {"code": 0})


def boundaries(after: Position) -> list[Position]:
    every = [Position(epoch, batch) for epoch in range(2) for batch in (1, 2, 3)] + [Position(1), Position(2)]
    return [position for position in sorted(every) if position > after]


def whole_story() -> tuple[Story, Recording]:
    """Worker 1 leads, is preempted after (1, 1) and restarted there. Worker 2 takes over, is killed and restarted."""
    story = Story()
    one, two, reference = story.start("worker-1"), story.start("worker-2"), story.start(REFERENCE)
    story.add(reference, "ready")
    story.train(reference, *boundaries(Position(0)))
    story.finish(reference)
    story.add(one, "elected", {"term": 1})
    story.add(one, "restored", restored(None))
    story.train(one, *(item for item in boundaries(Position(0)) if item <= Position(1, 1)))
    story.add(one, "committed", committed(1, Position(1)))
    story.train(two, *(item for item in boundaries(Position(0)) if item <= Position(1, 1)))
    story.add(one, "call", calls=one.calls + 3)
    sigterm = SentSignal(at=story.now, record=one, last_boundary=one.position)
    story.add(one, "notice")
    story.add(one, "committed", committed(1, Position(1, 1)))
    story.add(one, "exited", {"code": 143})
    story.add(two, "elected", {"term": 2})
    again = story.start("worker-1")
    story.add(again, "restored", restored(Position(1, 1)))
    story.add(two, "call", calls=two.calls + 4)
    sigkill = SentSignal(at=story.now, record=two, last_boundary=two.position)
    story.add(two, "exited", {"code": -9})
    story.add(again, "elected", {"term": 3})
    story.train(again, *boundaries(Position(1, 1)))
    successor = story.start("worker-2")
    story.add(successor, "restored", restored(Position(1)))
    story.train(successor, *boundaries(Position(1)))
    story.finish(again)
    story.finish(successor)
    return story, Recording(table=story.table, sigterm=sigterm, on_disk=Position(1, 1), sigkill=sigkill)


def record_of(recording: Recording, name: str, number: int = -1) -> ProcessRecord:
    """Return a record of a worker, by default its newest."""
    return recording.table.records[name][number]
