"""Where the parts of the drawing are, in pixels, and what fits there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WIDTH: Final = 1200.0
LEFT: Final = 184.0
RIGHT: Final = 1180.0
MARGIN: Final = 20.0
# What is drawn of a worker after its last word: how long it lived on is not known.
TAIL: Final = 36.0
# An ordinary letter of bold text of 11 pixels, of text of 13, and of bold text of 13 and 20, in DejaVu Sans: it is
# among the widest of the fonts that a viewer may have.
SMALL_LETTER: Final = 7.8
LETTER: Final = 8.3
BOLD_LETTER: Final = 9.2
HEAD_LETTER: Final = 14.2
# Others in proportion to these.
_PROPORTIONS: Final = {
    **dict.fromkeys(" .,:;|!'·ijlI", 0.53),
    **dict.fromkeys("-()[]/frt", 0.68),
    **dict.fromkeys("mwMW%@…", 1.5),
    "≤": 1.2,
}

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


def width_of(text: str, letter: float) -> float:
    """About how wide a text is, rather too much than too little; `letter` is the width of an ordinary letter."""
    return letter * sum(_proportion(char) for char in text)


def _proportion(char: str) -> float:
    wide = 1.2 if char.isascii() and char.isupper() else 1.0 if ord(char) < 0x1100 else 1.6
    return _PROPORTIONS.get(char, wide)


def fitted(text: str, width: float, letter: float) -> str:
    """As much of a text as fits into `width`."""
    letters = min(len(text), max(0, int(width / letter * 2)))
    while letters and width_of(shortened(text, letters), letter) > width:
        letters -= 1
    return shortened(text, letters)


def shortened(text: str, letters: int) -> str:
    """Text of at most so many letters; what is left out is in the middle, for ids differ at their ends."""
    if len(text) <= letters:
        return text
    head = (letters - 1) // 2
    return f"{text[:head]}…{text[len(text) - (letters - 1 - head) :]}" if letters > 2 else text[:letters]
