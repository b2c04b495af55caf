"""The processes of the demonstration, forked from a server that has synalinks preloaded (its import takes seconds).

Every process has a pipe to its director, and dies with it: the next thing it reports finds the pipe broken.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from distributed_backup.demo.messages import Message, Plan, Role

_CONTEXT: Final = multiprocessing.get_context("forkserver")


def end_server() -> None:
    """End the server that processes are forked from; it would outlive an interrupted start by its long import.

    It is one for the whole of this process, whoever uses it.
    """
    # There is no public way.
    server: Any = vars(multiprocessing.forkserver)["_forkserver"]
    pid = vars(server)["_forkserver_pid"]
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        server._stop()  # noqa: SLF001


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Act on Ctrl-C and SIGTERM a moment later: between the server's start and the note of its id none could end it.

    Handlers, not a mask: a mask would be inherited by the server, and by the workers that are to get signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda number, _: held.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for missed in held:
        signal.raise_signal(missed)


class DemoProcess:
    """One incarnation of a worker, or the reference run.

    Starting the first one blocks until the server has imported synalinks.
    """

    def __init__(self, plan: Plan, role: Role) -> None:
        # Read by litellm when it is imported: without it the import asks the network for a price list.
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        # typer, because a child imports our console script, whose import that is.
        _CONTEXT.set_forkserver_preload(["distributed_backup.demo.job", "typer"])
        with _signals_held_back():
            multiprocessing.forkserver.ensure_running()
        self.role = role
        self.messages, sender = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_run, args=(sender, plan, role), name=role.name)
        try:
            self._process.start()
        finally:
            sender.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def receive(self) -> Message | None:
        """The next message; None when the process has closed its pipe, or was killed while it wrote."""
        try:
            message = self.messages.recv()
        except (EOFError, OSError):
            return None
        return message if isinstance(message, Message) else None

    def join(self, timeout: float) -> int:
        """Wait for its end, which must be near; the exit code, negative if a signal ended it."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def end(self) -> None:
        """Kill it if it still runs, and tidy up. May be called again."""
        if not self.messages.closed:
            if self._process.is_alive():
                self._process.kill()
            self._process.join()
            self.messages.close()


def _end_with_director() -> None:
    """End this process when its director is gone, by whatever signal: what it then reports nobody hears."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _run(sender: Connection, plan: Plan, role: Role) -> None:
    # Ctrl-C goes to the whole terminal; the director tidies up after it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_director, name="distributed-backup-demo-end", daemon=True).start()
    descriptor = os.open(role.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from distributed_backup.demo.job import run

    run(sender, plan, role)
