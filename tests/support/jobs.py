"""Define a job for a child process. Imports no synalinks, so tests can make one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Job:
    """A fit of 8 samples: 3 training batches of 2 and 2 validation batches of 1 in each epoch.

    `slow` names hooks, as the reporter reports them, after which language-model calls take `slow_latency` seconds.
    """

    backup_dir: Path
    epochs: int = 3
    latency: float = 0.0
    slow: tuple[Any, ...] = ()
    slow_latency: float = 60.0
    blocking: bool = False
    optimizer: str = "few-shot"
    steps_per_execution: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)
