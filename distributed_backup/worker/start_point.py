"""The position and the state that a worker starts from, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field

from distributed_backup.checkpoints.format import Checkpoint
from distributed_backup.checkpoints.synalinks_backup import SynalinksBackup
from distributed_backup.position import Position


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPoint:
    """Where training starts. A fresh start has neither a checkpoint nor a backup of synalinks' own callback."""

    checkpoint: Checkpoint | None = None
    synalinks_backup: SynalinksBackup | None = None
    finished: bool = False
    """Whether the run is complete, so that nothing is left to train."""
    term: int | None = field(default=None, compare=False)
    """The term that this worker leads under, and announced this start in. None for a follower."""

    @property
    def position(self) -> Position | None:
        """The restored position. None for a fresh start."""
        source = self.checkpoint or self.synalinks_backup
        return None if source is None else source.position

    @property
    def name(self) -> str | None:
        """The name of the restored file. None for a fresh start."""
        source = self.checkpoint or self.synalinks_backup
        return None if source is None else source.name

    @property
    def digest(self) -> str | None:
        """The digest of the restored file. None for a fresh start."""
        if self.checkpoint is not None:
            return self.checkpoint.header.digest
        return None if self.synalinks_backup is None else self.synalinks_backup.digest
