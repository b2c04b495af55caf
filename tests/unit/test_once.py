"""Warnings that are logged once."""

from __future__ import annotations

import logging

import pytest

from distributed_backup.once import OnceLogger


def test_a_warning_is_logged_again_after_another_or_a_reset(caplog: pytest.LogCaptureFixture) -> None:
    """One that repeats the last is not, and the record names the caller's line."""
    warnings = OnceLogger(logging.getLogger("distributed_backup.example"))
    said = [
        warnings.warning("no %s", "a"),
        warnings.warning("no %s", "a"),
        warnings.warning("no %s", "b"),
        warnings.warning("no %s", "a"),
        warnings.reset(),
        warnings.reset(),
        warnings.warning("no %s", "a"),
    ]
    assert said == [True, False, True, True, True, False, True]
    assert [record.getMessage() for record in caplog.records] == ["no a", "no b", "no a", "no a"]
    assert {record.filename for record in caplog.records} == {"test_once.py"}
