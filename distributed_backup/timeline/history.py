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
from distributed_backup.timeline.incarnation_builder import life_of
from distributed_backup.timeline.incarnations import Lead, Life, incarnations_of, name_of

# Seconds after which a worker that says nothing counts as gone, unless it was lately quiet for longer.
_PATIENCE: Final = 60.0
_LATELY: Final = 10
# Python reads numbers of up to 4300.
_DIGITS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Lives that follow each other, of one worker."""

    name: str
    lives: tuple[Life, ...]


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
    leads: tuple[Lead, ...]
    epoch_size: int

    @property
    def lives(self) -> list[Life]:
        """All of them."""
        return [life for lane in self.lanes for life in lane.lives]


def history_of(events: Sequence[Event], *, now: float) -> History:
    """The run that these events tell of.

    Args:
        events: At least one; those of one worker in the order in which they happened.
        now: Seconds since 1970. Who was heard of recently is taken to be still there.
    """
    said: dict[str, list[Event]] = {}
    for event in events:
        said.setdefault(event.worker, []).append(event)
    there = _still_there(said, now)
    lives = [life_of(words, now=now if worker in there else None) for worker, words in said.items()]
    return History(
        run_id=_run_id(events),
        start=min(life.start for life in lives),
        end=max(life.end for life in lives),
        going_on=bool(there),
        lanes=tuple(_lanes(lives)),
        leads=tuple(sorted((lead for life in lives for lead in life.leads), key=lambda lead: (lead.term, lead.start))),
        epoch_size=max((position.batch for life in lives for _, position in life.track), default=0),
    )


def _run_id(events: Iterable[Event]) -> str:
    return next((str(event.fields["run"]) for event in events if "run" in event.fields), "")


def _still_there(said: dict[str, list[Event]], now: float) -> set[str]:
    newest: dict[str, str] = {}
    for worker in sorted(said, key=lambda worker: said[worker][0].at):
        newest[incarnations_of(worker)] = worker
    silent = {worker for worker in newest.values() if not any(event.kind in FINAL_KINDS for event in said[worker])}
    heard = {worker for worker in silent if now - said[worker][-1].at.timestamp() <= _patience(said[worker])}
    # A standby worker says nothing while it waits, for as long as somebody trains.
    waiting = {worker for worker in silent if all(event.kind == "joined" for event in said[worker])}
    return heard | waiting if heard else set()


def _patience(words: Sequence[Event]) -> float:
    gaps = ((later.at - earlier.at).total_seconds() for earlier, later in pairwise(words[-_LATELY:]))
    return max(_PATIENCE, 2 * max(gaps, default=0.0))


def _lanes(lives: Iterable[Life]) -> list[Lane]:
    rows: dict[str, list[list[Life]]] = {}
    for life in sorted(lives, key=lambda life: (life.start, life.worker_id)):
        of_name = rows.setdefault(name_of(life.worker_id), [])
        free = next((row for row in of_name if row[-1].end <= life.start), None)
        if free is None:
            of_name.append([life])
        else:
            free.append(life)
    return [
        Lane(name=name if number == 1 else f"{name} ({number})", lives=tuple(row))
        for name, of_name in sorted(rows.items(), key=lambda item: _naturally(item[0]))
        for number, row in enumerate(of_name, 1)
    ]


def _naturally(name: str) -> list[tuple[int, str]]:
    """So that worker 2 comes before worker 10."""
    return [(int(part[:_DIGITS]) if part.isdecimal() else -1, part) for part in re.split(r"([0-9]+)", name)]
