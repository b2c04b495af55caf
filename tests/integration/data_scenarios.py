"""Resume fits whose data or training step is the user's own, for `test_resumed_data`. Imports synalinks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from distributed_backup import BackupAndRestore
from distributed_backup.training import session as fit_session
from tests.integration.resume_scenarios import (
    Fit,
    Interruption,
    Outcome,
    Report,
    build,
    directory,
    newest,
    part,
    run_part,
    strict,
)
from tests.support.datasets import Permuted
from tests.support.internals import saver_of
from tests.support.programs import samples
from tests.support.sinks import RecordingSink

STEPS, BATCH_SIZE = 4, 2


def fit_with(x: Any, **arguments: Any) -> Fit:
    """A fit of three epochs whose training data is `x`."""
    return Fit(steps=STEPS, data="re-iterable", arguments={"x": x, **arguments})


def reads_of_a_resumed_fit(report: Report) -> dict[str, Any]:
    """Interrupt a fit in its third epoch. Count the batches that the resumed fit reads from its data set."""
    strict()
    with directory() as root:
        run_part(fit_with(Permuted(STEPS, BATCH_SIZE)), root, at_third_epoch("on_train_batch_end", 2))
        position, data = newest(root), Permuted(STEPS, BATCH_SIZE)
        resumed = run_part(fit_with(data), root, seed=100)
        return {"position": position, "read": data.read, "epochs": resumed.history.epoch, "logged": resumed.logged}


def at_third_epoch(hook: str, count: int) -> Interruption:
    """An interruption at one of the calls of a hook in the third epoch, from 0."""
    return Interruption(at=2 * STEPS + count, hooks=(hook,))


class Endless:
    """An iterator that can be read once. `at` is called before the batch of that number is read."""

    def __init__(self, at: int = -1, call: Any = None) -> None:
        self.read, self._at, self._call = 0, at, call

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.read == self._at:
            self._call()
        self.read += 1
        return samples(BATCH_SIZE, offset=self.read * BATCH_SIZE)


def notice_while_data_is_read_again(report: Report) -> dict[str, Any]:
    """Interrupt a fit of a one-shot iterator. Give a notice while the resumed fit reads its data again."""
    strict()
    arguments = {"steps_per_epoch": STEPS}
    with directory() as root:
        run_part(fit_with(batches_of(Endless()), **arguments), root, at_third_epoch("on_train_batch_end", 1))
        before = newest(root)
        source = Endless(6, lambda: fit_session._open_sessions[-1]._worker.give_notice("TEST"))
        again = run_part(fit_with(batches_of(source), **arguments), root, seed=100)
        return {
            "before": before,
            "preempted_at": again.preempted and again.preempted.position,
            "newest": newest(root),
            "read": source.read,
            "calls": again.calls,
        }


def batches_of(source: Endless) -> Iterator[Any]:
    """Return a generator, which synalinks reads once."""
    yield from source


def progress_of_reading_again(report: Report) -> list[str]:
    """Resume a fit of a one-shot iterator, with a report at each batch. Return the reports."""
    strict()
    arguments = {"steps_per_epoch": STEPS}
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger = logging.getLogger("distributed_backup.training.session")
    logger.setLevel(logging.INFO)
    with directory() as root:
        run_part(fit_with(batches_of(Endless()), **arguments), root, at_third_epoch("on_train_batch_end", 1))
        fit_session._PROGRESS_PERIOD = 0.0  # type: ignore[misc]
        logger.addHandler(Collector())
        run_part(fit_with(batches_of(Endless()), **arguments), root, seed=100)
    return [message for message in messages if message.startswith("reading")]


class UnseededShuffle(Permuted):
    """Shuffles with a generator of its own, without a seed."""

    def __iter__(self) -> Iterator[Any]:
        return self._batches(np.random.default_rng().permutation(STEPS * BATCH_SIZE))


def data_in_another_order(report: Report, hook: str, count: int) -> dict[str, Any]:
    """Resume a fit whose data set shuffles by a generator of its own. Return what was logged."""
    strict()
    with directory() as root:
        run_part(fit_with(UnseededShuffle(STEPS, BATCH_SIZE)), root, at_third_epoch(hook, count))
        position = newest(root)
        resumed = run_part(fit_with(UnseededShuffle(STEPS, BATCH_SIZE)), root, seed=100)
        return {"position": position, "logged": resumed.logged, "epochs": resumed.history.epoch}


def add_a_log_key(program: Any) -> None:
    """Make the training step of a program return keys of its own, as a user's subclass would. One is not JSON."""

    class WithTokens(type(program)):  # type: ignore[misc]
        async def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
            logs = await super().train_on_batch(*args, **kwargs)
            return {**logs, "tokens": 100.0 + kwargs["step"], "raw": {kwargs["step"]}}

    program.__class__ = WithTokens


def committed_positions(report: Report, save_freq: Any) -> list[tuple[int, int]]:
    """Return the positions of all checkpoints of a fit. Each boundary waits until the saver is idle."""
    strict()
    sink = RecordingSink()

    class Backup(BackupAndRestore):
        def _event_sinks(self) -> tuple[Any, ...]:
            return (sink,)

        def _boundary_passed(self, *args: Any, **kwargs: Any) -> None:
            assert self._session is not None
            assert saver_of(self._session._worker).drain(30.0)

        on_train_batch_begin = on_test_batch_begin = on_test_end = _boundary_passed

    async def run(root: Path) -> None:
        fit = Fit(epochs=2)
        program, _ = await build(fit)
        backup = Backup(root, save_freq=save_freq)
        await program.fit(callbacks=[backup], **fit.inputs(), epochs=2, verbose=0)

    with directory() as root:
        asyncio.run(run(root))
    committed = [event for event in sink.events if event.kind == "committed"]
    return [(event.fields["epoch"], event.fields["batch"]) for event in committed]


def printed_at_a_resume(report: Report, verbose: int) -> str:
    """Resume a fit, and return what it prints before its first progress bar."""
    strict()
    with directory() as root:
        run_part(Fit(), root, at_third_epoch("on_train_batch_end", -3))
        printed = StringIO()
        with redirect_stdout(printed):
            run_part(Fit(arguments={"verbose": verbose}), root, seed=100)
        return printed.getvalue().partition("Epoch")[0]


def further_logs(report: Report, hook: str, count: int) -> list[Any]:
    """Return the logs of the third epoch of an undisturbed fit, and those of a resumed one."""
    strict()
    fit = Fit()

    async def run(root: Path | None, interruption: Interruption | None = None, seed: int = 7) -> Outcome:
        program, model = await build(fit, seed)
        add_a_log_key(program)
        return await part(fit, root, interruption, seed=seed, program=(program, model))

    with directory() as root:
        reference = asyncio.run(run(None))
        interrupted = asyncio.run(run(root, Interruption(at=2 * fit.steps + count, hooks=(hook,))))
        resumed = asyncio.run(run(root, seed=100))
    assert interrupted.preempted is not None
    return [{name: values[-1] for name, values in each.history.history.items()} for each in (reference, resumed)]
