"""Decide where a fit begins, from what the worker restored and from the data and arguments of this fit.

The limit: a changed program or changed instructions are not detected here. The state refuses a program that it does not
fit.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed_backup.position import Position
from distributed_backup.worker.start_point import StartPoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitStart:
    """Where a fit begins.

    `epoch` is the first epoch of its loop, past the last one if the run has finished.
    """

    position: Position
    epoch: int
    is_resumed: bool
    has_finished: bool
    data_is_known: bool

    def summary(self, name: str, epochs: int) -> str:
        """Return one line for people who watch the progress bar. `name` is the restored file."""
        if self.has_finished or self.epoch >= epochs:
            return f"Nothing is left to train: this run is complete ({name})."
        done = f"{self.position.epoch} epochs and {self.position.batch} batches"
        return f"Resuming after {done} ({name})."


def fit_start(start: StartPoint, loop: Mapping[str, Any], *, data: str, params: Mapping[str, Any]) -> FitStart:
    """Return where a fit with this fingerprint of its `data` begins. `loop` is the `loop_state` of the checkpoint."""
    checkpoint = start.checkpoint
    is_resumed = checkpoint is not None or start.synalinks_backup is not None
    position = _position(start, data) if is_resumed else Position(params.get("initial_epoch") or 0)
    # A callback may have stopped the training in the epoch that ended at this position.
    stopped = checkpoint is not None and checkpoint.position.batch == 0 and loop.get("stop_training", False)
    has_finished = start.finished or stopped
    epochs = params.get("epochs") or 0
    if stopped and position.epoch < epochs:
        logger.warning(
            "nothing is left to train: a callback ended this run after %d of %d epochs checkpoint=%s. To train again, "
            "use another backup_dir",
            position.epoch,
            epochs,
            start.name,
        )
    return FitStart(
        position=position,
        epoch=max(position.epoch, epochs) if has_finished else position.epoch,
        is_resumed=is_resumed,
        has_finished=has_finished,
        data_is_known=checkpoint is not None and checkpoint.header.data == data,
    )


def _position(start: StartPoint, data: str) -> Position:
    checkpoint, synalinks_backup = start.checkpoint, start.synalinks_backup
    if checkpoint is None:
        assert synalinks_backup is not None
        return synalinks_backup.position
    position = checkpoint.position
    if checkpoint.header.data == data:
        return position
    if position.batch == 0:
        logger.warning("data or batch size has changed since %s was saved: continuing with it", checkpoint.name)
    else:
        logger.warning(
            "data or batch size has changed since %s was saved: resuming at the start of epoch %d instead of its "
            "batch %d",
            checkpoint.name,
            position.epoch,
            position.batch,
        )
    return Position(position.epoch)
