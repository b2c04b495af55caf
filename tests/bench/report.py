"""Timing, medians and Markdown; no synalinks here.

Only ratios of medians taken in one run mean anything on a machine that does other things too.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any


def seconds(call: Callable[[], Any]) -> float:
    """How long `call` takes. What it returns is dropped after the clock was read."""
    start = time.perf_counter()
    result = call()
    taken = time.perf_counter() - start
    del result
    return taken


def milliseconds(values: Sequence[float]) -> str:
    """The median in milliseconds."""
    return _short(median(values) * 1e3)


def worst(values: Sequence[float]) -> str:
    """The maximum in milliseconds: with some twenty rounds there is no other p99."""
    return _short(max(values) * 1e3)


def ratio(values: Sequence[float], reference: Sequence[float], goal: float) -> str:
    """The ratio of the medians, and whether it is at most `goal`."""
    found = median(values) / median(reference)
    return f"{found:.2f} {'✓' if found <= goal else '✗'}"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table under its title."""
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def machine(directory: Path) -> str:
    """One line on where the numbers were taken."""
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} CPUs (load {load:.1f}), Python {platform.python_version()}, "
        f"{file_system(directory)} at {directory}"
    )


def file_system(directory: Path) -> str:
    """The type of the file system that holds `directory`."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown file system"
    holding = [(len(at), kind) for at, kind in mounts if directory.resolve().is_relative_to(at)]
    return max(holding)[1] if holding else "unknown file system"


def _short(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"
