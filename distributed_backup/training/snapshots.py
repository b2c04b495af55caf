"""Take the snapshots of a fit: one at each boundary, and the final state. Decide which of them are due.

The limit: a snapshot is taken in the training thread, which waits until the state is serialised.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distributed_backup.checkpoints.format import Checkpoint, Snapshot
from distributed_backup.errors import StateError
from distributed_backup.position import Position

if TYPE_CHECKING:
    # Not at run time, so that the tests of this module need no synalinks.
    from distributed_backup.training.settings import SessionOptions
    from distributed_backup.training.state import TrainingState

logger = logging.getLogger(__name__)


class Snapshots:
    """The snapshots of one fit. `restored` is the checkpoint that it begins with."""

    def __init__(self, state: TrainingState, options: SessionOptions) -> None:
        self._state = state
        self._save_freq = options.save_freq
        self._options = options.worker
        self._since_due = 0
        self._last: Snapshot | None = None
        self.data: str | None = None
        """Fingerprint of the fit's data."""
        self.description: Mapping[str, Any] = {}
        """The fit for `description.differences`, when it is resumed."""
        self.restored: Checkpoint | None = None

    def take(self, position: Position, loop: Mapping[str, Any]) -> Snapshot:
        """Return the state at this boundary. `loop` is the `loop_state` of `FastForward`."""
        body = self._state.capture({**loop, "description": self.description})
        self._last = Snapshot(position=position, body=body, data=self.data)
        return self._last

    def is_due(self, batches: int) -> bool:
        """Count training or validation batches, and return whether `save_freq` asks for a commit after them."""
        self._since_due += batches
        if not isinstance(self._save_freq, int) or self._save_freq is False or self._since_due < self._save_freq:
            return False
        self._since_due = 0
        return True

    def is_due_at_epoch_end(self) -> bool:
        """Return whether `save_freq` asks for a commit at the end of an epoch. The count of batches begins anew."""
        self._since_due = 0
        return self._save_freq is not False

    def take_over(self, final: Checkpoint | None) -> None:
        """Replace what this fit has taken: its run has finished in another worker, with the checkpoint `final`."""
        self._last, self.restored = None, final

    def apply_final(self) -> None:
        """Set the final state of the run, which is in `restored`. All other hooks of the fit have run.

        Raises:
            ProgramMismatchError: The program does not fit it.
        """
        if self.restored is not None:
            self._state.apply_final(self.restored.body)

    def take_final(self) -> Snapshot | None:
        """Return the state that `fit` returns with. All other hooks of the fit have run. None if it is kept already.

        If nothing was left to train, or another worker has trained the rest, `fit` returns with the final state that
        the run has kept.

        Raises:
            StateError: A value is not JSON, and `on_save_error` is "raise".
        """
        last, restored = self._last, self.restored
        if last is None and restored is not None:
            if restored.header.final:
                self.apply_final()
                return None
            last = Snapshot(position=restored.position, body=restored.body, data=restored.header.data)
        if last is None or not self._options.keeps_final_state:
            return None
        try:
            return replace(last, body=self._state.capture_final(last.body), final=True)
        except StateError as error:
            if self._options.on_save_error == "raise":
                raise
            # Training is complete and paid for. An error here would end this fit, and each one that is started again.
            logger.error(  # noqa: TRY400 - a traceback tells a user no more
                "the final state can't be saved, so the last boundary stands for it: %s", error
            )
            return None
