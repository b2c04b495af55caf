"""The history of a run as JSON, for programs: what `timeline --json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from distributed_backup.timeline.history import History, Lane
from distributed_backup.timeline.incarnations import Lead
from distributed_backup.timeline.incidents import Cost, without_leader, without_training


def document(history: History, costs: Sequence[Cost]) -> dict[str, Any]:
    """All of it but what each worker did in between."""
    return {
        "run_id": history.run_id or None,
        "start": _instant(history.start),
        "end": _instant(history.end),
        "going_on": history.going_on,
        "workers": [_worker(lane) for lane in history.lanes],
        "leaders": [_lead(lead) for lead in history.leads],
        "costs": [_cost(cost) for cost in costs],
        "without_leader": _seconds(without_leader(history)),
        "without_training": _seconds(without_training(history)),
        "batches": sum(cost.batches or 0 for cost in costs),
    }


def _worker(lane: Lane) -> dict[str, Any]:
    lives = [
        {
            "worker_id": life.worker_id,
            "start": _instant(life.start),
            "end": _instant(life.end),
            "ending": life.ending or None,
        }
        for life in lane.lives
    ]
    return {"name": lane.name, "lives": lives}


def _lead(lead: Lead) -> dict[str, Any]:
    return {
        "worker_id": lead.worker_id,
        "term": lead.term,
        "start": _instant(lead.start),
        "end": _instant(lead.end),
        "how": lead.how or None,
        "reason": lead.reason or None,
    }


def _cost(cost: Cost) -> dict[str, Any]:
    return {
        **asdict(cost),
        "more": cost.more,
        "at": _instant(cost.at),
        "reason": cost.reason or None,
        "without_leader": _seconds(cost.without_leader),
        "without_training": _seconds(cost.without_training),
        "resumed_at": None if cost.resumed_at is None else _instant(cost.resumed_at),
    }


def _instant(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00") + "Z"


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
