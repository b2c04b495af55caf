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
from distributed_backup.timeline.incarnations import Lead, Life

type What = Literal["preempted", "gone", "left", "lost", "resigned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
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
    what: What
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
class _Blow:
    """What happened, before it is known what it cost."""

    what: What
    at: float
    life: Life
    lead: Lead | None
    reason: str = ""


def costs_of(history: History) -> list[Cost]:
    """What each preemption, each death and each loss of the lead cost, by time."""
    blows = sorted(
        (blow for life in history.lives for blow in _blows(life)), key=lambda blow: (blow.at, blow.life.worker_id)
    )
    return [_cost(history, number, blow) for number, blow in enumerate(blows, 1)]


def costliest(history: History, costs: Sequence[Cost], count: int) -> list[Cost]:
    """As many as that, by time: those that cost the most time, and of equal ones the most batches."""

    def weight(cost: Cost) -> tuple[float, int]:
        so_far = history.end - cost.at
        lost = (so_far if seconds is None else seconds for seconds in (cost.without_leader, cost.without_training))
        return sum(lost), cost.batches or 0

    return sorted(sorted(costs, key=weight, reverse=True)[:count], key=lambda cost: cost.number)


def leaderless(history: History) -> list[tuple[float, float]]:
    """When nobody led, from the first election to the last lead's end; what follows a finish is not missed."""
    return _gaps((lead.start, lead.end, lead.how == "finished") for lead in history.leads)


def without_leader(history: History) -> float:
    """Seconds of it."""
    return sum(end - start for start, end in leaderless(history))


def without_training(history: History) -> float:
    """Seconds in which nobody trained, from the first start to the last end; what follows a finish is not missed."""
    return sum(end - start for start, end in _gaps(_trainings(history)))


def _trainings(history: History) -> Iterator[tuple[float, float, bool]]:
    return (
        (span.start, span.end, life.ending == "finished" and span.end == life.end)
        for life in history.lives
        for span in life.trainings
    )


def _blows(life: Life) -> Iterator[_Blow]:
    for lead in life.leads:
        if lead.how in {"lost", "resigned"}:
            yield _Blow(what=lead.how, at=lead.end, life=life, lead=lead, reason=lead.reason)
    if life.ending in {"preempted", "gone", "left"}:
        held = next((lead for lead in life.leads if lead.how == life.ending), None)
        at = life.end if life.noticed is None else life.noticed
        yield _Blow(what=life.ending, at=at, life=life, lead=held)


def _cost(history: History, number: int, blow: _Blow) -> Cost:
    stopped = blow.what in {"preempted", "gone", "left"}
    reached = blow.life.track[-1][1] if blow.life.track and stopped else None
    resumed_at, resumed = (_resumption(history, blow.life) if stopped else None) or (None, None)
    return Cost(
        number=number,
        what=blow.what,
        at=blow.at,
        worker_id=blow.life.worker_id,
        term=None if blow.lead is None else blow.lead.term,
        saved=blow.life.saved if blow.what == "preempted" else None,
        reason=blow.reason,
        without_leader=0.0 if blow.lead is None else _until_next_lead(history, blow.lead),
        without_training=_until_next_training(history, blow.life) if stopped else 0.0,
        reached=reached,
        resumed=resumed,
        resumed_at=resumed_at,
        batches=_batches(history, reached, resumed) if stopped else 0,
    )


def _until_next_lead(history: History, lead: Lead) -> float | None:
    # By terms: the clock of who led next may be behind.
    later = next((other for other in history.leads if other.term > lead.term), None)
    return None if later is None else max(0.0, later.start - lead.end)


def _until_next_training(history: History, gone: Life) -> float | None:
    if not gone.trainings:
        return 0.0
    ends = [span.start for life in history.lives if life is not gone for span in life.trainings if span.end > gone.end]
    return max(0.0, min(ends) - gone.end) if ends else None


def _resumption(history: History, gone: Life) -> tuple[float, Position] | None:
    """When and where its next life went on; that of any, if nobody trained when it was gone."""
    others = [life for life in history.lives if life is not gone and life.trainings and life.track]
    if not any(life.trainings[0].start <= gone.end < life.trainings[-1].end for life in others):
        return min((life.track[0] for life in others if life.trainings[0].start > gone.end), default=None)
    lane = next(lane for lane in history.lanes if any(life is gone for life in lane.lives))
    return next((life.track[0] for life in lane.lives if life.start >= gone.end and life.track), None)


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
