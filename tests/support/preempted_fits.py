"""Fits in processes of their own, for tests that preempt them. Imports no synalinks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.position import Position
from tests.support.jobs import Job
from tests.support.processes import PATIENCE, Child

Start = Callable[..., Child]
SCENARIOS = "tests.integration.preemption_scenarios"


def job(backup_dir: Path, **fields: Any) -> Job:
    arguments = {"delete_checkpoint": False, **fields.pop("arguments", {})}
    return Job(backup_dir=backup_dir, arguments=arguments, **fields)


def newest(backup_dir: Path) -> Position | None:
    latest = CheckpointStore(backup_dir).latest()
    return None if latest is None else latest.position


def assert_resumes_exactly(start: Start, backup_dir: Path, uninterrupted: dict[str, Any]) -> int:
    """Run the job again to its end. Return the calls that the second part took."""
    result = start(job(backup_dir)).result()
    assert result["state"] == uninterrupted["state"]
    return int(result["calls"])


def seconds_until_saved(backup_dir: Path, position: Position) -> float:
    """Return the seconds until the newest checkpoint is at `position` or beyond."""
    store, begin = CheckpointStore(backup_dir), time.monotonic()
    while time.monotonic() - begin < PATIENCE:
        header = store.newest_header()
        if header is not None and header.position >= position:
            return time.monotonic() - begin
        time.sleep(0.001)
    raise AssertionError(f"no checkpoint at {position}; there are {store.names()}")


def wait_for_members(coordinator: FileCoordinator, count: int) -> None:
    limit = time.monotonic() + PATIENCE
    while len(coordinator.members()) < count:
        assert time.monotonic() < limit, coordinator.members()
        time.sleep(0.01)
