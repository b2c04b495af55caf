"""Send a request without an effect on the random generator of the training.

HTTP clients draw from `random` for the pauses between their retries (openai 2, litellm 1.8x). A replay sends no
request, so without this module its training would draw other numbers from then on.

The limit: a task that the client starts itself is not covered.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Generator
from typing import Any


class Undisturbed:
    """An awaitable with the result of `request`. What it draws from `random` is undone after each of its steps."""

    def __init__(self, request: Awaitable[Any]) -> None:
        self._request = request

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = _awaited(self._request)
        advance: Any = steps.send
        value: Any = None
        while True:
            before = random.getstate()
            try:
                waits_for = advance(value)
            except StopIteration as end:
                return end.value
            finally:
                if random.getstate() != before:
                    random.setstate(before)
            try:
                value = yield waits_for
            except BaseException as error:  # noqa: BLE001 - a cancellation is for the request, too
                advance, value = steps.throw, error
            else:
                advance = steps.send


async def _awaited(request: Awaitable[Any]) -> Any:
    return await request
