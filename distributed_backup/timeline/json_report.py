"""Write the history of a run as JSON: the output of `timeline --json`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from distributed_backup.position import Position
from distributed_backup.timeline.history import History, Lane
from distributed_backup.timeline.incarnations import Leadership
from distributed_backup.timeline.incidents import IncidentCost, leader_gaps, total, training_gaps


def document(history: History, costs: Sequence[IncidentCost]) -> dict[str, Any]:
    """Return workers, leaders, incidents and totals, without the activities of each worker."""
    no_leader, no_training = leader_gaps(history), training_gaps(history)
    return {
        "run_id": history.run_id or None,
        "start": _instant(history.start),
        "end": _instant(history.end),
        "going_on": history.going_on,
        "workers": [_worker(lane) for lane in history.lanes],
        "leaders": [_leadership(leadership) for leadership in history.leaderships],
        "costs": [_cost(cost) for cost in costs],
        "without_leader": _seconds(total(no_leader)),
        "without_leader_is_upper_bound": any(gap.is_upper_bound for gap in no_leader),
        "without_training": _seconds(total(no_training)),
        "without_training_is_upper_bound": any(gap.is_upper_bound for gap in no_training),
        "batches": sum(cost.batches or 0 for cost in costs),
        "answers_replayed": history.replayed,
    }


def _worker(lane: Lane) -> dict[str, Any]:
    incarnations = [
        {
            "worker_id": incarnation.worker_id,
            "start": _instant(incarnation.start),
            "end": _instant(incarnation.end),
            "ending": incarnation.ending or None,
        }
        for incarnation in lane.incarnations
    ]
    return {"name": lane.name, "lives": incarnations}


def _leadership(leadership: Leadership) -> dict[str, Any]:
    return {
        "worker_id": leadership.worker_id,
        "term": leadership.term,
        "start": _instant(leadership.start),
        "end": _instant(leadership.end),
        "how": leadership.how or None,
        "reason": leadership.reason or None,
    }


def _cost(cost: IncidentCost) -> dict[str, Any]:
    return {
        "number": cost.number,
        "what": cost.kind,
        "at": _instant(cost.at),
        "worker_id": cost.worker_id,
        "term": cost.term,
        "saved": cost.saved,
        "reason": cost.reason or None,
        "without_leader": _seconds(cost.without_leader),
        "without_leader_is_upper_bound": cost.is_upper_bound and bool(cost.without_leader),
        "without_training": _seconds(cost.without_training),
        "without_training_is_upper_bound": cost.is_upper_bound and bool(cost.without_training),
        "reached": _position(cost.reached),
        "resumed": _position(cost.resumed),
        "resumed_at": None if cost.resumed_at is None else _instant(cost.resumed_at),
        "batches": cost.batches,
        "more": cost.more,
    }


def _position(position: Position | None) -> dict[str, int] | None:
    return None if position is None else {"epoch": position.epoch, "batch": position.batch}


def _instant(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00") + "Z"


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
