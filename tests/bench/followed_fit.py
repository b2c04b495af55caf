"""One worker of the benchmark `lag`: a fit in a child that notes when its training sees each answer. Imports synalinks.

The model answers 8 requests at once after 50 to 150 ms. Each answer has a text of its own, so the two workers' instants
can be compared.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from distributed_backup import BackupAndRestore
from distributed_backup.clock import SystemClock
from distributed_backup.observability.events import Event, Sink
from distributed_backup.training.answers import Answers
from tests.bench.lag import Run
from tests.chaos.programs import build
from tests.chaos.provider import Provider, chance, token_of
from tests.support.programs import samples

AT_ONCE: Final = 8


class SlowProvider(Provider):
    """Answers after 50 to 150 ms, from the time on at which the gate is there."""

    gate: Path

    async def _ask(self) -> str:
        while not self.gate.exists():
            await asyncio.sleep(0.01)
        self._asked += 1
        token = f"{self._life}-{self._asked}"
        await asyncio.sleep(0.05 + 0.1 * chance())
        return token


class Reported(BackupAndRestore):
    """A callback that reports when its worker has started."""

    report: Callable[..., None]

    def _event_sinks(self) -> tuple[Sink, ...]:
        return (self,)

    def emit(self, event: Event) -> None:
        if event.kind == "restored":
            self.report(event.kind)

    def close(self, timeout: float) -> None:
        """Do nothing."""


def train(report: Callable[..., None], name: str, run: Run) -> dict[str, float]:
    """Run the fit. Return the instant at which its training saw each answer."""
    logging.getLogger("synalinks").setLevel(logging.ERROR)
    seen: dict[str, float] = {}
    ask = Answers.ask

    async def noted(self: Any, key: Any, request: Any, codec: Any) -> Any:
        response = await ask(self, key, request, codec)
        seen[token_of(response)] = SystemClock().now()
        return response

    Answers.ask = noted  # type: ignore[method-assign]
    asyncio.run(_fit(report, name, run))
    return seen


async def _fit(report: Callable[..., None], name: str, run: Run) -> None:
    backup = Reported(run.backup_dir, save_freq=run.save_freq, run_id=run.run_id, delete_checkpoint=False)
    backup.report = report
    await _trained(name, run, [backup])


async def begin(report: Callable[..., None], name: str, run: Run, *, is_plain: bool) -> None:
    """Run a fit that waits for the gate, and report when it has begun. `is_plain`: without our callback."""
    backup = Reported(run.backup_dir, save_freq=run.save_freq, run_id=run.run_id, delete_checkpoint=False)
    backup.report = report
    if is_plain:
        asyncio.get_running_loop().call_later(1.0, report, "begun")
    await _trained(name, run, [] if is_plain else [backup])


async def build_only() -> Any:
    """Build the program of the fits, and return it."""
    return await build("few-shot", SlowProvider("none", lambda *_: None), seed=7, is_shuffled=False, on_tool=print)


async def _trained(name: str, run: Run, callbacks: list[Any]) -> None:
    provider = SlowProvider(name, lambda *_: None)
    provider.gate = run.gate
    provider.install()
    program = (await build("few-shot", provider, seed=7, is_shuffled=False, on_tool=print)).program
    x, y = samples(AT_ONCE * run.batches)
    validation = samples(AT_ONCE, offset=len(x))
    await program.fit(
        x, y, validation_data=validation, epochs=run.epochs, batch_size=AT_ONCE, minibatch_size=None, verbose=0,
        callbacks=callbacks,
    )  # fmt: skip
