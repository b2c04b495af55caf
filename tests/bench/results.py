"""The results of benchmarks: a table of each, a summary of all and a picture. `tests.support.figures` keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from tests.support.figures import Document, Results, own_tables, table

SUMMARY: Final = "all"
"""The name of the table of all benchmarks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured of ours, or of what it is compared with, in one figure and case.

    Args:
        figure: What was measured.
        case: For example the size of the state.
        who: `ours`, or what ours is compared with in the same run.
        values: One for each round.
        unit: Their unit.
        goal: The greatest ratio of our median to this median. For `ours`, the greatest median. None without a goal.
    """

    figure: str
    case: str
    who: str
    values: Sequence[float]
    unit: str = "ms"
    goal: float | None = None

    def summary(self) -> dict[str, Any]:
        """Return the figures as JSON."""
        ordered = sorted(self.values)
        p99 = quantiles(ordered, n=100, method="inclusive")[98] if len(ordered) > 1 else ordered[0]
        found = {"min": ordered[0], "median": median(ordered), "p99": p99}
        rest = {name: value for name, value in asdict(self).items() if name != "values"}
        return {**rest, "rounds": len(ordered), **{name: float(f"{value:.4g}") for name, value in found.items()}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The table of one benchmark, and the figures for the summary of all."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    measured: Sequence[Measured] = field(default=())

    def as_json(self, origin: Mapping[str, str]) -> dict[str, Any]:
        """Return the result as it is kept, with its origin."""
        return {
            **origin,
            "title": self.title,
            "head": list(self.head),
            "rows": [list(row) for row in self.rows],
            "measured": [each.summary() for each in self.measured],
        }

    def markdown(self) -> str:
        """Return the table with its title."""
        return f"**{self.title}**\n\n{table(self.head, self.rows)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One row of the summary. `ratio` is that of our median to `measured`, None for ours without a goal."""

    measured: Mapping[str, Any]
    ratio: float | None

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is reached. None without one."""
        goal = self.measured["goal"]
        return None if goal is None or self.ratio is None else self.ratio <= goal


def compared(results: Results) -> list[Comparison]:
    """Return all that was measured, each beside ours of the same figure and case."""
    every = [each for name in results for each in results[name]["measured"]]
    every.sort(key=lambda each: str(each["figure"]))
    ours = {(each["figure"], each["case"]): each["median"] for each in every if each["who"] == "ours"}
    return [Comparison(measured=each, ratio=_ratio(each, ours)) for each in every]


def _ratio(each: Mapping[str, Any], ours: Mapping[tuple[str, str], float]) -> float | None:
    if each["who"] == "ours":
        # An absolute goal, in its unit.
        return None if each["goal"] is None else float(each["median"])
    own = ours.get((each["figure"], each["case"]))
    return None if own is None else own / float(each["median"])


def _summary(results: Results) -> str:
    head = ["figure", "case", "who", "rounds", "min", "median", "p99", "ours / this", "goal"]
    rows = []
    for each in compared(results):
        found, is_ours = each.measured, each.measured["who"] == "ours"
        goal = "" if found["goal"] is None else f"≤ {found['goal']:g}{' ' + found['unit'] if is_ours else ''}"
        mark = {None: "", True: " ✓", False: " ✗"}[each.is_met]
        rows.append(
            [
                found["figure"],
                found["case"],
                found["who"],
                str(found["rounds"]),
                *(f"{short(found[name])} {found['unit']}" for name in ("min", "median", "p99")),
                "" if is_ours or each.ratio is None else f"{each.ratio:.2f}",
                goal + mark,
            ]
        )
    return table(head, rows)


def short(value: float) -> str:
    """Return a figure with three decimals below 1, and with one above."""
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"


def _tables(results: Results) -> dict[str, str]:
    return own_tables(results) | {SUMMARY: _summary(results)}


def _picture(results: Results) -> str:
    from tests.bench.picture import picture

    return picture(compared(results))


DOCUMENT: Final = Document(folder=Path(__file__).parent, tables=_tables, picture=_picture)
