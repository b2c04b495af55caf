"""Test fits that end early in any way, that are interrupted again, and that resume with something changed.

The scenarios run in children, a whole matrix in each: see `resume_scenarios`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.position import Position
from tests.support.resumed_fits import CASES, ENDS, result

# ---------------------------------------------------------------- every form of interruption


def test_a_batch_that_is_cut_off_is_all_that_is_paid_for_twice(tmp_path: Path) -> None:
    """If the language model does not answer within the grace period, only that batch is repeated."""
    arguments = ("on_train_batch_begin", "on_test_batch_begin"), "cut off", {"grace_period": 1.0}
    found = result(tmp_path, "matrix", {"optimizer": "omega", "epochs": 2}, *arguments)
    assert found["wrong"] == []
    assert found["resumed_at"] == found["tried"] == 10
    pairs = list(zip(found["repeated"], found["in_flight"], strict=True))
    assert all(0 < repeated <= in_flight for repeated, in_flight in pairs), pairs


@pytest.mark.parametrize("streams", [1, 7])
def test_nothing_of_a_batch_that_is_cut_off_goes_on(tmp_path: Path, streams: int) -> None:
    """The retries of synalinks take a cancellation for a failed request. They would send another one 1 s later."""
    sent, left = result(tmp_path, "tasks_after_a_cut", streams, module=CASES)
    assert (sent, left) == (8, [])


@pytest.mark.parametrize("save_freq", [1, 5, "epoch"])
def test_an_exception_of_another_callback_costs_no_answer(tmp_path: Path, save_freq: Any) -> None:
    """Whatever the schedule, the run resumes exactly from the boundary before the exception, and asks nothing again."""
    found = result(tmp_path, "matrix", {"epochs": 2}, ENDS, "raise", {"save_freq": save_freq})
    assert found["wrong"] == []
    assert found["resumed_at"] == found["tried"] == 12
    assert found["repeated"] == [0] * 12
    assert max(found["in_flight"]) > 0, "no batch was ended by an exception"


def test_a_cancellation_loses_nothing_at_a_boundary(tmp_path: Path) -> None:
    """A task that is cancelled, as by Ctrl-C, commits its last boundary."""
    found = result(tmp_path, "matrix", {"epochs": 2}, ("on_train_batch_end",), "cancel", {"save_freq": "epoch"})
    assert found["wrong"] == []
    assert found["resumed_at"] == found["tried"] == 6
    assert found["repeated"] == [0] * 6


@pytest.mark.parametrize("how", ["raise", "cancel"])
def test_a_fit_that_saves_at_notices_only_writes_nothing_at_an_exception(tmp_path: Path, how: str) -> None:
    """With `save_freq=False`, an exception without a notice leaves no checkpoint."""
    found = result(tmp_path, "matrix", {"epochs": 1}, ("on_train_batch_end",), how, {"save_freq": False})
    assert found["wrong"] == []
    assert found["resumed_at"] == 1
    assert found["repeated"] == sorted(found["repeated"])
    assert found["repeated"][0] > 0


def test_a_fit_may_be_interrupted_again_before_it_has_come_to_where_it_was(tmp_path: Path) -> None:
    """Interruptions before, in and after the fast-forward all resume exactly. In it, the worker leaves at once."""
    cases = [[6, at, 2] for at in range(4)] + [[10, at] for at in (0, 1, 2, 4)] + [[25, 0, 0, 0]]
    found = result(tmp_path, "chain", {}, cases)
    assert found["wrong"] == []
    assert found["walked"] == [
        [(0, 3), (0, 3), (0, 4)],
        *[[(0, 3), (0, 4), (0, 5)]] * 3,
        [(0, 5), (0, 5)],
        *[[(0, 5), (1, 0)]] * 2,
        [(0, 5), (1, 1)],
        [(1, 5)] * 4,
    ]


# ---------------------------------------------------------------- what other callbacks remember


@pytest.mark.parametrize(
    ("stop", "epochs"),
    [
        ({}, [0, 1]),
        ({"monitor": "val_reward", "mode": "min", "min_delta": 0.1, "patience": 1, "stop_at": 9}, [0, 1]),
        ({"after": 2}, [0]),
    ],
    ids=["nothing stops", "early stopping", "stopped within an epoch"],
)
def test_callbacks_whose_state_is_kept_remember_the_whole_run(
    tmp_path: Path, stop: dict[str, Any], epochs: list[int]
) -> None:
    """Callbacks in `state_of` end with the state that they have in an uninterrupted run."""
    found = result(
        tmp_path, "state_of", {"epochs": 3 if "monitor" in stop else 2, "steps": 3 if "after" in stop else 2}, stop
    )
    assert found["wrong"] == []
    assert found["epochs"] == epochs
    assert found["tried"] >= 6
    assert 0 not in found["resumed_part_only"]


# ---------------------------------------------------------------- one program, several fits


def test_each_fit_of_a_program_starts_at_its_first_epoch_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """After a finish, a preemption and a resume, program and optimizer have no method or attribute of ours."""
    found = result(tmp_path, "second_fit", module=CASES)
    assert found["epochs"] == [[0, 1, 2]] * 4
    assert found["position"] == Position(0, 4)
    assert found["after"] == found["before"]
    left = {role: set(found["after_preemption"][role]) - set(found["before"][role]) for role in found["before"]}
    # synalinks itself leaves this one after an interrupted validation.
    assert left == {"program": {"_eval_epoch_iterator"}, "optimizer": set()}


def test_a_fit_that_died_unseen_does_not_reach_into_the_next_one(tmp_path: Path) -> None:
    """After another callback's exception, a fit without our callback is not affected by the fit before."""
    found = result(tmp_path, "fit_without_us_after_a_death", module=CASES)
    assert found["wrong"] == []
    assert found["calls"][0] == found["calls"][1]
    assert found["attributes"][0] == found["attributes"][2]


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("saved", "other", "theirs", "own"),
    [
        ({}, {"modules": 2}, 1, 2),
        ({"modules": 2}, {}, 2, 1),
        ({"optimizer": "omega"}, {}, 2, 0),
    ],
    ids=str,
)
def test_a_program_that_does_not_fit_is_refused_and_left_untouched(
    tmp_path: Path, saved: dict[str, Any], other: dict[str, Any], theirs: int, own: int
) -> None:
    """The error names the variables of both sides. Program, generators and checkpoint are unchanged."""
    found = result(tmp_path, "mismatch", saved, other, module=CASES)
    assert found["message"].startswith("the program does not fit the checkpoint: its ")
    before, _, after = found["message"].partition(", the checkpoint's are ")
    assert (before.count("/"), after.partition(" (")[0].count("/")) == (own, theirs)
    assert found["wrong"] == []
    assert found["attributes"][0] == found["attributes"][1]
    assert found["initial_epoch"] is None
    assert found["position"] == Position(0, 4)


@pytest.mark.parametrize("change", [{"batch_size": 1, "steps": 6}, {"steps": 4}, {"val_size": 3}], ids=str)
def test_other_data_is_warned_of_and_its_epoch_begun_again(tmp_path: Path, change: dict[str, Any]) -> None:
    """A run with other data resumes at the start of its epoch, with one warning that names what differs."""
    found = result(tmp_path, "changed_data", change, module=CASES)
    assert found["interrupted_at"] == Position(1, 1)
    (message,) = found["logged"]
    assert re.search(r"differs from the one that saved \S+: data \([\w, ]+\)\. ", message)
    assert "start of epoch 1" in message
    assert found["epochs"] == [1, 2]
    assert found["batches"] == 2 * change.get("steps", 3)


def test_more_epochs_are_no_other_data(tmp_path: Path) -> None:
    """A run with more epochs resumes at its batch, without a warning."""
    found = result(tmp_path, "changed_data", {"epochs": 4}, module=CASES)
    assert found["logged"] == []
    assert found["epochs"] == [1, 2, 3]
    assert found["batches"] == 8
