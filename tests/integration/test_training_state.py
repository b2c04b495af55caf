"""Test that a captured state is applied exactly or refused, and that fingerprints detect other data."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_backup.checkpoints.state_body import decode_state, encode_state
from distributed_backup.errors import StateError
from distributed_backup.training.fingerprint import data_parts, fingerprint
from tests.support.processes import Child

SCENARIOS = "tests.integration.training_state_scenarios"


def result(tmp_path: Path, name: str) -> Any:
    with Child(f"{SCENARIOS}:{name}", log=tmp_path / "log") as child:
        return child.result()


# ---------------------------------------------------------------- in a program


def test_values_that_json_lacks_come_back_exactly(tmp_path: Path) -> None:
    """NaN, infinities, integers beyond 64 bits and lone surrogates are restored exactly."""
    assert result(tmp_path, "round_trips") == []


def test_numbers_of_numpy_come_back_with_their_exact_value(tmp_path: Path) -> None:
    """A float32 is restored as the equal float, not as its shortest decimal."""
    pairs = result(tmp_path, "numbers_of_numpy")
    assert len(pairs) == 6
    assert [repr(given) for given, _ in pairs] == [repr(found) for _, found in pairs]


def test_a_value_that_is_no_json_is_refused_and_its_place_named(tmp_path: Path) -> None:
    """The StateError names the place of the value and its type."""
    messages = result(tmp_path, "refusals")
    assert set(messages) == {"datetime", "set", "object", "key"}
    for name, message in messages.items():
        assert message.startswith(
            "StateError: the training state is not JSON: state.variables.trainable[0].examples[1]"
        )
        assert message.endswith(
            {"object": "is of type Opaque", "key": "has keys that are not strings"}.get(name, f"is of type {name}")
        )


def test_a_state_can_be_applied_again_after_the_program_went_on(tmp_path: Path) -> None:
    """A program that changes its values does not change the state, and keeps its own dicts."""
    assert result(tmp_path, "applied_again") == {"wrong": [], "same_object": True}


def test_other_objects_than_were_saved_are_refused_before_anything_is_changed(tmp_path: Path) -> None:
    """Other objects in `state_of` are refused. The error names both sides, and the program is unchanged."""
    message = result(tmp_path, "other_objects")
    assert message.startswith("ProgramMismatchError: state_of does not fit the checkpoint: it holds ['Counter']")
    assert message.endswith("not [] []")


# ---------------------------------------------------------------- bytes

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
TEXTS = st.text(st.characters(codec=None), max_size=5)
KEYS = st.one_of(st.sampled_from(["float", "int", "text", "$float", "$", "tagged"]), st.text(max_size=5))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.integers(-(2**80), 2**80), FLOATS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=12,
)


def state(value: Any) -> dict[str, Any]:
    generators = {"python_random": ("AQAAAA==", 1, 0.5), "numpy_random": ("AQAAAA==", 0, 0, 0.0)}
    return {"variables": {"trainable": [value]}, **generators, "schema": {"trainable": []}}


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(VALUES)
def test_any_json_and_more_comes_back(value: Any) -> None:
    """Whatever a variable may hold is read as it was written, however it resembles our own marks."""
    decoded = decode_state(encode_state(state(copy.deepcopy(value))))
    assert repr(decoded["variables"]["trainable"][0]) == repr(value)
    assert decoded["schema"] == {"trainable": []}
    assert decoded["python_random"] == ["AQAAAA==", 1, 0.5]
    assert decoded["numpy_random"] == ["AQAAAA==", 0, 0, 0.0]


def test_a_state_too_deep_for_json_is_refused() -> None:
    """The error is a StateError."""
    value: Any = 1
    for _ in range(300):
        value = [value]
    with pytest.raises(StateError, match="not JSON"):
        encode_state(state(value))


# ---------------------------------------------------------------- fingerprints

PARAMS = {"batch_size": 2, "steps": 3, "validation_batch_size": 1, "train_size": 6, "val_size": 2}
INPUTS: dict[str, Any] = {"x": np.arange(6), "y": ["a"] * 6, "val_x": np.arange(2), "val_y": None}


def fingerprint_of(inputs: dict[str, Any], params: dict[str, Any]) -> str:
    return fingerprint(data_parts(inputs, params))


class Loader:
    """Data that a user reads in a way of their own, with a length and an index."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        raise AssertionError("a sample was read")


def endless() -> Iterator[int]:
    while True:
        yield 1


@pytest.mark.parametrize(
    ("inputs", "params"),
    [
        ({}, {"batch_size": 1}),
        ({}, {"steps": 4}),
        ({}, {"validation_batch_size": 2}),
        ({"x": np.array([0, 1, 2, 3, 4, 6])}, {}),
        ({"x": np.array([1, 0, 2, 3, 4, 5])}, {}),
        ({"y": ["b"] * 6}, {}),
        ({"val_x": np.array([0, 2])}, {}),
        ({"val_y": np.array([0, 2])}, {}),
        ({"x": endless()}, {}),
        ({"x": [np.arange(6), np.arange(6)]}, {}),
    ],
)
def test_other_data_has_another_fingerprint(inputs: dict[str, Any], params: dict[str, Any]) -> None:
    """Another sample, order, batch size or kind of data changes the fingerprint."""
    assert fingerprint_of({**INPUTS, **inputs}, {**PARAMS, **params}) != fingerprint_of(INPUTS, PARAMS)


@pytest.mark.parametrize("params", [{"epochs": 9}, {"verbose": 1}, {"program": "other"}])
def test_what_is_no_data_does_not_change_the_fingerprint(params: dict[str, Any]) -> None:
    """Parameters that are not data leave the fingerprint unchanged."""
    assert fingerprint_of(copy.deepcopy(INPUTS), {**PARAMS, **params}) == fingerprint_of(INPUTS, PARAMS)


def test_a_generator_is_not_used_up_by_its_fingerprint() -> None:
    """The fingerprint reads no sample of a generator, so it depends on the generator's type only."""
    data = iter(range(3))
    first = fingerprint_of({"x": data}, PARAMS)
    assert list(data) == [0, 1, 2]
    assert first == fingerprint_of({"x": iter(range(7))}, PARAMS)


def test_data_that_can_not_be_written_as_json_has_a_fingerprint() -> None:
    """Objects count with their type, NaN as null."""
    odd = {"x": [object(), math.nan, {"a": b""}], "y": []}
    assert fingerprint_of(odd, {}) == fingerprint_of({"x": [object(), math.nan, {"a": b""}], "y": []}, {})


def test_data_has_the_fingerprint_that_earlier_versions_gave_it() -> None:
    """Otherwise a run that resumes under this version would begin its epoch again."""
    assert fingerprint_of(INPUTS, PARAMS) == "680f4a5363bf7f053c8b923f92b09728"


def test_the_samples_of_a_loader_are_not_read() -> None:
    """A read may load the sample from afar, or draw random numbers."""
    assert fingerprint_of({"x": Loader()}, PARAMS) != fingerprint_of({"x": endless()}, PARAMS)
