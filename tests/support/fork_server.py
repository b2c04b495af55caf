"""One fork server for all workers of pytest-xdist. The import of synalinks, 6 s of CPU, is paid once.

The server starts at the first connection, and ends with the process that offers it.
"""

from __future__ import annotations

import functools
import multiprocessing.forkserver
import os
import socket
import subprocess
import sys
import tempfile
import threading
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

_VARIABLE = "DISTRIBUTED_BACKUP_TESTS_FORK_SERVER"
_PRELOAD = ["tests.support.preload"]


class OfferedServer:
    """Offers a server to the processes that this one starts from now on."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="fork-")
        address = f"{self._directory.name}/socket"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen()
        # The server ends when nothing has the other end open.
        self._alive, self._own_end = os.pipe()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._start_when_needed, daemon=True)
        self._thread.start()
        os.environ[_VARIABLE] = address

    def _start_when_needed(self) -> None:
        if self._alive in wait([self._listener, self._alive]):
            return
        inherited = (self._listener.fileno(), self._alive)
        code = f"from multiprocessing.forkserver import main; main(*{inherited}, {_PRELOAD})"
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=inherited, cwd=root, stdout=subprocess.DEVNULL
        )

    def close(self) -> None:
        """End the server. Nothing connects from now on."""
        del os.environ[_VARIABLE]
        os.close(self._own_end)
        self._thread.join()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        os.close(self._alive)
        self._listener.close()
        self._directory.cleanup()


def start_server() -> None:
    """Have `multiprocessing` use the offered server, or start one. A process has one only, which the demo shares."""
    address = os.environ.get(_VARIABLE)
    if address is not None:
        _use(address)
    else:
        multiprocessing.forkserver.set_forkserver_preload(_PRELOAD)
        multiprocessing.forkserver.ensure_running()


@functools.cache
def _use(address: str) -> None:
    # multiprocessing has no public functions for a server that another process has started.
    server: Any = vars(multiprocessing.forkserver)["_forkserver"]
    server._forkserver_address = address
    # Children keep this open. For the server of their own process, that would keep the server alive.
    server._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)
    running = resource_tracker.ensure_running
    server.ensure_running = running
    vars(multiprocessing.forkserver)["ensure_running"] = running


def children_of_the_server() -> list[int]:
    """Return the processes that were forked from the server of this process and have not ended. Empty without one."""
    server: Any = vars(multiprocessing.forkserver)["_forkserver"]
    if server._forkserver_pid is None:
        return []
    tasks = Path(f"/proc/{server._forkserver_pid}/task")
    return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
