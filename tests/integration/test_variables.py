"""Test that real programs of synalinks get the values of a checkpoint by their names, and that others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Child

both_optimizers = pytest.mark.parametrize(("optimizer", "inner"), [("few-shot", 0), ("omega", 2)])


def result(tmp_path: Path, name: str, *arguments: Any) -> Any:
    with Child(f"tests.integration.variables_scenarios:{name}", *arguments, log=tmp_path / "log") as child:
        return child.result()


@both_optimizers
def test_a_program_made_after_others_gets_its_values(tmp_path: Path, optimizer: str, inner: int) -> None:
    """Nested, shared, named and unnamed modules, metrics and OMEGA's modules are found, though most paths differ."""
    found = result(tmp_path, "restarts", optimizer)
    assert found["wrong"] == []
    assert found["equal_paths"] == ["f1_score/state_f1_score", "reward/total_with_count", "second/state_second"]


@both_optimizers
def test_two_named_modules_that_changed_places_get_their_own_values(tmp_path: Path, optimizer: str, inner: int) -> None:
    """A fit goes on within its epoch without a warning. OMEGA's modules follow the variable that they write."""
    found = result(tmp_path, "changed", optimizer, ["critic", "summary"], ["summary", "critic"])
    assert found == {
        "marks": {"summary": ["summary"] * (1 + inner), "critic": ["critic"] * (1 + inner)},
        "error": "",
        "logged": [],
    }


@both_optimizers
def test_a_program_with_one_other_name_is_refused_and_unchanged(tmp_path: Path, optimizer: str, inner: int) -> None:
    """The module may be the old one with a new name, or another one. The error has the names of both sides."""
    found = result(tmp_path, "changed", optimizer, ["critic", "summary"], ["critic", "reviewer"])
    assert found["marks"] == {"critic": [None] * (1 + inner), "reviewer": [None] * (1 + inner)}
    own, _, saved = found["error"].partition(", the checkpoint's are ")
    assert "critic/state_critic" in own
    assert "reviewer/state_reviewer" in own
    assert "critic/state_critic" in saved
    assert "summary/state_summary" in saved
    assert "Give each module the name that it has in the checkpoint, or use another backup_dir" in saved


@both_optimizers
def test_a_program_with_other_names_throughout_is_matched_by_order(tmp_path: Path, optimizer: str, inner: int) -> None:
    """One warning lists the pairs, though a restore within an epoch sets the values twice.

    Another one tells before that the instructions differ too.
    """
    found = result(tmp_path, "changed", optimizer, ["critic", "summary"], ["author", "editor"])
    assert found["marks"] == {"author": ["critic"] * (1 + inner), "editor": ["summary"] * (1 + inner)}
    assert found["error"] == ""
    difference, pairs = found["logged"]
    assert "module author (new), module editor (new), module critic (missing), module summary (missing)" in difference
    assert "author/state_author=critic/state_critic, editor/state_editor=summary/state_summary" in pairs
