"""Draw the upper part of the picture: incident numbers, the leaders, and a lane per worker.

Limit: at most one mark of each kind is drawn per pixel. Where several coincide, the last is drawn, with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from distributed_backup.timeline.history import History, Lane
from distributed_backup.timeline.incarnations import Incarnation, Mark, MarkKind, SpanKind, lane_name
from distributed_backup.timeline.incidents import IncidentCost, leader_gaps
from distributed_backup.timeline.labels import at_most, describe_incident
from distributed_backup.timeline.layout import (
    LANE_HEIGHT,
    LEADERS_HEIGHT,
    LEADERS_TOP,
    LEFT,
    NUMBERS_TOP,
    RIGHT,
    SMALL_LETTER,
    TAIL,
)
from distributed_backup.timeline.legend import draw_arrow, draw_cross, draw_notice, draw_replay
from distributed_backup.timeline.scale import Scale, clock_time, duration
from distributed_backup.timeline.svg import Canvas

# Leaderships, gaps and exits must be seen, however short they were.
_MIN_WIDTH: Final = 3.0
# What fits beside a lane.
_NAME_LETTERS: Final = 18
# Free pixels of a bar beside its label, both sides together.
LABEL_PADDING: Final = 6.0


def draw_incidents(
    canvas: Canvas, scale: Scale, history: History, costs: Sequence[IncidentCost], *, axis: float
) -> None:
    """Draw a number above the time of each incident. Numbers that would overlap share a box and the line below it."""
    for box in _boxes(scale, costs):
        x, label = scale.pixel(box[0].at), _numbers(box)
        width = 6 + 7 * len(label)
        about = "\n\n".join(describe_incident(history, cost) for cost in box)
        canvas.line(x, NUMBERS_TOP + 15, x, axis, "incident")
        canvas.rect(x - width / 2, NUMBERS_TOP, width, 15, "number", about=about)
        canvas.text(x, NUMBERS_TOP + 11.5, label, "digit", anchor="middle")


def _boxes(scale: Scale, costs: Iterable[IncidentCost]) -> list[list[IncidentCost]]:
    boxes: list[list[IncidentCost]] = []
    for cost in costs:
        if boxes and scale.pixel(cost.at) - scale.pixel(boxes[-1][0].at) < 12 + 7 * len(_numbers([*boxes[-1], cost])):
            boxes[-1].append(cost)
        else:
            boxes.append([cost])
    return boxes


def _numbers(box: Sequence[IncidentCost]) -> str:
    first, last = box[0].number, box[-1].number
    return str(first) if first == last else f"{first}-{last}"


# -------------------------------------------------------------------- leaders


def draw_leaders(canvas: Canvas, scale: Scale, history: History) -> None:
    """Draw one bar per leadership, and one per time without a leader."""
    canvas.text(LEFT - 10, LEADERS_TOP + 17, "Leader", "bold", anchor="end")
    for gap in leader_gaps(history):
        x, width = _extent(scale, gap.start, gap.end)
        lasted = at_most(gap.end - gap.start, is_upper_bound=gap.is_upper_bound)
        about = f"no leader for {lasted}" + (
            ", counted from the last event of the leader" if gap.is_upper_bound else ""
        )
        canvas.rect(x, LEADERS_TOP, width, LEADERS_HEIGHT, "leaderless", about=about)
        _label(canvas, x, width, (f"no leader, {lasted}", lasted), look="loss")
    for leadership in history.leaderships:
        x, width = _extent(scale, leadership.start, leadership.end)
        about = (
            f"{leadership.worker_id} led term {leadership.term}\n"
            f"{_times(leadership.start, leadership.end)}, {leadership.how or 'still leading'}"
        )
        canvas.rect(x, LEADERS_TOP, max(width - 1, 1), LEADERS_HEIGHT, "leading", about=about)
        name, term = lane_name(leadership.worker_id), leadership.term
        _label(canvas, x, width, (f"{name} · term {term}", str(term)), look="label")


def _label(canvas: Canvas, x: float, width: float, texts: Iterable[str], *, look: str) -> None:
    """Write the first text that fits into the bar, if one does."""
    text = next((text for text in texts if SMALL_LETTER * len(text) + LABEL_PADDING <= width), None)
    if text is not None:
        canvas.text(x + width / 2, LEADERS_TOP + 17, text, look, anchor="middle")


def _extent(scale: Scale, start: float, end: float, least: float = _MIN_WIDTH) -> tuple[float, float]:
    x = scale.pixel(start)
    return x, max(scale.pixel(end) - x, least)


def _times(start: float, end: float) -> str:
    return f"{clock_time(start)} to {clock_time(end)} UTC, {duration(end - start)}"


# -------------------------------------------------------------------- lanes

_BAR_HEIGHT: Final = LANE_HEIGHT - 8
# Bars and lines by kind: pixels below the top, the height of a bar, the least width. Later ones are drawn on top.
_LINES: Final[tuple[tuple[SpanKind, float, float], ...]] = (("waiting", _BAR_HEIGHT / 2, 0), ("unreachable", -1, 3))
_BARS: Final[tuple[tuple[SpanKind, float, float, float], ...]] = (
    ("training", _BAR_HEIGHT / 2, _BAR_HEIGHT / 2, 1),
    ("leading", 0, _BAR_HEIGHT, _MIN_WIDTH),
    ("exiting", 0, _BAR_HEIGHT, _MIN_WIDTH),
)
_SIGNS: Final[tuple[tuple[MarkKind, Callable[[Canvas, float, float, str], None], float], ...]] = (
    ("restore", draw_arrow, _BAR_HEIGHT / 2),
    ("replay", draw_replay, _BAR_HEIGHT / 2),
    ("notice", draw_notice, 6),
    ("failure", draw_cross, _BAR_HEIGHT / 2),
)


def draw_lane(canvas: Canvas, scale: Scale, lane: Lane, *, top: float) -> None:
    """Draw one worker with all its incarnations."""
    ids = "\n".join(f"{incarnation.worker_id}: {incarnation.ending or 'running'}" for incarnation in lane.incarnations)
    # Ids differ at their ends.
    name = lane.name if len(lane.name) <= _NAME_LETTERS else f"{lane.name[:8]}…{lane.name[-8:]}"
    canvas.text(LEFT - 10, top + LANE_HEIGHT / 2 + 4, name, "ink", anchor="end", about=ids)
    ends = [*(scale.pixel(following.start) for following in lane.incarnations[1:]), RIGHT + TAIL]
    for incarnation, end in zip(lane.incarnations, ends, strict=True):
        _Bar(canvas, scale, incarnation, top=top + 2).draw(end)


class _Bar:
    """One incarnation in its lane. Commits have the five pixels below the bar."""

    def __init__(self, canvas: Canvas, scale: Scale, incarnation: Incarnation, *, top: float) -> None:
        self._canvas = canvas
        self._scale = scale
        self._incarnation = incarnation
        self._top = top
        self._foot = top + _BAR_HEIGHT

    def draw(self, end: float) -> None:
        """Draw everything left of `end`, where the next incarnation begins."""
        for kind, below, least in _LINES:
            for x, width, about in self._spans(kind, least):
                self._canvas.line(x, self._top + below, x + width, self._top + below, kind, about=about)
        for kind, below, height, least in _BARS:
            for x, width, about in self._spans(kind, least):
                self._canvas.rect(x, self._top + below, width, height, kind, about=about)
        self._draw_saves()
        for mark, draw_sign, below in _SIGNS:
            for x, about in self._marks(mark):
                draw_sign(self._canvas, x, self._top + below, about)
        self._draw_end(end)

    def _draw_saves(self) -> None:
        for x, width, about in self._spans("saving", 0):
            if width >= 2:
                self._canvas.rect(x, self._foot + 1, width, 4, "saving", about=about)
        for x, about in self._marks("commit"):
            self._canvas.line(x, self._foot, x, self._foot + 5, "commit", about=about)

    def _draw_end(self, end: float) -> None:
        worker, x = self._incarnation.worker_id, self._scale.pixel(self._incarnation.end)
        at = f"{clock_time(self._incarnation.end)} UTC"
        if self._incarnation.ending == "gone":
            about = f"{worker} stopped reporting\nlast event {at}"
            self._canvas.rect(x, self._top, min(TAIL, max(end - x, _MIN_WIDTH)), _BAR_HEIGHT, "gone", about=about)
            draw_cross(self._canvas, x, self._top + _BAR_HEIGHT / 2)
        elif self._incarnation.ending == "finished":
            self._canvas.line(x + 1, self._top, x + 1, self._foot, "finish", about=f"{worker} finished\n{at}")

    def _spans(self, kind: SpanKind, least: float) -> Iterator[tuple[float, float, str]]:
        """Yield the left edge and the width of each span of this kind, and its text."""
        for span in self._incarnation.of(kind):
            about = f"{self._incarnation.worker_id} {span.about}\n{_times(span.start, span.end)}"
            yield *_extent(self._scale, span.start, span.end, least), about

    def _marks(self, kind: MarkKind) -> Iterator[tuple[float, str]]:
        """Yield the place of each mark of this kind, and its text. One mark per pixel."""
        places: dict[int, list[Mark]] = {}
        for mark in self._incarnation.marks:
            if mark.kind == kind:
                places.setdefault(round(self._scale.pixel(mark.at)), []).append(mark)
        for marks in places.values():
            last, more = marks[-1], f" (the last of {len(marks)})" if len(marks) > 1 else ""
            about = f"{self._incarnation.worker_id} {last.about}{more}\n{clock_time(last.at)} UTC"
            yield self._scale.pixel(last.at), about
