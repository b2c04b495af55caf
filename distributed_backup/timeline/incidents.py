"""What each preemption and each loss of a leader cost: time without a leader, time without training, batches.

Batches are counted from the last position that a worker told of to the one that was restored after it. A worker tells
at each epoch's end, with each commit, and else every ten seconds, at a batch's end: one that was killed may have come
further, and times that count from its last word are the most that they can have been.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from distributed_backup.position import Position
from distributed_backup.timeline.history import History
from distributed_backup.timeline.incarnations import Incarnation, Leadership

type IncidentKind = Literal["preempted", "gone", "left", "lost", "resigned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentCost:
    """What happened to a worker, and what it cost the run.

    Args:
        number: From 1, in order of time.
        what: "preempted"; "gone" without a word; "left" with an error; "lost" or "resigned": the lead, it trains on.
        at: When: the notice, the last word, or the end of its lead.
        worker_id: To whom.
        term: The one it held; None if it did not lead.
        saved: Whether a preempted one saved; None if there was nothing to save, or it was not preempted.
        reason: As the worker tells it; empty if it does not.
        without_leader: Seconds until somebody led; None if nobody has since.
        without_training: Seconds until somebody trained; None if nobody has since.
        reached: The last position it told of.
        resumed: The position from which it, or who trained in its stead, went on; None if nobody has yet.
        resumed_at: When it did.
        batches: Those to be done again, as far as is known, see `more`; None if that is not known at all.
    """

    number: int
    kind: IncidentKind
    at: float
    worker_id: str
    term: int | None
    saved: bool | None
    reason: str
    without_leader: float | None
    without_training: float | None
    reached: Position | None
    resumed: Position | None
    resumed_at: float | None
    batches: int | None

    @property
    def more(self) -> bool:
        """Whether more batches may have to be done again: nobody tells how long an epoch is."""
        over = self.reached is not None and self.resumed is not None and self.reached.epoch != self.resumed.epoch
        return over and bool(self.batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """What happened, before it is known what it cost."""

    kind: IncidentKind
    at: float
    incarnation: Incarnation
    leadership: Leadership | None
    reason: str = ""


def costs_of(history: History) -> list[IncidentCost]:
    """What each preemption, each death and each loss of the lead cost, by time."""
    incidents = sorted(
        (incident for incarnation in history.incarnations for incident in _incidents(incarnation)),
        key=lambda incident: (incident.at, incident.incarnation.worker_id),
    )
    return [_cost(history, number, incident) for number, incident in enumerate(incidents, 1)]


def costliest(history: History, costs: Sequence[IncidentCost], count: int) -> list[IncidentCost]:
    """As many as that, by time: those that cost the most time, and of equal ones the most batches."""

    def weight(cost: IncidentCost) -> tuple[float, int]:
        so_far = history.end - cost.at
        lost = (so_far if seconds is None else seconds for seconds in (cost.without_leader, cost.without_training))
        return sum(lost), cost.batches or 0

    return sorted(sorted(costs, key=weight, reverse=True)[:count], key=lambda cost: cost.number)


def leaderless(history: History) -> list[tuple[float, float]]:
    """When nobody led, from the first election to the last lead's end; what follows a finish is not missed."""
    return _gaps((leadership.start, leadership.end, leadership.how == "finished") for leadership in history.leaderships)


def without_leader(history: History) -> float:
    """Seconds of it."""
    return sum(end - start for start, end in leaderless(history))


def without_training(history: History) -> float:
    """Seconds in which nobody trained, from the first start to the last end; what follows a finish is not missed."""
    return sum(end - start for start, end in _gaps(_trainings(history)))


def _trainings(history: History) -> Iterator[tuple[float, float, bool]]:
    return (
        (span.start, span.end, incarnation.ending == "finished" and span.end == incarnation.end)
        for incarnation in history.incarnations
        for span in incarnation.trainings
    )


def _incidents(incarnation: Incarnation) -> Iterator[Incident]:
    for leadership in incarnation.leaderships:
        if leadership.how in {"lost", "resigned"}:
            yield Incident(
                kind=leadership.how,
                at=leadership.end,
                incarnation=incarnation,
                leadership=leadership,
                reason=leadership.reason,
            )
    if incarnation.ending in {"preempted", "gone", "left"}:
        held = next(
            (leadership for leadership in incarnation.leaderships if leadership.how == incarnation.ending), None
        )
        at = incarnation.end if incarnation.noticed is None else incarnation.noticed
        yield Incident(kind=incarnation.ending, at=at, incarnation=incarnation, leadership=held)


def _cost(history: History, number: int, incident: Incident) -> IncidentCost:
    stopped = incident.kind in {"preempted", "gone", "left"}
    reached = incident.incarnation.track[-1][1] if incident.incarnation.track and stopped else None
    resumed_at, resumed = (_resumption(history, incident.incarnation) if stopped else None) or (None, None)
    return IncidentCost(
        number=number,
        kind=incident.kind,
        at=incident.at,
        worker_id=incident.incarnation.worker_id,
        term=None if incident.leadership is None else incident.leadership.term,
        saved=incident.incarnation.saved if incident.kind == "preempted" else None,
        reason=incident.reason,
        without_leader=0.0 if incident.leadership is None else _until_next_lead(history, incident.leadership),
        without_training=_until_next_training(history, incident.incarnation) if stopped else 0.0,
        reached=reached,
        resumed=resumed,
        resumed_at=resumed_at,
        batches=_batches(history, reached, resumed) if stopped else 0,
    )


def _until_next_lead(history: History, leadership: Leadership) -> float | None:
    # By terms: the clock of who led next may be behind.
    later = next((other for other in history.leaderships if other.term > leadership.term), None)
    return None if later is None else max(0.0, later.start - leadership.end)


def _until_next_training(history: History, gone: Incarnation) -> float | None:
    if not gone.trainings:
        return 0.0
    ends = [
        span.start
        for incarnation in history.incarnations
        if incarnation is not gone
        for span in incarnation.trainings
        if span.end > gone.end
    ]
    return max(0.0, min(ends) - gone.end) if ends else None


def _resumption(history: History, gone: Incarnation) -> tuple[float, Position] | None:
    """When and where its next life went on; that of any, if nobody trained when it was gone."""
    others = [
        incarnation
        for incarnation in history.incarnations
        if incarnation is not gone and incarnation.trainings and incarnation.track
    ]
    if not any(incarnation.trainings[0].start <= gone.end < incarnation.trainings[-1].end for incarnation in others):
        return min(
            (incarnation.track[0] for incarnation in others if incarnation.trainings[0].start > gone.end), default=None
        )
    lane = next(lane for lane in history.lanes if any(incarnation is gone for incarnation in lane.incarnations))
    return next(
        (
            incarnation.track[0]
            for incarnation in lane.incarnations
            if incarnation.start >= gone.end and incarnation.track
        ),
        None,
    )


def _batches(history: History, reached: Position | None, resumed: Position | None) -> int | None:
    if reached is None or (resumed is not None and resumed >= reached):
        return 0
    if resumed is None or (reached.epoch != resumed.epoch and not history.epoch_size):
        return None
    return (reached.epoch - resumed.epoch) * history.epoch_size + reached.batch - resumed.batch


def _gaps(spans: Iterable[tuple[float, float, bool]]) -> list[tuple[float, float]]:
    """What none of them covers, between the first and the last, and which does not follow a last one."""
    in_time = sorted(spans)
    covered = accumulate(((end, is_last) for _, end, is_last in in_time), max)
    pairs = zip(covered, in_time[1:], strict=False)
    return [(end, start) for (end, is_last), (start, *_) in pairs if start > end and not is_last]
