"""Values that the demonstration's parent process and its children exchange.

Standard library and lower layers only: the parent process never imports synalinks. Instants are of `SystemClock`,
which all processes of a machine share. The difference of two instants is a duration, whichever processes took them.
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
# A file lock ends with its holder. Here the duration says how long a killed worker counts as a member, and the last
# worker out waits for that.
_FILE_TIMINGS: Final = LeaseTimings(duration=6.0, renew_deadline=4.0, retry_period=1.0)

OwnKind = Literal["started", "ready", "asked", "answered", "boundary", "completed", "signal_sent", "exited"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordination:
    """How the workers elect a leader. `url` may hold a password, `name` and `place` are safe to print."""

    url: str = field(default="file:", repr=False)
    name: str = "file:"
    place: str = ""
    timings: LeaseTimings = _FILE_TIMINGS
    run_id: str = field(default_factory=lambda: f"demo-{secrets.token_hex(6)}")

    @property
    def has_lease(self) -> bool:
        """Whether a killed leader holds the lead until its lease runs out."""
        return self.url != "file:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The training, the same for each worker and for the uninterrupted reference run.

    Durations are in seconds: `latency` of one call of the language model, `grace_period` from SIGTERM to the end.
    `seed` seeds Python's and NumPy's global generators before the program is built.
    """

    epochs: int = 4
    batch_size: int = 4
    latency: float = 0.2
    grace_period: float = 10.0
    seed: int = 7
    coordination: Coordination = field(default_factory=Coordination)

    @property
    def batches(self) -> int:
        """Return the batches of an epoch: its training batches, then its validation batches."""
        return -(-TRAINING_QUESTIONS // self.batch_size) + -(-VALIDATION_QUESTIONS // self.batch_size)

    def progress(self, position: Position) -> float:
        """Return the completed share of the fit, from 0 to 1."""
        return min(1.0, (position.epoch + position.batch / self.batches) / self.epochs)

    def describe(self, position: Position) -> str:
        """Return the position for people, who count from 1."""
        if position.batch:
            return f"epoch {position.epoch + 1}, batch {position.batch} of {self.batches}"
        return f"end of epoch {position.epoch}" if position.epoch else "the start"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """The task of one process: a worker, or the reference run, which has no `backup_dir`.

    `incarnation` counts the starts of `name`, from 1. `keep` keeps the backup after the run. `log` is the file for
    the standard output and the log of the process.
    """

    name: str
    incarnation: int
    backup_dir: Path | None
    keep: bool
    log: Path

    def message(self, kind: OwnKind | Kind, *, at: float, fields: Mapping[str, Any]) -> Message:
        """Return a message about this process."""
        return Message(at=at, name=self.name, incarnation=self.incarnation, kind=kind, fields=fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A transition of a process: an event of its worker, or one of the demonstration's own.

    The process or its parent takes the instant `at` from `SystemClock`, when the transition happens. Messages of one
    process arrive in the order in which they were sent.

    Own kinds: "started": the parent has started the process. "ready": `fit` is about to begin. "asked": a call of the
    language model began. "answered": the model has answered the request with the digest `fields["request"]`.
    "boundary": a batch or an epoch ended at the position in `fields`. "completed": `fit` returned, and `fields` holds a
    digest of each part of the final state. "signal_sent": the parent has sent the signal `fields["signal"]`. "exited":
    the process ended with the exit code `fields["code"]`.
    """

    at: float
    name: str
    incarnation: int
    kind: OwnKind | Kind
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def position(self) -> Position | None:
        """Return the position in `fields`. None if there is none."""
        epoch = self.fields.get("epoch")
        return None if epoch is None else Position(epoch, self.fields["batch"])
