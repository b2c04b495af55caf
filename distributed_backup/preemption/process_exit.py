"""Find out whether a preempted process is exiting, and run what its exit would run.

`Preempted` leaves `fit`, and then usually the program. Code may catch it on purpose and go on: a notebook, a test, a
program that trains something else. So a process counts as exiting in these cases only:

- The interpreter shuts down. It may wait for threads, or be in an exit function.
- Code handles `Preempted`: a `finally`, `with` or `except` block that has not ended, such as the cleanup that
  `asyncio.run` makes. asyncio waits there for tasks that swallow their cancellation, and 300 s for threads.

The limit: an `except Preempted` block that runs until the kill counts as exiting, whatever it does. So does a thread of
a program whose main thread has ended.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401 - registers its wait for threads before our function, so ours is first
import gc
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from distributed_backup.preemption.exit import Preempted

_shutdown_begun = threading.Event()
_exit_functions_begun = threading.Event()
_running_exit_functions = threading.Lock()
_at_shutdown: list[Callable[[], None]] = []


def _begin_shutdown() -> None:
    _shutdown_begun.set()
    atexit.register(_exit_functions_begun.set)  # as the last one, so that it is called first
    for function in _at_shutdown:
        with suppress(Exception):
            function()


# As `concurrent.futures` does. `atexit` comes later: only when all threads that are no daemons have ended.
threading._register_atexit(_begin_shutdown)  # type: ignore[attr-defined]  # noqa: SLF001


def call_at_shutdown(function: Callable[[], None]) -> None:
    """Call a function on the main thread when the interpreter begins to shut down, before it waits for threads."""
    _at_shutdown.append(function)


def interpreter_exits() -> bool:
    """Whether the interpreter shuts down. It waits for threads first, then it calls the functions of `atexit`."""
    return _shutdown_begun.is_set()


def is_exiting(task: asyncio.Task[Any] | None) -> bool:
    """Whether this process is exiting after the fit that ran in `task`. From any thread."""
    return (
        interpreter_exits()
        or any(_stems_from_preempted(error) for error in sys._current_exceptions().values())  # noqa: SLF001 - public
        or any(map(_handles_preempted, _suspended(task)))
    )


def _stems_from_preempted(error: BaseException | None) -> bool:
    """Whether a thread that handles `error` handles `Preempted`, too."""
    while error is not None and not isinstance(error, Preempted):
        error = error.__context__
    return error is not None


def _suspended(task: asyncio.Task[Any] | None) -> Iterator[Any]:
    """Yield the coroutines that an unfinished task is in, outermost first."""
    coroutine: Any = None if task is None or task.done() else task.get_coro()
    while coroutine is not None:
        yield coroutine
        coroutine = getattr(coroutine, "cr_await", None)


def _handles_preempted(coroutine: Any) -> bool:
    """Whether a suspended coroutine is in a block that handles `Preempted`. No thread shows the exception meanwhile.

    CPython keeps the exception on the frame's stack there, and the garbage collector knows all that a frame refers to.
    A variable that still refers to a `Preempted` that was caught does not count.
    """
    frame = getattr(coroutine, "cr_frame", None)
    variables = [] if frame is None else [*frame.f_locals.values()]
    return _count_preempted(gc.get_referents(coroutine)) > _count_preempted(variables)


def _count_preempted(objects: list[Any]) -> int:
    return sum(isinstance(each, Preempted) for each in objects)


def run_exit_functions() -> None:
    """Run the functions registered with `atexit`, unless the main thread does. `os._exit` does not run them."""
    with _running_exit_functions, suppress(Exception):
        if not _exit_functions_begun.is_set():
            atexit._run_exitfuncs()  # noqa: SLF001 - there is no public name. Finds none at a second call


def flush_output() -> None:
    """Flush what was printed and logged."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    with suppress(Exception):
        logging.shutdown()
