"""The second process of this machine: its program, and how it is started and killed.

It gets the place by a pipe, because a URL may hold a password and arguments are visible to all. It ends when that pipe
is closed, so it does not outlive its parent.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

import orjson

from distributed_backup.inspection.meeting import exchange
from distributed_backup.inspection.party import Party
from distributed_backup.storage import storage_from_url


class OtherProcess:
    """A child that performs the second part of all exercises in a place. Use it with `with`.

    Args:
        place: The path or URL of the storage that both test.
        prefix: Begins the names of all files that the two make.
    """

    def __init__(self, place: str, *, prefix: str) -> None:
        self._task = orjson.dumps({"place": place, "prefix": prefix}) + b"\n"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603 - this very module
            # With this process's modules, and never with files of the working directory.
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import run; run()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A Ctrl-C is for the parent, which then kills it.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(self._task)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, as the talk finds
        except BaseException:
            self.kill()
            raise
        return self

    def lives(self) -> bool:
        """Return whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill it with SIGKILL and wait until it has ended. May be repeated."""
        self._process.kill()
        self._process.communicate()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def run() -> None:
    """Run the program of the second process."""
    task = orjson.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    party = Party(storage_from_url(task["place"]), prefix=task["prefix"], first=False)
    for _ in exchange(party):
        pass
    # The parent kills this process while it holds the lock.
    threading.Event().wait()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)
