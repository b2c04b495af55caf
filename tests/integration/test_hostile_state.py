"""States and recorded answers that a hostile checkpoint or journal holds: see tests/fuzz/README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.processes import Child

SCENARIOS = "tests.integration.hostile_state_scenarios"
INPUTS = 25


def result(tmp_path: Path, name: str, *arguments: Any) -> Any:
    with Child(f"{SCENARIOS}:{name}", *arguments, log=tmp_path / "log") as child:
        return child.result()


def test_changed_states_and_answers_break_no_rule(tmp_path: Path) -> None:
    """A fit refuses them with an error of the package, in bounded memory and time."""
    assert result(tmp_path, "changed", INPUTS) == []


def test_a_state_that_once_broke_a_rule_breaks_none(tmp_path: Path) -> None:
    assert result(tmp_path, "corpus") == []


def test_a_valid_state_is_restored(tmp_path: Path) -> None:
    """Otherwise the changes would test the first check only."""
    assert result(tmp_path, "accepted") == []
