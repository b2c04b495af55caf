"""Model a run from the events of its workers: a lane of incarnations per worker, and who led when.

Limit: the events of one worker are in order, but those of two workers are compared by their wall clocks. A gap between
two workers is as exact as their clocks agree. Leaderships are ordered by term, not by time.
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

# Seconds without an event after which a worker counts as stopped, or twice the longest of its ten last pauses.
# Workers report at the end of a batch, and a batch may take minutes.
_SILENCE_TIMEOUT: Final = 60.0
_RECENT: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Incarnations of one worker that follow each other."""

    name: str
    incarnations: tuple[Incarnation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A run, from its first event to its last, or to now if a worker is running.

    Args:
        run_id: Its id, or "" if no event contains it.
        lanes: In order of their names.
        leaderships: In order of their terms.
        epoch_size: The highest number of batches, with those of the validation, that a worker reported in one epoch.
            It may be too low. 0 if none was reported.
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
        """The incarnations of all lanes."""
        return [incarnation for lane in self.lanes for incarnation in lane.incarnations]

    @property
    def replayed(self) -> int:
        """The number of answers that came from the journal."""
        return sum(incarnation.replayed for incarnation in self.incarnations)


def history_of(events: Sequence[Event], *, now: float) -> History:
    """Return the history that these events describe.

    Args:
        events: At least one. Those of one worker are in the order in which they happened.
        now: Seconds since 1970. A worker with a recent event counts as running.
    """
    by_worker: dict[str, list[Event]] = {}
    for event in events:
        by_worker.setdefault(event.worker, []).append(event)
    running = _running_workers(by_worker, now)
    incarnations = [
        build_incarnation(its_events, now=now if worker in running else None)
        for worker, its_events in by_worker.items()
    ]
    leaderships = [leadership for incarnation in incarnations for leadership in incarnation.leaderships]
    batches = [position.batch for incarnation in incarnations for _, position in incarnation.track]
    return History(
        run_id=next((str(event.fields["run"]) for event in events if "run" in event.fields), ""),
        start=min(incarnation.start for incarnation in incarnations),
        end=max(incarnation.end for incarnation in incarnations),
        going_on=bool(running),
        lanes=tuple(_lanes(incarnations)),
        leaderships=tuple(sorted(leaderships, key=lambda leadership: (leadership.term, leadership.start))),
        epoch_size=max(batches, default=0),
    )


def _running_workers(by_worker: dict[str, list[Event]], now: float) -> set[str]:
    newest: dict[str, str] = {}
    for worker in sorted(by_worker, key=lambda worker: by_worker[worker][0].at):
        newest[without_incarnation(worker)] = worker
    unended = {
        worker for worker in newest.values() if not any(event.kind in FINAL_KINDS for event in by_worker[worker])
    }
    recent = {worker for worker in unended if _is_recent(by_worker[worker], now)}
    # A standby reports at most an outage while it waits. It counts as running as long as another worker does.
    waiting = {worker for worker in unended if _waits(by_worker[worker])}
    return recent | waiting if recent else set()


def _waits(events: Sequence[Event]) -> bool:
    """Whether the last event of a worker, apart from outages of the coordinator, begins the wait of a standby."""
    kinds = [event.kind for event in events if event.kind not in {"unreachable", "reachable"}]
    return kinds[-1:] in (["joined"], ["stood_down"])


def _is_recent(events: Sequence[Event], now: float) -> bool:
    pauses = ((later.at - earlier.at).total_seconds() for earlier, later in pairwise(events[-_RECENT:]))
    return now - events[-1].at.timestamp() <= max(_SILENCE_TIMEOUT, 2 * max(pauses, default=0.0))


def _lanes(incarnations: Iterable[Incarnation]) -> list[Lane]:
    """Put incarnations of one name into one lane, or into several where they overlap."""
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
        for name, of_name in sorted(rows.items(), key=lambda item: _sort_key(item[0]))
        for number, row in enumerate(of_name, 1)
    ]


def _sort_key(name: str) -> str:
    """Pad numbers with zeros, so that worker 2 comes before worker 10."""
    return re.sub(r"[0-9]+", lambda found: found[0].zfill(20), name)
