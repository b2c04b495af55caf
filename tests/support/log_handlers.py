"""Log handlers for tests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 30.0


class HangingHandler(logging.Handler):
    """Hangs at each record from WARNING on until it is released, as a pipe that nothing reads."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.hangs, self.released = threading.Event(), threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.hangs.set()
        self.released.wait(PATIENCE)


@contextmanager
def hanging(logger: logging.Logger) -> Iterator[HangingHandler]:
    """Let a logger hang until the end of the context."""
    handler = HangingHandler()
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        handler.released.set()
        logger.removeHandler(handler)
