"""Turn the responses of models into JSON, and back into responses that are equal for synalinks.

A restored response has the same `model_dump()` as the original, and the same cost and overhead, which synalinks counts.
What else litellm hides in a response is not kept: headers, ids and addresses of the provider.

A file names a response's class by one of the names in `_MODELS`. No other class is ever built, and no code runs that a
file names. Values that are no responses are kept if `packing` knows their types: JSON's own, and those of Python and
numpy.

Facts relied on (litellm 1.110.2): the constructor of each of these classes takes its `model_dump()`. synalinks reads
two of the hidden parameters.
"""

from __future__ import annotations

import json
from typing import Any, Final

import orjson
from litellm.types.decisions import DecisionsResponse
from litellm.types.utils import EmbeddingResponse, ModelResponse, ModelResponseStream

from distributed_backup.training.codec import Codec, UnrecordableError
from distributed_backup.training.packing import UnsupportedValueError, pack, unpack

_MODELS: Final = {
    kind.__name__: kind for kind in (ModelResponse, ModelResponseStream, EmbeddingResponse, DecisionsResponse)
}
_VALUE: Final = "value"
_ESCAPED: Final = "escaped"
_HIDDEN: Final = ("response_cost", "litellm_overhead_time_ms")


def hidden_params(response: Any) -> dict[str, Any]:
    """Return the hidden parameters that synalinks reads."""
    hidden = getattr(response, "_hidden_params", None)
    return {name: hidden[name] for name in _HIDDEN if name in hidden} if isinstance(hidden, dict) else {}


def encode(response: Any) -> bytes:
    """Return a response as strict JSON on one line. It was restored once from it, to see that it is equal.

    Raises:
        UnrecordableError: The response has another class, or does not come back equal.
    """
    try:
        record = _record(response)
        data = _dump(record)
        is_equal = record[0] == _VALUE or _record(decode(data)) == record
    except UnsupportedValueError as error:
        if error.value is response:
            reason = "can't be recorded: it is neither a response of litellm nor plain data"
        else:
            reason = f"holds a value of class {_name(error.value)}"
        raise UnrecordableError(f"{_name(response)} {reason}") from None
    except UnrecordableError:
        raise
    except Exception as error:
        raise UnrecordableError(f"{_name(response)} can't be turned into JSON ({type(error).__name__})") from error
    if not is_equal:
        raise UnrecordableError(f"{_name(response)} is not equal after it was restored")
    return data


def decode(data: bytes) -> Any:
    """Return the response that was encoded.

    Raises:
        UnrecordableError: Another version of this package or of litellm has encoded it.
    """
    kind = ""
    try:
        loaded = orjson.loads(data)
        kind, fields, hidden = unpack(json.loads(loaded[_ESCAPED]) if isinstance(loaded, dict) else loaded)
        if kind == _VALUE:
            return fields
        response: Any = _MODELS[kind](**fields)
        response._hidden_params.update(hidden)  # noqa: SLF001 - there is no public way for all classes
    except Exception as error:
        raise UnrecordableError(
            f"a recorded answer of class {kind} can't be restored by these versions ({type(error).__name__})"
        ) from error
    return response


RESPONSES: Final = Codec(encode, decode)


def _record(response: Any) -> list[Any]:
    """Return class, content and hidden parameters, packed."""
    kind = type(response).__name__
    if _MODELS.get(kind) is not type(response):
        record = [_VALUE, response, {}]
    else:
        record = [kind, response.model_dump(warnings=False), hidden_params(response)]
    packed: list[Any] = pack(record)
    return packed


def _dump(record: list[Any]) -> bytes:
    try:
        data = orjson.dumps(record)
    except TypeError:
        # Half a surrogate pair, which strict JSON lacks: a model's text may be cut off inside a character.
        data = orjson.dumps({_ESCAPED: json.dumps(record)})
    # A copy, because answers are kept until the next boundary: orjson 3.13 allocates up to 11 times of what it returns.
    return bytes(memoryview(data))


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
