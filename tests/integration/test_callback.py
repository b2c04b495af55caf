"""The callback as programs use callbacks: several at once, copied, pickled, with programs that are not built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
