"""Tell followers that the leader has appended answers, so that they read them before their next poll.

A thread of its own gives the hints: a server that hangs must not hold up the journal, and with it the training. What is
appended while a hint is under way gets one hint together.

The limit: hints may be lost. Followers poll the storage, too.
"""

from __future__ import annotations

import logging
import threading

from distributed_backup.coordination.base import Coordinator
from distributed_backup.errors import BackupError

logger = logging.getLogger(__name__)


class AppendHints:
    """The hints of one worker. The thread is started by the first one."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._condition = threading.Condition()
        self._is_due = self._is_closed = False
        self._thread: threading.Thread | None = None

    def note(self) -> None:
        """Give a hint from the thread."""
        if not self._coordinator.has_hints:
            return
        with self._condition:
            self._is_due = True
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._run, name="distributed-backup-append-hints", daemon=True)
                self._thread.start()
            self._condition.notify_all()

    def close(self, *, timeout: float) -> None:
        """Give the hint that is due and end the thread, within `timeout` seconds. May be called again."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while self._next():
            try:
                self._coordinator.give_hint("appended")
            except BackupError as error:
                logger.debug("can't give a hint: %s", error)

    def _next(self) -> bool:
        """Wait for a hint that is due. Return False at the end."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_due or self._is_closed)
            is_due, self._is_due = self._is_due, False
            return is_due
