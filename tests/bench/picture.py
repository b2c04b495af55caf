"""Draw the ratios to the goals: a bar for each comparison that has one, and a line at the goal.

The bars have a logarithmic scale, because the ratios differ by a factor of 100. The numbers stand beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from distributed_backup.timeline.svg import Canvas

if TYPE_CHECKING:
    from tests.bench.results import Comparison

_WIDTH: Final = 960.0
_TOP: Final = 84.0
_ROW: Final = 24.0
_BAR: Final = 430.0
_UNIT: Final = 130.0
# Shares of the goal at the ends of the scale.
_LEAST: Final = 0.01
_MOST: Final = 20.0


def picture(comparisons: Sequence[Comparison]) -> str:
    """Return the picture as SVG."""
    drawn = [each for each in comparisons if each.is_met is not None]
    height = _TOP + _ROW * len(drawn) + 24
    canvas = Canvas(_WIDTH, height, title="Benchmarks", description="Our medians as a share of the goal.")
    canvas.text(20, 32, "Our median as a share of the goal", "head")
    canvas.text(20, 56, "Left of the line, the goal is reached. The scale is logarithmic.", "muted")
    for number, each in enumerate(drawn):
        _draw(canvas, _TOP + _ROW * number, each)
    goal = _BAR + _place(1.0)
    canvas.line(goal, _TOP - 8, goal, height - 16, "finish")
    return canvas.source()


def _draw(canvas: Canvas, top: float, each: Comparison) -> None:
    found = each.measured
    assert each.ratio is not None
    share = each.ratio / found["goal"]
    versus = "" if found["who"] == "ours" else f", against {found['who']}"
    canvas.text(20, top + 15, f"{found['figure']}: {found['case']}{versus}", "ink")
    canvas.rect(_BAR, top + 3, _place(share), _ROW - 8, "saving" if each.is_met else "notice")
    unit = f" {found['unit']}" if found["who"] == "ours" else ""
    canvas.text(_WIDTH - 20, top + 15, f"{each.ratio:.2f} of {found['goal']:g}{unit}", "small", anchor="end")


def _place(share: float) -> float:
    """Return the pixels of a share of the goal."""
    bounded = min(max(share, _LEAST), _MOST)
    return _UNIT * math.log10(bounded / _LEAST)
