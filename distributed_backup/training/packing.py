"""Turn values of Python and numpy into plain JSON, and back into values of the same types.

JSON's own values are packed as themselves. A value of another type is packed as an object with one key, which begins
with "$" and names the type: a set is `{"$set": [...]}`. A dict that looks like this, or has other keys than strings, is
packed as `{"$dict": [[key, value], ...]}`. Unpacking builds the types of `FORMS` and no others, and takes no address
from the bytes of an array. So reading a checkpoint never runs code that the checkpoint names or holds.

Limits: two references to one object come back as two equal objects. A set may iterate in another order. A generator's
`spawn` may give other children, because numpy's state does not contain its seed.
"""

from __future__ import annotations

import base64
import json
import math
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from distributed_backup.checks import shown
from distributed_backup.errors import StateError

_MARK: Final = "$"
# A marked container takes two levels, and `encode_state` writes 250.
_MAX_DEPTH: Final = 100
# A marked dictionary takes three.
_MAX_PACKED_DEPTH: Final = 3 * _MAX_DEPTH + 3
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
# synalinks replaces containers that are attributes by classes of this module, which refer to the owner.
_TRACKING: Final = "synalinks.src.utils.tracking"
_BITGENERATORS: Final = {
    kind.__name__: kind
    for kind in (np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64)
}
_FACTORIES: Final = {kind.__name__: kind for kind in (int, float, str, bool, list, dict, set)}


class UnsupportedValueError(Exception):
    """`value`, or a part of what was packed, has a type that can't be packed, or is nested too deep."""

    def __init__(self, value: Any) -> None:
        super().__init__(type(value).__name__)
        self.value = value


def pack(value: Any) -> Any:
    """Return `value` as plain JSON. It may be `value` itself, so write it before `value` changes.

    A subclass of dict, list, set or deque is packed as its base. `in_place` fills an object of the same class with it.

    Raises:
        UnsupportedValueError: A part of `value` can't be packed.
    """
    if _base(type(value)) in _CONTAINERS and _is_plain(value):
        return value
    if type(value) not in FORMS:
        value = next((base(value) for base in (dict, list, set, deque) if isinstance(value, base)), value)
    return _pack(value, 0)


def unpack(packed: Any) -> Any:
    """Return the value that was packed.

    Raises:
        StateError: The value has a type that this version does not know, or is not one that `pack` has made.
    """
    return _unpack(packed, 0)


def _unpack(packed: Any, depth: int) -> Any:
    if depth > _MAX_PACKED_DEPTH:
        raise StateError(f"the checkpoint holds a value that is nested more than {_MAX_PACKED_DEPTH} levels deep")
    if isinstance(packed, list):
        return [_unpack(item, depth + 1) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if not _looks_marked(packed):
        return {key: _unpack(item, depth + 1) for key, item in packed.items()}
    ((mark, parts),) = packed.items()
    if mark not in _BUILDERS:
        raise StateError(f"the checkpoint holds a value of type {shown(mark)}, which this version can't read")
    content = _unpack(parts, depth + 1)
    try:
        return _BUILDERS[mark](content)
    except StateError:
        raise
    except Exception as error:
        # The constructors of numpy raise errors of many kinds.
        raise StateError(
            f"the checkpoint holds a value of type {mark} that is damaged ({type(error).__name__})"
        ) from error


def text_of(packed: Any) -> bytes:
    """Return a packed value as JSON, to compare it with another."""
    try:
        return orjson.dumps(packed)
    except TypeError:
        # Half a surrogate pair. It is rare, and orjson is 20 times as fast.
        return json.dumps(packed).encode()


# -------------------------------------------------------------------- pack


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether the items of a list or dict, whose own type is one of JSON, are packed as themselves.

    Most state is plain, so this is one fast loop.
    """
    if isinstance(value, dict):
        if _needs_pairs(value):
            return False
        value = value.values()
    for item in value:
        kind = type(item)
        if kind is float:
            if not math.isfinite(item):
                return False
        elif kind is int:
            if not _MIN_INT <= item <= _MAX_INT:
                return False
        elif kind not in _SCALARS and not (
            _base(kind) in _CONTAINERS and depth < _MAX_DEPTH and _is_plain(item, depth + 1)
        ):
            return False
    return True


def _base(kind: type) -> type:
    return kind.__bases__[0] if kind.__module__ == _TRACKING else kind


def _looks_marked(value: Mapping[Any, Any]) -> bool:
    return len(value) == 1 and next(iter(value)).startswith(_MARK)


def _needs_pairs(value: Mapping[Any, Any]) -> bool:
    return any(type(key) is not str for key in value) or _looks_marked(value)


def _pack(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise UnsupportedValueError(value)
    kind = _base(type(value))
    if kind is list:
        return [_pack(item, depth + 1) for item in value]
    if kind is dict and not _needs_pairs(value):
        return {key: _pack(item, depth + 1) for key, item in value.items()}
    if kind in _SCALARS and not _is_odd_number(value):
        return value
    form = FORMS.get(np.generic if issubclass(kind, np.generic) else kind)
    if form is None:
        raise UnsupportedValueError(value)
    return {form.mark: _pack(form.parts(value), depth + 1)}


def _is_odd_number(value: Any) -> bool:
    """Whether `value` is a number that strict JSON lacks."""
    if type(value) is float:
        return not math.isfinite(value)
    return type(value) is int and not _MIN_INT <= value <= _MAX_INT


# -------------------------------------------------------------------- forms


@dataclass(frozen=True, slots=True)
class _Form:
    """How a type is packed: `parts` returns simpler values, from which `build` makes an equal one."""

    mark: str
    parts: Callable[[Any], Any]
    build: Callable[[Any], Any]


def _pairs(value: Mapping[Any, Any]) -> list[list[Any]]:
    return [[key, item] for key, item in value.items()]


def _in_order(value: Any) -> list[Any]:
    """Return a set as a list. The order is that of the packed items, so that equal sets are packed equally."""
    return sorted(value, key=lambda item: text_of(pack(item)))


def _parts_of_default_dict(value: defaultdict[Any, Any]) -> list[Any]:
    factory = value.default_factory
    if factory is not None and _FACTORIES.get(getattr(factory, "__name__", "")) is not factory:
        raise UnsupportedValueError(factory)
    return [None if factory is None else factory.__name__, _pairs(value)]


def _build_default_dict(parts: list[Any]) -> defaultdict[Any, Any]:
    name, pairs = parts
    return defaultdict(None if name is None else _FACTORIES[name], pairs)


def _parts_of_array(value: Any) -> list[Any]:
    kind = value.dtype
    if kind == np.dtype(object):
        return [None, list(value.shape), value.ravel().tolist()]
    if kind.hasobject or kind.metadata or not kind.itemsize:
        raise UnsupportedValueError(value)
    return [np.lib.format.dtype_to_descr(kind), list(value.shape), value.tobytes()]


def _parts_of_scalar(value: np.generic) -> list[Any]:
    return _parts_of_array(np.asarray(value))


def _build_array(parts: list[Any]) -> Any:
    description, shape, content = parts
    if description is None:
        array = np.empty(len(content), dtype=object)
        for index, item in enumerate(content):
            array[index] = item
        return array.reshape(shape)
    kind = np.lib.format.descr_to_dtype(description)
    # numpy takes the bytes of an array of objects as their addresses: any access to it would end the process, or worse.
    if kind.hasobject or not kind.itemsize or kind.itemsize * math.prod(shape) != len(content):
        raise StateError(f"the checkpoint holds an array whose bytes are not {shown(description)}")
    # A copy, because an array over `bytes` can't be changed.
    return np.ndarray(shape, kind, buffer=content).copy()


def _build_random(parts: Any) -> random.Random:
    generator = random.Random()
    generator.setstate(parts)
    return generator


def _build_bit_generator(parts: Any) -> Any:
    generator: Any = _BITGENERATORS[parts["bit_generator"]](0)
    generator.state = parts
    return generator


def _state_of_random_state(generator: np.random.RandomState) -> dict[str, Any]:
    state = generator.get_state(legacy=False)
    assert isinstance(state, dict)
    return state


def _parts_of_random_state(generator: np.random.RandomState) -> dict[str, Any]:
    state = _state_of_random_state(generator)
    if state["bit_generator"] not in _BITGENERATORS:
        raise UnsupportedValueError(generator)
    return state


def _build_random_state(parts: dict[str, Any]) -> np.random.RandomState:
    generator = np.random.RandomState(_BITGENERATORS[parts["bit_generator"]](0))
    generator.set_state(parts)
    return generator


def _parts_of_function(value: np.ufunc) -> str:
    name = str(value.__name__)
    if vars(np).get(name) is not value:
        raise UnsupportedValueError(value)
    return name


def _build_function(name: str) -> np.ufunc:
    # Not `getattr`, which may import modules of numpy.
    found = vars(np).get(name)
    if not isinstance(found, np.ufunc):
        raise StateError(f"the checkpoint holds numpy.{shown(name)}, which is not a function of this numpy")
    return found


def _bytes_as_text(value: bytes) -> str:
    return base64.b64encode(value).decode()


_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_CONTAINERS: Final = frozenset({dict, list})
GENERATORS: Final = frozenset({random.Random, np.random.RandomState, np.random.Generator, *_BITGENERATORS.values()})
FORMS: Final[dict[type, _Form]] = {
    # Written in base 16, because Python limits the digits of a decimal number that it reads.
    int: _Form("$int", hex, lambda text: int(text, 16)),
    float: _Form("$float", repr, float),
    complex: _Form("$complex", lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    bytes: _Form("$bytes", _bytes_as_text, base64.b64decode),
    bytearray: _Form("$bytearray", bytes, lambda content: bytearray(memoryview(content))),
    tuple: _Form("$tuple", list, tuple),
    set: _Form("$set", _in_order, set),
    frozenset: _Form("$frozenset", _in_order, frozenset),
    deque: _Form("$deque", lambda value: [value.maxlen, list(value)], lambda parts: deque(parts[1], parts[0])),
    dict: _Form("$dict", _pairs, dict),
    OrderedDict: _Form("$OrderedDict", _pairs, OrderedDict),
    Counter: _Form("$Counter", _pairs, lambda pairs: Counter(dict(pairs))),
    defaultdict: _Form("$defaultdict", _parts_of_default_dict, _build_default_dict),
    np.ndarray: _Form("$array", _parts_of_array, _build_array),
    np.generic: _Form("$scalar", _parts_of_scalar, lambda parts: _build_array(parts)[()]),
    np.ufunc: _Form("$ufunc", _parts_of_function, _build_function),
    random.Random: _Form("$Random", random.Random.getstate, _build_random),
    np.random.RandomState: _Form("$RandomState", _parts_of_random_state, _build_random_state),
    np.random.Generator: _Form("$Generator", lambda value: value.bit_generator, np.random.Generator),
    **{
        kind: _Form("$BitGenerator", lambda value: value.state, _build_bit_generator)
        for kind in _BITGENERATORS.values()
    },
}
_BUILDERS: Final = {form.mark: form.build for form in FORMS.values()}
