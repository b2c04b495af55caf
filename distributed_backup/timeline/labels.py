"""The history of a run in words, for people: the same in the drawing, on the page and on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from distributed_backup.position import Position
from distributed_backup.timeline.history import History
from distributed_backup.timeline.incarnations import lane_name
from distributed_backup.timeline.incidents import Gap, IncidentCost, leader_gaps, total, training_gaps
from distributed_backup.timeline.time_scale import clock_time, date, duration

if TYPE_CHECKING:
    from distributed_backup.observability.events import Event

HEADINGS: Final = (
    *("#", "After", "At, UTC", "Worker", "What happened"),
    *("No leader for", "No training for", "Batches to repeat"),
)
"""Of the table of costs."""

NO_COST: Final = frozenset({"0", "0 s"})
"""Cells of it that are nothing to worry about."""

CLOCKS: Final = (
    "Times are of the workers' own clocks, which may differ. "
    "A worker that was killed may have gone on for up to a batch, or ten seconds, after its last word."
)
"""What a reader must know."""

_SENTENCES: Final = 50
_UNITS: Final = (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12), ("PB", 1e15), ("EB", 1e18))
_LONGEST: Final = 1e12
_KIND_LABELS: Final = {
    "preempted": "preempted",
    "gone": "gone without a word",
    "left": "left with an error",
    "lost": "lost the lead",
    "resigned": "gave the lead back",
}


def title(history: History) -> str:
    """What the run is called."""
    return f"Run {history.run_id or '(no id)'}"


def summary(history: History, costs: Sequence[IncidentCost]) -> list[str]:
    """The run in two lines: what it was, and what it suffered."""
    incarnations, leaders = (
        history.incarnations,
        {lane_name(leadership.worker_id) for leadership in history.leaderships},
    )
    length = duration(history.end - history.start) + (" so far" if history.going_on else "")
    incidents = Counter(cost.kind for cost in costs)
    return [
        f"{date(history.start)} {clock_time(history.start)} UTC, {length}: "
        f"{_count(len(history.lanes), 'worker')}, {_count(len(incarnations), 'start')}, "
        f"{_count(len(leaders), 'leader')}, {_count(len(history.leaderships), 'term')}",
        ", ".join(f"{count} {_KIND_LABELS[kind]}" for kind, count in incidents.items()) + f": {_totals(history, costs)}"
        if costs
        else "nothing was preempted or lost",
    ]


def leaders(history: History) -> list[str]:
    """Who led when, a sentence each; of very many the first."""
    return [
        f"{leadership.worker_id} led term {leadership.term} from {duration(leadership.start - history.start)} "
        f"to {duration(leadership.end - history.start)}."
        for leadership in history.leaderships[:_SENTENCES]
    ]


def _totals(history: History, costs: Sequence[IncidentCost]) -> str:
    repeated = _count(sum(cost.batches or 0 for cost in costs), "batch", "batches")
    least = "at least " if any(cost.more for cost in costs) else ""
    return (
        f"in all {_total(leader_gaps(history))} without a leader, "
        f"{_total(training_gaps(history))} without training, {least}{repeated} to repeat"
    )


def _total(gaps: Sequence[Gap]) -> str:
    return at_most(total(gaps), is_upper_bound=any(gap.is_upper_bound for gap in gaps))


def at_most(seconds: float, *, is_upper_bound: bool) -> str:
    """Return a duration, marked as an upper bound if it is one."""
    return f"at most {duration(seconds)}" if is_upper_bound and seconds else duration(seconds)


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def cells(history: History, cost: IncidentCost) -> tuple[str, ...]:
    """A row of the table of costs, for `HEADINGS`."""
    return (
        str(cost.number),
        duration(cost.at - history.start),
        f"{date(cost.at)[5:]} {clock_time(cost.at)}",
        cost.worker_id,
        what_happened(cost),
        _lost(cost.without_leader, cost),
        _lost(cost.without_training, cost),
        _repeated(cost),
    )


def what_happened(cost: IncidentCost) -> str:
    """A cost's cause."""
    led = "" if cost.term is None else f", led term {cost.term}"
    saved = ", not saved" if cost.saved is False else ""
    return f"{_KIND_LABELS[cost.kind]}{led}{saved}" + (f": {cost.reason}" if cost.reason else "")


def _lost(seconds: float | None, cost: IncidentCost) -> str:
    return "to the end" if seconds is None else at_most(seconds, is_upper_bound=cost.is_upper_bound)


def _repeated(cost: IncidentCost) -> str:
    if cost.reached is None or cost.batches == 0:
        return "0"
    if cost.resumed is None:
        return "not resumed"
    count = "?" if cost.batches is None else f"{cost.batches}{' or more' if cost.more else ''}"
    return f"{count}, back to {_short(cost.resumed)}"


def _short(position: Position) -> str:
    return f"epoch {position.epoch}" + (f", batch {position.batch}" if position.batch else "")


# -------------------------------------------------------------------- events


def describe(event: Event) -> str:
    """What an event tells, beyond its kind."""
    tell = _TELL.get(event.kind)
    return "" if tell is None else tell(event.fields)


def _where(fields: Mapping[str, Any]) -> str:
    return "" if fields["epoch"] is None else f"epoch {fields['epoch']}, batch {fields['batch']}"


def _restored(fields: Mapping[str, Any]) -> str:
    return f"{_where(fields)}, from {fields['checkpoint'] or 'the beginning'}"


def _committed(fields: Mapping[str, Any]) -> str:
    return f"{fields['checkpoint']}, {_where(fields)}, {_size(fields['bytes'])} in {_time(fields['seconds'])}"


def _preempted(fields: Mapping[str, Any]) -> str:
    saved = f"saved {fields['checkpoint']}, {_where(fields)}" if fields["saved"] else "not saved"
    return f"{'nothing to save' if fields['saved'] is None else saved}; {_time(fields['seconds'])} after the notice"


# Fields are what another version may have written: what is no number is shown as it is.


def _size(count: Any) -> str:
    if not isinstance(count, int) or not 1000 <= count < 10**18:
        return f"{count} bytes"
    unit, amount = next((unit, count / size) for unit, size in _UNITS if count < 999.5 * size)
    return f"{_figures(amount)} {unit}"


def _time(seconds: Any) -> str:
    if not isinstance(seconds, int | float) or not 0 <= seconds < _LONGEST:
        return f"{seconds} s"
    return f"{_figures(seconds * 1000)} ms" if 0 < seconds < 0.9995 else duration(seconds)


def _figures(value: float) -> str:
    """Two, or those before the point."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"


_TELL: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "joined": lambda fields: f"run {fields['run']}" + (", standby" if fields["standby"] else ""),
    "restored": _restored,
    "elected": lambda fields: f"term {fields['term']}",
    "lost": lambda fields: f"term {fields['term']}: {fields['reason']}",
    "resigned": lambda fields: f"term {fields['term']}",
    "committed": _committed,
    "commit_failed": lambda fields: str(fields["reason"]),
    "notice": lambda fields: f"{fields['reason']}, {_time(fields['remaining'])} left",
    "preempted": _preempted,
    "finished": _where,
    "unreachable": lambda fields: str(fields["reason"]),
    "progress": _where,
}
