"""A provider of models that answers at random after random times, and notes what it is asked. Imports litellm.

Each answer has a token that no other answer of the run has. `token_of` finds it in what the fit receives.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import litellm
from litellm.exceptions import RateLimitError, Timeout
from litellm.types.decisions import DecisionsResponse
from litellm.types.utils import EmbeddingResponse, ModelResponse, ModelResponseStream

from tests.chaos.plan import LATENCY

_WORDS: Final = ("yes", "no", "perhaps")

type Note = Callable[..., None]


def chance() -> float:
    """Return a random number from 0 to 1 that no generator of the training decides."""
    return int.from_bytes(os.urandom(4)) / 2**32


class Provider:
    """Stands in for litellm's functions. `note` receives its events. `life` begins each of its tokens.

    `failures` is the part of the requests that end with an error, `latency` the longest time of one, in seconds. While
    `is_hanging`, it answers half of them.
    """

    def __init__(self, life: str, note: Note, *, failures: float = 0.0, latency: float = LATENCY) -> None:
        self._life = life
        self._note = note
        self._failures = failures
        self._latency = latency
        self._asked = 0
        self.is_hanging = False

    def install(self) -> None:
        """Replace litellm's functions for the rest of this process."""
        litellm.acompletion = self.acompletion
        litellm.aembedding = self.aembedding
        litellm.asystemone = self.asystemone

    async def _ask(self) -> str:
        """Return the token of a new request, after a while."""
        # As HTTP clients do for the pauses between their retries.
        random.random()
        self._asked += 1
        token = f"{self._life}.{self._asked}"
        self._note("asked", token)
        is_held = self.is_hanging and chance() < 0.5
        await asyncio.sleep(600.0 if is_held else self._latency * chance())
        if chance() < self._failures:
            self._note("failed", token)
            raise _error()
        return token

    async def acompletion(self, **kwargs: Any) -> Any:
        """Fill the schema, call a tool once, or answer in plain text."""
        token = await self._ask()
        if kwargs.get("stream"):
            return self._stream(token)
        message: dict[str, Any] = {"role": "assistant", "content": _word()}
        schema = (kwargs.get("response_format") or {}).get("json_schema", {}).get("schema")
        if schema:
            message["content"] = json.dumps(_filled(schema, schema))
        elif kwargs.get("tools") and kwargs["messages"][-1]["role"] != "tool":
            name = kwargs["tools"][0]["function"]["name"]
            call = {"name": name, "arguments": json.dumps({"what": _word()})}
            message |= {"content": None, "tool_calls": [{"id": token, "type": "function", "function": call}]}
        self._note("answered", token)
        choices = [{"finish_reason": "stop", "index": 0, "message": message}]
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        return ModelResponse(id=token, created=1, model="m", choices=choices, usage=usage)

    async def _stream(self, token: str) -> AsyncIterator[Any]:
        for _ in range(3):
            await asyncio.sleep(self._latency * chance() / 3)
            delta = {"role": "assistant", "content": f"{_word()} "}
            yield ModelResponseStream(id=token, created=1, choices=[{"index": 0, "delta": delta}])
        self._note("answered", token)

    async def aembedding(self, *, input: list[str], **kwargs: Any) -> Any:  # noqa: A002 - as litellm
        """Return a random vector for each text."""
        token = await self._ask()
        vectors = [{"object": "embedding", "index": at, "embedding": [chance(), 0.1]} for at, _ in enumerate(input)]
        self._note("answered", token)
        return EmbeddingResponse(model=token, data=vectors, usage={"prompt_tokens": 3, "total_tokens": 3})

    async def asystemone(self, **kwargs: Any) -> Any:
        """Answer questions of the kind "noul", whose answer is a probability."""
        token = await self._ask()
        answers = {name: {"type": "noul", "noul": chance()} for name in kwargs["questions"]}
        self._note("answered", token)
        return DecisionsResponse(model=token, answers=answers, usage={"input_tokens": 100, "output_tokens": 10})


class Client:
    """A client that a user has written. Its results are plain data."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def grade(self, text: str) -> dict[str, Any]:
        """Return a random grade."""
        token = await self._provider._ask()
        self._provider._note("answered", token)
        return {"id": token, "grade": round(chance(), 3)}


def token_of(response: Any) -> str:
    """Return the token of an answer, or of one chunk of it."""
    if isinstance(response, dict):
        return str(response["id"])
    if isinstance(response, EmbeddingResponse | DecisionsResponse):
        return str(response.model)
    return str(response.id)


def _error() -> Exception:
    kind = Timeout if chance() < 0.5 else RateLimitError
    error: Any = kind(message="try again", model="m", llm_provider="openai")
    # Otherwise synalinks would wait 1 s or more before it tries again.
    error.retry_after = 0
    return error  # type: ignore[no-any-return]


def _word() -> str:
    return _WORDS[int(chance() * len(_WORDS))]


def _filled(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    if "enum" in schema:
        return schema["enum"][int(chance() * len(schema["enum"]))]
    if "anyOf" in schema:
        return _filled(schema["anyOf"][0], root)
    if schema.get("type") == "object":
        return {name: _filled(item, root) for name, item in schema.get("properties", {}).items()}
    values = {"array": [], "number": chance(), "integer": 1, "boolean": chance() < 0.5}
    return values.get(schema.get("type", ""), _word())
