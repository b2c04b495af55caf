"""Place the parts of the picture, in pixels.

Limit: the widths of letters are estimates for DejaVu Sans, one of the widest fonts a viewer may use.
"""

from __future__ import annotations

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
# Below the lanes: the progress chart with the time axis at its foot, and a note on the clocks.
PROGRESS_HEIGHT: Final = 130.0

# Width of a letter, capitals apart: bold of 11 pixels, normal of 13.
SMALL_LETTER: Final = 7.8
LETTER: Final = 8.3


def lane_top(number: int) -> float:
    """Return the top of a worker's lane, counted from 0. The lanes are below the leaders."""
    return LEADERS_TOP + LEADERS_HEIGHT + 10 + number * LANE_HEIGHT
