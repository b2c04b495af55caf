"""Values of Python and numpy that a checkpoint holds in packed form. Needs numpy, and not synalinks."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import suppress
from typing import Any, Final

import numpy as np
import orjson

from distributed_backup.errors import StateError
from distributed_backup.training.packing import UnsupportedValueError, pack, text_of, unpack
from tests.fuzz.engine import Parser
from tests.fuzz.files import JSON_MEMORY


def _values() -> list[Any]:
    """Return a value of each type that is packed."""
    seeded = random.Random(1)
    return [
        {"a": [1, 2.5, None, True, "x"], "$": 1, 3: float("nan")},
        [2**70, -(2**70), float("inf"), 1j, b"ab", bytearray(b"c"), (1, (2,)), {1, "a"}, frozenset({2})],
        [deque([1, 2], maxlen=3), OrderedDict(a=1), Counter("abc"), defaultdict(list, a=[1])],
        [np.arange(6).reshape(2, 3), np.array(["ab", "c"]), np.array([None, {"x": 1}], dtype=object), np.float32(0.5)],
        [np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), np.add, np.datetime64("2026-11-29")],
        [np.random.default_rng(1), np.random.Philox(3)],
        [np.random.RandomState(np.random.MT19937(2))],
        [seeded],
    ]


def _unpack(data: bytes) -> None:
    try:
        packed = orjson.loads(data)
    except ValueError:
        raise StateError("not JSON") from None
    value = unpack(packed)
    with suppress(UnsupportedValueError):  # it may be nested deeper than what is packed
        pack(value)


PARSERS: Final = (
    Parser(
        name="packed values", seeds=tuple(text_of(pack(value)) for value in _values()), call=_unpack, memory=JSON_MEMORY
    ),
)
