"""Time calls, and report medians in Markdown. Nothing here imports synalinks.

Compare only ratios of medians of one run: other work on the machine changes the medians themselves.
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any


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
    return _short(median(values) * 1e3)


def worst(values: Sequence[float]) -> str:
    """Return the maximum in milliseconds, which is the p99 of some twenty rounds."""
    return _short(max(values) * 1e3)


def ratio(values: Sequence[float], reference: Sequence[float], goal: float, *, digits: int = 2) -> str:
    """Return the ratio of the medians, and whether it is at most `goal`."""
    found = median(values) / median(reference)
    return f"{found:.{digits}f} {'✓' if found <= goal else '✗'}"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with its title."""
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def machine(directory: Path) -> str:
    """Return one line on the CPUs, the Python and the file system."""
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} CPUs (load {load:.1f}), Python {platform.python_version()}, "
        f"{file_system(directory)} at {directory}"
    )


def file_system(directory: Path) -> str:
    """Return the type of the file system of `directory`."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown file system"
    holding = [(len(at), kind) for at, kind in mounts if directory.resolve().is_relative_to(at)]
    return max(holding)[1] if holding else "unknown file system"


def _short(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"
