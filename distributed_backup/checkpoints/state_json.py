"""Read the training state in the body of a checkpoint, without synalinks and numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson


def decode_state(body: bytes) -> dict[str, Any]:
    """The state in the body of a checkpoint, as `TrainingState.capture` wrote it."""
    state: dict[str, Any] = orjson.loads(body)
    return _untag(state["tagged"]) if "tagged" in state else state


def _text(encoded: str) -> str:
    return bytes.fromhex(encoded).decode("utf-8", "surrogatepass")


_UNTAG: Final[Mapping[str, Callable[[str], Any]]] = {"float": float, "int": int, "text": _text}


def _untag(value: Any) -> Any:
    if isinstance(value, list):
        return [_untag(item) for item in value]
    if not isinstance(value, dict):
        return value
    for kind, convert in _UNTAG.items():
        if kind in value:
            return convert(value[kind])
    return {key[1:]: _untag(item) for key, item in value.items()}
