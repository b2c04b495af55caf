"""Log lines of transitions: operators parse them."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from distributed_backup.observability.events import KINDS, Event, Kind
from distributed_backup.observability.log_lines import LEVELS, level_of, logfmt

AT = datetime(2026, 11, 23, 10, tzinfo=UTC)


def event(kind: Kind, **fields: Any) -> Event:
    return Event(at=AT, worker="w", kind=kind, fields=fields)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "no"', r'"say \"no\""'),
        ("line\nbreak", r'"line\nbreak"'),
        ("", '""'),
        ("é", "é"),
        (None, "null"),
        (True, "true"),
        (0.25, "0.25"),
    ],
)
def test_a_value_can_be_read_back_from_its_line(value: object, text: str) -> None:
    """A value that could be taken for the next pair is written as a JSON string."""
    assert logfmt(event("lost", term=3, reason=value)) == f"lost worker=w term=3 reason={text}"


@pytest.mark.parametrize(("saved", "level"), [(True, logging.INFO), (None, logging.INFO), (False, logging.WARNING)])
def test_a_preemption_without_a_save_is_a_warning(saved: bool | None, level: int) -> None:
    """A preemption that lost unsaved state is a warning, and any other preemption is information."""
    fields = {"saved": saved, "checkpoint": None, "epoch": 0, "batch": 0, "seconds": 1.0}
    assert level_of(event("preempted", **fields)) == level


def test_levels_are_of_kinds_that_exist() -> None:
    """Each kind that has a level exists, because a renamed kind would fall back to INFO."""
    assert LEVELS.keys() <= KINDS.keys()
