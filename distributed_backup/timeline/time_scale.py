"""Time on a line: where an instant is drawn, which instants are named, and how durations and instants read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

_FINE: Final[tuple[float, ...]] = tuple(base / 1000 * 10**power for power in range(4) for base in (1, 2, 5))
_CLOCK: Final = (10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)
_DAYS: Final[tuple[float, ...]] = tuple(86400 * base * 10**power for power in range(9) for base in (1, 2, 5))
_MOST_TICKS: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeScale:
    """Maps instants from `start` to `end` to places from `left` to `right`.

    Args:
        start: Seconds since 1970.
        end: The same; not before `start`.
        left: Where `start` is drawn.
        right: Where `end` is drawn.
    """

    start: float
    end: float
    left: float
    right: float

    @property
    def _length(self) -> float:
        return max(self.end - self.start, 0.001)

    def x(self, instant: float) -> float:
        """Where an instant is drawn; what lies outside is drawn at the edge."""
        share = (instant - self.start) / self._length
        return self.left + min(max(share, 0.0), 1.0) * (self.right - self.left)

    @property
    def step(self) -> float:
        """Seconds between two ticks: the least round duration that gives no more than nine."""
        return next(step for step in (*_FINE, *_CLOCK, *_DAYS) if self._length / step < _MOST_TICKS)

    def ticks(self) -> list[float]:
        """Instants that are round durations after the start."""
        return [self.start + number * self.step for number in range(math.floor(self._length / self.step) + 1)]


def duration(seconds: float) -> str:
    """A duration as people say it, to about three figures.

    Example:
        >>> duration(0.25), duration(83), duration(7380)
        ('0.25 s', '1 min 23 s', '2 h 3 min')
    """
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    if round(seconds) < 3600:
        return _two(round(seconds), 60, "min", "s")
    if round(seconds / 60) < 1440:
        return _two(round(seconds / 60), 60, "h", "min")
    return _two(round(seconds / 3600), 24, "d", "h")


def _two(count: int, base: int, great: str, small: str) -> str:
    whole, rest = divmod(count, base)
    return f"{whole} {great} {rest} {small}" if rest else f"{whole} {great}"


def clock_time(instant: float, *, step: float = 1.0) -> str:
    """The time of day, UTC, as finely as ticks `step` seconds apart need it."""
    at = datetime.fromtimestamp(instant, UTC)
    if step < 1.0:
        return f"{at:%H:%M:%S}.{at.microsecond // 1000:03}"
    return f"{at:%H:%M:%S}" if step < 3600 else f"{at:%H:%M}"


def date(instant: float) -> str:
    """The day, UTC."""
    return f"{datetime.fromtimestamp(instant, UTC):%Y-%m-%d}"
