"""Values that are saved beside variables: their types come back, in place, and nothing else is run or built."""

from __future__ import annotations

import copy
import json
import math
import random
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_backup.errors import StateError
from distributed_backup.training.in_place import InPlace, can_hold
from distributed_backup.training.packing import FORMS, UnsupportedValueError, pack, unpack

Pair = namedtuple("Pair", ["left", "right"])


class Level(IntEnum):
    LOW = 1


class Text(str):
    """A subclass of a JSON type."""

    __slots__ = ()


def through_json(value: Any) -> Any:
    """Return `value` as a checkpoint would give it back."""
    return unpack(orjson.loads(orjson.dumps(pack(value))))


def description(value: Any) -> Any:
    """Return the types and values of `value`, as text that tells NaN, dtypes, shapes and orders apart."""
    if isinstance(value, np.ndarray | np.generic):
        return type(value), value.dtype, value.shape, description(value.tolist())
    if isinstance(value, dict):
        return type(value), [(description(key), description(item)) for key, item in value.items()]
    if isinstance(value, set | frozenset):
        return type(value), sorted(map(repr, map(description, value)))
    if isinstance(value, list | tuple | deque):
        return type(value), getattr(value, "maxlen", None), [description(item) for item in value]
    # In base 16, because Python limits the digits of a decimal number.
    return type(value), hex(value) if type(value) is int else repr(value)


VALUES: dict[str, Any] = {
    "json": {"a": [1, 0.1, None, True, "é"], "b": {}},
    "not finite": [math.nan, math.inf, -math.inf, -0.0],
    "large": [2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**5000],
    "complex": complex(1.5, -0.0),
    "tuple": (1, (2, [3, ()])),
    "set": {1, "a", (2, 3), None, frozenset({4, "b"})},
    "empty": [set(), frozenset(), (), deque(), {}, [], b"", ""],
    "deque": deque([1, (2,), {3}], maxlen=5),
    "deque without limit": deque([1]),
    "bytes": [b"\x00\xff", bytearray(b"ab")],
    "int keys": {1: "a", 2: {3: "b"}},
    "other keys": {(1, "a"): 1, None: 2, True: 3, 0.5: 4, "text": 5, b"b": 6, frozenset({1}): 7},
    "ordered": OrderedDict([("b", 1), ("a", 2)]),
    "counter": Counter({"a": 2, "b": -1}),
    "default dict": defaultdict(list, {"a": [1]}),
    "default dict without factory": defaultdict(None, {1: 2}),
    "like a mark": {"$set": [1]},
    "like marks": [{"$tuple": {"$dict": []}}, {"$": 1}, {"$a": 1, "$b": 2}, {"$unknown": {"$set": (1,)}}],
    "scalars": [np.float32(0.1), np.float64("nan"), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True), np.str_("é")],
    "more scalars": [np.datetime64("2026-01-01"), np.timedelta64(3, "s"), np.complex64(1j), np.bytes_(b"a")],
    "array": np.arange(6, dtype=np.int16).reshape(2, 3),
    "array of odd order": np.asfortranarray(np.arange(6.0).reshape(2, 3))[:, ::-1],
    "array big endian": np.arange(3, dtype=">f4"),
    "array without axis": np.array(1.5),
    "array without items": np.zeros((0, 3), dtype=np.float16),
    "array of texts": np.array(["a", "éé"]),
    "array of objects": np.array([[1, "a"], [None, (2, [3])]], dtype=object),
    "array of lists": np.array([None, None], dtype=object),
    "array of records": np.array([(1, 0.5)], dtype=[("n", "<i4"), ("x", "<f8")]),
    "array of times": np.array(["2026-01-01", "NaT"], dtype="M8[s]"),
    "functions of numpy": [np.less, np.greater],
    "nested": {"a": (deque([{1: np.ones(2, dtype=np.float32)}], maxlen=2), {b"x"})},
}
VALUES["array of lists"][:] = [[1, 2], [3, 4]]


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_a_value_comes_back_with_its_type(value: Any) -> None:
    """Type, dtype, shape, limit and order are those that were saved, at every depth."""
    before = description(value)
    assert description(through_json(value)) == before
    assert description(value) == before
    assert description(through_json([value, {"a": (value,)}])) == description([value, {"a": (value,)}])


def test_a_plain_value_costs_nothing() -> None:
    """It is packed as itself, without a copy. A number of 64 bits, a key with "$" beside others, and "$" are plain."""
    plain: list[Any] = [{"a": [{"b": 1.5, "$c": None}, 2**64 - 1, -(2**63), "$set"]}, [], {}, None, True, "$", 0]
    for value in plain:
        assert pack(value) is value


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**80), 2**80), st.floats(), st.text(max_size=3), st.binary(max_size=3)
)
KEYS = st.one_of(st.sampled_from(["$set", "$dict", "$tuple", "$", "a"]), st.integers(0, 3), st.text(max_size=2))
ANY = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(lambda items: deque(items, maxlen=4)),
        st.dictionaries(KEYS, inner, max_size=3),
        st.sets(SCALARS.filter(lambda item: item == item), max_size=3),
    ),
    max_leaves=10,
)


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(ANY)
def test_any_combination_comes_back(value: Any) -> None:
    """However the values are nested, and however a dict resembles a mark."""
    assert description(through_json(copy.deepcopy(value))) == description(value)


def test_equal_sets_are_packed_equally() -> None:
    """The order in which a set iterates differs between processes, and must not change the bytes."""
    one, other = {8, 0, "b", (1, 2)}, {(1, 2), "b", 0}
    other.add(8)
    assert list({0, 8}) != list({8, 0})
    assert orjson.dumps(pack(one)) == orjson.dumps(pack(other))
    assert orjson.dumps(pack({8, 0})) == orjson.dumps(pack({0, 8}))


# -------------------------------------------------------------------- random generators

GENERATORS: dict[str, Any] = {
    "Random": random.Random,
    "RandomState": np.random.RandomState,
    "RandomState of another": lambda seed: np.random.RandomState(np.random.SFC64(seed)),
    **{
        kind.__name__: lambda seed, kind=kind: np.random.Generator(kind(seed))
        for kind in (np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64)
    },
}


def draw(generator: Any) -> list[Any]:
    """Return draws that use all of a generator's state: floats, half words and the second normal number."""
    if isinstance(generator, random.Random):
        return [generator.random(), generator.gauss(0, 1), generator.getrandbits(5)]
    if isinstance(generator, np.random.RandomState):
        return [generator.rand(), generator.randn(), generator.randint(9)]
    return [generator.random(), generator.normal(), int(generator.integers(9, dtype=np.int16))]


@pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS.keys())
def test_a_random_generator_goes_on_where_it_was(make: Any) -> None:
    """Built anew and in place, it draws what the saved one draws next."""
    generator, other = make(1), make(2)
    draw(generator)
    packed = orjson.loads(orjson.dumps(pack(generator)))
    built, expected = unpack(packed), draw(generator)
    assert draw(built) == expected
    assert InPlace().restored(other, packed) is other
    assert draw(other) == expected
    assert type(built) is type(other)


def test_a_bit_generator_goes_on_where_it_was() -> None:
    """Without a `Generator` around it as well."""
    bits, other = np.random.PCG64(1), np.random.PCG64(2)
    packed = orjson.loads(orjson.dumps(pack(bits)))
    assert InPlace().restored(other, packed) is other
    assert unpack(packed).state == other.state == bits.state


def test_generators_inside_containers_keep_their_identity() -> None:
    """Other objects may draw from them. A generator of another kind is replaced."""
    inner, kept, replaced = random.Random(1), np.random.default_rng(1), np.random.default_rng(1)
    old = {"list": [inner, {"deep": kept}], "kind": replaced}
    saved = {"list": [random.Random(5), {"deep": np.random.default_rng(5)}], "kind": random.Random(6)}
    restored = InPlace().restored(old, orjson.loads(orjson.dumps(pack(saved))))
    assert restored is old
    assert old["list"][0] is inner
    assert old["list"][1]["deep"] is kept
    assert type(old["kind"]) is random.Random
    assert (draw(inner), draw(kept)) == (draw(random.Random(5)), draw(np.random.default_rng(5)))


# -------------------------------------------------------------------- in place


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a": 1}, {"b": (2,), 3: 4}),
        ([1, 2, 3], [(4,)]),
        ({1}, {2, 3}),
        (deque([1], maxlen=2), deque([2, 3], maxlen=2)),
        (bytearray(b"a"), bytearray(b"bc")),
        (np.zeros(2), np.ones(2)),
        (Counter("a"), Counter("bb")),
        (OrderedDict(a=1), OrderedDict(b=2)),
        (defaultdict(int, a=1), defaultdict(list, b=[2])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_container_is_filled_in_place(old: Any, new: Any) -> None:
    """Other objects that refer to it see the restored content."""
    restored = InPlace().restored(old, pack(new))
    assert restored is old
    assert description(old) == description(new)
    assert getattr(old, "default_factory", None) == getattr(new, "default_factory", None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([1], (1,)),
        ({"a": 1}, OrderedDict(a=1)),
        ({1}, frozenset({1})),
        (deque([1], maxlen=2), deque([1], maxlen=3)),
        (np.zeros(2), np.zeros(3)),
        (np.zeros(2), np.zeros(2, dtype=np.float32)),
        (np.random.default_rng(1), np.random.Generator(np.random.MT19937(1))),
        (None, [1]),
        ([1], None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_the_old_one_cannot_hold_replaces_it(old: Any, new: Any) -> None:
    """The restored value has the saved type. The old object is unchanged."""
    before = description(old)
    restored = InPlace().restored(old, pack(new))
    assert type(restored) is type(new)
    assert description(old) == before
    assert not can_hold(old, new)


def test_an_array_that_is_read_only_is_replaced() -> None:
    """Writing to it would raise."""
    old = np.zeros(2)
    old.flags.writeable = False
    assert InPlace().restored(old, pack(np.ones(2))).tolist() == [1, 1]
    assert old.tolist() == [0, 0]


def test_a_subclass_of_a_container_is_filled_in_place() -> None:
    """It keeps its class, which a checkpoint can't build."""

    class Own(dict[str, int]):
        pass

    old = Own(a=1)
    assert InPlace().restored(old, pack(Own(b=2))) is old
    assert (type(old), dict(old)) == (Own, {"b": 2})


def test_two_names_of_one_object_stay_together_only_with_equal_values() -> None:
    """At the start, `best` and `current` may be one list. Later they differ, and one must not overwrite the other."""
    shared: list[int] = []
    apart = InPlace()
    assert apart.restored(shared, [1]) is shared
    assert apart.restored(shared, [2]) == [2]
    assert shared == [1]
    generator, together = random.Random(1), InPlace()
    packed = pack(random.Random(7))
    assert together.restored(generator, packed) is together.restored(generator, packed) is generator


# -------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    "value",
    [
        object(),
        Path("/a"),
        Pair(1, 2),
        Level.LOW,
        Text("a"),
        random.SystemRandom(),
        np.array([object()], dtype=object),
        np.array([(1, None)], dtype=[("n", "i4"), ("o", object)]),
        np.ma.masked_array([1], mask=[True]),
        defaultdict(lambda: 1),
        type("OwnDict", (dict,), {})(a=1),
        math.sin,
        np.random.RandomState,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_form_is_refused_and_named(value: Any) -> None:
    """The error carries the part that can't be packed, also from deep inside."""
    for outer in ([value], {"a": (1, {"b": [value]})}):
        with pytest.raises(UnsupportedValueError):
            pack(outer)
    if type(value) is object:
        with pytest.raises(UnsupportedValueError) as caught:
            pack({"a": (1, {"b": [value]})})
        assert caught.value.value is value


def test_values_that_are_nested_without_end_are_refused() -> None:
    """A cycle is refused at once, even where each turn doubles the number of paths."""
    cycle: list[Any] = []
    cycle += [cycle, cycle]
    pair: Any = (1, [])
    pair[1].extend([pair, pair])
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    for value in (cycle, pair, deep):
        with pytest.raises(UnsupportedValueError):
            pack(value)


def test_a_deep_value_that_is_accepted_can_be_written() -> None:
    """Marks double the depth, and orjson writes 254 levels."""
    value: Any = 1
    for _ in range(49):
        value = (value,)
    assert description(through_json({"a": value})) == description({"a": value})


@pytest.mark.parametrize("packed", [{"$eval": "1"}, {"$Path": "/"}, [{"$set": [{"$os.system": "true"}]}]])
def test_an_unknown_mark_is_refused(packed: Any) -> None:
    """Nothing is looked up by a name in a checkpoint."""
    with pytest.raises(StateError, match=r"holds a value of type '\$"):
        unpack(packed)


@pytest.mark.parametrize("name", ["load", "fromfile", "no_such_function", "__loader__"])
def test_only_functions_of_numpy_that_compute_are_read(name: str) -> None:
    """`numpy.load` is no `ufunc`, and would open files."""
    with pytest.raises(StateError, match="is not a function of this numpy"):
        unpack({"$ufunc": name})


@pytest.mark.parametrize(
    "packed",
    [
        {"$array": ["|O", [1], {"$bytes": "QUFBQUFBQUE="}]},
        {"$array": [[["a", "|O"]], [1], {"$bytes": "QUFBQUFBQUE="}]},
        {"$scalar": ["|O", [], {"$bytes": "QUFBQUFBQUE="}]},
    ],
)
def test_the_bytes_of_an_array_are_never_taken_as_addresses(packed: Any) -> None:
    """Numpy makes an array of objects over any bytes. A look at it would end this process, or run what lies there."""
    with pytest.raises(StateError, match="holds an array whose bytes are not"):
        unpack(packed)


@pytest.mark.parametrize(
    "packed", [{"$bytearray": 10**12}, {"$array": ["|S0", [10**12], {"$bytes": ""}]}, {"$array": ["<i8", [3], 7]}]
)
def test_a_value_takes_no_more_memory_than_its_bytes(packed: Any) -> None:
    with pytest.raises(StateError, match="holds a"):
        unpack(packed)


def test_a_damaged_value_of_each_type_is_refused() -> None:
    """A checkpoint that verifies may hold any JSON: its writer computes the digest."""
    for form in FORMS.values():
        for parts in (None, 7, "x", [], {}, [1], {"bit_generator": "PCG64"}, [[1]]):
            with suppress(StateError):
                unpack({form.mark: parts})


def test_a_value_without_bytes_is_not_saved() -> None:
    """As it would not be read."""
    with pytest.raises(UnsupportedValueError):
        pack(np.zeros(3, dtype="V0"))


def test_packed_values_are_strict_json() -> None:
    """Every parser can read them."""
    for value in VALUES.values():
        json.dumps(pack(value), allow_nan=False)
