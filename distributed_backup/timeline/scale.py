"""Map times and epochs to pixels, choose the ticks of an axis, and write durations and instants as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

_MILLISECONDS: Final = tuple(base / 1000 * 10**power for power in range(4) for base in (1, 2, 5))
_CLOCK: Final = (10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)
EPOCH_STEPS: Final[tuple[float, ...]] = tuple(base * 10**power for power in range(9) for base in (1, 2, 5))
TIME_STEPS: Final[tuple[float, ...]] = (*_MILLISECONDS, *_CLOCK, *(86400 * step for step in EPOCH_STEPS))
_MOST_TICKS: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps values from `start` to `end` to pixels from `first` to `last`. Two ticks differ by one of `steps`."""

    start: float
    end: float
    first: float
    last: float
    steps: tuple[float, ...]

    @property
    def _length(self) -> float:
        return max(self.end - self.start, 0.001)

    def pixel(self, value: float) -> float:
        """Return the pixel of a value. Values outside the scale are at its edges."""
        share = (value - self.start) / self._length
        return self.first + min(max(share, 0.0), 1.0) * (self.last - self.first)

    @property
    def step(self) -> float:
        """The difference of two ticks: the shortest step with at most nine ticks."""
        return next(step for step in self.steps if self._length / step < _MOST_TICKS)

    def ticks(self) -> list[float]:
        """Return the start and the values that are multiples of `step` after it."""
        return [self.start + number * self.step for number in range(math.floor(self._length / self.step) + 1)]


def duration(seconds: float) -> str:
    """Return a duration with about three digits.

    Example:
        >>> duration(0.02), duration(0.25), duration(83), duration(7380)
        ('20 ms', '0.25 s', '1 min 23 s', '2 h 3 min')
    """
    if 0 < seconds < 0.09995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    if round(seconds) < 3600:
        return _two(round(seconds), 60, "min", "s")
    if round(seconds / 60) < 1440:
        return _two(round(seconds / 60), 60, "h", "min")
    return _two(round(seconds / 3600), 24, "d", "h")


def _two(count: int, base: int, large: str, small: str) -> str:
    whole, rest = divmod(count, base)
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number and what it counts.

    Example:
        >>> counted(1, "answer"), counted(2, "answer"), counted(0, "batch", "batches")
        ('1 answer', '2 answers', '0 batches')
    """
    return f"{count} {one if count == 1 else many or one + 's'}"


def clock_time(instant: float, *, step: float = 1.0) -> str:
    """Return the UTC time, with the precision that ticks `step` seconds apart need. Hours need the date, too."""
    at = datetime.fromtimestamp(instant, UTC)
    if step < 1.0:
        return f"{at:%H:%M:%S}.{at.microsecond // 1000:03}"
    return f"{at:%H:%M:%S}" if step < 3600 else f"{at:%m-%d %H:%M}"


def date(instant: float) -> str:
    """Return the UTC date."""
    return f"{datetime.fromtimestamp(instant, UTC):%Y-%m-%d}"
