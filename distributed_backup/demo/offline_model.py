"""A language model without a network, for the demonstration and for tests.

Its answers are a function of the prompt. They make no sense. Each call takes the latency that it was given.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, Final

import orjson
import synalinks

_CHOICES: Final = ("yes", "no")


class OfflineLanguageModel(synalinks.LanguageModel):  # type: ignore[misc]  # synalinks has no types
    """Answer each string field of the requested schema with "yes" or "no", selected by a hash of the prompt.

    `latency` is in seconds. `calls` counts the calls that were begun.
    """

    def __init__(self, latency: float = 0.0) -> None:
        super().__init__(model="openai/offline")
        self.latency = latency
        self.calls = 0

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal model, for `Program.load`."""
        return {"latency": self.latency}

    async def _acompletion(self, formatted_messages: Any, **kwargs: Any) -> dict[str, Any]:
        """Answer in OpenAI's response format. `LanguageModel` sends each request through this method."""
        self.calls += 1
        await asyncio.sleep(self.latency)
        schema = (kwargs.get("response_format") or {}).get("json_schema", {}).get("schema", {})
        digest = hashlib.sha256(orjson.dumps(formatted_messages)).digest()
        answer = {
            name: _CHOICES[digest[index % len(digest)] % len(_CHOICES)]
            for index, name in enumerate(schema.get("properties", {}))
        }
        content = orjson.dumps(answer).decode() if answer else _CHOICES[digest[0] % len(_CHOICES)]
        return {"choices": [{"message": {"content": content}, "finish_reason": "stop"}], "usage": {}}
