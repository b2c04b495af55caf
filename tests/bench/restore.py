"""Measure the restore of a checkpoint against a bare `orjson.loads` of the same state as JSON.

Measured: `CheckpointStore.latest` (list, read, verify the digest), and `TrainingState.apply` to a program of the same
shape with a small state. They alternate with `orjson.loads` of the same state as JSON, with and without reading it. The
files are in the page cache.

Not measured: making the store, which the callback's constructor does, joining the run, the election, building the
optimizer and metrics, and the fast-forward to the batch.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from distributed_backup.checkpoints.format import Snapshot
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.position import Position
from distributed_backup.training.state import TrainingState
from tests.bench.report import milliseconds, ratio, seconds, series, table
from tests.bench.results import Report
from tests.bench.states import SIZES, inflate, saved_object
from tests.support.programs import build_program

ROUNDS: Final = 41
GOALS: Final = {"30 kB": 2.0, "0.2 MB": 1.5, "2 MB": 1.5, "20 MB": 1.1}
_ROUNDS_ABOVE_10_MB: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    ours: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    read_and_loads: list[float] = field(default_factory=list)


async def measure(directory: Path, size: int) -> Times:
    program, _ = await build_program()
    state = TrainingState(program)
    await state.build()
    inflate(program, size)
    body = b"".join(state.capture())
    CheckpointStore(directory).commit(Snapshot(position=Position(1), body=body), term=1, worker_id="bench")
    plain = orjson.dumps(saved_object(program), option=orjson.OPT_SERIALIZE_NUMPY)
    (directory / "plain.json").write_bytes(plain)
    times = Times()
    for index in range(1 + (ROUNDS if size < 10_000_000 else _ROUNDS_ABOVE_10_MB)):
        inflate(program, 0)
        store = CheckpointStore(directory)
        taken = (
            seconds(lambda store=store: restore(store, state)),  # type: ignore[misc]
            seconds(lambda: orjson.loads(plain)),
            seconds(lambda: orjson.loads((directory / "plain.json").read_bytes())),
        )
        if index:  # the first one warms up
            for values, value in zip((times.ours, times.loads, times.read_and_loads), taken, strict=True):
                values.append(value)
    assert b"".join(state.capture()) == body, "what was restored is not what was saved"
    return times


def restore(store: CheckpointStore, state: TrainingState) -> None:
    checkpoint = store.latest()
    assert checkpoint is not None
    state.apply(checkpoint.body)


async def report(directory: Path) -> Report:
    rows, measured = [], []
    for name, size in SIZES.items():
        times = await measure(directory / "restore", size)
        shutil.rmtree(directory / "restore")
        rows.append(
            [
                name,
                milliseconds(times.loads),
                milliseconds(times.read_and_loads),
                milliseconds(times.ours),
                ratio(times.ours, times.read_and_loads, GOALS[name]),
            ]
        )
        taken = {"ours": times.ours, "read and orjson.loads": times.read_and_loads}
        measured += series(("restore", name), taken, {"read and orjson.loads": GOALS[name]})
    head = ["state", "loads, ms", "read + loads, ms", "ours, ms", "ours / read + loads"]
    return table("Restore: read, verify, apply (medians)", head, rows, measured)
