"""The disk of one life: it reports each step of a commit or an append, and is full while a file says so.

It stands in the process of the worker. What is not written through the run's storage, such as the coordinator's
records, is not concerned.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from distributed_backup.checkpoints.format import parse_name
from distributed_backup.storage.base import partial_target
from distributed_backup.storage.local import LocalStorage

type Report = Callable[[str, str, str], None]
"""Receives "commit" or "append", the step and the name of the file."""

_STEPS: Final = ("_make", "_write", "_sync", "_cut", "_publish", "_sync_directory", "_unlink")


def report_steps(report: Report) -> None:
    """Report each system call of a commit or an append, before and after it, for the rest of this process.

    A write is reported once more when half of it is done.
    """
    for name in _STEPS:
        _report_step(name, report)


def _report_step(step: str, report: Report) -> None:
    call = getattr(LocalStorage, step)

    def reported(self: Any, *arguments: Any, **options: Any) -> Any:
        name = _file_name(self, arguments)
        kind = _kind(name)
        if kind is None:
            return call(self, *arguments, **options)
        report(kind, step, name)
        if step == "_write":
            descriptor, chunk = arguments
            half = len(chunk) // 2
            call(self, descriptor, chunk[:half])
            report(kind, "_write (half)", name)
            arguments = (descriptor, chunk[half:])
        done = call(self, *arguments, **options)
        report(kind, f"{step} (done)", name)
        return done

    setattr(LocalStorage, step, reported)


def _file_name(storage: LocalStorage, arguments: tuple[Any, ...]) -> str:
    """Return the name of the file that a step is about. A directory is synced for the checkpoint in it."""
    if not arguments:
        return "directory.ckpt"
    first = arguments[-1] if isinstance(arguments[-1], Path) else arguments[0]
    path = Path(f"/proc/self/fd/{first}").readlink() if isinstance(first, int) else first
    return path.name


def _kind(name: str) -> str | None:
    target = partial_target(name) or name
    if target == "directory.ckpt" or parse_name(target) is not None:
        return "commit"
    return "append" if target.endswith(".journal") else None


def fill(flag: Path, root: Path, report: Callable[[str], None]) -> None:
    """Let the disk of `root` be full while `flag` exists, for the rest of this process. A write gets half of it in."""
    write = os.write

    def refusing(descriptor: int, data: Any) -> int:
        if flag.exists():
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_relative_to(root):
                report(path.name)
                if len(data) > 1:
                    write(descriptor, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    os.write = refusing
