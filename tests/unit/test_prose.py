"""Docstrings, comments and documents are plain English, as far as counts can tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.prose import findings_in

ROOT = Path(__file__).parents[2]
PYTHON = [path for place in ("distributed_backup", "deploy", "tests") for path in sorted((ROOT / place).rglob("*.py"))]
# The quoted words and a planted fault stand in these.
EXEMPT = {ROOT / "tests/support/prose.py", Path(__file__)}


@pytest.mark.parametrize("folder", sorted({path.parent for path in PYTHON}), ids=lambda path: path.name)
def test_no_sentence_in_the_code_is_hard_to_read(folder: Path) -> None:
    """At most 30 words, no semicolon, and no word that hides its subject."""
    found = [str(one) for path in PYTHON if path.parent == folder and path not in EXEMPT for one in findings_in(path)]
    assert found == []


LONG = " ".join(["word"] * 31)

FAULTS = [
    (f'"""{LONG}."""', "31 words"),
    ('"""One idea; another."""', "a semicolon"),
    ("# Whoever leads.", "the word 'Whoever'"),
    ('def f():\n    """Return.\n\n    Raises:\n        X: It can\'t be told.\n    """', "the word 'told'"),
    ('class C:\n    x = 1\n    """An attribute; and more."""', "a semicolon"),
]


@pytest.mark.parametrize(("source", "rule"), FAULTS)
def test_a_planted_fault_is_found(tmp_path: Path, source: str, rule: str) -> None:
    """In docstrings of modules, functions and attributes, and in comments."""
    path = tmp_path / "planted.py"
    path.write_text(source)
    assert [one.rule for one in findings_in(path)] == [rule]


@pytest.mark.parametrize("text", [f"{LONG}.", "One idea; another.", "| a cell; and more |", "- a point; and more"])
def test_a_planted_fault_in_a_document_is_found(tmp_path: Path, text: str) -> None:
    """In paragraphs, tables and lists."""
    path = tmp_path / "planted.md"
    path.write_text(f"# Title\n\n{text}\n")
    assert len([*findings_in(path)]) == 1


def test_code_and_examples_are_no_prose(tmp_path: Path) -> None:
    """A semicolon in a command is no fault."""
    path = tmp_path / "planted.md"
    path.write_text("Run `a; b`.\n\n```bash\na; b\n```\n")
    assert [*findings_in(path)] == []
