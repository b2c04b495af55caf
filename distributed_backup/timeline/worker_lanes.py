"""The upper part of the drawing: who led when, and a lane per worker.

A mark per pixel at most: where more fall on one, the last is drawn and tells how many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from distributed_backup.timeline.history import History, Lane
from distributed_backup.timeline.incarnations import Incarnation, Leadership, Mark, MarkKind, Span, SpanKind, lane_name
from distributed_backup.timeline.incidents import Gap, IncidentCost, leader_gaps
from distributed_backup.timeline.labels import at_most, what_happened
from distributed_backup.timeline.layout import LEFT, LETTER, MARGIN, RIGHT, SMALL_LETTER, TAIL, Layout, fitted, width_of
from distributed_backup.timeline.legend import draw_arrow, draw_cross, draw_notice
from distributed_backup.timeline.svg import Canvas
from distributed_backup.timeline.time_scale import TimeScale, clock_time, duration

# What matters must be seen, however short it was.
_LEAST_WIDTH: Final = 3.0
# What a label leaves free at both its ends together, and the fewest letters of a name that tell something.
LABEL_PADDING: Final = 6.0
MIN_LABEL_CHARS: Final = 5
# What is drawn first is below. Saves and commits have a place of their own.
_SPANS: Final[tuple[SpanKind, ...]] = ("waiting", "training", "leading", "leaving", "unreachable")
_MARKS: Final[tuple[MarkKind, ...]] = ("restore", "notice", "failure")


def draw_numbers(canvas: Canvas, scale: TimeScale, layout: Layout, costs: Sequence[IncidentCost]) -> None:
    """The numbers of the costs over the instants at which they arose; those too close to be told apart share a box."""
    for box in _boxes(scale, costs):
        x, label = scale.x(box[0].at), _numbers(box)
        width = 6 + 7 * len(label)
        left = min(max(x - width / 2, LEFT), RIGHT - width)
        about = "\n".join(f"{cost.number}: {cost.worker_id} {what_happened(cost)}" for cost in box)
        for place, costly in sorted({(round(scale.x(cost.at)), _is_costly(cost)) for cost in box}):
            canvas.line(place, layout.numbers + 15, place, layout.axis if costly else layout.leaders, "blow")
        canvas.rect(left, layout.numbers, width, 15, "number", about=about)
        canvas.text(left + width / 2, layout.numbers + 11.5, label, "digit", anchor="middle")


def _boxes(scale: TimeScale, costs: Iterable[IncidentCost]) -> list[list[IncidentCost]]:
    boxes: list[list[IncidentCost]] = []
    for cost in costs:
        if boxes and scale.x(cost.at) - scale.x(boxes[-1][0].at) < 12 + 7 * len(_numbers([*boxes[-1], cost])):
            boxes[-1].append(cost)
        else:
            boxes.append([cost])
    return boxes


def _is_costly(cost: IncidentCost) -> bool:
    return cost.term is not None or cost.without_training != 0 or bool(cost.batches)


def _numbers(box: Sequence[IncidentCost]) -> str:
    first, last = box[0].number, box[-1].number
    return str(first) if first == last else f"{first}-{last}"


# -------------------------------------------------------------------- leaders


def draw_leaders(canvas: Canvas, scale: TimeScale, layout: Layout, history: History) -> None:
    """Who led when, and when nobody did."""
    top, height = layout.leaders, layout.leaders_height
    canvas.text(LEFT - 10, top + 17, "Leader", "bold", anchor="end")
    for gap in leader_gaps(history):
        x, width = _extent(scale, gap.start, gap.end)
        lasted = at_most(gap.end - gap.start, is_upper_bound=gap.is_upper_bound)
        canvas.rect(x, top, width, height, "leaderless", about=_about_gap(gap, lasted))
        _label(
            canvas, x, width, top + 17, (f"no leader, {lasted}", lasted, lasted.replace("at most ", "≤")), look="loss"
        )
    for leadership in history.leaderships:
        x, width = _extent(scale, leadership.start, leadership.end)
        canvas.rect(x, top, max(width - 1, 1), height, "leading", about=_about_leadership(leadership, history))
        name = lane_name(leadership.worker_id)
        short = fitted(name, width - width_of(f" · {leadership.term}", SMALL_LETTER) - LABEL_PADDING, SMALL_LETTER)
        texts = (
            f"{name} · term {leadership.term}",
            *([f"{short} · {leadership.term}"] if len(short) >= MIN_LABEL_CHARS else []),
        )
        _label(canvas, x, width, top + 17, (*texts, str(leadership.term)))


def _about_gap(gap: Gap, lasted: str) -> str:
    return f"no leader for {lasted}" + (": last event to next election" if gap.is_upper_bound else "")


def _about_leadership(leadership: Leadership, history: History) -> str:
    how = f", {leadership.how}" if leadership.how else ", leads still"
    return (
        f"{leadership.worker_id} led term {leadership.term}\n"
        f"{clock_time(leadership.start)} to {clock_time(leadership.end)} UTC, "
        f"{duration(leadership.end - leadership.start)} from {duration(leadership.start - history.start)} on{how}"
    )


def _label(canvas: Canvas, x: float, width: float, foot: float, texts: Iterable[str], *, look: str = "led") -> None:
    """The longest text that fits."""
    text = next((text for text in texts if width_of(text, SMALL_LETTER) + LABEL_PADDING <= width), None)
    if text is not None:
        canvas.text(x + width / 2, foot, text, look, anchor="middle")


def _widest_gap(left: float, right: float, taken: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The most that is free between two places: where it begins, and how wide it is."""
    gaps, free = [], left
    for start, end in taken:
        gaps.append((min(start, right) - free, free))
        free = max(free, end)
    width, begin = max([*gaps, (right - free, free)])
    return begin, width


def _extent(scale: TimeScale, start: float, end: float, least: float = _LEAST_WIDTH) -> tuple[float, float]:
    x = scale.x(start)
    return x, max(scale.x(end) - x, least)


# -------------------------------------------------------------------- lanes


def draw_lane(canvas: Canvas, scale: TimeScale, lane: Lane, *, top: float, height: float) -> None:
    """One worker, in all its lives."""
    ids = "\n".join(f"{incarnation.worker_id}: {incarnation.ending or 'goes on'}" for incarnation in lane.incarnations)
    name = fitted(lane.name, LEFT - 10 - MARGIN, LETTER)
    canvas.text(LEFT - 10, top + height / 2 + 4, name, "ink", anchor="end", about=ids)
    box = _Box(canvas, scale, top=top + 2, height=height - 8)
    ends = [*(scale.x(following.start) for following in lane.incarnations[1:]), RIGHT]
    for incarnation, end in zip(lane.incarnations, ends, strict=True):
        box.draw(incarnation, end=end)


class _Box:
    """Draws lives between two heights; commits go into the five pixels below."""

    def __init__(self, canvas: Canvas, scale: TimeScale, *, top: float, height: float) -> None:
        self._canvas = canvas
        self._scale = scale
        self._top = top
        self._height = height
        self._middle = top + height / 2
        self._foot = top + height

    def draw(self, incarnation: Incarnation, *, end: float) -> None:
        """Draw a life; nothing of it right of `end`, where its next one begins."""
        for kind in _SPANS:
            for span in incarnation.of(kind):
                getattr(self, f"_{kind}")(span, self._about(incarnation, span))
        self._labels(incarnation)
        self._saves(incarnation)
        for sort in _MARKS:
            for mark, count in self._thinned(mark for mark in incarnation.marks if mark.kind == sort):
                getattr(self, f"_{sort}")(self._scale.x(mark.at), self._about_mark(incarnation, mark, count))
        self._end(incarnation, end)

    def _about(self, incarnation: Incarnation, span: Span) -> str:
        times = f"{clock_time(span.start)} to {clock_time(span.end)} UTC, {duration(span.end - span.start)}"
        return f"{incarnation.worker_id} {span.about}\n{times}"

    def _about_mark(self, incarnation: Incarnation, mark: Mark, count: int) -> str:
        more = f" (the last of {count})" if count > 1 else ""
        return f"{incarnation.worker_id} {mark.about}{more}\n{clock_time(mark.at)} UTC"

    def _thinned(self, marks: Iterable[Mark]) -> list[tuple[Mark, int]]:
        places: dict[int, list[Mark]] = {}
        for mark in marks:
            places.setdefault(round(self._scale.x(mark.at)), []).append(mark)
        return [(found[-1], len(found)) for found in places.values()]

    # ---------------------------------------------------------------- spans

    def _waiting(self, span: Span, about: str) -> None:
        x, width = _extent(self._scale, span.start, span.end, 0)
        self._canvas.line(x, self._middle, x + width, self._middle, "waiting", about=about)

    def _training(self, span: Span, about: str) -> None:
        x, width = _extent(self._scale, span.start, span.end, 1)
        high = self._height * 0.5
        self._canvas.rect(x, self._foot - high, width, high, "training", about=about)

    def _leading(self, span: Span, about: str) -> None:
        x, width = _extent(self._scale, span.start, span.end)
        self._canvas.rect(x, self._top, width, self._height, "leading", about=about)

    def _labels(self, incarnation: Incarnation) -> None:
        taken = sorted(self._taken(incarnation))
        for span in incarnation.of("leading") if self._height >= 12 else ():
            x, width = _extent(self._scale, span.start, span.end)
            free, length = _widest_gap(x, x + width, taken)
            _label(self._canvas, free, length, self._middle + 4, (span.about, "leads"))

    def _taken(self, incarnation: Incarnation) -> Iterator[tuple[float, float]]:
        """Where marks and hatchings are, over which no text can be read."""
        for span in incarnation.of("leaving"):
            x, width = _extent(self._scale, span.start, span.end)
            yield x, x + width
        for mark in incarnation.marks:
            if mark.kind in _MARKS:
                x = self._scale.x(mark.at)
                yield x - 6, x + 8

    def _leaving(self, span: Span, about: str) -> None:
        x, width = _extent(self._scale, span.start, span.end)
        self._canvas.rect(x, self._top, width, self._height, "paper")
        self._canvas.rect(x, self._top, width, self._height, "leaving", about=about)

    def _unreachable(self, span: Span, about: str) -> None:
        x, width = _extent(self._scale, span.start, span.end)
        self._canvas.line(x, self._top - 1, x + width, self._top - 1, "unreachable", about=about)

    # ---------------------------------------------------------------- marks

    def _saves(self, incarnation: Incarnation) -> None:
        spans = {round(self._scale.x(span.end)): span for span in incarnation.of("saving")}
        for span in spans.values():
            x, width = _extent(self._scale, span.start, span.end, 0)
            if width >= 2:
                self._canvas.rect(x, self._foot + 1, width, 4, "saving", about=self._about(incarnation, span))
        for mark, count in self._thinned(mark for mark in incarnation.marks if mark.kind == "commit"):
            x = self._scale.x(mark.at)
            self._canvas.line(
                x, self._foot, x, self._foot + 5, "commit", about=self._about_mark(incarnation, mark, count)
            )

    def _restore(self, x: float, about: str) -> None:
        draw_arrow(self._canvas, x, self._middle, about)

    def _notice(self, x: float, about: str) -> None:
        draw_notice(self._canvas, x, self._top + 6, about)

    def _failure(self, x: float, about: str) -> None:
        draw_cross(self._canvas, x, self._middle, about)

    # ---------------------------------------------------------------- ends

    def _end(self, incarnation: Incarnation, end: float) -> None:
        x = self._scale.x(incarnation.end)
        if incarnation.ending == "gone":
            # How long it lived on is not known: the tail has a length of its own.
            width = min(TAIL, max(end - x, _LEAST_WIDTH))
            about = f"{incarnation.worker_id} was not heard of again\nlast word {clock_time(incarnation.end)} UTC"
            self._canvas.rect(x, self._top, width, self._height, "gone", about=about)
            draw_cross(self._canvas, x, self._middle, about)
        elif incarnation.ending == "finished":
            about = f"{incarnation.worker_id} finished\n{clock_time(incarnation.end)} UTC"
            self._canvas.line(x + 1, self._top, x + 1, self._foot, "finish", about=about)
