"""The states of the two random generators that a process shares: `random` and `numpy.random`.

Both are training state: optimizers draw candidates from them, and data is shuffled with them. Generators that a user
makes, such as `numpy.random.default_rng()`, are not reached.

Fact relied on: the generator behind `numpy.random` is an MT19937 unless a program replaces it.
"""

from __future__ import annotations

import base64
import hashlib
import random
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

type States = tuple[str, int, float, str, int, int, float]
"""Both states as values that compare fast and that JSON keeps. The words of each generator are in base64."""


def get_states() -> States:
    """Return both states."""
    return _states(random.getstate(), np.random.get_state(legacy=True))


def saved_states(python: Sequence[Any], numpy: Sequence[Any]) -> States:
    """Return the states in a checkpoint: the first three values of `States`, and the rest.

    Version 0.3 wrote what `random.getstate` and `numpy.random.get_state` return.
    """
    return (*python, *numpy) if isinstance(python[0], str) else _states(python, numpy)


def set_states(states: States) -> None:
    """Set both generators to states that `get_states` returned."""
    words, has_python_gauss, gauss, key, position, has_gauss, cached = states
    random.setstate((random.Random.VERSION, tuple(_words(words)), gauss if has_python_gauss else None))
    # numpy takes one word after the other: 8 times as fast from a list as from an array.
    numpy_words = {"key": _words(key), "pos": position}
    np.random.set_state({"bit_generator": "MT19937", "state": numpy_words, "has_gauss": has_gauss, "gauss": cached})


def derived_seed() -> int:
    """Return a seed that depends on both states, without a draw. A user's seed makes it the same in each process."""
    return int.from_bytes(hashlib.blake2b(repr(get_states()).encode(), digest_size=6).digest())


def _states(python: Sequence[Any], numpy: Sequence[Any]) -> States:
    _, words, *gauss = python
    found = gauss[0] if gauss else None
    _, key, position, has_gauss, cached = numpy
    return (
        # Three times as fast as an array made of a tuple.
        _text(struct.pack(f"<{len(words)}I", *words)),
        int(found is not None),
        found or 0.0,
        _text(np.asarray(key, dtype="<u4").tobytes()),
        int(position),
        int(has_gauss),
        float(cached),
    )


def _text(words: bytes) -> str:
    return base64.b64encode(words).decode()


def _words(text: str) -> list[int]:
    words: list[int] = np.frombuffer(base64.b64decode(text), dtype="<u4").tolist()
    return words
