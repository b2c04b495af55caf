"""The life of one worker, from what it said.

A worker is taken at its word: one that was killed has no last word, and may have lived on for some seconds after the
last that is known of it. Where its clock went backwards, it is taken to have stood still.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distributed_backup.errors import ConfigError
from distributed_backup.position import Position
from distributed_backup.timeline.incarnations import (
    Ending,
    Incarnation,
    Leadership,
    LeadershipEnd,
    Mark,
    MarkKind,
    Span,
    SpanKind,
)

if TYPE_CHECKING:
    from distributed_backup.observability.events import Event


def build_incarnation(events: Sequence[Event], *, now: float | None) -> Incarnation:
    """Build the incarnation of one worker from its events, at least one, in order.

    `now` is the end of what is known of a worker that is still running.
    """
    builder = IncarnationBuilder(events[0])
    for event in events:
        builder.add(event)
    return builder.build(now)


class IncarnationBuilder:
    """Listens to one worker; a method for each kind of event."""

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
        self._track: list[tuple[float, Position]] = []

    def add(self, event: Event) -> None:
        """Take in the next event."""
        if self._ending:
            return  # what it says after its farewell is how it hands over
        self._now = max(self._now, event.at.timestamp())
        # A kind that a newer version adds says nothing to us.
        getattr(self, f"_{event.kind}", lambda _: None)(event)

    def build(self, now: float | None) -> Incarnation:
        """Close what is still open and return the result."""
        if not self._ending and now is None:
            self._ending = "gone"
        self._now = self._now if now is None or self._ending else max(now, self._now)
        noticed = self._open.get("leaving")
        self._end_all()
        return Incarnation(
            worker_id=self._worker_id,
            start=self._start,
            end=self._now,
            ending=self._ending,
            saved=self._saved,
            noticed=None if noticed is None else noticed[0],
            spans=tuple(self._spans),
            marks=tuple(self._marks),
            leaderships=tuple(self._leaderships),
            track=tuple(self._track),
        )

    # ---------------------------------------------------------------- spans and marks

    def _begin(self, kind: SpanKind, about: str, *, since: float | None = None) -> None:
        self._open.setdefault(kind, (self._now if since is None else since, about))

    def _end(self, kind: SpanKind) -> None:
        if kind in self._open:
            start, about = self._open.pop(kind)
            self._spans.append(Span(kind=kind, start=start, end=self._now, about=about))

    def _end_all(self) -> None:
        self._end_leadership(self._ending)
        for kind in tuple(self._open):
            self._end(kind)

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
        # A commit is told when it is durable: training may be ahead of it.
        if position is not None and (not self._track or self._track[-1][1] <= position):
            self._track.append((self._now, position))

    # ---------------------------------------------------------------- events

    def _joined(self, _: Event) -> None:
        self._begin("waiting", "waits for the position to start from")

    def _restored(self, event: Event) -> None:
        self._end("waiting")
        self._begin("training", "trains")
        position = _position(event) or Position(0)
        name = event.fields.get("checkpoint")
        self._mark("restore", f"starts from {name}: {position}" if name else "starts from the beginning")
        self._track.append((self._now, position))

    def _progress(self, event: Event) -> None:
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
        self._mark("failure", f"lost the lead: {reason}")
        self._end_leadership("lost", reason)

    def _resigned(self, _: Event) -> None:
        self._end_leadership("resigned")

    def _committed(self, event: Event) -> None:
        start, term = max(self._start, self._now - _seconds(event)), _whole(event, "term")
        if term > self._term:  # its election is no longer in the log
            self._begin_leadership(term, since=start)
        about = f"{_text(event, 'checkpoint')}, in {_seconds(event):.3g} s"
        self._spans.append(Span(kind="saving", start=start, end=self._now, about=f"saves {about}"))
        self._mark("commit", f"committed {about}")
        self._reached(event)

    def _commit_failed(self, event: Event) -> None:
        self._mark("failure", f"commit failed: {_text(event, 'reason')}")

    def _notice(self, event: Event) -> None:
        reason, remaining = _text(event, "reason"), _seconds(event, "remaining")
        self._mark("notice", f"notice: {reason}, {remaining:.3g} s left")
        if self._now > self._notice_ends:  # an earlier one came to nothing
            self._open.pop("leaving", None)
        self._notice_ends = self._now + remaining
        self._begin("leaving", f"saves and leaves: {reason}")

    def _preempted(self, event: Event) -> None:
        saved = event.fields.get("saved")
        self._saved = saved if isinstance(saved, bool) else None
        self._begin("leaving", "saves and leaves", since=max(self._start, self._now - _seconds(event)))
        self._reached(event)
        self._ending = "preempted"

    def _finished(self, event: Event) -> None:
        self._reached(event)
        self._ending = "finished"

    def _left(self, _: Event) -> None:
        self._mark("failure", "left: an error ended the fit")
        self._ending = "left"

    def _unreachable(self, event: Event) -> None:
        self._mark("failure", f"coordinator unreachable: {_text(event, 'reason')}")
        self._begin("unreachable", f"coordinator unreachable: {_text(event, 'reason')}")

    def _reachable(self, _: Event) -> None:
        self._end("unreachable")


# Fields are what another version, or another program, may have written: what is not as agreed is taken as not told.


def _position(event: Event) -> Position | None:
    try:
        return Position(event.fields.get("epoch"), event.fields.get("batch"))  # type: ignore[arg-type]
    except ConfigError:
        return None


def _whole(event: Event, field: str) -> int:
    value = event.fields.get(field)
    return value if isinstance(value, int) else 0


def _seconds(event: Event, field: str = "seconds") -> float:
    value = event.fields.get(field)
    return float(value) if isinstance(value, int | float) and value >= 0 else 0.0


def _text(event: Event, field: str) -> str:
    return str(event.fields.get(field, ""))
