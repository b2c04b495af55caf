"""Use the callback as programs use callbacks, in a child, for `test_callback`. Imports synalinks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import synalinks

from distributed_backup import BackupAndRestore
from distributed_backup.errors import ConfigError
from tests.support.programs import build_program, samples

Report = Callable[..., None]


async def _fit(callbacks: Any, *, latency: float = 0.0, program: Any = None) -> int:
    """Run a fit of two epochs of two batches. Return the calls that it made."""
    if program is None:
        program, model = await build_program(latency=latency)
    else:
        program, model = program
    x, y = samples(6)
    await program.fit(x, y, validation_split=1 / 3, epochs=2, batch_size=2, verbose=0, callbacks=callbacks)
    return int(model.calls)


class StopError(Exception):
    """Raised by `Fail`."""


class Fail(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Raises at the first batch."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        raise StopError


# -------------------------------------------------------------------- two at once


def two_in_one_fit(report: Report, root: Path) -> dict[str, Any]:
    """Give one fit two callbacks, or one callback twice, in several forms."""
    one, two = BackupAndRestore(root / "one"), BackupAndRestore(root / "two")
    refused = []
    for callbacks in ([one, two], (two, synalinks.callbacks.History(), one), [one, one]):
        program = asyncio.run(build_program())
        try:
            asyncio.run(_fit(callbacks, program=program))
        except ConfigError as error:
            refused.append((str(error), program[1].calls))
    return {"refused": refused, "left": [str(path) for path in root.iterdir()], "calls": asyncio.run(_fit([one]))}


def one_in_two_fits(report: Report, root: Path) -> dict[str, Any]:
    """Run two fits at once with one callback, then a third one."""

    async def both() -> list[Any]:
        callback = BackupAndRestore(root)
        first = asyncio.create_task(_fit([callback], latency=0.02))
        second = asyncio.create_task(_fit([callback]))
        return list(await asyncio.gather(first, second, return_exceptions=True))

    first, second = asyncio.run(both())
    return {"first": first, "second": f"{type(second).__name__}: {second}", "alone": asyncio.run(_fit([]))}


def again_after_an_error(report: Report, root: Path) -> list[int]:
    """Use a callback again after a fit that another callback has ended, in the same task and in another one."""
    callback = BackupAndRestore(root)

    async def fails() -> None:
        try:
            await _fit([callback, Fail()])
        except StopError:
            return
        raise AssertionError("it did not fail")

    async def in_one_task() -> int:
        await fails()
        return await _fit([callback])

    asyncio.run(fails())
    return [asyncio.run(_fit([callback])), asyncio.run(in_one_task())]
