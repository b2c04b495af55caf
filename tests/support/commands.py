"""What the commands of the tests share: numbers that make sense, and an end that leaves nothing behind."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import util
from pathlib import Path


def count(text: str) -> int:
    """Return the value of an option that is a whole number from 1 on."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"want a whole number from 1 on, got {text}")
    return value


def duration(text: str) -> float:
    """Return the value of an option that is a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"want a positive number, got {text}")
    return value


def check_alone(parser: argparse.ArgumentParser, chosen: argparse.Namespace, *names: str) -> None:
    """Refuse these options beside `--plant-all`, which would not heed them."""
    given = [name for name in names if getattr(chosen, name) != parser.get_default(name)]
    if chosen.plant_all and given:
        words = " ".join(f"--{name.replace('_', '-')}" for name in given)
        parser.error(f"--plant-all has campaigns of its own: leave out {words}")


def check_disk(parser: argparse.ArgumentParser) -> None:
    """Refuse a `TMPDIR` that can't be used: Python would take another disk, and say nothing."""
    chosen = os.environ.get("TMPDIR")
    if chosen and Path(tempfile.gettempdir()) != Path(chosen).absolute():
        parser.error(f"TMPDIR names {chosen}, which is no directory that can be written to: make it, or name another")


@contextmanager
def leaving_nothing(
    *folders: Path, kept: Path | None = None, last: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """After SIGTERM or Ctrl-C, kill all that this process has started, remove the folders, and exit with 128 + N.

    At once, and without the threads of this process, which would start a killed worker again. `kept` is named as the
    place where files stay. `last` is called when all are suspended.
    """
    owner = os.getpid()

    def leave(number: int, _: object) -> None:
        if os.getpid() == owner:
            _freeze_threads()
            found = _suspended_descendants()
            last()
            for folder in (*folders, Path(util.get_temp_dir())):
                shutil.rmtree(folder, ignore_errors=True)
            name = signal.Signals(number).name
            left = f". Files stay in {kept}" if kept is not None else ""
            text = f"stopped by {name}: what was started is killed, and the results are not complete{left}"
            print(text, file=sys.stderr)
            sys.stdout.flush()
            # Last of all: a thread that waits for one of them in a long call would start it again.
            _send(signal.SIGKILL, found)
        os._exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _freeze_threads() -> None:
    """Let no other thread of this process go on after its next call."""
    own, never = threading.get_ident(), threading.Event()

    def wait(*_: object) -> None:
        if threading.get_ident() != own:
            never.wait()

    threading.setprofile_all_threads(wait)


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
