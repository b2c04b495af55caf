"""Time calls, and report medians in Markdown. Nothing here imports synalinks.

Compare only ratios of medians of one run: other work on the machine changes the medians themselves.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

from tests.bench.results import Measured, Report, short


def seconds(call: Callable[[], Any]) -> float:
    """Return the seconds that `call` takes, without the release of its result."""
    start = time.perf_counter()
    result = call()
    taken = time.perf_counter() - start
    del result
    return taken


@contextmanager
def imports_frozen() -> Iterator[None]:
    """Exempt what exists now from garbage collection.

    A full collection visits the objects of synalinks, which takes 0.4 s and comes in every third fit.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def milliseconds(values: Sequence[float]) -> str:
    """Return the median in milliseconds."""
    return short(median(values) * 1e3)


def worst(values: Sequence[float]) -> str:
    """Return the maximum in milliseconds, which is the p99 of some twenty rounds."""
    return short(max(values) * 1e3)


def ratio(values: Sequence[float], reference: Sequence[float], goal: float, *, digits: int = 2) -> str:
    """Return the ratio of the medians, and whether it is at most `goal`."""
    found = median(values) / median(reference)
    return f"{found:.{digits}f} {'✓' if found <= goal else '✗'}"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], measured: Sequence[Measured] = ()) -> Report:
    """Return the report of a benchmark."""
    return Report(title=title, head=head, rows=list(rows), measured=measured)


def series(
    what: tuple[str, str],
    taken: Mapping[str, Sequence[float]],
    goals: Mapping[str, float],
    *,
    scale: float = 1e3,
    unit: str = "ms",
) -> list[Measured]:
    """Return what was measured in seconds, by who.

    `what` is the figure and its case. `goals` are those of `Measured`. `scale` makes milliseconds.
    """
    return [
        Measured(
            figure=what[0],
            case=what[1],
            who=who,
            values=[scale * value for value in values],
            unit=unit,
            goal=goals.get(who),
        )
        for who, values in taken.items()
    ]
