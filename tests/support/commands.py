"""What the commands of the tests share: numbers that make sense, and an end that leaves nothing behind."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import util
from pathlib import Path


def count(text: str) -> int:
    """Return the value of an option that is a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"want a whole number from 1 on, got {value}")
    return value


def duration(text: str) -> float:
    """Return the value of an option that is a positive number."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"want a positive number, got {text}")
    return value


def check_disk(parser: argparse.ArgumentParser) -> None:
    """Refuse a `TMPDIR` that can't be used: Python would take another disk, and say nothing."""
    chosen = os.environ.get("TMPDIR")
    if chosen and not (os.path.isdir(chosen) and os.access(chosen, os.W_OK | os.X_OK)):  # noqa: PTH112 - text of a user
        parser.error(f"TMPDIR names {chosen}, which is no directory that can be written to: make it, or name another")


@contextmanager
def leaving_nothing(*folders: Path) -> Iterator[None]:
    """After SIGTERM or Ctrl-C, kill all that this process has started, remove the folders, and exit with 128 + N.

    At once, because threads that wait for a worker would start it again.
    """
    owner = os.getpid()

    def leave(number: int, _: object) -> None:
        if os.getpid() == owner:
            found = _suspended_descendants()
            for folder in (*folders, Path(util.get_temp_dir())):
                shutil.rmtree(folder, ignore_errors=True)
            name = signal.Signals(number).name
            print(f"stopped by {name}: what was started is killed, and the results are not complete", file=sys.stderr)
            sys.stdout.flush()
            # Last of all: a thread that waits for one of them would start it again.
            _send(signal.SIGKILL, found)
        os._exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _suspended_descendants() -> set[int]:
    """Suspend all processes below this one, also those that a fork server has started. None starts another one then."""
    found: set[int] = set()
    while new := set(_descendants(os.getpid())) - found:
        found |= new
        _send(signal.SIGSTOP, new)
    return found


def _send(number: signal.Signals, processes: Iterable[int]) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _descendants(parent: int) -> Iterator[int]:
    with suppress(OSError):
        for task in Path(f"/proc/{parent}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from _descendants(child)
