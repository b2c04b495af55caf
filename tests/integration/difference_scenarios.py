"""Run fits on the directory of another run, for `test_differences`. Imports synalinks.

As a script, it runs one fit in this process and prints the warnings as JSON: `ROOT CHANGE PROGRAMS_MADE_BEFORE`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import synalinks

from distributed_backup import BackupAndRestore
from distributed_backup.demo.offline_model import OfflineLanguageModel
from tests.integration.resume_scenarios import InterruptedFitError, directory, strict
from tests.support.programs import Answer, Query, Thought, samples

Report = Any


async def strict_match(y_true: Any, y_pred: Any) -> float:
    """A reward of the user's own."""
    return float(y_true == y_pred)


async def build(change: str, model: OfflineLanguageModel) -> Any:
    """Return a compiled program, with one `change`."""
    # Credentials and addresses that differ in each process.
    model.api_base = f"http://me:secret-{os.getpid()}@localhost:{os.getpid()}"
    model.default_kwargs = {"api_key": f"secret-{os.getpid()}", "temperature": 1.0 if change == "sampling" else 0.5}
    model.model = "openai/other" if change == "model" else "openai/offline"
    inputs = synalinks.Input(data_model=Query)
    thought = await synalinks.Generator(data_model=Thought, language_model=model)(inputs)
    instructions = "Be kind." if change == "instructions" else "Be brief."
    answer = await synalinks.ChainOfThought(data_model=Answer, language_model=model, instructions=instructions)(thought)
    program = synalinks.Program(inputs=inputs, outputs=answer)
    examples = 2 if change == "optimizer" else 3
    program.compile(
        optimizer=synalinks.optimizers.RandomFewShot(nb_max_examples=examples, sampling_temperature=1.0),
        reward=strict_match if change == "reward" else synalinks.rewards.ExactMatch(in_mask=["answer"]),
        metrics=[synalinks.metrics.MeanMetricWrapper(synalinks.rewards.exact_match, name="accuracy")],
    )
    return program


class Interrupter(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Raises after the third batch of this process, and lowers a setting of the optimizer at each one."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.program.optimizer.sampling_temperature *= 0.5
        self.batches += 1
        if self.batches == 3:
            raise InterruptedFitError


@contextmanager
def warnings_of(model: OfflineLanguageModel) -> Iterator[list[tuple[str, int]]]:
    """Collect our warnings, each with the number of calls that were made before it."""
    found: list[tuple[str, int]] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append((record.getMessage(), model.calls))

    handler, logger = Collector(logging.WARNING), logging.getLogger("distributed_backup")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def train(root: Path, program: Any, model: OfflineLanguageModel, change: str = "") -> list[tuple[str, int]]:
    """Run a fit of four epochs until it is interrupted. Return the warnings."""
    x, y = samples(4)
    if change == "data":
        y[0] = Answer(answer="other")
    model.calls = 0
    # Without a journal: a program with other automatic names sends other requests.
    backup = BackupAndRestore(root, save_freq=1, delete_checkpoint=False, journal=False)
    options: dict[str, Any] = {"batch_size": 2, "epochs": 4, "verbose": 0, "callbacks": [Interrupter(), backup]}
    with warnings_of(model) as found, suppress(InterruptedFitError):
        asyncio.run(program.fit(x, y, **options))
    return found


def kinds(report: Report, changes: list[str]) -> dict[str, Any]:
    """Resume a fit with each change."""
    strict()
    found = {}
    for change in changes:
        with directory() as root:
            for made in ("", change):
                model = OfflineLanguageModel()
                found[change] = train(root, asyncio.run(build(made, model)), model, made)
    return found


def refit(report: Report) -> list[Any]:
    """Resume a fit with the same program in the same process, after training has changed the optimizer."""
    strict()
    model = OfflineLanguageModel()
    program = asyncio.run(build("", model))
    with directory() as root:
        return [*train(root, program, model), program.optimizer.sampling_temperature, *train(root, program, model)]


def part(report: Report, root: str, change: str = "", made_before: int = 0) -> list[tuple[str, int]]:
    """Run one fit in a process that has made other programs before."""
    model = OfflineLanguageModel()
    for _ in range(made_before):
        asyncio.run(build("", model))
    return train(Path(root), asyncio.run(build(change, model)), model, change)


if __name__ == "__main__":
    print(json.dumps(part(print, sys.argv[1], made_before=2)))
