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
    HEAD_LETTER,
    LANE_HEIGHT,
    LEADERS_TOP,
    LEFT,
    LEGEND_FOOT,
    MARGIN,
    RIGHT,
    WIDTH,
    Layout,
    shortened,
)
from distributed_backup.timeline.legend import draw_legend
from distributed_backup.timeline.progress_chart import draw_progress
from distributed_backup.timeline.scale import TIME_STEPS, Scale, clock_time, date, duration
from distributed_backup.timeline.styles import style
from distributed_backup.timeline.svg import Canvas
from distributed_backup.timeline.worker_lanes import draw_incidents, draw_lane, draw_leaders


def draw(history: History, costs: Sequence[IncidentCost]) -> str:
    """Return the SVG of a run and of the incidents that `costs_of` found in it."""
    layout = Layout(lanes=len(history.lanes))
    scale = Scale(start=history.start, end=history.end, first=LEFT, last=RIGHT, steps=TIME_STEPS)
    description = " ".join(f"{line}." for line in summary(history, costs))
    canvas = Canvas(width=WIDTH, title=title(history), description=description, style=style())
    canvas.rect(0, 0, WIDTH, layout.height, "paper")
    _draw_head(canvas, history, costs)
    for number in range(0, layout.lanes, 2):
        canvas.rect(MARGIN, layout.lane_top(number), WIDTH - 2 * MARGIN, LANE_HEIGHT, "stripe")
    _draw_axis(canvas, scale, layout)
    draw_incidents(canvas, scale, layout, history, costs)
    draw_leaders(canvas, scale, history)
    for number, lane in enumerate(history.lanes):
        draw_lane(canvas, scale, lane, top=layout.lane_top(number))
    draw_progress(canvas, scale, layout, history, costs)
    canvas.text(MARGIN, layout.axis + 50, CLOCKS, "small")
    return canvas.source(layout.height)


def _draw_head(canvas: Canvas, history: History, costs: Sequence[IncidentCost]) -> None:
    canvas.text(MARGIN, 30, shortened(title(history), WIDTH - 2 * MARGIN, HEAD_LETTER), "head")
    for number, line in enumerate(summary(history, costs)):
        canvas.text(MARGIN, 50 + 18 * number, line, "muted" if number == 0 else "ink")
    draw_legend(canvas, LEGEND_FOOT)


def _draw_axis(canvas: Canvas, scale: Scale, layout: Layout) -> None:
    foot, day = layout.axis, ""
    canvas.text(LEFT - 10, foot + 17, "after", "small", anchor="end")
    canvas.text(LEFT - 10, foot + 32, "UTC", "small", anchor="end")
    canvas.line(LEFT, foot, RIGHT, foot, "rule")
    for tick in scale.ticks():
        x = scale.pixel(tick)
        canvas.line(x, LEADERS_TOP, x, foot + 5, "grid")
        anchor = "end" if x > RIGHT - 30 else "middle" if x > LEFT + 30 else "start"
        canvas.text(x, foot + 17, duration(tick - scale.start) if tick > scale.start else "0", "small", anchor=anchor)
        shown, day = day, date(tick)
        when = clock_time(tick, step=scale.step)
        canvas.text(x, foot + 32, when if day == shown else f"{day[5:]} {when}", "small", anchor=anchor)
