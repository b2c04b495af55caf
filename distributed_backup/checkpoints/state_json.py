"""Write and read the training state in the body of a checkpoint, without synalinks and numpy.

What is read equals what was written, except that tuples and arrays come back as lists. Most bodies are plain JSON,
written by orjson. orjson turns NaN and infinities into null, and refuses integers beyond 64 bits and lone surrogates.
A state that contains one of these is written by the standard library as `{"exact": STATE}`. Such a body is not strict
JSON: only this module and other lenient parsers read it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from distributed_backup.checks import shown
from distributed_backup.errors import StateError

_EXACT: Final = b'{"exact":'
# Written by this package, and free of NaN: these parts of a state are not checked. `training.packing` makes the first.
_TRUSTED_KEYS: Final = ("objects", "python_random", "numpy_random", "schema")
# orjson would write dates and dataclasses as strings and dictionaries, which come back as another type.
_STRICT: Final = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
# orjson writes no deeper, and the standard library can read this deep.
_MAX_DEPTH: Final = 250
_LISTS: Final = (list, tuple)
_WHOLE: Final = (str, int, type(None))


def encode_variables(groups: Mapping[str, Any]) -> dict[str, bytes] | None:
    """Return the variables of each group as JSON, for `encode_state` and for digests. None if orjson can't write one.

    Equal variables give equal bytes, also if they come from `decode_state`.
    """
    try:
        return {name: orjson.dumps(values, option=_STRICT, default=_plain) for name, values in groups.items()}
    except TypeError:
        return None


def encode_state(state: dict[str, Any], variables: Mapping[str, bytes] | None = None) -> bytes:
    """Return `state` as one line of JSON. `variables` is the result of `encode_variables` for those in it, if known.

    Raises:
        StateError: A value in it is not JSON. The message names its place and type.
    """
    rest = {name: value for name, value in state.items() if name not in _TRUSTED_KEYS}
    body = _strict_json(rest, {name: state[name] for name in _TRUSTED_KEYS if name in state}, variables)
    if body is not None:
        return body
    _check(rest, "state")
    try:
        text = json.dumps({"exact": state}, default=_plain, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise StateError(f"the training state is not JSON: {error}") from error
    return text.encode("utf-8", "surrogatepass")


def decode_state(body: bytes) -> dict[str, Any]:
    """Return the state in the body of a checkpoint, as `encode_state` of this version or of 0.3 wrote it.

    Raises:
        StateError: The body is not the JSON of a state.
    """
    try:
        state = json.loads(body)["exact"] if body.startswith(_EXACT) else orjson.loads(body)
        if isinstance(state, dict) and "tagged" in state and not body.startswith(_EXACT):
            state = _untag(state["tagged"])
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise StateError(f"the body of the checkpoint is not the JSON of a state: {shown(str(error))}") from None
    if not isinstance(state, dict):
        raise StateError(f"the body of the checkpoint is not a state, but a {type(state).__name__}")
    return state


def _strict_json(rest: dict[str, Any], trusted: dict[str, Any], variables: Mapping[str, bytes] | None) -> bytes | None:
    """Return the body that orjson writes. None if it would lose a value, or can't write one."""
    known = {name: orjson.Fragment(text) for name, text in (variables or {}).items()}
    try:
        # `default` for numpy's numbers: with OPT_SERIALIZE_NUMPY, float32 gets fewer digits than the equal float has.
        text = orjson.dumps({**rest, **({"variables": known} if known else {})}, option=_STRICT, default=_plain)
        more = orjson.dumps(trusted, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        return None
    # A null may stand for NaN. Only then is each value looked at.
    if b"null" in text and not _is_finite(rest):
        return None
    return text[:-1] + b"," + more[1:]


def _is_numpy(value: Any) -> bool:
    return hasattr(type(value), "__array_interface__") and hasattr(type(value), "tolist")


def _plain(value: Any) -> Any:
    """Return a number or array of numpy as Python's own numbers and lists."""
    if _is_numpy(value):
        return value.tolist()
    raise TypeError(type(value).__name__)


def _is_finite(values: dict[str, Any]) -> bool:
    """Whether all of `values` are known to contain neither NaN nor an infinity."""
    left: list[Any] = [values]
    while left:
        value = left.pop()
        if type(value) is str or isinstance(value, _WHOLE):
            continue
        if isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, _LISTS):
            left.extend(value)
        elif isinstance(value, float):
            if not math.isfinite(value):
                return False
        elif _is_numpy(value):
            left.append(value.tolist())
        else:
            return False
    return True


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
