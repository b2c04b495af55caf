"""Test what a resumed fit reads of its data, and how it reports data that came in another order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distributed_backup.position import Position
from tests.support.processes import Child

SCENARIOS = "tests.integration.data_scenarios"
FITS = "tests.integration.resume_scenarios"
# The kinds of `tests.support.datasets`, which imports synalinks.
SHUFFLED = (
    "permuted",
    "permuted with random, of unknown length",
    "permuted when its iterator is made",
    "permuted when its iterator is made, of unknown length",
    "shuffle buffer",
    "adapter",
    "adapter that shuffles within batches",
)
ENDS = ("on_train_batch_end", "on_test_batch_end", "on_epoch_end")


def result(tmp_path: Path, name: str, *arguments: Any, module: str = SCENARIOS) -> Any:
    with Child(f"{module}:{name}", *arguments, log=tmp_path / "log") as child:
        return child.result()


def test_only_the_interrupted_epoch_of_a_data_set_is_read_again(tmp_path: Path) -> None:
    """A fit that resumes in its third epoch reads its four batches, and synalinks looks at two before."""
    found = result(tmp_path, "reads_of_a_resumed_fit")
    assert found == {"position": Position(2, 3), "read": 2 + 4, "epochs": [2], "logged": []}


def test_a_notice_is_served_while_data_is_read_again(tmp_path: Path) -> None:
    """A one-shot iterator is read again from its beginning. A notice meanwhile ends the fit before the next batch."""
    found = result(tmp_path, "notice_while_data_is_read_again")
    assert found["before"] == found["preempted_at"] == found["newest"] == Position(2, 2)
    assert found["read"] == 7
    assert found["calls"] == 0


def test_reading_data_again_is_reported(tmp_path: Path) -> None:
    """The log tells how far the data was read again, at most once in each period."""
    found = result(tmp_path, "progress_of_reading_again")
    assert found[0] == "reading data again epoch=0 batches=1"
    assert found[-1] == "reading data again epoch=2 batches=1"
    assert len(found) == 2 * 4 + 2 - 1


@pytest.mark.parametrize("position", [("on_train_batch_end", 2), ("on_train_batch_end", 3)], ids=str)
def test_data_in_another_order_is_reported(tmp_path: Path, position: tuple[str, int]) -> None:
    """A data set that shuffles by a generator of its own can't be repeated. One warning names the epoch."""
    found = result(tmp_path, "data_in_another_order", *position)
    assert found["epochs"] == [2]
    assert len(found["logged"]) == 1
    assert "samples of epoch 2 may be trained twice or never" in found["logged"][0]


def test_data_of_a_complete_epoch_is_not_compared(tmp_path: Path) -> None:
    """At an epoch's end nothing has to be read again, and no warning is logged."""
    found = result(tmp_path, "data_in_another_order", "on_epoch_end", -2 * 4 + 1)
    assert found == {"position": Position(2), "logged": [], "epochs": [2]}


@pytest.mark.parametrize("position", [("on_train_batch_end", 1), ("on_train_batch_end", 2)], ids=str)
def test_further_logs_of_a_training_step_survive_a_resume(tmp_path: Path, position: tuple[str, int]) -> None:
    """Keys that `train_on_batch` adds are in the logs of the resumed epoch. A value that is not JSON is left out."""
    reference, resumed = result(tmp_path, "further_logs", *position)
    assert reference["tokens"] == 102.0
    assert reference.pop("raw") == {2}
    resumed.pop("raw", None)
    assert resumed == reference


@pytest.mark.parametrize(
    ("save_freq", "committed"),
    [
        (2, [(0, 0), (0, 2), (0, 4), (1, 0), (1, 2), (1, 4), (2, 0)]),
        (4, [(0, 0), (0, 4), (1, 0), (1, 4), (2, 0)]),
        (9, [(0, 0), (1, 0), (2, 0)]),
        ("epoch", [(0, 0), (1, 0), (2, 0)]),
    ],
)
def test_validation_batches_and_the_end_of_an_epoch_are_saved(
    tmp_path: Path, save_freq: Any, committed: list[tuple[int, int]]
) -> None:
    """An epoch has three training and two validation batches. An int `save_freq` counts both. The start is saved."""
    assert result(tmp_path, "committed_positions", save_freq) == committed


def test_a_resume_is_told_where_the_progress_bar_is(tmp_path: Path) -> None:
    """With `verbose`, one line says where the fit goes on. Without it, nothing is printed."""
    line = "Resuming after 1 epochs and 3 batches (0000000001-00000001-00000003.ckpt).\n"
    assert result(tmp_path, "printed_at_a_resume", 1) == line
    assert result(tmp_path, "printed_at_a_resume", 0) == ""


@pytest.mark.parametrize(
    "data", ["re-iterable", "sized re-iterable", "generator", "arrays in portions", "generator until it ends"]
)
def test_any_kind_of_data_goes_on_where_it_was(tmp_path: Path, data: str) -> None:
    """Data that restarts at each epoch and data that continues across epochs resume exactly."""
    found = result(tmp_path, "matrix", {"epochs": 2, "steps": 2, "data": data}, ENDS, module=FITS)
    assert found["wrong"] == []
    assert found["resumed_at"] == found["tried"] == 10
    assert found["repeated"] == [0] * 10


@pytest.mark.parametrize(
    "data",
    [
        *SHUFFLED,
        "permuted with random, of unknown length, in portions",
        "permuted when its iterator is made, in portions",
        "shuffle buffer, in portions",
        "generator",
    ],
)
def test_shuffled_data_goes_on_in_the_order_it_had(tmp_path: Path, data: str) -> None:
    """Data that is shuffled with `random` or `numpy.random` resumes exactly: each sample once an epoch."""
    found = result(tmp_path, "matrix", {"epochs": 2, "steps": 3, "data": data}, ENDS, module=FITS)
    assert found["wrong"] == []
    assert found["resumed_at"] == found["tried"] == 12
    assert found["repeated"] == [0] * 12
