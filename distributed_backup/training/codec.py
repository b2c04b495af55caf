"""How the journal keeps responses. `responses` has the codec of the models of synalinks. No litellm is needed here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class UnrecordableError(Exception):
    """A response can't be restored exactly from JSON. The message names its class, and never its content."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How responses are kept. Both functions raise `UnrecordableError`."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
