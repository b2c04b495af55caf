"""Let the fit of a standby wait between two awaits while another worker leads, and then train on or end.

A cancelled batch may have changed the state half-way. So the state is captured before each await of the fit, and set
again before the await is repeated. It is not that of the last boundary: data and hooks may have drawn random numbers
since.

The limit: the wait blocks the event loop, as the wait of a standby at its start does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distributed_backup.checkpoints.format import Body
from distributed_backup.training.cancellation import CancelScope
from distributed_backup.worker.options import WorkerOptions
from distributed_backup.worker.worker import Worker

if TYPE_CHECKING:
    # They import synalinks, which takes seconds.
    from distributed_backup.training.fit_journal import FitJournal
    from distributed_backup.training.snapshots import Snapshots
    from distributed_backup.training.state import TrainingState


class StandbyWait:
    """The waits of one fit after its start. Without `standby=True` there are none."""

    def __init__(
        self,
        worker: Worker,
        options: WorkerOptions,
        *,
        scope: CancelScope,
        state: TrainingState,
        snapshots: Snapshots,
        journal: FitJournal,
    ) -> None:
        self._worker = worker
        self._is_standby = options.standby
        self._scope = scope
        self._state = state
        self._snapshots = snapshots
        self._journal = journal
        self._before: Body | None = None

    def wait(self) -> bool:
        """Wait while another worker leads. Return whether the run has finished, so that its final state is the result.

        Raises:
            Preempted: As `Worker.stand_by` raises it.
            BackupError: As `Worker.stand_by` raises it.
        """
        while self._worker.stands_by:
            # A notice that comes from now on sets a deadline again. One that came before ends the wait.
            self._scope.withdraw_deadline()
            final = self._worker.stand_by()
            if final is not None:
                self._snapshots.take_over(final.checkpoint)
                return True
        return False

    def before_await(self) -> bool:
        """Wait, see `wait`. If the run has not finished, capture the state for `undo_await`."""
        if not self._is_standby:
            return self.wait()
        has_finished = self.wait()
        if not has_finished:
            self._before = self._state.capture()
            self._journal.mark()
        return has_finished

    async def undo_await(self) -> bool:
        """Set the state from before the await that was cancelled, if this worker must wait. Return whether it must."""
        if self._worker.notice_given or not self._worker.stands_by:
            return False
        self._scope.withdraw_deadline()
        # First, because what goes on would change the state that is set here, and ask for answers.
        await self._scope.end_cancelled()
        if self._before is not None:
            self._state.apply(self._before)
            self._journal.rewind()
        return True

    def apply_last_boundary(self) -> None:
        """Apply the last boundary of the run, as before the `on_train_end` of optimizer and callbacks.

        Raises:
            ProgramMismatchError: The program does not fit it.
        """
        final = self._snapshots.restored
        if final is not None:
            self._state.apply(final.body)
