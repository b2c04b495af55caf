"""What the children of the tests of object storage run: fits whose backup is no directory. Imports synalinks."""

from __future__ import annotations

import asyncio
import copy
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fsspec.config import conf, set_conf_env

from distributed_backup import BackupAndRestore, CheckpointStore
from distributed_backup.checkpoints.format import Snapshot
from distributed_backup.cli.export import export_variables
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.position import Position
from distributed_backup.training.state import TrainingState
from distributed_backup.urls import is_redis_url
from tests.integration.resume_scenarios import Fit, Interruption, build, differences, run_part, strict

type Report = Callable[..., None]


def preempted_and_resumed(
    report: Report, place: Any, options: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, Any]:
    """Compare a fit that is interrupted and resumed with an uninterrupted one, and report what it deletes."""
    os.environ.update(environment)
    set_conf_env(conf)
    strict()
    fit = Fit()
    reference = run_part(fit, None)
    first = run_part(fit, place, Interruption(at=20), options={**options})
    second = run_part(fit, place, seed=99, options={**options})
    store = CheckpointStore(place, run_id=options.get("run_id"))
    found = store.storage.names()
    led = RedisCoordinator(place).runs() if is_redis_url(place) else ()
    run_part(fit, place, seed=99, options={**options, "delete_checkpoint": True})
    return {
        "wrong": differences(reference.state, second.state),
        "interrupted": first.preempted is not None and second.preempted is None,
        "repeated": first.calls + second.calls - reference.calls,
        "logged": first.logged + second.logged,
        "found": found,
        "led": led,
        "left": store.storage.names(),
    }


def made(report: Report, cases: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, float | None, float]]:
    """What callbacks of these arguments are made with: coordinator, limit of a request, duration of a lease."""
    found = []
    for place, arguments in cases:
        callback = BackupAndRestore(place, **arguments)
        limit = getattr(callback._store.storage, "_limit", None)
        found.append((type(callback._coordinator).__name__, limit, callback._settings.session.worker.timings.duration))
    return found


def exported(report: Report, root: Path) -> dict[str, Any]:
    """How an export differs from what the program itself would write, and from what another program has of it."""
    strict()

    async def run(optimizer: str) -> list[str]:
        program, _ = await build(fit := Fit(optimizer=optimizer, modules=2))
        await program.fit(**fit.inputs(), epochs=2, minibatch_size=None, verbose=0)
        state = TrainingState(program)
        await state.build()
        store = CheckpointStore(root / optimizer)
        name = store.commit(Snapshot(position=Position(2), body=state.capture()), term=1, worker_id="w").name
        ours, theirs = root / f"{optimizer}.variables.json", root / "theirs.variables.json"
        export_variables(store.load(name), ours)
        program.save_variables(theirs)
        other, _ = await build(fit, seed=8)
        fresh = values(other)
        other.load_variables(ours)
        wrong = differences(json.loads(theirs.read_bytes()), json.loads(ours.read_bytes()), "file")
        wrong += differences(values(program), values(other), "loaded")
        return wrong + (["nothing was trained"] if fresh == values(program) else [])

    return {optimizer: asyncio.run(run(optimizer)) for optimizer in ("few-shot", "omega")}


def values(program: Any) -> list[Any]:
    # Copies: what is loaded is put into the same dictionaries.
    return [copy.deepcopy(variable.get_json()) for variable in program.trainable_variables]
