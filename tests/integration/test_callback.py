"""The callback as programs use callbacks: several at once, copied, pickled, with programs that are not built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Child

SCENARIOS = "tests.integration.callback_scenarios"


def result(tmp_path: Path, name: str, *arguments: Any) -> Any:
    with Child(f"{SCENARIOS}:{name}", *arguments, log=tmp_path / "log") as child:
        return child.result()


# ---------------------------------------------------------------- two at once


def test_two_callbacks_in_one_fit_are_refused_before_anything_is_paid(tmp_path: Path) -> None:
    """The error names both directories, and neither is made. Each alone is fine."""
    root = tmp_path / "runs"
    root.mkdir()
    found = result(tmp_path, "two_in_one_fit", root)
    text = "this fit has 2 BackupAndRestore callbacks, for {} and {}: each would restore its own position. Give the fit"
    pairs = [("one", "two"), ("two", "one"), ("one", "one")]
    assert found["refused"] == [
        (f"{text.format(root / first, root / second)} one of them", 0) for first, second in pairs
    ]
    assert found["left"] == []
    assert found["calls"] > 0


def test_one_callback_in_two_fits_at_once_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    """The first fit makes all of its calls."""
    found = result(tmp_path, "one_in_two_fits", tmp_path / "run")
    assert found["second"] == (
        f"ConfigError: this BackupAndRestore for {tmp_path}/run is in use by another fit that is still running: make a "
        "callback with a directory of its own for each fit"
    )
    assert found["first"] == found["alone"] > 0


def test_a_callback_may_be_used_again_after_a_fit_that_failed(tmp_path: Path) -> None:
    """The session that the failed fit left is ended."""
    assert all(calls > 0 for calls in result(tmp_path, "again_after_an_error", tmp_path / "run"))


# ---------------------------------------------------------------- copies


def test_a_callback_can_be_copied_and_pickled_at_any_time(tmp_path: Path) -> None:
    """Tuners copy callbacks for each trial, Ray and joblib pickle them. A copy takes no part in the original's fit."""
    found = result(tmp_path, "copies", tmp_path)
    assert found["paid"] > 0
    assert len(found["again"]) == 9
    assert set(found["again"].values()) == {0}
    place = str(tmp_path / "run")
    assert found["attributes"] == dict.fromkeys(["original", "copy"], (place, 2, True, False))
    assert found["free_of_the_fit"] is True
    assert {name for name, is_shared in found["own"].items() if is_shared} == {
        "copy before",
        "copy during",
        "copy after",
    }


def test_a_copied_list_of_callbacks_stays_together(tmp_path: Path) -> None:
    """`state_of` of the copy names the other copies of the list."""
    assert result(tmp_path, "copied_with_others", tmp_path / "run") is True


def test_a_coordinator_of_the_user_is_shared_by_copies_and_not_pickled(tmp_path: Path) -> None:
    """The error says what to do. A coordinator that a URL names is made again."""
    found = result(tmp_path, "copied_coordinators", tmp_path)
    text = (
        "this BackupAndRestore can't be pickled, because its coordinator is a {}, an object of this process: name the "
        "coordinator by its URL, such as redis://host:6379 or file:///path"
    )
    assert found == {
        "MemoryCoordinator": (True, True, text.format("MemoryCoordinator")),
        "FileCoordinator": (True, True, text.format("FileCoordinator")),
        "Redis": (True, False, text.format("Redis")),
        "strmemory:": (True, False, ""),
        "strredis://host": (True, False, ""),
    }


# ---------------------------------------------------------------- the host's class


def test_no_method_of_the_host_runs(tmp_path: Path) -> None:
    """Our class is the host's for `isinstance`. Each hook that the host defines is overridden."""
    found = result(tmp_path, "host_methods", tmp_path / "run")
    assert found["is_instance"] is True
    assert {"__init__", "on_train_begin", "on_epoch_end", "on_train_batch_end", "on_train_end"} <= set(found["names"])
    assert found["not_ours"] == ["_load_program", "_save_program", "_should_save_on_batch"]
    assert found["calls"][0] > 0
    assert found["calls"][1] == 0


# ---------------------------------------------------------------- programs that are not built


@pytest.mark.parametrize("kind", ["subclass", "tools"])
def test_a_program_that_is_not_built_is_warned_of_once_with_the_remedy(tmp_path: Path, kind: str) -> None:
    """`fit` pays for its first batch twice, before any callback is called. A program built by the remedy does not."""
    with Child(f"{SCENARIOS}:unbuilt", tmp_path, kind, log=tmp_path / "log") as child:
        found = child.result()
    before, after = child.output().split("BUILT")
    assert before.count("the program was not built, so fit has run its first batch once more") == 1
    assert "not built" not in after
    assert found["build"] == 0
    assert found["raw"] > found["built"] > 0
