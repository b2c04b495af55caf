"""Test that an interrupted and resumed fit ends in the state, bit for bit, of an uninterrupted one.

The reference is a fit without our callback. An uninterrupted fit with it is compared too. A resumed fit starts with
other seeds. The scenarios run in children, a whole matrix in each: see `resume_scenarios`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distributed_backup.position import Position
from tests.support.resumed_fits import CASES, ENDS, result


def test_a_fit_that_is_interrupted_at_any_hook_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """An interruption at any hook, followed by a resume, ends in the state of an uninterrupted fit."""
    found = result(tmp_path, "matrix", {"epochs": 2})
    assert found["wrong"] == []
    assert found["tried"] == 28
    assert found["resumed_at"] == 12
    assert found["repeated"] == [0] * 28


@pytest.mark.parametrize(
    "fit", [{"modules": 2}, {"optimizer": "omega"}, {"optimizer": "omega", "modules": 2}, {"trainable": False}], ids=str
)
def test_any_program_resumes_exactly_from_every_boundary(tmp_path: Path, fit: dict[str, Any]) -> None:
    """Each optimizer, one module or two, and a program with nothing to train resume exactly. No call is repeated."""
    found = result(tmp_path, "matrix", {"epochs": 2, **fit}, ENDS)
    assert found["wrong"] == []
    assert found["resumed_at"] == found["tried"] == 12
    assert found["repeated"] == [0] * 12


@pytest.mark.parametrize("optimizer", ["few-shot", "omega"])
def test_the_default_minibatches_of_fit_are_drawn_again(tmp_path: Path, optimizer: str) -> None:
    """With a validation set that is larger than `minibatch_size`, a fit resumes exactly from each boundary."""
    fit = {"epochs": 2, "val_size": 7, "optimizer": optimizer, "arguments": {"minibatch_size": 4}}
    found = result(tmp_path, "matrix", fit, ("on_train_batch_end", "on_epoch_end"))
    assert found["wrong"] == []
    assert found["resumed_at"] == found["tried"] == 8
    assert found["repeated"] == [0] * 8


@pytest.mark.parametrize(
    ("fit", "boundaries"),
    [
        ({"arguments": {"validation_freq": 2}}, 9),
        ({"arguments": {"initial_epoch": 1}, "epochs": 3}, 10),
        ({"arguments": {"initial_epoch": 1}, "epochs": 3, "data": "generator"}, 10),
        ({"steps_per_execution": 2, "steps": 3}, 8),
    ],
    ids=str,
)
def test_the_arguments_of_fit_keep_their_meaning(tmp_path: Path, fit: dict[str, Any], boundaries: int) -> None:
    """Epochs without validation, a fit with an initial epoch, and steps of several batches resume exactly."""
    found = result(tmp_path, "matrix", {"epochs": 2, "steps": 2, **fit}, ENDS)
    assert found["wrong"] == []
    if fit != {"arguments": {"validation_freq": 2}}:
        assert found["resumed_at"] == found["tried"] == boundaries
    assert set(found["repeated"]) == {0}


def test_random_fits_resume_exactly(tmp_path: Path) -> None:
    """Random programs, data, schedules and interruptions resume exactly."""
    found = result(tmp_path, "properties", 16, module=CASES)
    assert found["wrong"] is None
    assert len(found["seen"]) == 16
    assert max(interrupted for *_, interrupted in found["seen"]) >= 2
    assert {how for how, *_ in found["seen"]} == {"notice", "raise"}


def test_a_fit_in_a_task_of_a_running_loop_resumes_exactly(tmp_path: Path) -> None:
    """`Preempted` leaves the task and the loop, and a fit in another loop resumes exactly."""
    found = result(tmp_path, "fit_as_a_task", module=CASES)
    assert found == {"position": Position(1, 3), "wrong": [], "calls": 0}
