"""Digests of a training state: the same for a captured state and for the one that is read from its checkpoint."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from distributed_backup.checkpoints.state_body import encode_state, encode_variables
from distributed_backup.checkpoints.state_digests import digests_in, digests_of


def state(**changes: Any) -> dict[str, Any]:
    """Make a state with values that JSON changes: tuples, arrays and numbers of numpy."""
    variables = {
        "trainable": [{"examples": ("é", 1, 0.1, None), "scores": np.array([1.5, 2.5])}],
        "metrics": [{"total": 1.5}],
    }
    made = {
        "variables": variables,
        "python_random": random.Random(7).getstate()[:-1],
        "numpy_random": np.random.RandomState(7).get_state(),
    }
    return {**made, **changes}


def captured(made: dict[str, Any]) -> Any:
    return digests_of(encode_variables(made["variables"]), (made["python_random"], made["numpy_random"]))


def test_a_state_that_is_read_has_the_digests_of_the_captured_one() -> None:
    """Otherwise no log would be found after a restart."""
    made = state()
    assert digests_in(encode_state(made)) == captured(made)
    assert captured(made).keys() == {"trainable", "random"}


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"variables": {**state()["variables"], "trainable": [{"examples": []}]}}, {"trainable"}),
        ({"variables": {**state()["variables"], "metrics": [{"total": 1.6}]}}, set()),
        ({"python_random": random.Random(8).getstate()[:-1]}, {"random"}),
        ({"numpy_random": np.random.RandomState(8).get_state()}, {"random"}),
    ],
)
def test_another_state_has_other_digests(changes: dict[str, Any], differing: set[str]) -> None:
    """Metrics have none, because they may hold measured times."""
    one, other = captured(state()), captured(state(**changes))
    assert {name for name in one if one[name] != other[name]} == differing


def test_the_digests_of_a_state_stay_the_same_in_later_versions() -> None:
    """A journal of an earlier version is found by them."""
    made = {
        "variables": {"trainable": [{"a": 1}]},
        "python_random": ["AQAAAA==", 0, 0.0],
        "numpy_random": ["AQAAAA==", 0, 0, 0.0],
    }
    assert digests_in(encode_state(made)) == {"trainable": "a96ef7a56b45f99a", "random": "3a8e4674ab9e2a9a"}
