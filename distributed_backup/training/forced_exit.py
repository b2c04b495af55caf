"""End the process before the kill if `fit` does not return in time, and handle a signal that arrives after training.

The forced exit runs in a thread of its own. It works while training blocks the event loop, and while a disk or a
coordinator hangs. It can't save a state that the training thread has not yet captured.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import suppress

from distributed_backup.preemption.grace import shutdown_reserve
from distributed_backup.preemption.signals import SignalWatch
from distributed_backup.preemption.watchdog import ExitWatchdog
from distributed_backup.worker.options import WorkerOptions
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
        logger.warning("the grace period is almost over and the fit has not returned: exiting now")
        if self._worker.notice_given:
            leaving = threading.Thread(target=self._worker.preempt, daemon=True)
            leaving.start()
            # A disk or a coordinator that hangs holds up that thread only.
            leaving.join(self._worker.reserve / 8)
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(self._options.exit_code)
