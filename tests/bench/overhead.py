"""Measure how much longer a fit takes because of its journal: a model that answers after 100 ms, 8 requests at once.

Measured: from the end of the first batch to the end of the last one, with `journal=True` and `journal=False` in turn.
The program has one generator and `RandomFewShot`. A batch has 8 requests at once, and then one of its validation. A
pause stands in for litellm's function. Twice: all pauses are 100 ms, or they are from 80 to 120 ms, the same ones in
each fit. If all answers arrive at one instant, nothing hides the work on each.

Not measured: the first batch with the checkpoint of the start, the end of the fit, and garbage collections of what
synalinks imports.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

import litellm
import synalinks

from distributed_backup import BackupAndRestore
from tests.bench.report import imports_frozen, ratio, series, table
from tests.bench.results import Report
from tests.chaos.programs import build
from tests.chaos.provider import Provider
from tests.support.programs import samples

AT_ONCE: Final = 8
LATENCY: Final = 0.1
BATCHES: Final = 10
ROUNDS: Final = 15
GOAL: Final = 1.01


class PausingProvider(Provider):
    """Answers after `LATENCY` seconds, up to `spread` of it more or less."""

    def __init__(self, spread: float) -> None:
        super().__init__("bench", lambda *_: None)
        self._spread = spread
        # Of its own, and the same in each fit.
        self._generator = random.Random(7)

    async def _ask(self) -> str:
        self._asked += 1
        token = f"answer-{self._asked}"
        await asyncio.sleep(LATENCY * (1 + self._generator.uniform(-self._spread, self._spread)))
        return token


class Instants(synalinks.callbacks.Callback):  # type: ignore[misc]  # synalinks has no types
    """The ends of the batches. First in the list, so that our hook of a batch counts as part of the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.ends.append(time.perf_counter())


async def fit(directory: Path, spread: float, *, journal: bool) -> float:
    """Return the seconds of the batches after the first one."""
    provider, instants = PausingProvider(spread), Instants()
    provider.install()
    program = (await build("few-shot", provider, seed=7, is_shuffled=False, on_tool=print)).program
    x, y = samples(AT_ONCE * BATCHES)
    validation = samples(1, offset=len(x))
    callbacks = [instants, BackupAndRestore(directory, journal=journal)]
    await program.fit(
        x, y, validation_data=validation, batch_size=AT_ONCE, minibatch_size=None, verbose=0, callbacks=callbacks
    )
    assert len(instants.ends) == BATCHES, "a batch is missing"
    return instants.ends[-1] - instants.ends[0]


async def measure(directory: Path, spread: float) -> tuple[list[float], list[float]]:
    """Return the seconds of each round, with a journal and without."""
    taken: dict[bool, list[float]] = {True: [], False: []}
    for number in range(1 + ROUNDS):
        for journal in (number % 2 == 0, number % 2 == 1):
            seconds = await fit(directory / f"{spread}-{number}-{journal}", spread, journal=journal)
            if number:  # the first one warms up
                taken[journal].append(seconds)
    return taken[True], taken[False]


async def report(directory: Path) -> Report:
    original = litellm.acompletion
    rows, measured = [], []
    for name, spread in (("after 100 ms", 0.0), ("after 80 to 120 ms", 0.2)):
        with imports_frozen():
            found = await measure(directory, spread)
        per_batch = [f"{1e3 * median(each) / (BATCHES - 1):.1f}" for each in found]
        rows.append([name, per_batch[1], per_batch[0], ratio(*found, GOAL, digits=3)])
        taken = {"ours": found[0], "ours with journal=False": found[1]}
        goals = {"ours with journal=False": GOAL}
        measured += series(("fit with 100 ms answers, per batch", name), taken, goals, scale=1e3 / (BATCHES - 1))
    litellm.acompletion = original
    head = ["answers", "journal=False, ms per batch", "journal=True, ms per batch", "True / False"]
    return table(f"Fit with {AT_ONCE} requests at once (medians of {ROUNDS} rounds)", head, rows, measured)
