"""Fits in processes of their own, for tests that preempt them. Imports no synalinks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.position import Position
from tests.support.jobs import Job
from tests.support.processes import Child

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
