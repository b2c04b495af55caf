"""A recorder in memory, and a provider of models without a network that never answers twice alike. Imports litellm."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from litellm.types.utils import EmbeddingResponse, ModelResponse, ModelResponseStream

from distributed_backup.training.codec import Codec


class MemoryRecorder:
    """Records answers by key. `replayed_by` returns a recorder that has them."""

    def __init__(self) -> None:
        self.is_open = True
        self.requests = 0
        self.keys: list[str | None] = []
        self.recorded: list[tuple[str | None, list[bytes]]] = []
        self._left: defaultdict[str | None, deque[list[bytes]]] = defaultdict(deque)

    def replayed(self) -> MemoryRecorder:
        """Return a recorder with the answers of this one, first in, first out."""
        other = MemoryRecorder()
        for key, answer in self.recorded:
            other._left[key].append(answer)
        return other

    @property
    def left(self) -> int:
        """Answers that were not asked for."""
        return sum(map(len, self._left.values()))

    async def ask(self, key: str | None, request: Callable[[], Awaitable[Any]], codec: Codec) -> Any:
        self.keys.append(key)
        if self._left[key]:
            return codec.decode(*self._left[key].popleft())
        self.requests += 1
        response = await request()
        self.recorded.append((key, [codec.encode(response)]))
        return response

    async def ask_stream(
        self, key: str | None, request: Callable[[], Awaitable[AsyncIterator[Any]]], codec: Codec
    ) -> AsyncIterator[Any]:
        self.keys.append(key)
        if self._left[key]:
            return self._replayed_stream(self._left[key].popleft(), codec)
        self.requests += 1
        return self._recorded_stream(key, await request(), codec)

    async def _replayed_stream(self, answer: list[bytes], codec: Codec) -> AsyncIterator[Any]:
        for item in answer:
            yield codec.decode(item)

    async def _recorded_stream(self, key: str | None, items: AsyncIterator[Any], codec: Codec) -> AsyncIterator[Any]:
        answer = []
        async for item in items:
            answer.append(codec.encode(item))
            yield item
        self.recorded.append((key, answer))


class Provider:
    """Stands in for litellm's functions. Each answer holds the number of the call, so no two are equal."""

    def __init__(self) -> None:
        self.calls = 0
        self._numbers = itertools.count(1)

    def _number(self) -> int:
        self.calls += 1
        return next(self._numbers)

    async def acompletion(self, **kwargs: Any) -> Any:
        """Fill the schema, call a tool once, or answer in plain text."""
        number = self._number()
        message: dict[str, Any] = {
            "role": "assistant",
            "content": f"answer {number}",
            "reasoning_content": f"so {number}",
        }
        if kwargs.get("stream"):
            return self._stream(number)
        schema = (kwargs.get("response_format") or {}).get("json_schema", {}).get("schema")
        if schema:
            message["content"] = json.dumps(_filled(schema, schema, number))
        elif kwargs.get("tools") and kwargs["messages"][-1]["role"] != "tool":
            name = kwargs["tools"][0]["function"]["name"]
            call = {"name": name, "arguments": json.dumps({"what": f"thing {number}"})}
            message |= {"content": None, "tool_calls": [{"id": f"call_{number}", "type": "function", "function": call}]}
        return response(message, number)

    async def _stream(self, number: int) -> AsyncIterator[Any]:
        for text in ("never ", "twice ", str(number)):
            delta = {"role": "assistant", "content": text}
            yield ModelResponseStream(id=f"chatcmpl-{number}", created=1, choices=[{"index": 0, "delta": delta}])

    async def aembedding(self, *, input: list[str], **kwargs: Any) -> Any:  # noqa: A002 - as litellm
        number = self._number()
        vectors = [{"object": "embedding", "index": at, "embedding": [number / 3, 0.1]} for at, _ in enumerate(input)]
        found = EmbeddingResponse(model="m", data=vectors, usage={"prompt_tokens": 3, "total_tokens": 3})
        found._hidden_params = {"response_cost": 0.25}
        return found


def response(message: dict[str, Any], number: int = 1, **choice: Any) -> ModelResponse:
    """Return a response as litellm builds it, with details of usage and a cost."""
    usage = {
        "prompt_tokens": 10 + number,
        "completion_tokens": 5,
        "total_tokens": 15 + number,
        "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 1, "cache_creation_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 2, "text_tokens": 3},
    }
    choices = [{"finish_reason": "stop", "index": 0, "message": message, **choice}]
    found = ModelResponse(id=f"chatcmpl-{number}", created=1, model="m", choices=choices, usage=usage)
    found._hidden_params = {"response_cost": number / 7, "litellm_overhead_time_ms": 1.5, "api_base": "http://secret"}
    return found


def _filled(schema: dict[str, Any], root: dict[str, Any], number: int) -> Any:
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    if "enum" in schema:
        return schema["enum"][number % len(schema["enum"])]
    if "anyOf" in schema:
        return _filled(schema["anyOf"][0], root, number)
    if schema.get("type") == "object":
        return {name: _filled(item, root, number) for name, item in schema.get("properties", {}).items()}
    values = {"array": [], "number": 0.5, "integer": 1, "boolean": True}
    return values.get(schema.get("type", ""), f"text {number}")
