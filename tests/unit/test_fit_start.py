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
    return StartPoint(checkpoint=Checkpoint(header=header, body=b"{}"), finished=finished)


def description(instructions: str = "be brief", y: str = "1") -> dict[str, Any]:
    """A program with one module."""
    parts = [["module generator", {"instructions": instructions}], ["data", {"y": y}]]
    return {"versions": [1], "parts": parts}


def begin(
    start: StartPoint,
    *,
    data: str = "abc",
    stopped: bool = False,
    own: dict[str, Any] | None = None,
    saved: dict[str, Any] | None = None,
    **params: Any,
) -> FitStart:
    loop = {"stop_training": stopped, "description": saved or description()}
    return fit_start(start, loop, data=data, description=own or description(), params={"epochs": 5, **params})


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


# ---------------------------------------------------------------- a fit that differs


def test_one_warning_names_all_that_differs(caplog: pytest.LogCaptureFixture) -> None:
    """It names the checkpoint, what counts now, and the way to a new run. Other instructions change no position."""
    start = begin(restored(Position(2, 3)), own=description(instructions="be kind"))
    assert start.position == Position(2, 3)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "differs from the one that saved 0000000003-00000002-00000003.ckpt: module generator (in" in caplog.text
    assert "Trained variables, such as instructions and examples, come from the checkpoint" in caplog.text
    assert "use another backup_dir" in caplog.text
    assert "Resuming at" not in caplog.text


@pytest.mark.parametrize(
    ("own", "saved", "named"),
    [
        (description("be kind", "2"), None, "module generator (instructions), data (y). "),
        (description(y="2"), None, "data (y). "),
        (description(y="2"), {"versions": [0]}, "data or batch size. "),
        (description(), None, "data or batch size. "),
    ],
    ids=["program too", "data only", "another version", "a part that is not described"],
)
def test_other_data_begins_its_epoch_again_with_the_same_warning(
    caplog: pytest.LogCaptureFixture, own: dict[str, Any], saved: dict[str, Any] | None, named: str
) -> None:
    """The warning also names the epoch. The checkpoint of an earlier version knows only that data differs."""
    start = begin(restored(Position(2, 3)), data="xyz", own=own, saved=saved)
    assert (start.position, start.data_is_known) == (Position(2), False)
    assert len(caplog.records) == 1
    assert f"00000003.ckpt: {named}" in caplog.text
    assert "Resuming at the start of epoch 2 instead of its batch 3. To begin" in caplog.text


def test_of_many_parts_that_differ_ten_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """Another language model may differ in each module of a large program."""
    parts = [[f"module {name}", {"language_model": "1"}] for name in "abcdefghijkl"]
    begin(restored(Position(2)), own={"versions": [1], "parts": parts}, saved={"versions": [1], "parts": []})
    assert "module j (new) and 2 more. Trained" in caplog.text
    assert "module k" not in caplog.text


def test_other_data_at_the_end_of_an_epoch_repeats_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The position stays, and the warning says nothing of an epoch."""
    assert begin(restored(Position(2)), data="xyz").position == Position(2)
    assert "data or batch size" in caplog.text
    assert "Resuming at" not in caplog.text


@pytest.mark.parametrize(
    "saved", [{}, {"versions": [0], "parts": [["module other", {}]]}], ids=["an earlier version", "another version"]
)
def test_a_checkpoint_of_another_version_gets_no_warning(
    caplog: pytest.LogCaptureFixture, saved: dict[str, Any]
) -> None:
    """A warning without a difference would teach people to ignore it."""
    loop = {} if not saved else {"description": saved}
    fit_start(restored(Position(2)), loop, data="abc", description=description(), params={"epochs": 5})
    assert caplog.text == ""
