"""The snapshots of a fit, with a state that can't be captured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distributed_backup.errors import StateError
from distributed_backup.position import Position
from distributed_backup.training.snapshots import Snapshots
from distributed_backup.worker.options import OnSaveError, WorkerOptions


class State:
    """A state that a callback has filled with a value that is not JSON, as training ended."""

    def capture(self, loop: Any) -> bytes:
        return b"{}"

    def capture_final(self, boundary: bytes) -> bytes:
        raise StateError("variables.trainable[0] is a complex number")


def snapshots(on_save_error: OnSaveError) -> Snapshots:
    worker = WorkerOptions(delete_checkpoint=False, on_save_error=on_save_error)
    made = Snapshots(State(), SimpleNamespace(save_freq="epoch", worker=worker))  # type: ignore[arg-type]
    made.take(Position(3), {})
    return made


def test_a_final_state_that_is_no_json_does_not_end_a_complete_fit(caplog: pytest.LogCaptureFixture) -> None:
    """The last boundary stands for it. An error in the log says so and names the value."""
    assert snapshots("warn").take_final() is None
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "the last boundary stands for it: variables.trainable[0] is a complex number" in record.message


def test_a_final_state_that_is_no_json_is_an_error_if_asked_for() -> None:
    """With `on_save_error="raise"` the caller learns of it."""
    with pytest.raises(StateError, match="complex number"):
        snapshots("raise").take_final()
