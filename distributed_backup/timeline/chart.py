"""Draw a run as one SVG: the leaders, a lane per worker, the run's progress, and a number at each incident.

The SVG contains no script and loads nothing. The same events give the same bytes. Its width is fixed and its height
grows with the number of workers. Limit: a run of seconds and a run of weeks have the same width, so short bars are
widened until they can be seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from distributed_backup.timeline.history import History
from distributed_backup.timeline.incidents import IncidentCost
from distributed_backup.timeline.labels import CLOCKS, summary, title
from distributed_backup.timeline.layout import (
    LANE_HEIGHT,
    LEADERS_TOP,
    LEFT,
    LEGEND_FOOT,
    MARGIN,
    PROGRESS_HEIGHT,
    RIGHT,
    WIDTH,
    lane_top,
)
from distributed_backup.timeline.legend import draw_legend
from distributed_backup.timeline.progress_chart import draw_progress
from distributed_backup.timeline.scale import TIME_STEPS, Scale, clock_time, duration
from distributed_backup.timeline.svg import Canvas
from distributed_backup.timeline.worker_lanes import draw_incidents, draw_lane, draw_leaders


def draw(history: History, costs: Sequence[IncidentCost]) -> str:
    """Return the SVG of a run and of the incidents that `costs_of` found in it."""
    scale = Scale(start=history.start, end=history.end, first=LEFT, last=RIGHT, steps=TIME_STEPS)
    axis = lane_top(len(history.lanes)) + 36 + PROGRESS_HEIGHT
    lines = summary(history, costs)
    canvas = Canvas(WIDTH, axis + 62, title=title(history), description=". ".join(lines))
    canvas.text(MARGIN, 30, title(history), "head")
    for number, line in enumerate(lines):
        canvas.text(MARGIN, 50 + 18 * number, line, "muted" if number == 0 else "ink")
    draw_legend(canvas, LEGEND_FOOT)
    for number in range(0, len(history.lanes), 2):
        canvas.rect(MARGIN, lane_top(number), WIDTH - 2 * MARGIN, LANE_HEIGHT, "stripe")
    _draw_axis(canvas, scale, axis)
    draw_incidents(canvas, scale, history, costs, axis=axis)
    draw_leaders(canvas, scale, history)
    for number, lane in enumerate(history.lanes):
        draw_lane(canvas, scale, lane, top=lane_top(number))
    draw_progress(canvas, scale, history, costs, axis=axis)
    canvas.text(MARGIN, axis + 50, CLOCKS, "small")
    return canvas.source()


def _draw_axis(canvas: Canvas, scale: Scale, axis: float) -> None:
    canvas.text(LEFT - 60, axis + 17, "after", "small", anchor="end")
    canvas.text(LEFT - 60, axis + 32, "UTC", "small", anchor="end")
    canvas.line(LEFT, axis, RIGHT, axis, "rule")
    for tick in scale.ticks():
        x = scale.pixel(tick)
        canvas.line(x, LEADERS_TOP, x, axis + 5, "grid")
        canvas.text(x, axis + 17, duration(tick - scale.start), "small", anchor="middle")
        canvas.text(x, axis + 32, clock_time(tick, step=scale.step), "small", anchor="middle")
