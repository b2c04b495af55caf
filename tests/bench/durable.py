"""Measure SIGTERM to a durable checkpoint, against the bare system calls for the same bytes.

Measured: from just before `os.kill` of the own process, while the fit awaits a language-model call, until the
commit's fsync of the directory returns. It includes the delivery of the signal to the main thread, the wake-ups of
three threads, the digest and the listing of the directory. The bare calls are write, fsync, rename and fsync of the
directory. They run in the same process and directory, right after each round.

Not measured: serialising, which happens at the boundary, and log output, which is off. A busy main thread, which
would see the signal late, and the batch in flight, which a second commit saves, are not measured either.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any, Final

import pytest

from distributed_backup import BackupAndRestore, Preempted
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.demo.offline_model import OfflineLanguageModel
from distributed_backup.storage.local import LocalStorage
from tests.bench.report import milliseconds, ratio, seconds, series, table, worst
from tests.bench.results import Report
from tests.bench.states import SIZES, inflate
from tests.support.programs import build_program, samples

ROUNDS: Final = 21
GOALS: Final = {"30 kB": 2.0, "0.2 MB": 2.0, "2 MB": 1.5, "20 MB": 1.5}


class Stopwatch:
    """Measure from the signal to the return of the next fsync of the directory."""

    def __init__(self) -> None:
        self.taken: float | None = None
        self._started: float | None = None
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()

    async def kill_and_wait(self) -> None:
        if self._started is None:
            # After 0.05 s the main thread sleeps in its event loop, as when another process sends the signal.
            threading.Timer(0.05, self._kill).start()
        await self._stopped.wait()

    def _kill(self) -> None:
        self._started = time.perf_counter()
        os.kill(os.getpid(), signal.SIGTERM)

    def stop(self) -> None:
        now = time.perf_counter()
        if self._started is not None and self.taken is None:
            self.taken = now - self._started
            self._loop.call_soon_threadsafe(self._stopped.set)


class WatchedStorage(LocalStorage):
    watch: Stopwatch

    def _sync_directory(self) -> None:
        super()._sync_directory()
        self.watch.stop()


class InterruptedModel(OfflineLanguageModel):
    """Send the signal at the first call, and reply when the checkpoint is durable."""

    watch: Stopwatch

    async def _acompletion(self, formatted_messages: Any, **kwargs: Any) -> dict[str, Any]:
        await self.watch.kill_and_wait()
        answer: dict[str, Any] = await super()._acompletion(formatted_messages, **kwargs)
        return answer


async def interrupt(program: Any, model: Any, directory: Path) -> tuple[float, Path]:
    """Preempt a fit in its first batch, and return the seconds until durable and the newest checkpoint."""
    callback = BackupAndRestore(directory, save_freq=False, grace_period=60.0)
    storage = WatchedStorage(directory)
    callback._store = CheckpointStore(storage)
    storage.watch = model.watch = watch = Stopwatch()
    x, y = samples(2)
    with pytest.raises(Preempted) as preempted:
        await program.fit(x, y, batch_size=1, minibatch_size=None, verbose=0, callbacks=[callback])
    assert watch.taken is not None
    return watch.taken, directory / str(preempted.value.checkpoint)


def bare(directory: Path, raw: bytes) -> None:
    """Make bytes durable under a name, with as few system calls as possible."""
    partial = directory / f"bare-{secrets.token_hex(4)}"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    view = memoryview(raw)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)
    os.close(descriptor)
    partial.rename(directory / "bare")
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


async def measure(directory: Path, size: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each round, from signal to durable and for the bare system calls."""
    program, model = await build_program()
    model.__class__ = InterruptedModel
    ours, references = [], []
    for index in range(ROUNDS + 1):
        inflate(program, size)
        taken, path = await interrupt(program, model, directory)
        raw = path.read_bytes()
        reference = seconds(lambda raw=raw: bare(directory, raw))  # type: ignore[misc]
        shutil.rmtree(directory)
        if index:  # the first one warms up
            ours.append(taken)
            references.append(reference)
    return ours, references


async def report(directory: Path) -> Report:
    rows, measured = [], []
    logger = logging.getLogger("distributed_backup")
    logger.setLevel(logging.ERROR)
    # The handler before ours is called, too, and that of the command would end this process.
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name, size in SIZES.items():
        ours, references = await measure(directory / "durable", size)
        rows.append(
            [
                name,
                milliseconds(references),
                worst(references),
                milliseconds(ours),
                worst(ours),
                ratio(ours, references, GOALS[name]),
            ]
        )
        taken = {"ours": ours, "write, fsync, rename, fsync": references}
        goals = {"write, fsync, rename, fsync": GOALS[name]}
        measured += series(("SIGTERM to durable", name), taken, goals)
    signal.signal(signal.SIGTERM, handler)
    logger.setLevel(logging.NOTSET)
    head = ["state", "bare p50, ms", "bare max, ms", "ours p50, ms", "ours max, ms", "p50 / p50"]
    return table(f"SIGTERM to durable ({ROUNDS} rounds each)", head, rows, measured)
