"""Draw the legend, and the marks that the lanes share with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from distributed_backup.timeline.layout import LETTER, MARGIN
from distributed_backup.timeline.svg import Canvas


def draw_legend(canvas: Canvas, foot: float) -> None:
    """Draw one line of samples, each followed by its meaning."""
    x = MARGIN
    for width, sample, word in _SAMPLES:
        sample(canvas, x, foot)
        canvas.text(x + width + 5, foot, word, "muted")
        x += width + 11 + LETTER * len(word)


def draw_cross(canvas: Canvas, x: float, y: float, about: str = "") -> None:
    """Draw the mark of a failure around this point."""
    cross = [(x - 4, y - 4), (x + 4, y + 4), (x, y), (x - 4, y + 4), (x + 4, y - 4)]
    canvas.polyline(cross, "halo")
    canvas.polyline(cross, "failure", about=about)


def draw_arrow(canvas: Canvas, x: float, y: float, about: str = "") -> None:
    """Draw the mark of a restore to the right of this point."""
    canvas.polygon([(x, y - 5), (x + 7, y), (x, y + 5)], "restore", about=about)


def draw_replay(canvas: Canvas, x: float, y: float, about: str = "") -> None:
    """Draw the mark of a replay to the left of this point, where it ended."""
    halves = ((x - 12, y - 5), (x - 6, y), (x - 6, y - 5), (x, y), (x - 6, y + 5), (x - 6, y), (x - 12, y + 5))
    canvas.polygon(halves, "replay", about=about)


def draw_notice(canvas: Canvas, x: float, y: float, about: str = "") -> None:
    """Draw the mark of a notice with its tip at this point."""
    canvas.polygon([(x - 5, y - 8), (x + 5, y - 8), (x, y)], "notice", about=about)


def _bar(look: str, height: float = 11) -> Callable[[Canvas, float, float], None]:
    return lambda canvas, x, foot: canvas.rect(x, foot + 1 - height, 18, height, look)


def _across(look: str) -> Callable[[Canvas, float, float], None]:
    return lambda canvas, x, foot: canvas.line(x, foot - 4, x + 18, foot - 4, look)


def _upright(look: str) -> Callable[[Canvas, float, float], None]:
    return lambda canvas, x, foot: canvas.line(x + 1, foot - 9, x + 1, foot, look)


_SAMPLES: Final[tuple[tuple[float, Callable[[Canvas, float, float], None], str], ...]] = (
    (18, _bar("leading"), "leads"),
    (18, _bar("training", 6), "trains"),
    (18, _across("waiting"), "waits"),
    (8, lambda canvas, x, foot: draw_arrow(canvas, x, foot - 4), "restore"),
    (12, lambda canvas, x, foot: draw_replay(canvas, x + 12, foot - 4), "replay"),
    (2, _upright("commit"), "commit"),
    (10, lambda canvas, x, foot: draw_notice(canvas, x + 5, foot), "notice"),
    (18, _bar("exiting"), "exits"),
    (2, _upright("finish"), "finished"),
    (18, _bar("gone"), "stopped reporting"),
    (9, lambda canvas, x, foot: draw_cross(canvas, x + 4, foot - 4), "failure"),
    (18, _across("unreachable"), "no coordinator"),
    (18, _bar("leaderless"), "no leader"),
)
