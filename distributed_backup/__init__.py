"""Preemption-safe, cluster-aware backup and exact resume for synalinks `fit` jobs.

Importing the package imports neither synalinks nor redis. Each name is loaded at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed_backup.callback import BackupAndRestore
    from distributed_backup.checkpoints.store import CheckpointStore
    from distributed_backup.coordination import coordinator_from_url
    from distributed_backup.coordination.file import FileCoordinator
    from distributed_backup.coordination.memory import MemoryCoordinator
    from distributed_backup.coordination.redis import RedisCoordinator
    from distributed_backup.coordination.timings import LeaseTimings
    from distributed_backup.errors import BackupError
    from distributed_backup.position import Position
    from distributed_backup.preemption.exit import Preempted
    from distributed_backup.preemption.sources.base import Alert, NoticeSource

_HOMES = {
    "Alert": "preemption.sources.base",
    "BackupAndRestore": "callback",
    "BackupError": "errors",
    "CheckpointStore": "checkpoints.store",
    "FileCoordinator": "coordination.file",
    "LeaseTimings": "coordination.timings",
    "MemoryCoordinator": "coordination.memory",
    "NoticeSource": "preemption.sources.base",
    "Position": "position",
    "Preempted": "preemption.exit",
    "RedisCoordinator": "coordination.redis",
    "coordinator_from_url": "coordination",
}

__all__ = [
    "Alert",
    "BackupAndRestore",
    "BackupError",
    "CheckpointStore",
    "FileCoordinator",
    "LeaseTimings",
    "MemoryCoordinator",
    "NoticeSource",
    "Position",
    "Preempted",
    "RedisCoordinator",
    "coordinator_from_url",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
