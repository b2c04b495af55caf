"""Test that the state of callbacks, metrics, counters and optimizers is that of an uninterrupted fit after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Child

SCENARIOS = "tests.integration.kept_state_scenarios"


def result(tmp_path: Path, name: str, *arguments: Any) -> Any:
    with Child(f"{SCENARIOS}:{name}", *arguments, log=tmp_path / "log") as child:
        return child.result()


# ---------------------------------------------------------------- synalinks' own callbacks


@pytest.mark.parametrize("append", [False, True], ids=["new file", "appended file"])
def test_the_callbacks_of_synalinks_go_on_as_if_nothing_had_happened(tmp_path: Path, append: bool) -> None:
    """Best values and variables, budgets, counters, token metrics and rows of the CSV are those of the whole run."""
    found = result(tmp_path, "stacked", {"epochs": 2}, append)
    assert found["wrong"] == []
    assert found["tried"] == 12
    # A file that is appended to keeps its own header.
    head = ["epoch,earlier", "0,1"] if append else ["epoch,"]
    lines = found["csv"].splitlines()
    assert all(line.startswith(start) for line, start in zip(lines, head, strict=False))
    assert [line.split(",")[0] for line in lines[len(head) :]] == ["0", "1"]


def test_a_finished_fit_that_is_started_again_loses_nothing(tmp_path: Path) -> None:
    """The CSV file, which the logger empties at each start, has its rows again."""
    found = result(tmp_path, "restarted")
    assert found["differences"] == []
    assert found["calls"] == 0
    assert len(found["csv"].splitlines()) == 3


def test_a_budget_counts_from_the_start_of_the_run(tmp_path: Path) -> None:
    """It stops the resumed fit at the batch where it stops the uninterrupted one."""
    found = result(tmp_path, "budget")
    assert found["whole"][0] is not None
    assert found["resumed"] == found["whole"]


def test_callbacks_are_matched_by_class_and_order(tmp_path: Path) -> None:
    """Others may come between. One that is missing is named. `state_of=()` restores none. Settings are the new ones."""
    found = result(tmp_path, "changed_list")
    first, second, third = found["same"]["saved"]
    assert len({first, third}) == 2
    assert {name: case["known"] for name, case in found.items()} == {
        "same": [first, second, third],
        "other order": [second, first, third],
        "one added": [first, third, second, None],
        "one removed": [first, second],
        "switched off": [None, float("-inf"), None],
    }
    logged = {name: case["logged"] for name, case in found.items() if case["logged"]}
    assert list(logged) == ["one removed"]
    assert set(logged["one removed"]) == {
        "the saved state of a callback EarlyStopping is not used: the fit that resumes has fewer of this class"
    }


# ---------------------------------------------------------------- optimizers


def test_attributes_of_an_optimizer_come_back_with_their_types(tmp_path: Path) -> None:
    """An annealed temperature, deque, set, array and generators go on. A setting that the user has changed wins."""
    found = result(tmp_path, "optimizer_state")
    assert found["wrong"] == []
    assert found["tried"] == 12


# ---------------------------------------------------------------- earlier versions


def test_the_objects_of_an_earlier_version_are_restored(tmp_path: Path) -> None:
    """Its plain values are taken as they are, however they resemble a mark."""
    assert result(tmp_path, "old_body") == {
        "wait": 3,
        "best": {"$set": [1]},
        "function": True,
        "epochs": {1, 2},
        "difficulty": {"$tuple": [1]},
        "last": [0, 1],
    }
