"""Record and restore responses of litellm in a child, for `test_responses`. Imports synalinks."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

import litellm
import numpy as np
import orjson
import pydantic
import synalinks
from litellm.types.decisions import DecisionsResponse
from litellm.types.utils import Embedding, EmbeddingResponse, ModelResponse, ModelResponseStream, Usage

from distributed_backup.training.codec import UnrecordableError
from distributed_backup.training.responses import decode, encode
from tests.integration.model_calls_scenarios import counters, messages
from tests.integration.resume_scenarios import strict
from tests.support.programs import Answer
from tests.support.recorders import response

Report = Callable[..., None]

_CALL: Final = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "ü\\ud83d"}'}}
_BLOCK: Final = {"type": "thinking", "thinking": "so", "signature": "abc"}
_AUDIO: Final = {"id": "a", "data": "UklGRg==", "expires_at": 1, "transcript": "hi"}
MESSAGES: Final[dict[str, dict[str, Any]]] = {
    "text": {"content": "hello"},
    "unicode": {"content": 'Größe 🙂 \u2028 \x00 "quoted" \\ud83d'},
    "half a surrogate pair": {"content": "cut \ud83d"},
    "structured": {"content": json.dumps({"answer": "yes"})},
    "tool calls": {"content": None, "tool_calls": [_CALL, {**_CALL, "id": "call_2"}]},
    "tool call of the schema": {
        "content": "",
        "tool_calls": [{**_CALL, "function": {"name": "f", "arguments": '{"answer": "a"}'}}],
    },
    "custom tool call": {
        "content": "x",
        "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "n", "input": "i"}}],
    },
    "reasoning": {
        "content": "hello",
        "reasoning_content": "because",
        "thinking_blocks": [_BLOCK, {"type": "redacted_thinking", "data": "x"}],
    },
    "refusal": {"content": None, "refusal": "I can't help with that"},
    "refusal beside text": {"content": "no", "refusal": "I can't"},
    "audio": {"content": None, "audio": _AUDIO},
    "provider's fields": {
        "content": "hello",
        "provider_specific_fields": {"citations": [{"url": "u", "score": 0.1}], "x": None},
    },
    "annotations": {
        "content": "a",
        "annotations": [
            {"type": "url_citation", "url_citation": {"start_index": 0, "end_index": 1, "url": "u", "title": "t"}}
        ],
    },
    "unknown field": {"content": "hello", "vendor": {"nested": [1, 2.5, True, None]}},
    "nothing": {"content": ""},
}


def _usages() -> Iterator[dict[str, Any]]:
    yield {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    yield {"prompt_tokens": 9, "completion_tokens": 2, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 3}
    yield {"prompt_tokens": 9, "completion_tokens": 2, "prompt_cache_hit_tokens": 4, "cost": 0.1}
    yield {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "reasoning_tokens": 2,
        "server_tool_use": {"web_search_requests": 2},
    }
    yield {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "prompt_tokens_details": {
            "cached_tokens": 1, "audio_tokens": 2, "image_tokens": 3, "web_search_requests": 4, "character_count": 5,
            "cache_creation_token_details": {"ephemeral_5m_input_tokens": 6, "ephemeral_1h_input_tokens": 7},
        },
        "completion_tokens_details": {"reasoning_tokens": 1, "accepted_prediction_tokens": 2, "image_tokens": 3},
    }  # fmt: skip


def responses() -> dict[str, Any]:
    """Return responses of each class that is recorded, by what they show."""
    found: dict[str, Any] = {name: response(dict(message)) for name, message in MESSAGES.items()}
    for number, usage in enumerate(_usages()):
        found[f"usage {number}"] = ModelResponse(
            id="a", created=1, choices=[{"message": {"content": "x"}}], usage=usage
        )
    for reason in ("stop", "length", "tool_calls", "content_filter", "end_turn", "max_tokens", "SAFETY", "odd"):
        found[f"reason {reason}"] = response({"content": ""}, finish_reason=reason)
    found["logprobs"] = response(
        {"content": "a"}, logprobs={"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}]}
    )
    found["no choices"] = ModelResponse(id="a", created=1, choices=[])
    found["two choices"] = ModelResponse(choices=[{"message": {"content": text}, "index": 0} for text in "ab"])
    found["cost unknown"] = response({"content": "a"})
    found["cost unknown"]._hidden_params["response_cost"] = None
    found["dict"] = {"choices": [{"message": {"content": "a", "tool_calls": [_CALL]}}], "usage": {"prompt_tokens": 3}}
    found["dict with NaN"] = {"choices": [{"message": {"content": "a"}}], "score": math.nan, "bits": -0.0, "big": 2**80}
    found["dict with $"] = {"$set": [1]}
    found["chunk"] = ModelResponseStream(choices=[{"index": 0, "delta": {"role": "assistant", "content": "a"}}])
    found["chunk of reasoning"] = ModelResponseStream(
        choices=[{"delta": {"reasoning_content": "a", "thinking_blocks": [_BLOCK]}}]
    )
    found["chunk of a tool call"] = ModelResponseStream(choices=[{"delta": {"tool_calls": [{**_CALL, "index": 0}]}}])
    found["last chunk"] = ModelResponseStream(
        choices=[{"delta": {}, "finish_reason": "stop"}], usage=Usage(prompt_tokens=3)
    )
    found["chunk without choices"] = ModelResponseStream(choices=[])
    found["dict chunk"] = {"choices": [{"delta": {"content": "a"}}]}
    vectors = np.random.default_rng(0).normal(size=(40, 1536)) * 10.0 ** np.arange(-300, 300, 600 / 1536)
    data = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors.tolist())]
    found["embeddings"] = EmbeddingResponse(model="m", data=data, usage=Usage(prompt_tokens=3, total_tokens=3))
    found["embeddings of objects"] = EmbeddingResponse(
        data=[Embedding(embedding=[5e-324, -0.0, math.inf], index=0, object="embedding")]
    )
    found["no embeddings"] = EmbeddingResponse()
    answers = {
        "a": {"type": "noul", "noul": 0.9},
        "b": {"type": "choice", "choice": "x", "confidence": 0.5, "probabilities": {"x": 0.5, "y": 0.5}},
        "c": {"type": "score", "score": 1.5, "legend": {"0": "bad"}, "probabilities": {"0": 1.0}, "extra": [1]},
    }
    found["decision"] = DecisionsResponse(
        model="jev", answers=answers, usage={"input_tokens": 100, "output_tokens": 10}
    )
    found["decision"]._hidden_params["response_cost"] = 0.1
    return found


def restored(report: Report) -> dict[str, list[str]]:
    """Return for each response what of it is not equal after it was encoded and decoded."""
    strict()
    return {name: list(_differences(original)) for name, original in responses().items()}


def _differences(original: Any) -> Iterator[str]:
    data = encode(original)
    orjson.loads(data)
    if b"\n" in data or b"secret" in data:
        yield f"encoded {data[:200]!r}"
    copy = decode(data)
    if type(copy) is not type(original):
        yield f"class {type(copy)}"
    if isinstance(original, dict):
        one, other = original, copy
    else:
        one, other = original.model_dump(warnings=False), copy.model_dump(warnings=False)
        for name in ("response_cost", "litellm_overhead_time_ms"):
            hidden, again = (item._hidden_params.get(name, "missing") for item in (original, copy))
            if hidden != again:
                yield f"{name} {hidden} {again}"
    # `repr` tells NaN, -0.0, 1 and True apart.
    if repr(_sorted(one)) != repr(_sorted(other)):
        yield f"content {one} {other}"
    if repr(_sorted(_reads(original))) != repr(_sorted(_reads(copy))):
        yield f"reads {_reads(original)} {_reads(copy)}"


def _sorted(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return type(value).__name__, _sorted(dict(value))
    if isinstance(value, dict):
        return [(name, _sorted(value[name])) for name in sorted(value)]
    return [_sorted(item) for item in value] if isinstance(value, list | tuple) else value


def _reads(item: Any) -> Any:
    """Return what synalinks reads of a response, the way it reads it."""
    if isinstance(item, DecisionsResponse) or not hasattr(item, "get"):
        return None
    found: list[Any] = [item.get("usage")]
    for choice in item.get("choices") or ():
        part = choice.get("message") or choice.get("delta") or {}
        fields = ("content", "reasoning_content", "thinking_blocks", "tool_calls", "refusal", "audio")
        found += [type(part).__name__, choice.get("finish_reason"), *(part.get(field) for field in fields)]
    for row in item.get("data") or ():
        found += [row["embedding"]]
    return found


# -------------------------------------------------------------------- through a language model


def parsed(report: Report) -> list[str]:
    """Return the responses that a language model reads otherwise after they were restored."""
    warnings.simplefilter("ignore")

    async def read(item: Any, schema: Any) -> Any:
        model = synalinks.LanguageModel(model="openai/gpt-4o-mini", retry=1)

        async def answer(**kwargs: Any) -> Any:
            return item

        litellm.acompletion = answer
        result = await model(messages("one"), schema=schema)
        return repr([None if result is None else result.get_json(), counters(model)])

    async def main() -> list[str]:
        wrong, answered = [], 0
        for name, item in responses().items():
            # synalinks itself fails on half a surrogate pair.
            if not (isinstance(item, ModelResponse) or name == "dict") or name == "half a surrogate pair":
                continue
            for schema in (None, Answer.get_schema()):
                one, other = await read(item, schema), await read(decode(encode(item)), schema)
                answered += not one.startswith("[None")
                wrong += [] if one == other else [f"{name} {one} {other}"]
        assert answered >= 20, answered
        return wrong

    return asyncio.run(main())


def allocated(report: Report) -> tuple[int, int]:
    """Return the bytes of a recorded answer, and the bytes of memory that are allocated for it."""
    answer = response({"content": "x" * 5000})
    encode(answer)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    data = encode(answer)
    gc.collect()
    return len(data), tracemalloc.get_traced_memory()[0] - before


# -------------------------------------------------------------------- what can't be recorded


class OwnResponse(ModelResponse):  # type: ignore[misc]
    """A subclass may hold more than its base."""


class OwnDict(dict[str, Any]):
    """As above."""


class Unknown:
    """A response that is no model."""


def unrecordable(report: Report) -> dict[str, str]:
    """Return the message for each response that can't be restored exactly."""
    changed = response({"content": "SECRET"})
    changed.choices[0].finish_reason = "not one that litellm knows"
    with_object = response({"content": "SECRET"})
    with_object.extra = Unknown()
    nested: list[Any] = []
    for _ in range(500):
        nested = [nested]
    found = {
        "subclass": OwnResponse(choices=[{"message": {"content": "SECRET"}}]),
        "subclass of the same name": type("ModelResponse", (ModelResponse,), {})(choices=[]),
        "own dict": OwnDict(content="SECRET"),
        "unknown": Unknown(),
        "changed": changed,
        "object in a field": with_object,
        "object in a dict": {"choices": [{"message": litellm.Message(content="SECRET")}]},
        "pydantic": pydantic.create_model("Made", text=(str, "SECRET"))(),
        "too deep": nested,
    }
    return {name: _message(lambda item=item: encode(item)) for name, item in found.items()}  # type: ignore[misc]


def undecodable(report: Report) -> list[str]:
    """Return the messages for bytes of another version, of another class, and for none of ours."""
    cases = [b'["OSError",{},{}]', b'["ModelResponse",{"choices":[{"message":3}]},{}]', b"{}", b"1", b"", b'["value"]']
    return [_message(lambda data=data: decode(data)) for data in cases]  # type: ignore[misc]


def _message(call: Callable[[], Any]) -> str:
    try:
        return f"no error: {call()}"
    except UnrecordableError as error:
        return str(error)
