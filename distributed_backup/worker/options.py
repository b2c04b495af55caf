"""How a worker behaves, as values, and the id of one incarnation."""

from __future__ import annotations

import os
import re
import secrets
import socket
from dataclasses import dataclass, field
from typing import Literal

from distributed_backup.checks import checked_name
from distributed_backup.coordination.election import Candidate
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.preemption.grace import shutdown_reserve

OnSaveError = Literal["warn", "raise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker behaves. `BackupAndRestore` documents each option."""

    timings: LeaseTimings = field(default_factory=LeaseTimings)
    standby: bool = False
    grace_period: float = 30.0
    exit_code: int = 143
    restore_timeout: float = 300.0
    on_save_error: OnSaveError = "warn"
    delete_checkpoint: bool = True
    follows_journal: bool = False
    """Whether followers take the answers of models from the leader's journal."""

    def candidate(self, worker_id: str) -> Candidate:
        """Return how this worker stands for election."""
        return Candidate(worker_id=worker_id, timings=self.timings, idle_role="standby" if self.standby else "follower")

    @property
    def keeps_final_state(self) -> bool:
        """Whether the final state is committed whatever the schedule."""
        return self.standby or not self.delete_checkpoint

    @property
    def reserve(self) -> float:
        """Seconds of the grace period kept for the last commit, for leaving, and for the interpreter's exit."""
        return shutdown_reserve(self.grace_period)


def new_worker_id(name: str | None) -> str:
    """Return the id of one incarnation of a worker: its name and a random suffix.

    With the suffix, a worker that restarts under the same name is a new member. It never takes the lease or the
    announcement of its predecessor for its own. Without a name, host name and process id are used.
    """
    if name is None:
        host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")[:96] or "host"
        name = f"{host}-{os.getpid()}"
    return f"{checked_name('worker_id', name)[:119]}-{secrets.token_hex(4)}"
