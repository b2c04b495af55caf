"""Draw the lower part of the picture: the progress of the run over time, and where it was set back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from distributed_backup.position import Position
from distributed_backup.timeline.history import History
from distributed_backup.timeline.incidents import IncidentCost
from distributed_backup.timeline.layout import LEFT, PROGRESS_HEIGHT, RIGHT
from distributed_backup.timeline.scale import EPOCH_STEPS, Scale
from distributed_backup.timeline.svg import Canvas

type Track = Iterable[tuple[float, Position]]


def draw_progress(
    canvas: Canvas, scale: Scale, history: History, costs: Sequence[IncidentCost], *, axis: float
) -> None:
    """Draw a curve for each worker, a strong one for each leader, and a drop for batches to repeat."""
    chart = _Chart(canvas, scale, history, axis)
    chart.draw_axis()
    for incarnation in history.incarnations:
        chart.draw_track(incarnation.track, "track", f"progress of {incarnation.worker_id}")
    for incarnation in history.incarnations:
        for held in incarnation.leaderships:
            led = [(at, position) for at, position in incarnation.track if held.start <= at <= held.end]
            about = f"progress of {incarnation.worker_id} as the leader of term {held.term}"
            chart.draw_track(led, "leader-track", about)
    chart.draw_drops(costs)


class _Chart:
    def __init__(self, canvas: Canvas, scale: Scale, history: History, axis: float) -> None:
        self._canvas = canvas
        self._scale = scale
        self._epoch_size = history.epoch_size
        epochs = [self._epochs(position) for trained in history.incarnations for _, position in trained.track] or [0.0]
        low = math.floor(min(epochs))
        high = max(math.ceil(max(epochs)), low + 1)
        self._heights = Scale(start=low, end=high, first=axis, last=axis - PROGRESS_HEIGHT, steps=EPOCH_STEPS)

    def _epochs(self, position: Position) -> float:
        return position.epoch + (position.batch / self._epoch_size if self._epoch_size else 0.0)

    def _y(self, position: Position) -> float:
        return self._heights.pixel(self._epochs(position))

    def draw_axis(self) -> None:
        self._canvas.text(LEFT - 10, self._heights.last - 14, "Epochs done", "bold", anchor="end")
        for epoch in self._heights.ticks():
            y = self._heights.pixel(epoch)
            self._canvas.line(LEFT, y, RIGHT, y, "grid")
            self._canvas.text(LEFT - 10, y + 4, f"{epoch:.0f}", "small", anchor="end")

    def draw_track(self, track: Track, look: str, about: str) -> None:
        """Draw a curve with one point per pixel, the last one on it."""
        points = {round(x): (x, self._y(position)) for at, position in track for x in [self._scale.pixel(at)]}
        if points:
            self._canvas.polyline(list(points.values()), look, about=about)

    def draw_drops(self, costs: Iterable[IncidentCost]) -> None:
        """Draw the times without training, and how far each restore set the run back."""
        free = LEFT
        for cost in costs:
            if cost.resumed_at is None or cost.reached is None or cost.resumed is None:
                continue
            x, high, low = self._scale.pixel(cost.resumed_at), self._y(cost.reached), self._y(cost.resumed)
            if cost.without_training:
                stopped_at = self._scale.pixel(cost.resumed_at - cost.without_training)
                self._canvas.line(stopped_at, high, x, high, "incident")
            if cost.batches == 0:
                continue
            about = f"{cost.worker_id} had reached {cost.reached}, training resumed from {cost.resumed}"
            self._canvas.line(x, high, x, low, "drop", about=about)
            if x > free:
                label = "?" if cost.batches is None else f"-{cost.batches}"
                self._canvas.text(x - 5, min(low + 12, self._heights.first - 4), label, "loss", anchor="end")
                free = x + 8 * len(label)
