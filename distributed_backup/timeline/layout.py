"""Place the parts of the picture, in pixels, and cut text to the width it has.

Limit: text widths are estimates for DejaVu Sans, one of the widest fonts a viewer may use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WIDTH: Final = 1200.0
LEFT: Final = 184.0
RIGHT: Final = 1180.0
MARGIN: Final = 20.0
# Drawn after the last event of a worker that stopped reporting. How long it ran on is unknown.
TAIL: Final = 36.0

LEGEND_FOOT: Final = 110.0
NUMBERS_TOP: Final = 132.0
LEADERS_TOP: Final = 152.0
LEADERS_HEIGHT: Final = 26.0
LANE_HEIGHT: Final = 26.0
_LANES_TOP: Final = LEADERS_TOP + LEADERS_HEIGHT + 10
_PROGRESS_HEIGHT: Final = 130.0

# Width of an ordinary letter: bold of 11 pixels, normal of 13, bold of 20.
SMALL_LETTER: Final = 7.8
LETTER: Final = 8.3
HEAD_LETTER: Final = 14.2
# Widths of other characters in proportion to these.
_PROPORTIONS: Final = {
    **dict.fromkeys(" .,:;|!'·ijlI", 0.53),
    **dict.fromkeys("-()[]/frt", 0.68),
    **dict.fromkeys("mwMW%@…", 1.5),
    "≤": 1.2,
}


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
    """Return an upper estimate of a text's width. `letter` is the width of an ordinary letter."""
    return letter * sum(_proportion(char) for char in text)


def _proportion(char: str) -> float:
    wide = 1.2 if char.isascii() and char.isupper() else 1.0 if ord(char) < 0x1100 else 1.6
    return _PROPORTIONS.get(char, wide)


def fitted(text: str, width: float, letter: float) -> str:
    """Return the text, or as much of it as fits. Cut the middle, because ids differ at their ends."""
    if width_of(text, letter) <= width:
        return text
    # Half an ordinary letter is the narrowest, so more characters than this can't fit.
    for kept in range(min(len(text), int(width / letter * 2)), 1, -1):
        cut = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
        if width_of(cut, letter) <= width:
            return cut
    return ""
