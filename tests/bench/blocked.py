"""Measure how long a saved batch blocks the training loop: ours, synalinks' own callback, a bare `orjson.dumps`.

Measured: `on_train_batch_end` of both callbacks with `save_freq=1`, in turn at each batch of one real fit. Right before
ours, `orjson.dumps` of the same state runs, so that the cost of a first dump is not ours. Reading the states of both
generators is measured too: no exact state lacks them, and the dump is given them. The language model takes as long as
the saver needs before the next batch. The positions of the commits prove that the saver skipped none. A second fit has
`journal=False`: the journal marks each boundary with digests of the state, which its thread computes.

Not measured: the commit and the digests in the background, which use a core but not the loop, and the wrapped methods
of a fit, which add some microseconds. Unlike ours, synalinks' file is neither synced nor replaced atomically.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import synalinks

from distributed_backup import BackupAndRestore
from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.demo.offline_model import OfflineLanguageModel
from distributed_backup.position import Position
from tests.bench.report import milliseconds, ratio, seconds, series, table
from tests.bench.results import Report
from tests.bench.states import SIZES, inflate, saved_object
from tests.support.internals import saver_of
from tests.support.programs import build_program, samples

BATCHES: Final = 24
OF_HOST: Final = 0.5
OF_DUMPS: Final = {"30 kB": 2.0, "0.2 MB": 1.5, "2 MB": 1.5, "20 MB": 1.5}
_WARM_UP: Final = 3


class CountingStore(CheckpointStore):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.committed: set[Position] = set()

    def commit(self, snapshot: Snapshot, *, term: int, worker_id: str) -> CheckpointHeader:
        self.committed.add(snapshot.position)
        return super().commit(snapshot, term=term, worker_id=worker_id)


class TimedHost(synalinks.callbacks.BackupAndRestore):  # type: ignore[misc]  # synalinks has no types
    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory), save_freq=1)
        self.blocked: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        _dump(saved_object(self.program))
        self.blocked.append(seconds(lambda: super(TimedHost, self).on_train_batch_end(batch, logs)))


class TimedOurs(BackupAndRestore):
    def __init__(self, directory: Path, *, journal: bool) -> None:
        super().__init__(directory, save_freq=1, journal=journal)
        self.store = self._store = CountingStore(directory)
        self.blocked: list[float] = []
        self.bare: list[float] = []
        self.generators: list[float] = []

    @property
    def idle(self) -> bool:
        return self._session is None or saver_of(self._session._worker).drain(0.0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.generators.append(seconds(lambda: (random.getstate(), np.random.get_state())))
        state = saved_object(self.program)
        self.bare.append(seconds(lambda: _dump(state)))
        self.blocked.append(seconds(lambda: super(TimedOurs, self).on_train_batch_end(batch, logs)))


class PatientModel(OfflineLanguageModel):
    """Reply when the saver has finished."""

    callback: TimedOurs

    async def _acompletion(self, formatted_messages: Any, **kwargs: Any) -> dict[str, Any]:
        while not self.callback.idle:
            await asyncio.sleep(0.005)
        answer: dict[str, Any] = await super()._acompletion(formatted_messages, **kwargs)
        return answer


def _dump(state: dict[str, Any]) -> bytes:
    return orjson.dumps(state, option=orjson.OPT_SERIALIZE_NUMPY)


async def measure(directory: Path, size: int, *, journal: bool) -> tuple[TimedHost, TimedOurs]:
    """Run a fit with both callbacks on a state of about `size` bytes."""
    program, model = await build_program(latency=0.01)
    inflate(program, size)
    host, ours = TimedHost(directory / "host"), TimedOurs(directory / "ours", journal=journal)
    model.__class__, model.callback = PatientModel, ours
    x, y = samples(_WARM_UP + BATCHES)
    validation, callbacks = samples(1, offset=len(x)), [host, ours]
    await program.fit(
        x, y, validation_data=validation, batch_size=1, minibatch_size=None, verbose=0, callbacks=callbacks
    )
    trained = {Position(0, batches + 1) for batches in range(len(ours.blocked))}
    assert trained <= ours.store.committed, "a batch was not saved"
    for values in (host.blocked, ours.blocked, ours.bare):
        del values[:_WARM_UP]
    return host, ours


async def report(directory: Path) -> Report:
    rows, measured = [], []
    for name, size in SIZES.items():
        fits = []
        for journal in (True, False):
            fits.append(await measure(directory / "blocked", size, journal=journal))
            shutil.rmtree(directory / "blocked", ignore_errors=True)
        (host, ours), (_, without) = fits
        rows.append(_row(name, host, ours, without))
        taken = {"ours": ours.blocked, "synalinks": host.blocked, "orjson.dumps": ours.bare}
        goals = {"synalinks": OF_HOST, "orjson.dumps": OF_DUMPS[name]}
        measured += series(("loop blocked per saved batch", name), taken, goals)
    head = ["state", "synalinks, ms", "orjson.dumps, ms", "two generators, ms", "ours, ms"]
    head += ["ours with journal=False, ms", "ours / synalinks", "ours / dumps"]
    return table("Training loop blocked per saved batch (medians)", head, rows, measured)


def _row(name: str, host: TimedHost, ours: TimedOurs, without: TimedOurs) -> list[str]:
    return [
        name,
        milliseconds(host.blocked),
        milliseconds(ours.bare),
        milliseconds(ours.generators),
        milliseconds(ours.blocked),
        milliseconds(without.blocked),
        ratio(ours.blocked, host.blocked, OF_HOST),
        ratio(ours.blocked, ours.bare, OF_DUMPS[name]),
    ]
