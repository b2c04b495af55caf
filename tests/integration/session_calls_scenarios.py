"""The calls of a real session, for `test_simulation`. Imports synalinks."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import synalinks

from distributed_backup import BackupAndRestore
from distributed_backup.preemption.exit import Preempted
from tests.support.programs import build_program, samples
from tests.support.session_calls import recorded

Report = Callable[..., None]


class StopError(Exception):
    """Leaves the fit."""


def failing(compute_reward: Callable[..., Any]) -> Callable[..., Any]:
    """Let the second batch fail."""
    calls = [0]

    async def compute(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise StopError
        return await compute_reward(*arguments, **named)

    return compute


class AtBatch(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Does something as the second batch begins."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self._call = call

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            self._call()


def calls_of_a_fit(report: Report, root: Path, end: str) -> list[str]:
    """Return the calls of a fit of two batches that comes to this end."""

    def stop() -> None:
        if end == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)

    async def fit() -> None:
        program, _ = await build_program()
        if end == "exception":
            program.compute_reward = failing(program.compute_reward)
        x, y = samples(4)
        callbacks = [AtBatch(stop), BackupAndRestore(root, save_freq=1, delete_checkpoint=False)]
        await program.fit(x, y, epochs=1, batch_size=2, verbose=0, callbacks=callbacks)

    with recorded() as calls:
        try:
            asyncio.run(fit())
        except (Preempted, StopError) as error:
            calls.append(type(error).__name__)
    return calls
