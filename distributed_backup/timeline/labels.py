"""Describe a run, its incidents and its events in words. Picture, page and terminal share these texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.filesize import decimal

from distributed_backup.timeline.history import History
from distributed_backup.timeline.incarnations import JOURNAL_FAULTS, LONGEST, lane_name
from distributed_backup.timeline.incidents import Gap, IncidentCost, leader_gaps, total, training_gaps
from distributed_backup.timeline.scale import clock_time, counted, date, duration

if TYPE_CHECKING:
    from distributed_backup.observability.events import Event

HEADINGS: Final = (
    *("#", "After", "At, UTC", "Worker", "What happened"),
    *("No leader for", "No training for", "Batches to repeat"),
)
"""The columns of the table of incidents."""

CLOCKS: Final = (
    'Times are from each worker\'s own clock, and clocks may differ. "At most": a worker that stopped reporting '
    "may have run for up to one batch, or ten seconds, after its last event."
)
"""The note below the picture."""

_KINDS: Final = {
    **JOURNAL_FAULTS,
    "preempted": "preempted",
    "gone": "stopped reporting",
    "left": "ended with an error",
    "lost": "lost the lease",
    "resigned": "resigned the lease",
}


def title(history: History) -> str:
    """Return the name of the run."""
    return f"Run {history.run_id or '(no id)'}"


def summary(history: History, costs: Sequence[IncidentCost]) -> list[str]:
    """Return lines of text: the size of the run, its incidents, and their costs in all."""
    leaders = {lane_name(leadership.worker_id) for leadership in history.leaderships}
    length = duration(history.end - history.start) + (" so far" if history.going_on else "")
    kinds = Counter(cost.kind for cost in costs)
    size = (
        f"{date(history.start)} {clock_time(history.start)} UTC, {length}: "
        f"{counted(len(history.lanes), 'worker')}, {counted(len(history.incarnations), 'start')}, "
        f"{counted(len(leaders), 'leader')}, {counted(len(history.leaderships), 'term')}"
    )
    if history.replayed:
        size += f", answers replayed: {history.replayed} (calls saved)"
    incidents = ", ".join(f"{count} {_KINDS[kind]}" for kind, count in kinds.items()) or "no incidents"
    return [size, incidents, _totals(history, costs)] if costs else [size, incidents]


def _totals(history: History, costs: Sequence[IncidentCost]) -> str:
    repeated = counted(sum(cost.batches or 0 for cost in costs), "batch", "batches")
    least = "at least " if any(cost.more for cost in costs) else ""
    return (
        f"In all: {_total(leader_gaps(history))} without a leader, "
        f"{_total(training_gaps(history))} without training, {least}{repeated} to repeat"
    )


def _total(gaps: Sequence[Gap]) -> str:
    return at_most(total(gaps), is_upper_bound=any(gap.is_upper_bound for gap in gaps))


def at_most(seconds: float, *, is_upper_bound: bool) -> str:
    """Return a duration, marked as an upper bound if it is one."""
    return f"at most {duration(seconds)}" if is_upper_bound and seconds else duration(seconds)


# -------------------------------------------------------------------- incidents


def cells(history: History, cost: IncidentCost) -> tuple[str, ...]:
    """Return a row of the table of incidents, in the order of `HEADINGS`."""
    return (
        str(cost.number),
        duration(cost.at - history.start),
        f"{date(cost.at)[5:]} {clock_time(cost.at)}",
        cost.worker_id,
        _what_happened(cost),
        _lost(cost.without_leader, cost),
        _lost(cost.without_training, cost),
        _repeated(cost),
    )


def describe_incident(history: History, cost: IncidentCost) -> str:
    """Return the row of an incident as lines of a heading and a cell."""
    return "\n".join(f"{heading}: {cell}" for heading, cell in zip(HEADINGS, cells(history, cost), strict=True))


def _what_happened(cost: IncidentCost) -> str:
    led = "" if cost.term is None else f", led term {cost.term}"
    saved = ", not saved" if cost.saved is False else ""
    return f"{_KINDS[cost.kind]}{led}{saved}" + (f": {cost.reason}" if cost.reason else "")


def _lost(seconds: float | None, cost: IncidentCost) -> str:
    return "to the end" if seconds is None else at_most(seconds, is_upper_bound=cost.is_upper_bound)


def _repeated(cost: IncidentCost) -> str:
    if cost.reached is None or cost.batches == 0:
        return "0"
    if cost.resumed is None:
        return "not resumed"
    count = "?" if cost.batches is None else f"{cost.batches}{' or more' if cost.more else ''}"
    return f"{count}, back to {cost.resumed}"


# -------------------------------------------------------------------- events


def describe(event: Event) -> str:
    """Return what an event says beyond its kind, or "" if that is nothing."""
    text = _TEXTS.get(event.kind)
    return "" if text is None else text(event.fields)


def _where(fields: Mapping[str, Any]) -> str:
    return "" if fields["epoch"] is None else f"epoch {fields['epoch']}, batch {fields['batch']}"


def _restored(fields: Mapping[str, Any]) -> str:
    return f"{_where(fields)}, from {fields['checkpoint'] or 'the beginning'}"


def _committed(fields: Mapping[str, Any]) -> str:
    return f"{fields['checkpoint']}, {_where(fields)}, {_size(fields['bytes'])} in {_time(fields['seconds'])}"


def _preempted(fields: Mapping[str, Any]) -> str:
    saved = f"saved {fields['checkpoint']}, {_where(fields)}" if fields["saved"] else "not saved"
    return f"{'nothing to save' if fields['saved'] is None else saved}, {_time(fields['seconds'])} after the notice"


# Another version may have written the fields, so a value that is not a number is shown as it is.


def _size(count: Any) -> str:
    return decimal(count) if isinstance(count, int) and count >= 0 else f"{count} bytes"


def _time(seconds: Any) -> str:
    is_duration = isinstance(seconds, int | float) and 0 <= seconds < LONGEST
    return duration(seconds) if is_duration else f"{seconds} s"


_TEXTS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "joined": lambda fields: f"run {fields['run']}" + (", standby" if fields["standby"] else ""),
    "restored": _restored,
    "elected": lambda fields: f"term {fields['term']}",
    "lost": lambda fields: f"term {fields['term']}: {fields['reason']}",
    "resigned": lambda fields: f"term {fields['term']}",
    "stood_down": lambda fields: f"term {fields['term']}, {fields['leader']} leads",
    "committed": _committed,
    "commit_failed": lambda fields: str(fields["reason"]),
    "notice": lambda fields: f"{fields['reason']}, {_time(fields['remaining'])} left",
    "preempted": _preempted,
    "finished": _where,
    "unreachable": lambda fields: str(fields["reason"]),
    "progress": _where,
    "replayed": lambda fields: f"{fields['answers']} answers, up to {_where(fields)}",
    "diverged": lambda fields: ", after ".join(filter(None, (str(fields["reason"]), _where(fields)))),
    "voided": lambda fields: f"{fields['answers']} answers after {_where(fields)}",
}
