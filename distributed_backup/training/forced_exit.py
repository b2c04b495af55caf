"""End a preempted process before the kill, and handle a signal that arrives after training.

The forced exit is armed at the notice. While `fit` runs it acts in any case. When `fit` is left it stays armed until
the process has ended, because asyncio and the interpreter may wait for tasks and threads that hang. Then it acts only
if the process is exiting (see `preemption.process_exit`). A program that catches `Preempted` and goes on is left alone.

It runs in threads of its own. It works while training blocks the event loop, and while a disk or a coordinator hangs.
It can't save a state that the training thread has not yet captured.

The limit: a signal with a handler of the loop (`loop.add_signal_handler`) gets its default when asyncio closes the
loop. From then until the interpreter begins to shut down, that signal ends the process.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable
from contextlib import suppress

from distributed_backup.preemption.grace import shutdown_reserve
from distributed_backup.preemption.process_exit import (
    call_at_shutdown,
    flush_output,
    interpreter_exits,
    is_exiting,
    run_exit_functions,
)
from distributed_backup.preemption.signals import SignalWatch
from distributed_backup.preemption.watchdog import ExitWatchdog
from distributed_backup.worker.fit_task import current_task
from distributed_backup.worker.options import WorkerOptions
from distributed_backup.worker.worker import Worker

logger = logging.getLogger(__name__)

_of_exiting_fits: list[ForcedExit] = []
"""Forced exits of fits that a notice has ended, while this process may still be exiting."""


class ForcedExit:
    """The exit of one worker's process before the kill, with the worker's exit code.

    It is tried three times, in a thread each, because a step may hang. The last one only ends the process. With R for
    `shutdown_reserve`, they come R/4, R/8 and R/16 before the kill.
    """

    def __init__(self, worker: Worker, options: WorkerOptions, signals: SignalWatch) -> None:
        self._worker = worker
        self._options = options
        self._signals = signals
        self._task = current_task()
        self._fit_is_left = self._has_begun = False
        self._watchdogs = (
            (1 / 4, ExitWatchdog(self._exit_after(self._leave_run, run_exit_functions, flush_output))),
            (1 / 8, ExitWatchdog(self._exit_after(flush_output))),
            (1 / 16, ExitWatchdog(self._exit_or_release)),
        )

    def start(self) -> None:
        """Start the threads. Without it, `arm` has no effect.

        Raises:
            RuntimeError: This process can start no thread.
        """
        for _, watchdog in self._watchdogs:
            watchdog.start()

    def arm(self, remaining: float | None) -> None:
        """End the process before a kill in `remaining` seconds. None means the grace period."""
        seconds = self._options.grace_period if remaining is None else remaining
        for part, watchdog in self._watchdogs:
            watchdog.arm(seconds - part * shutdown_reserve(seconds))

    def fit_is_left(self) -> None:
        """End the process before the kill only if it is exiting. Our signal handlers stay until then.

        A second signal would otherwise end the process with another exit code.
        """
        if self._fit_is_left:
            return
        self._fit_is_left = True
        _of_exiting_fits.append(self)
        if interpreter_exits():
            self.shorten_teardown()

    def release(self) -> None:
        """Cancel the exit and restore the handlers: this process goes on. May be called again, from any thread."""
        for _, watchdog in self._watchdogs:
            watchdog.disarm()
        self._signals.uninstall()
        with suppress(ValueError):
            _of_exiting_fits.remove(self)

    def handle_late_signal(self) -> None:
        """Handle a signal that arrived after training had finished. The platform does not send it again.

        Raises:
            Preempted: The final state is kept, so a restarted job has it to return to.
        """
        late = self._signals.noted
        if late is None:
            return
        if not self._options.delete_checkpoint:
            raise self._worker.preempted_at_the_end(self._signals.seconds_since)
        logger.warning(
            "%s arrived after training had finished: exit with code 0 within the grace period, because a restarted job "
            "would train again",
            late,
        )

    # ---------------------------------------------------------------- from the watchdogs

    def _exit_after(self, *steps: Callable[[], None]) -> Callable[[], None]:
        def act() -> None:
            if self._must_exit():
                try:
                    for step in steps:
                        with suppress(Exception):
                            step()
                finally:
                    os._exit(self._options.exit_code)

        return act

    def _exit_or_release(self) -> None:
        if self._must_exit():
            os._exit(self._options.exit_code)
        self.release()

    def _must_exit(self) -> bool:
        # An exit that has begun is completed, although its own steps end the session of a fit that hangs.
        self._has_begun = self._has_begun or not self._fit_is_left or is_exiting(self._task)
        return self._has_begun

    def _leave_run(self) -> None:
        """Leave the run, and save what is known of it.

        The kill that follows would show another exit code, which a job's failure policy may match. Raising in the main
        thread is not enough: synalinks retries language-model calls with tenacity, which catches even SystemExit.
        """
        what = "this process has not ended" if self._fit_is_left else "the fit has not returned"
        logger.warning("the grace period is almost over and %s: exiting now", what)
        if self._worker.notice_given and not self._fit_is_left:
            self._worker.preempt()

    # ---------------------------------------------------------------- from the interpreter's exit

    def shorten_teardown(self) -> None:
        """Make the end of the interpreter short, because no thread of Python can end the process there.

        Its last garbage collections visit every object that synalinks and its libraries have made: 735,000 objects, 3
        CPU-seconds. Frozen objects are left out (0.1 s). So objects in reference cycles are not finalized.
        """
        self._signals.ignore_from_now_on()
        gc.freeze()


def _shorten_teardown() -> None:
    for each in _of_exiting_fits:
        each.shorten_teardown()


call_at_shutdown(_shorten_teardown)


def release_exits() -> None:
    """Cancel the exits of earlier fits: a new fit begins, so this process goes on."""
    for earlier in _of_exiting_fits.copy():
        earlier.release()
