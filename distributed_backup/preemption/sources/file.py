"""A file that is touched before the kill, by a preStop hook or an operator.

Only a touch during the fit counts, whatever the file's age: one that an earlier pod or preemption left behind would
else end each fit at its start. A touch before the fit begins is lost; the SIGTERM that follows a preStop hook is not.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from distributed_backup.preemption.sources.base import Alert, NoticeSource

# A look costs a system call.
_PERIOD: Final = 0.2


class FileSource(NoticeSource):
    """Gives notice when a file is created or touched.

    Args:
        path: The file; neither it nor its directory need exist yet.
    """

    period = _PERIOD

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before: tuple[int, int] | None = None
        # Not while it can't be looked at: when that works again, what is there is not news either.
        self._before_is_known = False
        self.name = f"file:{path}"

    def begin(self) -> None:
        """What is there now is old."""
        self._before_is_known = False
        with suppress(OSError):  # `poll` will tell
            self._remember()

    def poll(self) -> Alert | None:
        """A sure end, if the file was touched since the fit began; without it, nothing."""
        if not self._before_is_known:
            self._remember()
            return None
        found = self._look()
        return None if found is None or found == self._before else Alert(reason=self.name)

    def _remember(self) -> None:
        self._before = self._look()
        self._before_is_known = True

    def _look(self) -> tuple[int, int] | None:
        """What a touch changes; compared with itself only, for the clock that set it may be another machine's."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns
