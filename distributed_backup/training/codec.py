"""How the responses of models are kept. Apart from `responses`, which imports litellm and takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson


class UnrecordableError(Exception):
    """A response can't be restored exactly from JSON. The message names its class, and never its content."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How responses are kept. Both functions raise `UnrecordableError`."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]

    def decode_stream(self, value: bytes) -> list[Any]:
        """Return the chunks of a stream that was recorded as a list.

        Raises:
            UnrecordableError: The value is no such list.
        """
        try:
            chunks = [orjson.dumps(chunk) for chunk in orjson.loads(value)]
        except (TypeError, ValueError) as error:
            raise UnrecordableError(f"a recorded stream can't be restored ({type(error).__name__})") from error
        return [self.decode(chunk) for chunk in chunks]
