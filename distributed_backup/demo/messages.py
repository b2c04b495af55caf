"""What the director and the processes it starts tell each other.

Values only, of the standard library and of this package's lower layers: the director's process never imports
synalinks. Instants are of `SystemClock`, which all processes of the machine share, so that a difference of two of
them is a duration whoever took them.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.observability.events import Kind
from distributed_backup.position import Position

TRAINING_QUESTIONS: Final = 24
VALIDATION_QUESTIONS: Final = 4
REFERENCE: Final = "reference"
_TIMINGS_OF_THE_FILE_LOCK: Final = LeaseTimings(duration=6.0, renew_deadline=4.0, retry_period=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordination:
    """How the workers agree on who leads.

    Args:
        url: Of the coordinator; it may hold a password.
        name: What may be shown of it.
        place: Where the lease is, in words; empty for the name.
        timings: Of the lease. Of a file lock, which ends with its holder, they are only how long a killed worker
            counts as a member: the last one out waits for that.
        run_id: Of this demonstration alone.
    """

    url: str = field(default="file:", repr=False)
    name: str = "file:"
    place: str = ""
    timings: LeaseTimings = _TIMINGS_OF_THE_FILE_LOCK
    run_id: str = field(default_factory=lambda: f"demo-{secrets.token_hex(6)}")

    @property
    def has_lease(self) -> bool:
        """Whether a leader that falls silent leads until a lease runs out."""
        return self.url != "file:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is trained, the same for every worker and for the uninterrupted run beside them.

    Args:
        epochs: Epochs of the fit.
        batch_size: Questions of a batch.
        latency: Seconds that a call of the language model takes.
        grace_period: Seconds a worker has between SIGTERM and its end.
        seed: Of both global generators, before the program is built.
        coordination: How the workers agree on who leads.
    """

    epochs: int = 4
    batch_size: int = 4
    latency: float = 0.2
    grace_period: float = 10.0
    seed: int = 7
    coordination: Coordination = field(default_factory=Coordination)

    @property
    def batches(self) -> int:
        """Batches of an epoch: its training batches and, after them, its validation batches."""
        return -(-TRAINING_QUESTIONS // self.batch_size) + -(-VALIDATION_QUESTIONS // self.batch_size)

    def progress(self, position: Position) -> float:
        """The share of the fit that is done, from 0 to 1."""
        return min(1.0, (position.epoch + position.batch / self.batches) / self.epochs)

    def describe(self, position: Position) -> str:
        """The position as people count: from 1."""
        if position.batch:
            return f"epoch {position.epoch + 1}, batch {position.batch} of {self.batches}"
        return f"end of epoch {position.epoch}" if position.epoch else "the start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What one process is to do.

    Args:
        name: "worker-1", or `REFERENCE` for the run that nothing happens to.
        life: Counts the incarnations of the name, from 1.
        backup_dir: Where the run is backed up; None to run without a callback of ours.
        keep: Whether the backup stays when the run is complete.
        log: The file that takes what the process prints and logs.
    """

    name: str
    life: int
    backup_dir: Path | None
    keep: bool
    log: Path


OwnKind = Literal["started", "ready", "call", "boundary", "done", "gone", "sent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A transition of a process: an event of its worker, or one of the demonstration's own.

    The process or its parent takes the instant `at` from `SystemClock`, when the transition happens. `calls` counts
    the calls of the language model that this incarnation has begun.

    Own kinds: "started": the parent has started the process. "ready": `fit` is about to begin. "call": a call of the
    language model began. "boundary": a batch or an epoch ended at `position`. "done": `fit` returned, `fields` holds a
    digest of each part of the final state. "sent": the parent has sent the signal `fields["signal"]`. "gone": the
    process ended with the exit code `fields["code"]`.
    """

    at: float
    name: str
    life: int
    kind: OwnKind | Kind
    position: Position | None = None
    calls: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
