"""Processes of the demonstration, forked from a server that has imported synalinks, which takes seconds.

Each process has a pipe to its parent. It exits with code 1 when the parent exits.
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

from distributed_backup.demo.messages import Message, Plan, ProcessSpec

_CONTEXT: Final = multiprocessing.get_context("forkserver")


def stop_fork_server() -> None:
    """Kill the fork server. After an interrupted start it would run until its import is done.

    This process has one fork server, which all users of `multiprocessing` share.
    """
    # multiprocessing has no public function for this.
    server: Any = vars(multiprocessing.forkserver)["_forkserver"]
    pid = vars(server)["_forkserver_pid"]
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        server._stop()  # noqa: SLF001


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM until the block ends. Until the fork server's id is noted, nothing could kill it.

    Handlers replace them, because the server and the workers would inherit a signal mask.
    """
    deferred: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda number, _: deferred.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for missed in deferred:
        signal.raise_signal(missed)


class DemoProcess:
    """One incarnation of a worker, or the reference run.

    The first start blocks until the fork server has imported synalinks.
    """

    def __init__(self, plan: Plan, spec: ProcessSpec) -> None:
        # litellm reads it on import. Without it the import downloads a price list.
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        _CONTEXT.set_forkserver_preload(["distributed_backup.demo.preload"])
        with _deferred_signals():
            multiprocessing.forkserver.ensure_running()
        self.spec = spec
        self.messages, sender = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_run, args=(sender, plan, spec), name=spec.name)
        try:
            self._process.start()
        finally:
            sender.close()

    @property
    def pid(self) -> int:
        """Return the process id."""
        assert self._process.pid is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def receive(self) -> Message | None:
        """Return the next message. None if the process has closed its pipe, or was killed while it wrote."""
        try:
            message = self.messages.recv()
        except (EOFError, OSError):
            return None
        return message if isinstance(message, Message) else None

    def join(self, timeout: float) -> int:
        """Return the exit code, negative if a signal ended the process. Kill the process after `timeout` seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def close(self) -> None:
        """Kill the process if it runs, and close the pipe. Callable again."""
        if not self.messages.closed:
            if self._process.is_alive():
                self._process.kill()
            self._process.join()
            self.messages.close()


def _exit_with_parent() -> None:
    """Wait until the parent process ends by whatever cause, then exit."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _run(sender: Connection, plan: Plan, spec: ProcessSpec) -> None:
    # A terminal sends Ctrl-C to all its processes. The parent stops this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, name="distributed-backup-demo-exit", daemon=True).start()
    descriptor = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from distributed_backup.demo.job import run

    run(sender, plan, spec)
