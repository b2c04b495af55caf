"""Measure the answered calls that an interruption throws away: the calls of all lives, less those of one without it.

A fit of some 500 calls is interrupted once, after a quarter, a half and three quarters of them, and then resumed. Calls
that were under way at the interruption are not counted, because they had no answer.

Not measured: the time, which an offline model does not show.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tests.bench.report import table
from tests.bench.results import Report
from tests.support.processes import Child

FIT: Final = "tests.bench.interrupted_fit:live"
PARTS: Final = (0.25, 0.5, 0.75)
KEEPERS: Final = ("ours", "ours, journal=False", "synalinks", "synalinks and cache_dir")
INTERRUPTIONS: Final[tuple[tuple[str, Any, bool], ...]] = (
    ("SIGTERM that cuts the batch off", "epoch", True),
    ("SIGKILL, save_freq=1", 1, False),
    ('SIGKILL, save_freq="epoch"', "epoch", False),
    ("SIGKILL, save_freq=False", False, False),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What keeps the fit, how often, and whether it is cut off or killed."""

    keeper: str
    save_freq: Any
    is_cut_off: bool


def calls(case: Case, root: Path, kill_at: int | None) -> int:
    """Return the answered calls of a fit that is interrupted after so many of them."""
    root.mkdir(parents=True)
    if kill_at is not None:
        with Child(FIT, case, root, kill_at, log=root / "log") as child:
            child.expect("kill")
            child.kill(signal.SIGTERM if case.is_cut_off else signal.SIGKILL)
            assert child.join() != 0, "the fit was not interrupted"
    with Child(FIT, replace(case, is_cut_off=False), root, None, log=root / "log") as child:
        child.result()
    return (root / "calls").stat().st_size


def thrown_away(keeper: str, directory: Path) -> Iterator[str]:
    """Yield the calls of an uninterrupted fit, and then the range of those that each interruption adds."""
    whole = calls(Case(keeper=keeper, save_freq="epoch", is_cut_off=False), directory / "uninterrupted", None)
    yield str(whole)
    for row, (_, save_freq, is_cut_off) in enumerate(INTERRUPTIONS):
        case = Case(keeper=keeper, save_freq=save_freq, is_cut_off=is_cut_off)
        found = [calls(case, directory / f"{row}-{part}", round(part * whole)) - whole for part in PARTS]
        yield str(found[0]) if len(set(found)) == 1 else f"{min(found)} to {max(found)}"


async def report(directory: Path) -> Report:
    columns = [list(thrown_away(keeper, directory / str(number))) for number, keeper in enumerate(KEEPERS)]
    names = ["calls without an interruption", *(name for name, _, _ in INTERRUPTIONS)]
    rows = [list(row) for row in zip(names, *columns, strict=True)]
    return table("Answered calls that one interruption throws away", ["", *KEEPERS], rows)
