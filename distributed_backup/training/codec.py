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
            chunks = orjson.loads(value)
        except ValueError as error:
            raise UnrecordableError(f"a recorded stream can't be restored ({type(error).__name__})") from error
        if not isinstance(chunks, list):
            raise UnrecordableError("a recorded stream can't be restored (no list)")
        # One at a time, because the bytes of each take some kB at first.
        return [self.decode(_chunk(chunk)) for chunk in chunks]


def _chunk(chunk: Any) -> bytes:
    try:
        return orjson.dumps(chunk)
    except TypeError as error:  # nested too deep
        raise UnrecordableError(f"a recorded stream can't be restored ({type(error).__name__})") from error
