"""Invented runs: the events that workers would have reported, with all the fields that the library gives them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from distributed_backup.checkpoints.format import checkpoint_name
from distributed_backup.observability.events import KINDS, Event, Kind
from distributed_backup.position import Position
from distributed_backup.timeline.history import History, history_of

BEGIN = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
START = BEGIN.timestamp()
LONG_AFTER = START + 10**7
A, B, C = "a-00000001", "b-00000002", "c-00000003"
BEGINNING = Position(0)
_USUAL: dict[str, Any] = {"standby": False, "run": "job-42", "reason": "SIGTERM", "remaining": 30.0}


@dataclass
class Story:
    """The events of a run whose epochs have `size` batches. Times are seconds after the beginning."""

    size: int = 10
    events: list[Event] = field(default_factory=list)

    @property
    def in_order(self) -> list[Event]:
        """The events in order of time."""
        return sorted(self.events, key=lambda event: event.at)

    def tell(self, at: float, worker: str, kind: Kind, **fields: Any) -> None:
        """Add an event. Fields that are not given have their usual values."""
        usual = {name: _USUAL.get(name) for name in KINDS[kind]}
        when = BEGIN + timedelta(seconds=at)
        self.events.append(Event(at=when, worker=worker, kind=kind, fields={**usual, **fields}))

    def start(self, at: float, worker: str, *, position: Position = BEGINNING, after: float = 0.5) -> None:
        """Join, and start to train at this position."""
        self.tell(at, worker, "joined")
        name = checkpoint_name(1, position) if position > Position(0) else None
        self.tell(at + after, worker, "restored", checkpoint=name, epoch=position.epoch, batch=position.batch)

    def train(
        self, worker: str, begin: float, end: float, *, position: Position, period: float, term: int = 0
    ) -> Position:
        """Report progress at each batch. The leader of `term` commits at the end of each epoch."""
        for at in _steps(begin, end, period):
            position = Position(position.epoch, position.batch + 1)
            if position.batch == self.size:
                self.tell(at, worker, "progress", epoch=position.epoch, batch=position.batch)
                position = Position(position.epoch + 1)
                if term:
                    self.commit(at + period / 20, worker, term, position, seconds=period / 20)
            self.tell(at, worker, "progress", epoch=position.epoch, batch=position.batch)
        return position

    def commit(self, at: float, worker: str, term: int, position: Position, *, seconds: float = 0.01) -> None:
        """Report a commit."""
        where = {"epoch": position.epoch, "batch": position.batch, "checkpoint": checkpoint_name(term, position)}
        self.tell(at, worker, "committed", term=term, bytes=30_000, seconds=seconds, **where)

    def preempt(self, at: float, worker: str, position: Position, *, seconds: float = 2.0, term: int = 0) -> None:
        """Report a notice and a preemption. The leader of `term` commits before it and resigns after it."""
        where = {"epoch": position.epoch, "batch": position.batch, "checkpoint": checkpoint_name(term or 1, position)}
        self.tell(at, worker, "notice")
        if term:
            self.commit(at + seconds * 0.8, worker, term, position, seconds=seconds * 0.1)
        self.tell(at + seconds, worker, "preempted", saved=True, seconds=seconds, **where)
        if term:
            self.tell(at + seconds + 0.001, worker, "resigned", term=term)


def _steps(begin: float, end: float, period: float) -> Iterator[float]:
    at = begin + period
    while at <= end:
        yield at
        at += period


def three_workers() -> Story:
    """Return a run with a preempted leader, a killed one, a preemption of all workers, and a finish."""
    story, zero = Story(), Position(0)
    first = [f"train-{index}-aaaa000{index}" for index in range(3)]
    for index, worker in enumerate(first):
        story.start(index * 0.7, worker, after=2.0)
    story.tell(1.0, first[0], "elected", term=1)
    reached = story.train(first[0], 3, 100, position=zero, period=5, term=1)
    followed = story.train(first[1], 3, 104, position=zero, period=5.2)
    last = story.train(first[2], 3, 245, position=zero, period=5.5)
    story.preempt(101, first[0], reached, seconds=4, term=1)
    story.tell(107, first[1], "elected", term=2)
    story.train(first[1], 104, 185, position=followed, period=5.2, term=2)
    again = "train-0-bbbb0000"
    story.start(140, again, position=Position(2), after=3.0)
    story.tell(200, first[2], "elected", term=3)
    story.commit(201, first[2], 3, Position(3, 5))
    story.tell(210, first[2], "commit_failed", reason="No space left on device")
    story.tell(215, first[2], "commit_recovered")
    ahead = story.train(again, 143, 245, position=Position(2), period=5)
    story.preempt(247, first[2], last, seconds=3, term=3)
    story.preempt(247.5, again, ahead, seconds=3.5)
    for index in range(3):
        worker = f"train-{index}-cccc000{index}"
        story.start(290 + index, worker, position=last, after=4.0)
        if index == 0:
            story.tell(292, worker, "elected", term=4)
        position = story.train(worker, 294 + index, 400, position=last, period=5 + index / 5, term=4 * (index == 0))
        story.tell(402 + index, worker, "finished", epoch=position.epoch, batch=position.batch)
    return story


def one_worker_five_preemptions() -> Story:
    """Return a run of one worker on spot machines that could not save in time twice."""
    story, position, at = Story(size=20), Position(0), 0.0
    for turn in range(6):
        worker = f"solo-{turn:08x}"
        story.start(at, worker, position=position, after=8.0)
        story.tell(at + 1, worker, "elected", term=turn + 1)
        reached = story.train(worker, at + 8, at + 600, position=position, period=11, term=turn + 1)
        at += 600
        if turn == 5:
            story.tell(at, worker, "finished", epoch=reached.epoch, batch=reached.batch)
        elif turn in {1, 3}:
            story.tell(at, worker, "notice")
            story.tell(at + 30, worker, "preempted", saved=False, seconds=30.0)
            position = Position(reached.epoch)
        else:
            story.preempt(at, worker, reached, seconds=12, term=turn + 1)
            position = reached
        at += 90 + 60 * turn
    return story


def many_workers(count: int = 64) -> Story:
    """Return a run of many pods that end at different times. A third is preempted and some are killed."""
    story = Story(size=50)
    for index in range(count):
        worker = f"train-{index}-x7k2p-{index:08x}"
        story.start(index * 0.2, worker, after=20.0)
        reached = story.train(
            worker, 30, 3000 + (index * 131) % 900, position=Position(0), period=20, term=int(index == 7)
        )
        if index == 7:
            story.tell(9, worker, "elected", term=1)
        if index % 3 == 1:
            story.preempt(3000 + (index * 131) % 900 + 5, worker, reached, seconds=9, term=int(index == 7))
        elif index % 10 == 2:
            continue
        else:
            story.tell(4200, worker, "finished", epoch=reached.epoch, batch=reached.batch)
    story.tell(3950, f"train-3-x7k2p-{3:08x}", "elected", term=2)
    return story


def three_seconds() -> Story:
    """Return a run of three seconds with one preemption."""
    story = Story(size=4)
    story.start(0.0, "quick-0a0a0a0a", after=0.2)
    story.tell(0.1, "quick-0a0a0a0a", "elected", term=1)
    position = story.train("quick-0a0a0a0a", 0.2, 1.5, position=Position(0), period=0.1, term=1)
    story.preempt(1.55, "quick-0a0a0a0a", position, seconds=0.05, term=1)
    story.start(2.2, "quick-0b0b0b0b", position=position, after=0.2)
    story.tell(2.3, "quick-0b0b0b0b", "elected", term=2)
    position = story.train("quick-0b0b0b0b", 2.4, 3.0, position=position, period=0.1, term=2)
    story.tell(3.01, "quick-0b0b0b0b", "finished", epoch=position.epoch, batch=position.batch)
    return story


def three_days() -> Story:
    """Return a run of two workers that are preempted or killed every six hours."""
    story, position, hour = Story(size=30), BEGINNING, 3600.0
    for turn in range(12):
        term = turn + 1
        begin, end = turn * 6 * hour + 300, (turn + 1) * 6 * hour
        leader, other = f"big-host-{turn % 2}-{turn:08x}", f"big-host-{1 - turn % 2}-{turn:08x}"
        story.start(begin, leader, position=position, after=30.0)
        story.start(begin + 5, other, position=position, after=40.0)
        story.tell(begin + 3, leader, "elected", term=term)
        story.train(other, begin + 60, end, position=position, period=110)
        reached = story.train(leader, begin + 60, end - 40, position=position, period=100, term=term)
        story.preempt(end, other, reached, seconds=20)
        if turn % 3 == 2:
            position = Position(reached.epoch)
        else:
            story.preempt(end, leader, reached, seconds=20, term=term)
            position = reached
    return story


def every_mark() -> Story:
    """Return a run with each kind of mark, with long names and reasons, and with batches to repeat."""
    story, first, second = Story(), "Worker-WITH-a-very-long-name-0-abcdef01", "w-00000002"
    story.start(0, first)
    story.tell(0.2, first, "elected", term=1)
    reached = story.train(first, 1, 40, position=BEGINNING, period=2, term=1)
    story.tell(41, first, "unreachable", reason="no answer from redis://host:6379 in ten seconds")
    story.tell(46, first, "lost", term=1, reason="not renewed")
    story.tell(50, first, "reachable")
    story.tell(51, first, "elected", term=2)
    story.tell(52, first, "commit_failed", reason="No space left on device")
    story.tell(60, first, "commit_recovered")
    story.commit(70, first, 2, Position(reached.epoch, reached.batch), seconds=8.0)
    story.tell(75, first, "progress", epoch=2, batch=7)
    story.start(80, second, position=Position(1, 4))
    story.tell(81, second, "elected", term=3)
    story.tell(90, second, "resigned", term=3)
    story.tell(95, second, "elected", term=4)
    for number in range(20):
        story.commit(100 + number / 100, second, 4, Position(3, number))
    story.tell(110, second, "notice")
    story.tell(120, second, "preempted", saved=False, seconds=10.0)
    story.start(130, "w-00000003", position=Position(2, 9))
    story.tell(131, "w-00000003", "elected", term=5)
    story.tell(140, "w-00000003", "left")
    story.start(145, "w-00000004", position=Position(2, 9))
    story.tell(146, "w-00000004", "elected", term=6)
    story.tell(149, "w-00000004", "replayed", answers=42, epoch=2, batch=9)
    story.tell(151, "w-00000004", "voided", answers=3, epoch=2, batch=9)
    story.tell(155, "w-00000004", "diverged", reason="the state differs in random", epoch=2, batch=9)
    story.tell(160, "w-00000004", "finished", epoch=3, batch=0)
    return story


STORIES = {
    "three_workers": three_workers,
    "five_preemptions": one_worker_five_preemptions,
    "many_workers": many_workers,
    "three_seconds": three_seconds,
    "three_days": three_days,
    "every_mark": every_mark,
}


def history_from(story: Story, *, now: float = LONG_AFTER) -> History:
    """Return the history that is drawn of a story, by default long after its end."""
    return history_of(story.in_order, now=now)
