"""Give notice when a file is touched, by a preStop hook or an operator.

Only a touch during the fit counts. A file that an earlier pod left behind would otherwise end each fit at its start. A
touch before the fit is lost, but the SIGTERM that follows a preStop hook is still served.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from distributed_backup.preemption.sources.base import Alert, NoticeSource

# Seconds. A poll costs one system call.
_PERIOD: Final = 0.2


class FileSource(NoticeSource):
    """A notice when a file is created or touched. Neither the file nor its directory need exist before."""

    period = _PERIOD

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before: tuple[int, int] | None = None
        # False while the file can't be read: its state at the first successful poll is not a notice.
        self._before_is_known = False
        self.name = f"file:{path}"

    def begin(self) -> None:
        """Remember the file's state. Only a later change is a notice."""
        self._before_is_known = False
        with suppress(OSError):  # `poll` raises it again
            self._remember()

    def poll(self) -> Alert | None:
        """Return a terminal alert if the file was touched since the fit began. None if it does not exist."""
        if not self._before_is_known:
            self._remember()
            return None
        found = self._state()
        return None if found is None or found == self._before else Alert(reason=self.name)

    def _remember(self) -> None:
        self._before = self._state()
        self._before_is_known = True

    def _state(self) -> tuple[int, int] | None:
        """Return inode and modification time. The time may come from another machine's clock, so only changes count."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns
