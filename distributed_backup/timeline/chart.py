"""The drawing of a run, as one SVG: who led when, what each worker did, how far the run came, what it cost.

It holds no scripts, loads nothing, and is the same for the same events. It is as wide as a screen and as high as it has
lanes. A run of a second and one of a week have the same width: what was short may be drawn longer than it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from distributed_backup.timeline.history import History
from distributed_backup.timeline.incidents import IncidentCost, costliest
from distributed_backup.timeline.labels import CLOCKS, HEADINGS, NO_COST, cells, leaders, summary, title
from distributed_backup.timeline.layout import (
    BOLD_LETTER,
    HEAD_LETTER,
    LEFT,
    LETTER,
    MARGIN,
    RIGHT,
    TAIL,
    WIDTH,
    Layout,
    fitted,
    width_of,
)
from distributed_backup.timeline.legend import draw_legend
from distributed_backup.timeline.progress_chart import draw_course
from distributed_backup.timeline.styles import patterns, style
from distributed_backup.timeline.svg import Canvas
from distributed_backup.timeline.time_scale import TimeScale, clock_time, date, duration
from distributed_backup.timeline.worker_lanes import draw_lane, draw_leaders, draw_numbers

_ROWS: Final = 40
_ROW_HEIGHT: Final = 20.0
# Between columns, at least; the columns that may be cut first, and the width that they keep.
_GAP: Final = 18.0
_FREE: Final = (HEADINGS.index("Worker"), HEADINGS.index("What happened"))
MIN_COLUMN_WIDTH: Final = 170.0


def draw(history: History, costs: Sequence[IncidentCost], *, with_table: bool = True) -> str:
    """The SVG.

    Args:
        history: The run.
        costs: What `costs_of` found in it.
        with_table: Whether the costs stand below the picture too.
    """
    layout = Layout(lanes=len(history.lanes))
    scale = _scale(history)
    description = " ".join((*summary(history, costs), *leaders(history)))
    canvas = Canvas(width=WIDTH, title=title(history), description=description)
    canvas.define(style(), patterns())
    rows = costliest(history, costs, _ROWS) if with_table else []
    height = layout.table + (_table_height(len(rows)) if rows else 0)
    canvas.rect(0, 0, WIDTH, height, "paper")
    _draw_head(canvas, history, costs)
    _draw_stripes(canvas, layout)
    _draw_axis(canvas, scale, layout)
    draw_leaders(canvas, scale, layout, history)
    for number, lane in enumerate(history.lanes):
        draw_lane(canvas, scale, lane, top=layout.lane(number), height=layout.lane_height)
    draw_course(canvas, scale, layout, history, costs)
    draw_numbers(canvas, scale, layout, costs)
    canvas.text(MARGIN, layout.axis + 50, CLOCKS, "small")
    if rows:
        _draw_table(canvas, layout.table, history, rows, more=len(costs) - len(rows))
    return canvas.source(height)


def _scale(history: History) -> TimeScale:
    """From edge to edge; with some room where somebody is gone at the end."""
    scale = TimeScale(start=history.start, end=history.end, left=LEFT, right=RIGHT)
    last = max(
        (scale.x(incarnation.end) for incarnation in history.incarnations if incarnation.ending == "gone"), default=0.0
    )
    return replace(scale, right=RIGHT - TAIL) if last > RIGHT - TAIL else scale


# -------------------------------------------------------------------- head


def _draw_head(canvas: Canvas, history: History, costs: Sequence[IncidentCost]) -> None:
    canvas.text(MARGIN, 30, fitted(title(history), WIDTH - 2 * MARGIN, HEAD_LETTER), "head")
    for number, line in enumerate(summary(history, costs)):
        canvas.text(MARGIN, 50 + 18 * number, line, "muted" if number == 0 else "ink")
    draw_legend(canvas, 92)


# -------------------------------------------------------------------- ground


def _draw_stripes(canvas: Canvas, layout: Layout) -> None:
    for number in range(0, layout.lanes, 2):
        canvas.rect(MARGIN, layout.lane(number), WIDTH - 2 * MARGIN, layout.lane_height, "stripe")


def _draw_axis(canvas: Canvas, scale: TimeScale, layout: Layout) -> None:
    foot, day = layout.axis, ""
    canvas.text(LEFT - 10, foot + 17, "after", "small", anchor="end")
    canvas.text(LEFT - 10, foot + 32, "UTC", "small", anchor="end")
    canvas.line(LEFT, foot, RIGHT, foot, "rule")
    for tick in scale.ticks():
        x = scale.x(tick)
        canvas.line(x, layout.leaders, x, foot + 5, "grid")
        anchor = "end" if x > RIGHT - 30 else "middle" if x > LEFT + 30 else "start"
        canvas.text(x, foot + 17, duration(tick - scale.start) if tick > scale.start else "0", "small", anchor=anchor)
        shown, day = day, date(tick)
        when = clock_time(tick, step=scale.step)
        canvas.text(x, foot + 32, when if day == shown else f"{day[5:]} {when}", "small", anchor=anchor)


# -------------------------------------------------------------------- table


def _table_height(rows: int) -> float:
    return (rows + 2) * _ROW_HEIGHT + MARGIN


def _draw_table(canvas: Canvas, top: float, history: History, costs: Sequence[IncidentCost], *, more: int) -> None:
    rows = [cells(history, cost) for cost in costs]
    columns = list(_columns(rows))
    for (x, _), heading in zip(columns, HEADINGS, strict=True):
        canvas.text(x, top + 14, heading, "bold")
    canvas.line(MARGIN, top + 20, WIDTH - MARGIN, top + 20, "rule")
    foot = top + 16
    for row in rows:
        foot += _ROW_HEIGHT
        for (x, width), cell in zip(columns, row, strict=True):
            shown = fitted(cell, width, LETTER)
            look = "muted" if cell in NO_COST else "ink"
            canvas.text(x, foot, shown, look, about=cell if shown != cell else "")
    if more:
        canvas.text(columns[1][0], foot + _ROW_HEIGHT, f"{more} more, which cost no more than these", "muted")


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[tuple[float, float]]:
    """Where each column begins, and how wide it is: as its widest cell, where that is not too much for the picture."""
    heads = [width_of(heading, BOLD_LETTER) for heading in HEADINGS]
    widths = [
        max(head, *(width_of(cell, LETTER) for cell in column))
        for head, column in zip(heads, zip(*rows, strict=True), strict=True)
    ]
    room = WIDTH - 2 * MARGIN - _GAP * (len(widths) - 1)
    while sum(widths) > room:
        # Free text first: ids and reasons may have any length.
        free = [column for column in _FREE if widths[column] > MIN_COLUMN_WIDTH]
        widest = max(free or range(len(widths)), key=lambda column: widths[column])
        widths[widest] -= min(sum(widths) - room, widths[widest] / 20)
    # What is left over is shared between them.
    gap = _GAP + min((room - sum(widths)) / len(widths), 2 * _GAP)
    x = MARGIN
    for width in widths:
        yield x, width
        x += width + gap
