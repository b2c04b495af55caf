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


def test_the_final_state_is_what_fit_returned_with(tmp_path: Path) -> None:
    """Also where a callback changes the program as training ends. A fit with more epochs goes on from its boundary."""
    found = result(tmp_path, "final_state")
    assert found["differences"] == {"export": [], "restarted": [], "continued": []}
    assert found["calls"] == 0
    assert found["best"] != found["last"]
    assert found["files"] == ["0000000001-00000002-00000000.final.ckpt"]


def test_the_final_state_needs_no_object_that_training_has_closed(tmp_path: Path) -> None:
    """All is paid for by then. Objects are saved as they were at the last boundary."""
    assert result(tmp_path, "closed_objects") == ["0000000001-00000001-00000000.final.ckpt"]


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


def test_a_monitor_goes_on_with_its_steps(tmp_path: Path) -> None:
    """Batch metrics continue their chart, and a model that was logged before can be the best one."""
    found = result(tmp_path, "monitor")
    assert found == {"state": [{"train": 5, "val": 2, "test": 0}, [(0, "m-1", 0.5)], 0.5], "name": "new"}


def test_a_csv_file_that_was_removed_does_not_end_the_fit(tmp_path: Path) -> None:
    """The rows are lost with the file. The resumed fit writes those of its own epochs."""
    found = result(tmp_path, "missing_file")
    assert found["logged"] == []
    assert found["epochs"] == ["epoch", "1", "2"]


# ---------------------------------------------------------------- counters


def test_counters_of_time_and_details_are_restored(tmp_path: Path) -> None:
    """A counter that was zero is zero again. Dicts keep their identity."""
    assert result(tmp_path, "time_of_phases") == {
        "restored": True,
        "seconds": 5.0,
        "calls": 0,
        "details": {"prompt_audio": 3},
    }


def test_a_budget_goes_on_where_the_program_has_other_models(tmp_path: Path) -> None:
    """The counters can't be matched, which is logged. What was spent before the resume still counts."""
    found = result(tmp_path, "other_models")
    assert found["saved"] > 0
    assert found["spent"] == found["saved"] + found["since"]
    difference, line = found["logged"]
    assert "differs from the one that saved" in difference
    assert line.startswith("the counters of calls, tokens and cost are not restored: the checkpoint has those of the ")
    assert "models ['CountingModel', 'OfflineLanguageModel']" in line
    assert line.endswith("this program has the models ['CountingModel', 'CountingModel', 'OfflineLanguageModel']")


# ---------------------------------------------------------------- optimizers


def test_attributes_of_an_optimizer_come_back_with_their_types(tmp_path: Path) -> None:
    """An annealed temperature, deque, set, array and generators go on. A setting that the user has changed wins."""
    found = result(tmp_path, "optimizer_state")
    assert found["wrong"] == []
    assert found["tried"] == 12
    assert found["named"] == ["optimizer (population_size)"] * 12


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


def test_the_final_state_of_a_run_of_an_earlier_version_keeps_its_objects(tmp_path: Path) -> None:
    """Also values that JSON lacks. A fit with nothing left to train makes such a checkpoint."""
    assert result(tmp_path, "old_final") == ["-inf", "inf", "nan"]
