"""The value that says where a worker starts."""

from __future__ import annotations

from dataclasses import dataclass

from distributed_backup.checkpoints.format import Checkpoint
from distributed_backup.checkpoints.synalinks_backup import SynalinksBackup
from distributed_backup.position import Position


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPoint:
    """Where training starts.

    Args:
        checkpoint: What to restore; None for a fresh start or a backup of synalinks' own callback.
        legacy: A backup of synalinks' own callback to restore; None if there is a checkpoint, or nothing.
        finished: Whether the run is complete, so that nothing is left to train.
    """

    checkpoint: Checkpoint | None = None
    synalinks_backup: SynalinksBackup | None = None
    finished: bool = False

    @property
    def position(self) -> Position | None:
        """The restored position; None for a fresh start."""
        source = self.checkpoint or self.synalinks_backup
        return None if source is None else source.position

    @property
    def name(self) -> str | None:
        """The name of what is restored; None for a fresh start."""
        source = self.checkpoint or self.synalinks_backup
        return None if source is None else source.name

    @property
    def digest(self) -> str | None:
        """The digest of what is restored; None for a fresh start."""
        if self.checkpoint is not None:
            return self.checkpoint.header.digest
        return None if self.synalinks_backup is None else self.synalinks_backup.digest
