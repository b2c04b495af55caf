"""What a session calls of its worker and of its journal, in order. Calls that these make are left out.

The simulation has a session of its own, which must make the calls of the real one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

from distributed_backup.training.fit_journal import FitJournal
from distributed_backup.worker.worker import Worker

_RECORDED: Final[dict[type, tuple[str, ...]]] = {
    Worker: ("join", "await_start", "training_started", "boundary", "finish", "preempt", "close"),
    FitJournal: ("begin", "boundary", "failed", "train_ends", "end"),
}


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Record the calls. A repeated `close` or `end` has no effect, and is left out."""
    calls: list[str] = []
    depth = threading.local()
    with ExitStack() as stack:
        for kind, names in _RECORDED.items():
            for name in names:
                stack.enter_context(patch.object(kind, name, _noting(getattr(kind, name), calls, depth)))
        yield calls


def _noting(method: Callable[..., Any], calls: list[str], depth: Any) -> Callable[..., Any]:
    def noting(*arguments: Any, **named: Any) -> Any:
        call = method.__qualname__
        is_again = call in {"Worker.close", "FitJournal.end"} and call in calls
        if not getattr(depth, "value", 0) and not is_again:
            calls.append(call)
        depth.value = getattr(depth, "value", 0) + 1
        try:
            return method(*arguments, **named)
        finally:
            depth.value -= 1

    return noting
