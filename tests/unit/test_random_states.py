"""The states of the two shared generators: what is saved, and what version 0.3 has saved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest

from distributed_backup.training.random_states import get_states, saved_states, set_states


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = random.getstate(), np.random.get_state()
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])


def draws() -> list[float]:
    """Draw from both generators, in each of their ways."""
    return [random.random(), random.gauss(), np.random.random(), np.random.normal(), random.gauss()]


@pytest.mark.parametrize("drawn", [0, 1, 2, 700])
def test_what_was_drawn_is_drawn_again(drawn: int) -> None:
    """Also where a generator keeps the second one of a pair of normal numbers."""
    for _ in range(drawn):
        random.gauss()
        np.random.normal()
    states = get_states()
    expected = draws()
    saved = orjson.loads(orjson.dumps([states[:3], states[3:]]))
    set_states(saved_states(*saved))
    assert get_states() == states
    assert draws() == expected


@pytest.mark.parametrize("drawn", [0, 1])
@pytest.mark.parametrize("keeps_none", [True, False])
def test_states_of_version_0_3_are_read(drawn: int, keeps_none: bool) -> None:
    """It wrote the words as numbers, and left out a None at the end."""
    for _ in range(drawn):
        random.gauss()
        np.random.normal()
    python: tuple[Any, ...] = random.getstate()
    if python[-1] is None and not keeps_none:
        python = python[:-1]
    saved = orjson.loads(orjson.dumps([python, np.random.get_state()], option=orjson.OPT_SERIALIZE_NUMPY))
    expected = get_states()
    assert saved_states(*saved) == expected
    found = draws()
    set_states(saved_states(*saved))
    assert draws() == found
