"""A model of a run, from the events of its workers: lanes of lives, who led when, how far the run had come.

The events of one worker are in order. Between workers only their wall clocks tell what came first, and those may
differ: a gap between two of them is as exact as the clocks agree. Leaders are ordered by their terms, not by time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from distributed_backup.observability.events import FINAL_KINDS, Event
from distributed_backup.timeline.incarnation_builder import build_incarnation
from distributed_backup.timeline.incarnations import Incarnation, Leadership, lane_name, without_incarnation

# Seconds after which a worker that says nothing counts as gone, unless it was lately quiet for longer.
_PATIENCE: Final = 60.0
_LATELY: Final = 10
# Python reads numbers of up to 4300.
_DIGITS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Lives that follow each other, of one worker."""

    name: str
    incarnations: tuple[Incarnation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A run.

    Args:
        run_id: Its id; empty if nobody told.
        start: The first word of anybody.
        end: The last word; now, if the run goes on.
        going_on: Whether somebody is still there.
        lanes: By name.
        leads: By term.
        epoch_size: Batches of an epoch, those of its validation included, as far as anybody was seen to come in one:
            perhaps too few. 0 if nobody told.
    """

    run_id: str
    start: float
    end: float
    going_on: bool
    lanes: tuple[Lane, ...]
    leaderships: tuple[Leadership, ...]
    epoch_size: int

    @property
    def incarnations(self) -> list[Incarnation]:
        """All of them."""
        return [incarnation for lane in self.lanes for incarnation in lane.incarnations]


def history_of(events: Sequence[Event], *, now: float) -> History:
    """The run that these events tell of.

    Args:
        events: At least one; those of one worker in the order in which they happened.
        now: Seconds since 1970. Who was heard of recently is taken to be still there.
    """
    by_worker: dict[str, list[Event]] = {}
    for event in events:
        by_worker.setdefault(event.worker, []).append(event)
    running = _running_workers(by_worker, now)
    incarnations = [
        build_incarnation(its_events, now=now if worker in running else None)
        for worker, its_events in by_worker.items()
    ]
    return History(
        run_id=_run_id(events),
        start=min(incarnation.start for incarnation in incarnations),
        end=max(incarnation.end for incarnation in incarnations),
        going_on=bool(running),
        lanes=tuple(_lanes(incarnations)),
        leaderships=tuple(
            sorted(
                (leadership for incarnation in incarnations for leadership in incarnation.leaderships),
                key=lambda leadership: (leadership.term, leadership.start),
            )
        ),
        epoch_size=max(
            (position.batch for incarnation in incarnations for _, position in incarnation.track), default=0
        ),
    )


def _run_id(events: Iterable[Event]) -> str:
    return next((str(event.fields["run"]) for event in events if "run" in event.fields), "")


def _running_workers(by_worker: dict[str, list[Event]], now: float) -> set[str]:
    newest: dict[str, str] = {}
    for worker in sorted(by_worker, key=lambda worker: by_worker[worker][0].at):
        newest[without_incarnation(worker)] = worker
    silent = {worker for worker in newest.values() if not any(event.kind in FINAL_KINDS for event in by_worker[worker])}
    heard = {worker for worker in silent if now - by_worker[worker][-1].at.timestamp() <= _patience(by_worker[worker])}
    # A standby worker says nothing while it waits, for as long as somebody trains.
    waiting = {worker for worker in silent if all(event.kind == "joined" for event in by_worker[worker])}
    return heard | waiting if heard else set()


def _patience(words: Sequence[Event]) -> float:
    gaps = ((later.at - earlier.at).total_seconds() for earlier, later in pairwise(words[-_LATELY:]))
    return max(_PATIENCE, 2 * max(gaps, default=0.0))


def _lanes(incarnations: Iterable[Incarnation]) -> list[Lane]:
    rows: dict[str, list[list[Incarnation]]] = {}
    for incarnation in sorted(incarnations, key=lambda incarnation: (incarnation.start, incarnation.worker_id)):
        of_name = rows.setdefault(lane_name(incarnation.worker_id), [])
        free = next((row for row in of_name if row[-1].end <= incarnation.start), None)
        if free is None:
            of_name.append([incarnation])
        else:
            free.append(incarnation)
    return [
        Lane(name=name if number == 1 else f"{name} ({number})", incarnations=tuple(row))
        for name, of_name in sorted(rows.items(), key=lambda item: _naturally(item[0]))
        for number, row in enumerate(of_name, 1)
    ]


def _naturally(name: str) -> list[tuple[int, str]]:
    """So that worker 2 comes before worker 10."""
    return [(int(part[:_DIGITS]) if part.isdecimal() else -1, part) for part in re.split(r"([0-9]+)", name)]
