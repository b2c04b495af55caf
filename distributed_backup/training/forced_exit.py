"""End the process before the kill if `fit` does not return in time, and handle a signal that arrives after training.

The forced exit runs in a thread of its own. It works while training blocks the event loop, and while a disk or a
coordinator hangs. It can't save a state that the training thread has not yet captured.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress

from distributed_backup.preemption.grace import shutdown_reserve
from distributed_backup.preemption.signals import SignalWatch
from distributed_backup.preemption.watchdog import ExitWatchdog
from distributed_backup.worker.options import WorkerOptions
from distributed_backup.worker.shutdown import run_with_timeout
from distributed_backup.worker.worker import Worker

logger = logging.getLogger(__name__)


class ForcedExit:
    """The exit of one worker's process before the kill, with the worker's exit code."""

    def __init__(self, worker: Worker, options: WorkerOptions) -> None:
        self._worker = worker
        self._options = options
        self._watchdog = ExitWatchdog(self._exit)

    def arm(self, remaining: float | None) -> None:
        """Exit a quarter of the reserve before a kill in `remaining` seconds. None means the grace period."""
        seconds = self._options.grace_period if remaining is None else remaining
        self._watchdog.arm(seconds - shutdown_reserve(seconds) / 4)

    def disarm(self) -> None:
        """Cancel the exit."""
        self._watchdog.disarm()

    def handle_late_signal(self, signals: SignalWatch) -> None:
        """Handle a signal that arrived after training had finished. The platform does not send it again.

        Raises:
            Preempted: The final state is kept, so a restarted job has it to return to.
        """
        late = signals.noted
        if late is None:
            return
        if not self._options.delete_checkpoint:
            raise self._worker.preempted_at_the_end(signals.seconds_since)
        logger.warning(
            "%s arrived after training had finished: exit with code 0 within the grace period, because a restarted job "
            "would train again",
            late,
        )

    def _exit(self) -> None:
        """Leave the run if that takes no longer than an eighth of the reserve, then end the process.

        The kill that follows would show another exit code, which a job's failure policy may match. Raising in the main
        thread is not enough: synalinks retries language-model calls with tenacity, which catches even SystemExit.
        """
        try:
            # A log handler, a disk or a coordinator that hangs holds up a thread of `run_with_timeout` only.
            run_with_timeout(self._leave, self._worker.reserve / 8)
            run_with_timeout(_flush, self._worker.reserve / 16)
        finally:
            os._exit(self._options.exit_code)

    def _leave(self) -> None:
        logger.warning("the grace period is almost over and the fit has not returned: exiting now")
        if self._worker.notice_given:
            self._worker.preempt()


def _flush() -> None:
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
