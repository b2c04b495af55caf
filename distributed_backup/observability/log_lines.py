"""Log lines of transitions: one line each, as `EVENT worker=ID key=value ...`.

Operators parse these lines, so their names and keys are an interface: `deploy/OPERATIONS.md` lists them, and a test
holds the list to `KINDS`. The format is logfmt: a value with a space, a quote or an equals sign is a JSON string. All
other lines of the package are free text and may change.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final

import orjson

from distributed_backup.observability.events import Event

LEVELS: Final = {
    "progress": logging.DEBUG,
    "left": logging.DEBUG,
    "stood_down": logging.DEBUG,
    "diverged": logging.DEBUG,
    "voided": logging.DEBUG,
    "lost": logging.WARNING,
    "notice": logging.WARNING,
    "unreachable": logging.WARNING,
    "commit_failed": logging.ERROR,
}
"""Levels of the kinds that are not INFO. `preempted` is WARNING where the last boundary could not be saved."""

_PLAIN: Final = re.compile(r"[^\s\"=]+")


def level_of(event: Event) -> int:
    """Return the level that an event is logged at."""
    if event.kind == "preempted" and event.fields["saved"] is False:
        return logging.WARNING
    return LEVELS.get(event.kind, logging.INFO)


def logfmt(event: Event) -> str:
    """Return an event as one line of logfmt.

    Example:
        >>> from datetime import UTC, datetime
        >>> at = datetime(2026, 11, 23, tzinfo=UTC)
        >>> logfmt(Event(at=at, worker="w", kind="lost", fields={"term": 3, "reason": "not renewed"}))
        'lost worker=w term=3 reason="not renewed"'
    """
    pairs = {"worker": event.worker, **event.fields}
    return " ".join([event.kind, *(f"{key}={_value(value)}" for key, value in pairs.items())])


def _value(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return orjson.dumps(value).decode()
