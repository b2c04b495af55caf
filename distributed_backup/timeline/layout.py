"""Where the parts of the drawing are, in pixels, and what fits there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WIDTH: Final = 1200.0
LEFT: Final = 184.0
RIGHT: Final = 1180.0
MARGIN: Final = 20.0
# A letter of 11 and one of 13 pixels, on average; what is measured by these is cut a little early.
SMALL_LETTER: Final = 6.4
LETTER: Final = 7.4

_LEADERS: Final = 122.0
_LEADERS_HEIGHT: Final = 26.0
_COURSE_HEIGHT: Final = 130.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """From top to bottom: numbers, leaders, lanes, course, axis, table.

    Args:
        lanes: How many.
    """

    lanes: int

    @property
    def numbers(self) -> float:
        """Top of the numbers of the costs."""
        return _LEADERS - 20

    @property
    def leaders(self) -> float:
        """Top of the strip of leaders."""
        return _LEADERS

    @property
    def leaders_height(self) -> float:
        """Its height."""
        return _LEADERS_HEIGHT

    @property
    def lane_height(self) -> float:
        """Many lanes are low ones."""
        return 28.0 if self.lanes <= 12 else 20.0 if self.lanes <= 32 else 15.0

    def lane(self, number: int) -> float:
        """Top of a lane, counted from 0."""
        return _LEADERS + _LEADERS_HEIGHT + 10 + number * self.lane_height

    @property
    def course(self) -> float:
        """Top of the curve of progress."""
        return self.lane(self.lanes) + 36

    @property
    def axis(self) -> float:
        """The axis of time, at the foot of the curve."""
        return self.course + _COURSE_HEIGHT

    @property
    def table(self) -> float:
        """Top of the table of costs."""
        return self.axis + 62


def shortened(text: str, letters: int) -> str:
    """Text of at most so many letters; what is left out is in the middle, for ids differ at their ends."""
    if len(text) <= letters:
        return text
    head = (letters - 1) // 2
    return f"{text[:head]}…{text[len(text) - (letters - 1 - head) :]}" if letters > 2 else text[:letters]
