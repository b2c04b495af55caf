"""What the children of the tests of fits over Redis run: batches are held until the test lets them go on.

Imports synalinks.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import redis
import synalinks

from distributed_backup.errors import BackupError
from distributed_backup.training.environment import ENVIRONMENT_PREFIX
from tests.integration.preemption_scenarios import Report, SlowModel, fit
from tests.support.jobs import Job
from tests.support.redis_fits import TRAIN_END

type Batches = Sequence[tuple[int, int]]


class Gates(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Holds the language-model calls of certain training batches, or the end of training, while a file exists.

    `report` gets each held batch when its first call is under way. The files in `directory` are named by epoch and
    batch, and the test removes them. `held` has epoch and number of the batches to hold.
    """

    def __init__(self, report: Report, directory: Path, held: Batches) -> None:
        super().__init__()
        self._report, self._directory, self._held = report, directory, set(held)
        self._epoch = 0
        self._now: tuple[int, int] | None = None
        self._lock = asyncio.Lock()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._now = (self._epoch, batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._now = None

    def on_train_end(self, logs: Any = None) -> None:
        if TRAIN_END in self._held:
            gate = self._hold(TRAIN_END)
            while gate.exists():
                time.sleep(0.01)

    async def passed(self) -> None:
        """Wait until the running batch may go on. Calls go on in the order in which they came."""
        if (now := self._now) not in self._held:
            return
        async with self._lock:
            if now in self._held:
                await _removed(self._hold(now))
                self._held.remove(now)

    def _hold(self, what: tuple[int, int]) -> Path:
        gate = self._directory / "{}-{}".format(*what)
        gate.touch()
        self._report("held", what)
        return gate


async def _removed(path: Path) -> None:
    while path.exists():
        await asyncio.sleep(0.01)


class HeldModel(SlowModel):
    """Waits at the gates before each call."""

    gates: ClassVar[Gates]

    async def _acompletion(self, formatted_messages: Any, **kwargs: Any) -> dict[str, Any]:
        await self.gates.passed()
        return await super()._acompletion(formatted_messages, **kwargs)


def train(report: Report, job: Job, directory: Path, held: Batches) -> dict[str, Any]:
    """A fit that is held at the batches `held`."""
    gates = HeldModel.gates = Gates(report, directory, held)
    return asyncio.run(fit(report, job, gates, model_class=HeldModel))


def train_and_tell_the_error(report: Report, job: Job, directory: Path, held: Batches) -> tuple[str, str]:
    """The name and the text of the error that leaves `fit`."""
    try:
        train(report, job, directory, held)
    except BackupError as error:
        return type(error).__name__, str(error)
    return "no error", ""


def train_with_client(report: Report, job: Job, directory: Path, held: Batches, url: str) -> dict[str, Any]:
    """The coordinator is a client that exists, as a user's program has one for other ends, with its own settings."""
    client = redis.Redis.from_url(url, socket_timeout=60.0)
    client.ping()
    job = dataclasses.replace(job, arguments={**job.arguments, "coordinator": client})
    return train(report, job, directory, held)


def train_with_environment(report: Report, job: Job, directory: Path, held: Batches, url: str) -> dict[str, Any]:
    """The coordinator is named by the job's manifest only."""
    os.environ[f"{ENVIRONMENT_PREFIX}COORDINATOR"] = url
    arguments = {name: value for name, value in job.arguments.items() if name != "coordinator"}
    return train(report, dataclasses.replace(job, arguments=arguments), directory, held)


def train_on_another_host(report: Report, job: Job, directory: Path, held: Batches) -> dict[str, Any]:
    """Train in a network namespace, as on another machine. The test connects it, and then removes the file."""
    os.unshare(os.CLONE_NEWNET)
    unconnected = directory / "unconnected"
    unconnected.touch()
    report("unconnected")
    asyncio.run(_removed(unconnected))
    return train(report, job, directory, held)
