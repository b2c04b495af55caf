"""The results of benchmarks: each figure in a document is the one in the newest result file."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.bench import results
from tests.bench.__main__ import BENCHMARKS
from tests.bench.picture import picture
from tests.bench.results import Measured, Report, compared, documents

MEASURED = (
    Measured(figure="blocked", case="30 kB", who="ours", values=[1.0, 3.0, 2.0]),
    Measured(figure="blocked", case="30 kB", who="orjson.dumps", values=[1.0], goal=1.5),
    Measured(figure="memory", case="idle", who="ours", values=[9.0], unit="MB", goal=10.0),
)


def kept(*measured: Measured) -> dict[str, Any]:
    made = Report(title="Made up", head=["state", "ours"], rows=[["30 kB", "2.0"]], measured=measured)
    return {"blocked": made.as_json(machine="2 CPUs", day="today")}


def test_every_figure_in_a_document_is_the_newest_result() -> None:
    """If this fails, run `uv run python -m tests.bench NAME` for what has changed."""
    for path, text in documents(results.read()).items():
        assert path.read_text() == text, f"{path.name} is not what results.json gives"


def test_every_benchmark_has_its_place_in_the_document() -> None:
    """One that is new can't be left out."""
    found = re.findall(r"<!-- results of (\w+) -->", results.README.read_text())
    assert sorted(found) == sorted(["all", *BENCHMARKS])
    assert set(results.read()) <= set(BENCHMARKS)


def test_a_figure_that_was_changed_by_hand_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The table is made anew from the results, and the text around it stays."""
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- results of blocked -->\n<!-- end of results -->\nafter 2.0\n")
    monkeypatch.setattr(results, "README", path)
    made = documents(kept())[path]
    assert made.startswith("before\n")
    assert made.endswith("\nafter 2.0\n")
    assert "| 30 kB | 2.0 |" in made
    assert "today, 2 CPUs." in made
    path.write_text(made.replace("| 2.0 |", "| 1.0 |"))
    assert documents(kept())[path] == made != path.read_text()


def test_a_summary_has_minimum_median_and_p99() -> None:
    """Of all rounds, with four digits."""
    found = Measured(figure="f", case="c", who="ours", values=[float(value) for value in range(101)]).summary()
    assert (found["min"], found["median"], found["p99"], found["rounds"]) == (0.0, 50.0, 99.0, 101)


def test_goals_are_of_ratios_or_of_our_own_figure() -> None:
    """A figure without a goal is neither reached nor missed."""
    found = {(each.measured["figure"], each.measured["who"]): each for each in compared(kept(*MEASURED))}
    assert found["blocked", "ours"].is_met is None
    assert (found["blocked", "orjson.dumps"].ratio, found["blocked", "orjson.dumps"].is_met) == (2.0, False)
    assert (found["memory", "ours"].ratio, found["memory", "ours"].is_met) == (9.0, True)


def test_the_picture_has_a_bar_for_each_goal() -> None:
    """Its colour and its number tell whether the goal is reached."""
    drawn = picture(compared(kept(*MEASURED)))
    assert drawn.count('class="saving"') == drawn.count('class="notice"') == 1
    assert "2.00 of 1.5" in drawn
    assert "9.00 of 10 MB" in drawn
