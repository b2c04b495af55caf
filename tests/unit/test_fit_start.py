"""Where a fit begins, as a decision: restored values, data and arguments go in, a position comes out."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from distributed_backup.checkpoints.format import Checkpoint, Snapshot, encode
from distributed_backup.position import Position
from distributed_backup.training.fit_start import FitStart, fit_start
from distributed_backup.worker.start_point import StartPoint


def restored(position: Position, *, finished: bool = False) -> StartPoint:
    """A start from a checkpoint whose fit had the data "abc"."""
    snapshot = Snapshot(position=position, body=b"{}", data="abc")
    header, _ = encode(snapshot, run_id="job-42", term=3, worker_id="a", created_at="2026-11-28T00:00:00Z")
    return StartPoint(checkpoint=Checkpoint(header=header, body=snapshot.body), finished=finished)


def begin(start: StartPoint, *, data: str = "abc", stopped: bool = False, **params: Any) -> FitStart:
    return fit_start(start, {"stop_training": stopped}, data=data, params={"epochs": 5, **params})


def test_a_fresh_fit_begins_at_its_initial_epoch(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is restored, so nothing is reported."""
    start = begin(StartPoint(), initial_epoch=2)
    assert (start.position, start.epoch, start.is_resumed, start.has_finished) == (Position(2), 2, False, False)
    assert caplog.text == ""


def test_a_run_that_a_callback_ended_says_why_nothing_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """The warning names the checkpoint, how far the run came, and the way to train again."""
    start = begin(restored(Position(2)), stopped=True)
    assert (start.epoch, start.has_finished) == (5, True)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "a callback ended this run after 2 of 5 epochs" in caplog.text
    assert "0000000003-00000002-00000000.ckpt" in caplog.text
    assert "use another backup_dir" in caplog.text


@pytest.mark.parametrize(("position", "stopped"), [(Position(2, 3), True), (Position(5), True), (Position(2), False)])
def test_other_resumes_are_not_reported_as_ended(
    caplog: pytest.LogCaptureFixture, position: Position, stopped: bool
) -> None:
    """A stop within an epoch still validates that epoch. A stop after the last epoch changes nothing."""
    begin(restored(position), stopped=stopped)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("start", "line"),
    [
        (restored(Position(2, 3)), "Resuming after 2 epochs and 3 batches (c.ckpt)."),
        (restored(Position(5)), "Nothing is left to train: this run is complete (c.ckpt)."),
        (restored(Position(2), finished=True), "Nothing is left to train: this run is complete (c.ckpt)."),
    ],
    ids=["in an epoch", "at the end", "finished by another worker"],
)
def test_one_line_tells_where_a_fit_goes_on(start: StartPoint, line: str) -> None:
    """It counts what is done, as the positions in all documents do."""
    assert begin(start).summary("c.ckpt", 5) == line
