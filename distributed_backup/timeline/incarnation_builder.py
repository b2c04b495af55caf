"""Build the incarnation of one worker from its events.

Limit: a killed worker has no final event, and may have run for seconds after its last one. A clock that was set back
counts as stopped until it catches up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from distributed_backup.errors import ConfigError
from distributed_backup.position import Position
from distributed_backup.timeline.incarnations import (
    JOURNAL_FAULTS,
    LONGEST,
    Ending,
    Incarnation,
    JournalFault,
    JournalFaultKind,
    Leadership,
    LeadershipEnd,
    Mark,
    MarkKind,
    Span,
    SpanKind,
)
from distributed_backup.timeline.scale import counted, duration

if TYPE_CHECKING:
    from distributed_backup.observability.events import Event


def build_incarnation(events: Sequence[Event], *, now: float | None) -> Incarnation:
    """Build the incarnation of one worker from its events, at least one, in order.

    `now` is the end of an incarnation that is running. None if it has ended.
    """
    builder = IncarnationBuilder(events[0])
    for event in events:
        builder.add(event)
    return builder.build(now)


# Above all counts of a run. JSON has no number for some sums of larger ones.
_MOST: Final = 10**15


class IncarnationBuilder:
    """Collects the events of one worker. Each kind of event has a method, `_KIND`."""

    def __init__(self, first: Event) -> None:
        self._worker_id = first.worker
        self._start = self._now = first.at.timestamp()
        self._ending: Ending = ""
        self._saved: bool | None = None
        self._open: dict[SpanKind, tuple[float, str]] = {}
        self._term = 0
        self._notice_ends = 0.0
        self._spans: list[Span] = []
        self._marks: list[Mark] = []
        self._leaderships: list[Leadership] = []
        self._answers = 0
        self._faults: list[JournalFault] = []
        self._track: list[tuple[float, Position]] = []

    def add(self, event: Event) -> None:
        """Add the next event."""
        if self._ending:
            return  # after its final event, a worker only resigns its lease
        self._now = max(self._now, event.at.timestamp())
        # Ignore kinds without a method: they change nothing in the picture.
        getattr(self, f"_{event.kind}", lambda _: None)(event)

    def build(self, now: float | None) -> Incarnation:
        """End all open spans and return the incarnation."""
        if not self._ending and now is None:
            self._ending = "gone"
        self._now = self._now if now is None or self._ending else max(now, self._now)
        exiting = self._open.get("exiting")
        self._end_leadership(self._ending)
        for kind in tuple(self._open):
            self._end(kind)
        return Incarnation(
            worker_id=self._worker_id,
            start=self._start,
            end=self._now,
            ending=self._ending,
            saved=self._saved,
            noticed=None if exiting is None else exiting[0],
            spans=tuple(self._spans),
            marks=tuple(self._marks),
            leaderships=tuple(self._leaderships),
            replayed=self._answers,
            journal_faults=tuple(self._faults),
            track=tuple(self._track),
        )

    # ---------------------------------------------------------------- spans and marks

    def _begin(self, kind: SpanKind, about: str, *, since: float | None = None) -> None:
        self._open.setdefault(kind, (self._now if since is None else since, about))

    def _end(self, kind: SpanKind) -> None:
        if kind in self._open:
            start, about = self._open.pop(kind)
            self._spans.append(Span(kind=kind, start=start, end=self._now, about=about))

    def _end_leadership(self, how: LeadershipEnd, reason: str = "") -> None:
        if "leading" in self._open:
            start, _ = self._open["leading"]
            self._leaderships.append(
                Leadership(
                    worker_id=self._worker_id, term=self._term, start=start, end=self._now, how=how, reason=reason
                )
            )
            self._end("leading")

    def _mark(self, kind: MarkKind, about: str) -> None:
        self._marks.append(Mark(kind=kind, at=self._now, about=about))

    def _reached(self, event: Event) -> None:
        position = _position(event)
        # A commit is reported when it is durable. Training may be ahead by then.
        if position is not None and (not self._track or self._track[-1][1] <= position):
            self._track.append((self._now, position))

    # ---------------------------------------------------------------- events

    def _joined(self, _: Event) -> None:
        self._begin("waiting", "waits for its start position")

    def _restored(self, event: Event) -> None:
        self._end("waiting")
        self._begin("training", "trains")
        position = _position(event) or Position(0)
        name = event.fields.get("checkpoint")
        self._mark("restore", f"restored {name}: {position}" if name else "started from the beginning")
        self._track.append((self._now, position))

    def _stood_down(self, event: Event) -> None:
        self._end("training")
        self._begin("waiting", f"waits while {_text(event, 'leader')} leads")

    def _progress(self, event: Event) -> None:
        self._end("waiting")
        self._begin("training", "trains")
        self._reached(event)

    def _elected(self, event: Event) -> None:
        self._end_leadership("lost")
        self._begin_leadership(_whole(event, "term"), since=self._now)

    def _begin_leadership(self, term: int, *, since: float) -> None:
        self._term = term
        self._begin("leading", f"leads, term {term}", since=since)

    def _lost(self, event: Event) -> None:
        reason = _text(event, "reason")
        self._mark("failure", f"lost the lease: {reason}")
        self._end_leadership("lost", reason)

    def _resigned(self, _: Event) -> None:
        self._end_leadership("resigned")

    def _committed(self, event: Event) -> None:
        start, term = max(self._start, self._now - _seconds(event)), _whole(event, "term")
        if term > self._term:  # the log no longer contains the election
            self._begin_leadership(term, since=start)
        about = f"{_text(event, 'checkpoint')}, in {duration(_seconds(event))}"
        self._spans.append(Span(kind="saving", start=start, end=self._now, about=f"saves {about}"))
        self._mark("commit", f"committed {about}")
        self._reached(event)

    def _commit_failed(self, event: Event) -> None:
        self._mark("failure", f"commit failed: {_text(event, 'reason')}")

    def _notice(self, event: Event) -> None:
        reason, remaining = _text(event, "reason"), _seconds(event, "remaining")
        self._mark("notice", f"notice: {reason}, {duration(remaining)} left")
        if self._now > self._notice_ends:  # the preemption of an earlier notice did not happen
            self._open.pop("exiting", None)
        self._notice_ends = self._now + remaining
        self._begin("exiting", f"saves and exits: {reason}")

    def _preempted(self, event: Event) -> None:
        saved = event.fields.get("saved")
        self._saved = saved if isinstance(saved, bool) else None
        self._begin("exiting", "saves and exits", since=max(self._start, self._now - _seconds(event)))
        self._reached(event)
        self._ending = "preempted"

    def _finished(self, event: Event) -> None:
        self._reached(event)
        self._ending = "finished"

    def _left(self, _: Event) -> None:
        self._mark("failure", "an error ended the fit")
        self._ending = "left"

    def _replayed(self, event: Event) -> None:
        answers = max(0, _whole(event, "answers"))
        self._answers += answers
        self._mark("replay", f"{counted(answers, 'answer')} replayed, not paid again{_where(event, ', up to ')}")

    def _diverged(self, event: Event) -> None:
        self._journal_fault("diverged", f"{_text(event, 'reason')}{_where(event, ', after ')}")

    def _voided(self, event: Event) -> None:
        answers = counted(max(0, _whole(event, "answers")), "answer")
        self._journal_fault("voided", f"{answers}{_where(event, ' after ')}")

    def _journal_fault(self, kind: JournalFaultKind, reason: str) -> None:
        self._mark("failure", f"{JOURNAL_FAULTS[kind]}: {reason}")
        self._faults.append(JournalFault(kind=kind, at=self._now, reason=reason))

    def _unreachable(self, event: Event) -> None:
        self._begin("unreachable", f"coordinator unreachable: {_text(event, 'reason')}")

    def _reachable(self, _: Event) -> None:
        self._end("unreachable")


# Another version may have written the fields, so a value of the wrong type counts as missing.


def _position(event: Event) -> Position | None:
    try:
        return Position(event.fields.get("epoch"), event.fields.get("batch"))  # type: ignore[arg-type]
    except ConfigError:
        return None


def _where(event: Event, before: str) -> str:
    position = _position(event)
    return "" if position is None else f"{before}{position}"


def _whole(event: Event, field: str) -> int:
    value = event.fields.get(field)
    return value if isinstance(value, int) and abs(value) < _MOST else 0


def _seconds(event: Event, field: str = "seconds") -> float:
    value = event.fields.get(field)
    return float(value) if isinstance(value, int | float) and 0 <= value < LONGEST else 0.0


def _text(event: Event, field: str) -> str:
    return str(event.fields.get(field, ""))
