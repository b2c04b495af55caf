"""The results of benchmarks: their tables, one result file, and the figures in this folder's README.

`results.json` holds the newest result of each benchmark, with its machine. The tables in the README stand between
markers, and `documents` makes them and the picture from the file. So a test sees a figure that is not in it.

The limit: results of different benchmarks may be of different days. Each has its own date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

FOLDER: Final = Path(__file__).parent
RESULTS: Final = FOLDER / "results.json"
PICTURE: Final = FOLDER / "results.svg"
README: Final = FOLDER / "README.md"
_BLOCK: Final = re.compile(r"(<!-- results of (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
_SUMMARY: Final = "all"


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

    def as_json(self, *, machine: str, day: str) -> dict[str, Any]:
        """Return the result as it is kept."""
        return {
            "day": day,
            "machine": machine,
            "title": self.title,
            "head": list(self.head),
            "rows": [list(row) for row in self.rows],
            "measured": [each.summary() for each in self.measured],
        }

    def markdown(self) -> str:
        """Return the table with its title."""
        return f"**{self.title}**\n\n{table(self.head, self.rows)}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), ""])


def read() -> dict[str, Any]:
    """Return the newest results by benchmark. Empty if there are none."""
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def write(results: Mapping[str, Any]) -> None:
    """Keep the results, and write the README's tables and the picture."""
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    for path, text in documents(results).items():
        path.write_text(text)


def documents(results: Mapping[str, Any]) -> dict[Path, str]:
    """Return the text of each file that holds figures."""
    from tests.bench.picture import picture

    def block(found: re.Match[str]) -> str:
        name = found[2]
        made = _summary(results) if name == _SUMMARY else _table_of(results.get(name))
        return f"{found[1]}\n{made}\n{found[3]}"

    return {README: _BLOCK.sub(block, README.read_text()), PICTURE: picture(compared(results))}


def _table_of(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "Not measured yet.\n"
    return f"{table(result['head'], result['rows'])}\n{result['day']}, {result['machine']}.\n"


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


def compared(results: Mapping[str, Any]) -> list[Comparison]:
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


def _summary(results: Mapping[str, Any]) -> str:
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
