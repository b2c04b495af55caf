"""Test that responses of litellm are recorded and restored exactly, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.processes import Child

SCENARIOS = "tests.integration.response_scenarios"


def result(tmp_path: Path, name: str) -> Any:
    with Child(f"{SCENARIOS}:{name}", log=tmp_path / "log") as child:
        return child.result()


def test_each_response_is_restored_exactly(tmp_path: Path) -> None:
    """Class, content, cost and what synalinks reads are equal. The bytes are one line of strict JSON."""
    found = result(tmp_path, "restored")
    assert len(found) > 40
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_a_language_model_reads_a_restored_response_as_the_original(tmp_path: Path) -> None:
    """Results and counters are equal, with a schema and without, also where the model raises."""
    assert result(tmp_path, "parsed") == []


def test_a_recorded_answer_takes_little_more_memory_than_its_bytes(tmp_path: Path) -> None:
    """Answers are kept until the next boundary. orjson allocates several times of what it returns."""
    size, memory = result(tmp_path, "allocated")
    assert size > 5000
    assert memory < 1.5 * size


def test_a_response_that_would_not_come_back_equal_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    """The message names the class, and holds nothing of the answer."""
    found = result(tmp_path, "unrecordable")
    here = "tests.integration.response_scenarios"
    assert found["subclass"].startswith(f"{here}.OwnResponse ")
    assert "ModelResponse can't be recorded" in found["subclass of the same name"]
    assert found["own dict"].startswith(f"{here}.OwnDict ")
    assert found["unknown"].startswith(f"{here}.Unknown ")
    assert found["changed"] == "litellm.types.utils.ModelResponse is not equal after it was restored"
    assert found["object in a field"] == f"litellm.types.utils.ModelResponse holds a value of class {here}.Unknown"
    assert found["object in a dict"] == "builtins.dict holds a value of class litellm.types.utils.Message"
    assert found["pydantic"].endswith(".Made can't be recorded: it is neither a response of litellm nor plain data")
    assert found["too deep"].startswith("builtins.list ")
    assert not any("SECRET" in message for message in found.values())


def test_bytes_that_can_not_be_restored_are_an_error_that_builds_nothing(tmp_path: Path) -> None:
    """A class that is not in the table is not looked for."""
    found = result(tmp_path, "undecodable")
    assert all("can't be restored" in message for message in found)
    assert "class OSError" in found[0]
