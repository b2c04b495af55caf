"""Find the incidents of a run and count their cost: time without a leader, time without training, batches to repeat.

An incident is a preemption, a worker that stopped reporting, a fit that an error ended, or a lease that a worker lost
or resigned and went on. Recorded answers that a fit can't use, and asks for again, are an incident, too.

Limits: a worker reports its progress at each epoch's end, with each commit, and otherwise every ten seconds. A killed
worker may have run on after its last event, so a time that begins there is an upper bound. Batches are counted from the
last position reported, so the number is a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from distributed_backup.position import Position
from distributed_backup.timeline.history import History
from distributed_backup.timeline.incarnations import Incarnation, Leadership

type IncidentKind = Literal["preempted", "gone", "left", "lost", "resigned", "diverged", "voided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentCost:
    """An incident and what it cost the run.

    Args:
        kind: "gone" is a worker that stopped reporting, "left" a fit that an error ended. A worker whose lease was
            "lost" or "resigned" trains on, or waits as a standby. One that "diverged" or "voided" answers trains on.
        at: The notice, the last event, or the end of the leadership. Seconds since 1970.
        number: From 1, in order of time.
        term: The term this worker led. None for a follower.
        saved: Whether a preempted worker saved. None if there was nothing to save, and for other incidents.
        reason: The reason in the worker's event, or "".
        without_leader: Seconds until the next election. None if there was none.
        without_training: Seconds until a worker trained again. None if none did.
        reached: The last position it reported.
        resumed: The position from which it, or the worker that replaced it, continued. None if none did.
        resumed_at: The time of that.
        batches: Batches to train again. None if the number can't be known.
    """

    kind: IncidentKind
    at: float
    worker_id: str
    number: int = 0
    term: int | None = None
    saved: bool | None = None
    reason: str = ""
    without_leader: float | None = 0.0
    without_training: float | None = 0.0
    reached: Position | None = None
    resumed: Position | None = None
    resumed_at: float | None = None
    batches: int | None = 0

    @property
    def is_upper_bound(self) -> bool:
        """Whether its times begin with the last event of a worker that may have run on, and so are upper bounds."""
        return self.kind == "gone"

    @property
    def more(self) -> bool:
        """Whether `batches` may be too low: no event contains the size of an epoch."""
        over = self.reached is not None and self.resumed is not None and self.reached.epoch != self.resumed.epoch
        return over and bool(self.batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A time without a leader, or without training. An upper bound if it begins with a killed worker's last event."""

    start: float
    end: float
    is_upper_bound: bool


def costs_of(history: History) -> list[IncidentCost]:
    """Return all incidents of a run and their costs, in order of time."""
    costs = [cost for incarnation in history.incarnations for cost in _costs(history, incarnation)]
    costs.sort(key=lambda cost: (cost.at, cost.worker_id))
    return [replace(cost, number=number) for number, cost in enumerate(costs, 1)]


def leader_gaps(history: History) -> list[Gap]:
    """Return the times without a leader after the first election. A finished run needs no leader."""
    return _gaps(history, ((held.start, held.end, held.how) for held in history.leaderships))


def training_gaps(history: History) -> list[Gap]:
    """Return the times without training after the first start, except after a finish."""
    return _gaps(
        history,
        (
            (span.start, span.end, incarnation.ending if span.end == incarnation.end else "")
            for incarnation in history.incarnations
            for span in incarnation.of("training")
        ),
    )


def total(gaps: Iterable[Gap]) -> float:
    """Return the seconds of all gaps together."""
    return sum(gap.end - gap.start for gap in gaps)


def _gaps(history: History, spans: Iterable[tuple[float, float, str]]) -> list[Gap]:
    """Return what these spans leave uncovered up to the end. A span is a start, an end, and how it ended."""
    in_time = sorted((start, (end, how == "finished", how == "gone")) for start, end, how in spans)
    covered = accumulate((end for _, end in in_time), max)
    following = [*(start for start, _ in in_time[1:]), history.end]
    return [
        Gap(start=end, end=start, is_upper_bound=is_gone)
        for (end, is_finished, is_gone), start in zip(covered, following, strict=False)
        if start > end and not is_finished
    ]


def _costs(history: History, incarnation: Incarnation) -> Iterator[IncidentCost]:
    for held in incarnation.leaderships:
        if held.how in {"lost", "resigned"}:
            yield IncidentCost(
                kind=held.how,
                at=held.end,
                worker_id=held.worker_id,
                term=held.term,
                reason=held.reason,
                without_leader=_until_next_leader(history, held),
            )
    for fault in incarnation.journal_faults:
        yield IncidentCost(kind=fault.kind, at=fault.at, worker_id=incarnation.worker_id, reason=fault.reason)
    if incarnation.ending in {"preempted", "gone", "left"}:
        yield _cost_of_ending(history, incarnation, incarnation.ending)


def _cost_of_ending(history: History, ended: Incarnation, kind: IncidentKind) -> IncidentCost:
    held = next((held for held in ended.leaderships if held.how == kind), None)
    reached = ended.track[-1][1] if ended.track else None
    resumed_at, resumed = _resumption(history, ended) or (None, None)
    return IncidentCost(
        kind=kind,
        at=ended.end if ended.noticed is None else ended.noticed,
        worker_id=ended.worker_id,
        term=None if held is None else held.term,
        saved=ended.saved,
        without_leader=0.0 if held is None else _until_next_leader(history, held),
        without_training=_until_next_training(history, ended),
        reached=reached,
        resumed=resumed,
        resumed_at=resumed_at,
        batches=_batches(history, reached, resumed),
    )


def _until_next_leader(history: History, held: Leadership) -> float | None:
    # Compare terms, not times: the next leader's clock may be behind.
    later = next((other for other in history.leaderships if other.term > held.term), None)
    return None if later is None else max(0.0, later.start - held.end)


def _until_next_training(history: History, ended: Incarnation) -> float | None:
    if not ended.of("training"):
        return 0.0
    others = (other for other in history.incarnations if other is not ended)
    starts = [span.start for other in others for span in other.of("training") if span.end > ended.end]
    return max(0.0, min(starts) - ended.end) if starts else None


def _resumption(history: History, ended: Incarnation) -> tuple[float, Position] | None:
    """Return when and where training continued: in the same lane, or in any lane if no other worker was training."""
    others = [
        (trainings[0].start, trainings[-1].end, other.track[0])
        for other in history.incarnations
        if other is not ended and other.track and (trainings := other.of("training"))
    ]
    if not any(start <= ended.end < end for start, end, _ in others):
        return min((resumed for start, _, resumed in others if start > ended.end), default=None)
    lane = next(lane for lane in history.lanes if any(other is ended for other in lane.incarnations))
    return next((other.track[0] for other in lane.incarnations if other.start >= ended.end and other.track), None)


def _batches(history: History, reached: Position | None, resumed: Position | None) -> int | None:
    if reached is None or (resumed is not None and resumed >= reached):
        return 0
    if resumed is None or (reached.epoch != resumed.epoch and not history.epoch_size):
        return None
    return (reached.epoch - resumed.epoch) * history.epoch_size + reached.batch - resumed.batch
