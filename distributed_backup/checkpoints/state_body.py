"""Write and read the training state in the body of a checkpoint, without synalinks and numpy.

What is read equals what was written, except that tuples and arrays come back as lists. A body is MessagePack, which
holds NaN and infinities too, and is encoded in one pass over the state. Its encoder refuses integers beyond 64 bits and
lone surrogates. A state that contains one of these is written by the standard library as `{"exact": STATE}`. Such a
body is not strict JSON: only this module and other lenient parsers read it. Version 0.3 wrote all bodies as JSON.

The limit: bytes in a variable come back only if no such integer or surrogate stands beside them. JSON lacks bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson
import ormsgpack

from distributed_backup.checkpoints.format import Body
from distributed_backup.checks import shown
from distributed_backup.errors import StateError
from distributed_backup.storage.base import Chunks

_JSON: Final = b"{"
_EXACT: Final = b'{"exact":'
# Otherwise dates and dataclasses would be written as strings and maps, which come back as another type.
_STRICT: Final = ormsgpack.OPT_PASSTHROUGH_DATETIME | ormsgpack.OPT_PASSTHROUGH_DATACLASS
# The standard library can read this deep.
_MAX_DEPTH: Final = 250
_LISTS: Final = (list, tuple)
# Written by this package, and free of what JSON lacks: `training.packing` makes the objects.
_TRUSTED_KEYS: Final = frozenset({"objects", "python_random", "numpy_random", "schema"})
# Longer lists in a variable are encoded in parts of so many items. A candidate of an optimizer has some kB.
_ITEMS_AT_ONCE: Final = 512


def encode_variables(groups: Mapping[str, Any]) -> dict[str, Chunks] | None:
    """Return the variables of each group, for `encode_state` and for digests. None if MessagePack lacks a value.

    Equal variables give equal bytes, also if they come from `decode_state`.
    """
    try:
        return {name: _pack_variables(values) for name, values in groups.items()}
    except TypeError:
        return None


def encode_state(state: dict[str, Any], variables: Mapping[str, Chunks] | None = None) -> Chunks:
    """Return the body that holds `state`. `variables` is the result of `encode_variables` for those in it, if known.

    Raises:
        StateError: A value in it is not JSON. The message names its place and type.
    """
    try:
        rest = {name: [_pack(value)] for name, value in state.items() if name != "variables"}
        groups = variables or {name: _pack_variables(values) for name, values in state["variables"].items()}
        return _map({"variables": _map(groups), **rest})
    except TypeError:
        return [_exact_json(state)]


def decode_state(body: Body) -> dict[str, Any]:
    """Return the state in the body of a checkpoint, as `encode_state` of this version or of 0.3 wrote it.

    Raises:
        StateError: The body is not the MessagePack or JSON of a state.
    """
    raw = body if isinstance(body, bytes) else b"".join(body)
    try:
        state = _decoded(raw)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise StateError(f"the body of the checkpoint is not the encoding of a state: {shown(str(error))}") from None
    if not isinstance(state, dict):
        raise StateError(f"the body of the checkpoint is not a state, but a {type(state).__name__}")
    return state


def _decoded(raw: bytes) -> Any:
    if not raw.startswith(_JSON):
        return ormsgpack.unpackb(raw)
    if raw.startswith(_EXACT):
        return json.loads(raw)["exact"]
    state = orjson.loads(raw)
    return _untag(state["tagged"]) if isinstance(state, dict) and "tagged" in state else state


def _pack(value: Any) -> bytes:
    return ormsgpack.packb(value, option=_STRICT, default=_plain)


def _pack_variables(values: Sequence[Any]) -> Chunks:
    """Return what `_pack` returns for the variables of a group, in parts.

    The buffer for a list of 20 MB would be larger than the blocks that malloc recycles, which are up to 32 MB in glibc.
    New pages of the kernel would take half as long as the encoding.
    """
    return [_head(len(values), is_map=False), *(part for value in values for part in _pack_variable(value))]


def _pack_variable(value: Any) -> Chunks:
    is_map = isinstance(value, dict) and all(type(key) is str for key in value)
    if not is_map or not any(map(_is_long, value.values())):
        return [_pack(value)]
    # As `_pack` does it.
    parts: list[bytes | memoryview] = [_head(len(value), is_map=True)]
    for key, item in value.items():
        parts.append(_pack(key))
        if not _is_long(item):
            parts.append(_pack(item))
            continue
        parts.append(_head(len(item), is_map=False))
        for start in range(0, len(item), _ITEMS_AT_ONCE):
            some = item[start : start + _ITEMS_AT_ONCE]
            parts.append(memoryview(_pack(some))[len(_head(len(some), is_map=False)) :])
    return parts


def _is_long(item: Any) -> bool:
    return isinstance(item, list) and len(item) > _ITEMS_AT_ONCE


def _head(size: int, *, is_map: bool) -> bytes:
    """Return how MessagePack begins a list or a map of so many items."""
    short, long = (0x80, 0xDE) if is_map else (0x90, 0xDC)
    if size < 2**4:
        return bytes([short | size])
    return bytes([long]) + size.to_bytes(2) if size < 2**16 else bytes([long + 1]) + size.to_bytes(4)


def _map(entries: Mapping[str, Chunks]) -> Chunks:
    """Return a map of MessagePack whose values are encoded. Joining 20 MB would take as long as half the encoding."""
    parts: list[bytes | memoryview] = [_head(len(entries), is_map=True)]
    for name, value in entries.items():
        parts += [_pack(name), *value]
    return parts


def _exact_json(state: dict[str, Any]) -> bytes:
    _check({name: value for name, value in state.items() if name not in _TRUSTED_KEYS}, "state")
    try:
        text = json.dumps({"exact": state}, default=_plain, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise StateError(f"the training state is not JSON: {error}") from error
    return text.encode("utf-8", "surrogatepass")


def _is_numpy(value: Any) -> bool:
    return hasattr(type(value), "__array_interface__") and hasattr(type(value), "tolist")


def _plain(value: Any) -> Any:
    """Return a number or array of numpy as Python's own numbers and lists."""
    if _is_numpy(value):
        return value.tolist()
    raise TypeError(type(value).__name__)


def _check(value: Any, where: str, depth: int = 0) -> None:
    """Raise a `StateError` that names the first value that JSON lacks. `json.dumps` would not name its place."""
    if _is_numpy(value):
        value = value.tolist()
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise StateError(f"the training state is not JSON: {where} has keys that are not strings")
        items = [(f"{where}.{key}", item) for key, item in value.items()]
    elif isinstance(value, _LISTS):
        items = [(f"{where}[{index}]", item) for index, item in enumerate(value)]
    elif isinstance(value, str | int | float | None):
        return
    else:
        raise StateError(f"the training state is not JSON: {where} is of type {type(value).__name__}")
    if depth == _MAX_DEPTH:
        raise StateError(f"the training state is not JSON: it is nested more than {_MAX_DEPTH} levels deep")
    for place, item in items:
        _check(item, place, depth + 1)


# Version 0.3 wrote the values that orjson lacks as {"float": "nan"}, and marked keys of dictionaries with "$".
_TAGS: Final[Mapping[str, Callable[[str], Any]]] = {
    "float": float,
    "int": int,
    "text": lambda encoded: bytes.fromhex(encoded).decode("utf-8", "surrogatepass"),
}


def _untag(value: Any) -> Any:
    if isinstance(value, list):
        return [_untag(item) for item in value]
    if not isinstance(value, dict):
        return value
    for kind, convert in _TAGS.items():
        if kind in value:
            return convert(value[kind])
    return {key[1:]: _untag(item) for key, item in value.items()}
