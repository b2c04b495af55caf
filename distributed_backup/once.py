"""Warnings that are logged once in a row, however often their cause repeats."""

from __future__ import annotations

import logging
import re
from typing import Final

_NUMBER: Final = re.compile(r"\d+")


class OnceLogger:
    """Logs a warning unless the last one had the same text, apart from numbers.

    A term, a count or a duration in a text differs at each attempt, and its cause is the same.

    Example:
        >>> warnings = OnceLogger(logging.getLogger("example"))
        >>> warnings.warning("disk full path=%s", "/a"), warnings.warning("disk full path=%s", "/a")
        (True, False)
        >>> warnings.reset(), warnings.reset()
        (True, False)
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._last: str | None = None

    def warning(self, message: str, *values: object) -> bool:
        """Log a warning, and return whether it was logged."""
        text = _NUMBER.sub("0", message % values)
        if text == self._last:
            return False
        self._last = text
        self._logger.warning(message, *values, stacklevel=2)
        return True

    def reset(self) -> bool:
        """Log the next warning whatever its text, and return whether there was a warning since the last reset."""
        warned, self._last = self._last is not None, None
        return warned
