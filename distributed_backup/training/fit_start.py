"""Decide where a fit begins, from what the worker restored and from the data and arguments of this fit.

A fit that differs from the one that saved the checkpoint gets one warning, before anything is paid. `description` lists
what is compared. A program that the state does not fit is refused later, see `variables`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from distributed_backup.checkpoints.format import Checkpoint
from distributed_backup.checks import is_whole
from distributed_backup.position import Position
from distributed_backup.training.description import differences
from distributed_backup.worker.start_point import StartPoint

logger = logging.getLogger(__name__)

# Parts that the warning names: another language model may differ in each module of a large program.
_MAX_NAMED: Final = 10


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
    is_same_fit: bool

    def summary(self, name: str, epochs: int) -> str:
        """Return one line for people who watch the progress bar. `name` is the restored file."""
        if self.has_finished or self.epoch >= epochs:
            return f"Nothing is left to train: this run is complete ({name})."
        done = f"{self.position.epoch} epochs and {self.position.batch} batches"
        return f"Resuming after {done} ({name})."


def check_loop(loop: Any) -> None:
    """Check the form of a `FastForward.loop_state`, which came from a file. Parts may be missing.

    Raises:
        TypeError: A part has another form. Also `ValueError`.
    """
    streams = [loop.get(name, {}) for name in ("data", "next_data")]
    description, logs = loop.get("description", {}), [loop.get(name) or {} for name in ("logs", "batch_logs")]
    if not all(isinstance(part, dict) for part in (description, *streams, *logs)):
        raise TypeError("want objects in the loop")
    for stream in streams:
        counts = [stream.get(name) or 0 for name in ("first_epoch", "batches_per_epoch")]
        counts += [step for step, _ in stream.get("draws", ())]
        if not all(is_whole(count) and count >= 0 for count in counts):
            raise TypeError("want whole numbers in a stream of data")
    for name, settings in description.get("parts", ()):
        if not isinstance(name, str) or not isinstance(settings, dict):
            raise TypeError("want a name and its settings in a description")


def fit_start(
    start: StartPoint,
    loop: Mapping[str, Any],
    *,
    data: str,
    description: Mapping[str, Any],
    params: Mapping[str, Any],
) -> FitStart:
    """Return where a fit with this fingerprint of its `data` begins. `loop` is the `loop_state` of the checkpoint."""
    checkpoint = start.checkpoint
    is_resumed = checkpoint is not None or start.synalinks_backup is not None
    data_is_known = checkpoint is not None and checkpoint.header.data == data
    position = start.position or Position(params.get("initial_epoch") or 0)
    found: list[str] = []
    if checkpoint is not None:
        if not data_is_known:
            # The batches of the interrupted epoch were others.
            position = Position(position.epoch)
        found = differences(description, loop.get("description", {}))
        _warn_of_differences(checkpoint, found, position, data_is_known=data_is_known)
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
        data_is_known=data_is_known,
        is_same_fit=data_is_known and not found,
    )


def _warn_of_differences(checkpoint: Checkpoint, found: list[str], position: Position, *, data_is_known: bool) -> None:
    if not data_is_known and not any(item.startswith("data ") for item in found):
        found = [*found, "data or batch size"]
    if not found:
        return
    named, more, resumes = ", ".join(found[:_MAX_NAMED]), len(found) - _MAX_NAMED, ""
    if position != checkpoint.position:
        resumes = f"Resuming at the start of epoch {position.epoch} instead of its batch {checkpoint.position.batch}. "
    logger.warning(
        "this fit differs from the one that saved %s: %s. Trained variables, such as instructions and examples, come "
        "from the checkpoint, and all else from this fit. %sTo begin a new run, use another backup_dir",
        checkpoint.name,
        f"{named} and {more} more" if more > 0 else named,
        resumes,
    )
