"""Draw the lower part of the picture: the progress of the run over time, and where it was set back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from distributed_backup.position import Position
from distributed_backup.timeline.history import History
from distributed_backup.timeline.incarnations import Incarnation
from distributed_backup.timeline.incidents import IncidentCost
from distributed_backup.timeline.layout import LEFT, RIGHT, Layout
from distributed_backup.timeline.svg import Canvas
from distributed_backup.timeline.time_scale import TimeScale

type Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heights:
    """Maps positions to heights: epochs from `low` to `high`, in pixels from `foot` to `top`."""

    low: int
    high: int
    size: int
    top: float
    foot: float

    def y(self, position: Position) -> float:
        return self.level(position.epoch + (position.batch / self.size if self.size else 0.0))

    def level(self, epochs: float) -> float:
        return self.foot - (epochs - self.low) / (self.high - self.low) * (self.foot - self.top)

    def ticks(self) -> range:
        step = next(
            base * 10**power
            for power in range(9)
            for base in (1, 2, 5)
            if (self.high - self.low) / (base * 10**power) <= 5
        )
        return range(math.ceil(self.low / step) * step, self.high + 1, step)


def draw_progress(
    canvas: Canvas, scale: TimeScale, layout: Layout, history: History, costs: Sequence[IncidentCost]
) -> None:
    """Draw a curve for each worker, a strong one for each leader, and a drop for batches to repeat."""
    heights = _heights(history, layout)
    canvas.text(LEFT - 10, layout.progress_top - 14, "Epochs done", "bold", anchor="end")
    for epoch in heights.ticks():
        y = heights.level(epoch)
        canvas.line(LEFT, y, RIGHT, y, "grid")
        canvas.text(LEFT - 10, y + 4, str(epoch), "small", anchor="end")
    tracks = [(trained, _points(trained, scale, heights)) for trained in history.incarnations if trained.track]
    for incarnation, points in tracks:
        canvas.polyline(points, "track", about=f"progress of {incarnation.worker_id}")
    for incarnation, points in tracks:
        for held in incarnation.leaderships:
            part = _between(points, scale.x(held.start), scale.x(held.end))
            if part:
                about = f"progress of {incarnation.worker_id} as the leader of term {held.term}"
                canvas.polyline(part, "leader-track", about=about)
    _draw_drops(canvas, scale, heights, costs)


def _heights(history: History, layout: Layout) -> _Heights:
    epochs = [
        position.epoch + bool(position.batch)
        for incarnation in history.incarnations
        for _, position in incarnation.track
    ]
    low = min((position.epoch for incarnation in history.incarnations for _, position in incarnation.track), default=0)
    high = max(max(epochs, default=1), low + 1)
    return _Heights(low=low, high=high, size=history.epoch_size, top=layout.progress_top, foot=layout.axis)


def _points(incarnation: Incarnation, scale: TimeScale, heights: _Heights) -> Points:
    """Return one point per pixel, the last one on it."""
    places = {round(scale.x(at)): (scale.x(at), heights.y(position)) for at, position in incarnation.track}
    return list(places.values())


def _between(points: Points, left: float, right: float) -> Points:
    """Return the part of a line between two vertical ones."""
    inside = [point for point in points if left <= point[0] <= right]
    crossings = [
        (edge, y1 + (y2 - y1) * (edge - x1) / (x2 - x1))
        for (x1, y1), (x2, y2) in pairwise(points)
        for edge in (left, right)
        if x1 < edge < x2
    ]
    return sorted([*inside, *crossings], key=lambda point: point[0])


def _draw_drops(canvas: Canvas, scale: TimeScale, heights: _Heights, costs: Iterable[IncidentCost]) -> None:
    """Draw the times without training, and how far each restore set the run back."""
    free = LEFT
    for cost in costs:
        if cost.resumed_at is None or cost.reached is None or cost.resumed is None:
            continue
        x, high, low = scale.x(cost.resumed_at), heights.y(cost.reached), heights.y(cost.resumed)
        if cost.without_training:
            canvas.line(scale.x(cost.resumed_at - cost.without_training), high, x, high, "incident")
        if cost.batches == 0:
            continue
        about = f"{cost.worker_id} had reached {cost.reached}, training resumed from {cost.resumed}"
        canvas.line(x, high, x, low, "drop", about=about)
        if x > free:
            label = "?" if cost.batches is None else f"-{cost.batches}{'+' if cost.more else ''}"
            canvas.text(x - 5, min(low + 12, heights.foot - 4), label, "loss", anchor="end")
            free = x + 8 * len(label)
