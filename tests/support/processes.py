"""Real processes for tests, forked from a server that has synalinks preloaded (its import takes seconds).

A child runs a function of a test-support module with a `report` callable as its first argument. The test waits for the
reports. Nothing here sleeps.
"""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.fork_server import start_server

_CONTEXT = multiprocessing.get_context("forkserver")

# Starting a process polls all others of this one. Two threads that poll one process may both read its exit code, of
# which there is one only.
_polling = threading.Lock()

# Seconds. Generous, because the first child waits for the server's import of synalinks on two shared cores.
PATIENCE = 120.0


class Child:
    """A child process that runs `function(report, *arguments)`.

    Args:
        function: The function, or "module:name" where its module must not be imported by the test itself.
        arguments: Picklable.
        log: Where the child's output goes.

    Use as a context manager: it is killed at the end if it still runs.
    """

    def __init__(self, function: Callable[..., Any] | str, *arguments: Any, log: Path | None = None) -> None:
        start_server()
        self._events, sender = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_run, args=(sender, log, function, arguments))
        with _polling:
            self._process.start()
        sender.close()
        self.seen: list[tuple[str, Any]] = []
        self._log = log

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def await_end(self) -> None:
        """Wait for the end of the process, from any thread."""
        wait([self._process.sentinel])

    def expect(self, name: str, timeout: float = PATIENCE) -> Any:
        """Wait for the next event called `name` and return its value. Keep other events in `seen`."""
        while True:
            if not self._events.poll(timeout):
                raise AssertionError(f"no event {name!r} within {timeout} s; seen: {self.seen}\n{self.output()}")
            try:
                event, value = self._events.recv()
            except EOFError:
                raise AssertionError(f"child ended without {name!r}; seen: {self.seen}\n{self.output()}") from None
            self.seen.append((event, value))
            if event == name:
                return value

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def join(self, timeout: float = PATIENCE) -> int:
        """Wait for the end and return the exit code. It is negative after a kill by a signal."""
        while True:
            try:
                if not self._events.poll(timeout):
                    break
                self.seen.append(self._events.recv())
            except EOFError:
                break
        code = self._reap(timeout)
        if code is None:
            raise AssertionError(f"child still runs after {timeout} s; seen: {self.seen}\n{self.output()}")
        return code

    def _reap(self, timeout: float | None = None) -> int | None:
        """Wait for the end, and return the exit code. None if the process still runs."""
        wait([self._process.sentinel], timeout)
        with _polling:
            return self._process.exitcode

    def result(self, timeout: float = PATIENCE) -> Any:
        """Wait for the end and return the function's result."""
        code = self.join(timeout)
        values = [value for event, value in self.seen if event == "result"]
        if not values:
            raise AssertionError(f"child ended with {code} and no result; seen: {self.seen}\n{self.output()}")
        return values[0]

    def output(self) -> str:
        """Return the text that the child printed and logged."""
        return self._log.read_text() if self._log is not None and self._log.exists() else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reap(0.0) is None:
            self._process.kill()
            self._reap()
        self._events.close()


def _run(sender: Connection, log: Path | None, function: Callable[..., Any] | str, arguments: tuple[Any, ...]) -> None:
    import logging

    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        logging.basicConfig(
            level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
        )
    faulthandler.enable()
    result = _resolve(function)(lambda name, value=None: sender.send((name, value)), *arguments)
    sender.send(("result", result))


def _resolve(function: Callable[..., Any] | str) -> Callable[..., Any]:
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
