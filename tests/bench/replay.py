"""Measure the replay of a whole fit from its journal, against the same fit with a model that answers without a pause.

Measured: `fit` of `interrupted_fit`, OMEGA with more than 500 calls, in turn. Once from an empty directory with
`journal=False` and a model that answers in the next cycle of the event loop. Once from a copy of a directory that has
the first checkpoint and the whole journal. It must send no request, and come to the same state. Both commit a
checkpoint at the end of each epoch. The replay includes its start: reading the checkpoint, the journal and the data.

Not measured: requests of a real model, which take a thousand times as long, and garbage collections of what synalinks
imports, which come in every third fit.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final
from unittest import mock

from distributed_backup import BackupAndRestore
from distributed_backup.checkpoints.store import CheckpointStore
from tests.bench.report import imports_frozen, milliseconds, ratio, table
from tests.bench.results import Report
from tests.support.programs import build_program, complete_state, samples

ROUNDS: Final = 9
EPOCHS: Final = 3


@contextmanager
def everything_kept() -> Iterator[None]:
    """Let no checkpoint and no segment be pruned."""
    with mock.patch.object(CheckpointStore, "_unneeded", return_value=()):
        yield


async def fit(directory: Path, *, journal: bool) -> tuple[float, int, dict[str, Any]]:
    """Return the seconds of one fit, its calls, and the state at its end."""
    program, model = await build_program(optimizer="omega")
    x, y = samples(24)
    backup = BackupAndRestore(directory, journal=journal, delete_checkpoint=False)
    began = time.perf_counter()
    await program.fit(
        x, y, validation_data=samples(32, offset=1000), epochs=EPOCHS, batch_size=8, minibatch_size=None, verbose=0,
        callbacks=[backup],
    )  # fmt: skip
    taken = time.perf_counter() - began
    state = complete_state(program)
    # Metrics have measured times.
    state["variables"].pop("metrics")
    return taken, model.calls, state


async def measure(directory: Path) -> tuple[list[float], list[float], int]:
    """Return the seconds of each replay and of each fit that asks, and the calls of the latter."""
    with everything_kept(), imports_frozen():
        _, calls, expected = await fit(directory / "recorded", journal=True)
        for checkpoint in sorted((directory / "recorded").glob("*.ckpt"))[1:]:
            checkpoint.unlink()
        replays, asking = [], []
        for number in range(1 + ROUNDS):
            copied = directory / f"copy-{number}"
            shutil.copytree(directory / "recorded", copied)
            replay = await fit(copied, journal=True)
            asked = await fit(directory / f"asking-{number}", journal=False)
            assert (replay[1], replay[2]) == (0, expected), f"{replay[1]} calls, or another state"
            assert (asked[1], asked[2]) == (calls, expected), f"{asked[1]} calls, or another state"
            if number:  # the first one warms up
                replays.append(replay[0])
                asking.append(asked[0])
    return replays, asking, calls


async def report(directory: Path) -> Report:
    replays, asking, calls = await measure(directory)
    head = ["answers", "asking, journal=False, ms", "replay, ms", "difference per answer, ms", "replay / asking"]
    each = (median(replays) - median(asking)) / calls
    rows = [
        [str(calls), milliseconds(asking), milliseconds(replays), milliseconds([each]), ratio(replays, asking, 1.2)]
    ]
    return table(f"Replay of a whole fit ({ROUNDS} rounds; goal: 1.2 of a model that answers at once)", head, rows)
