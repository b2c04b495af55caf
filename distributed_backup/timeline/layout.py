"""Place the parts of the picture, in pixels, and cut text to the width it has.

Limit: text widths are estimates for DejaVu Sans, one of the widest fonts a viewer may use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WIDTH: Final = 1200.0
LEFT: Final = 184.0
RIGHT: Final = 1144.0
MARGIN: Final = 20.0
# Drawn after the last event of a worker that stopped reporting, also beyond RIGHT. How long it ran on is unknown.
TAIL: Final = 36.0

LEGEND_FOOT: Final = 110.0
NUMBERS_TOP: Final = 132.0
LEADERS_TOP: Final = 152.0
LEADERS_HEIGHT: Final = 26.0
LANE_HEIGHT: Final = 26.0
_LANES_TOP: Final = LEADERS_TOP + LEADERS_HEIGHT + 10
_PROGRESS_HEIGHT: Final = 130.0

# Width of a letter, capitals apart: bold of 11 pixels, normal of 13, bold of 20.
SMALL_LETTER: Final = 7.8
LETTER: Final = 8.3
HEAD_LETTER: Final = 14.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """From top to bottom: incident numbers, leaders, one lane per worker, progress, axis, a note on the clocks."""

    lanes: int

    def lane_top(self, number: int) -> float:
        """Return the top of a lane, counted from 0."""
        return _LANES_TOP + number * LANE_HEIGHT

    @property
    def progress_top(self) -> float:
        """The top of the progress chart. Its foot is the axis."""
        return self.lane_top(self.lanes) + 36

    @property
    def axis(self) -> float:
        """The time axis."""
        return self.progress_top + _PROGRESS_HEIGHT

    @property
    def height(self) -> float:
        """The height of the picture."""
        return self.axis + 62


def width_of(text: str, letter: float) -> float:
    """Return an estimate of a text's width. `letter` is the width of a letter."""
    return letter * len(text)


def shortened(text: str, width: float, letter: float) -> str:
    """Return the text, or both of its ends if it is too wide. The ends are what distinguishes ids."""
    if width_of(text, letter) <= width:
        return text
    half = int(width / letter - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
