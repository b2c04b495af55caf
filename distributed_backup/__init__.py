"""Preemption-safe, cluster-aware backup and exact resume for synalinks `fit` jobs.

Importing the package imports neither synalinks nor redis: names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed_backup.callback import BackupAndRestore
    from distributed_backup.checkpoint import Position
    from distributed_backup.config import LeaseTimings
    from distributed_backup.coordinators import coordinator_from_url
    from distributed_backup.coordinators.file import FileCoordinator
    from distributed_backup.coordinators.memory import MemoryCoordinator
    from distributed_backup.coordinators.redis import RedisCoordinator
    from distributed_backup.errors import BackupError, Preempted
    from distributed_backup.store import CheckpointStore

_HOMES = {
    "BackupAndRestore": "callback",
    "BackupError": "errors",
    "CheckpointStore": "store",
    "FileCoordinator": "coordinators.file",
    "LeaseTimings": "config",
    "MemoryCoordinator": "coordinators.memory",
    "Position": "checkpoint",
    "Preempted": "errors",
    "RedisCoordinator": "coordinators.redis",
    "coordinator_from_url": "coordinators",
}

__all__ = [
    "BackupAndRestore",
    "BackupError",
    "CheckpointStore",
    "FileCoordinator",
    "LeaseTimings",
    "MemoryCoordinator",
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
