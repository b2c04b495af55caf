"""Capture and apply states in a child, for `test_training_state`. Imports synalinks."""

from __future__ import annotations

import asyncio
import copy
import datetime
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from distributed_backup.errors import BackupError
from distributed_backup.training.state import TrainingState
from tests.integration.resume_scenarios import Counter, Fit, build, differences, strict
from tests.support.programs import complete_state

Report = Callable[..., None]


def awkward_values() -> dict[str, Any]:
    """Values that JSON lacks, or that resemble our tags for them."""
    return {
        "finite": {"reward": 0.1, "examples": [], "nothing": None, "number": 2**63 - 1},
        "not a number": {"reward": float("nan"), "nothing": None},
        "infinite": [float("inf"), -float("inf"), -0.0, 5e-324],
        "large": [2**63, 2**64 - 1, 2**64, 2**70, -(2**63), -(2**63) - 1, -(2**70)],
        "large and not a number": [2**70, float("nan"), True, False, None, 1, 1.0],
        "like our own": {"float": "nan", "$float": "nan", "int": "1", "$": {"text": "00"}, "tagged": 1},
        "like our own, tagged": [{"float": "nan"}, {"$$float": 2**70}, {"text": "zz"}, {"int": {"int": "5"}}],
        "half a letter": ["\ud83d", "\ud83d\ude00", "\U0001f600", "é", "\x00"],
        "empty": {"": {}, "[]": [], "''": ""},
    }


async def _built(**fields: Any) -> tuple[Any, TrainingState]:
    program, _ = await build(Fit(**fields))
    state = TrainingState(program)
    await state.build()
    return program, state


def round_trips(report: Report) -> list[str]:
    """Return the values of a variable that are not restored exactly."""
    strict()

    async def run() -> list[str]:
        wrong = []
        for name, value in awkward_values().items():
            program, state = await _built(optimizer="omega")
            program.trainable_variables[0].get_json()["description"] = value
            program.optimizer._difficulty["sample"] = {"mean": value}
            expected = copy.deepcopy(complete_state(program))
            body = state.capture({"logs": {"reward": value}})
            random.seed(1)
            np.random.seed(1)
            other, target = await _built(optimizer="omega")
            loop = target.loop_state(body)
            target.apply(body)
            wrong += [f"{name}: {item}" for item in differences(expected, complete_state(other))]
            wrong += [f"{name}: {item}" for item in differences({"logs": {"reward": value}}, loop)]
        return wrong

    return asyncio.run(run())


def numbers_of_numpy(report: Report) -> list[tuple[Any, Any]]:
    """Return numbers of numpy's types, and the restored values."""
    strict()
    given: list[Any] = [
        np.float32(0.1),
        np.float64(0.1),
        np.float32("nan"),
        np.int64(7),
        np.bool_(True),
        np.array([0.1, 0.5]),
    ]

    async def run() -> list[tuple[Any, Any]]:
        found = []
        for value in given:
            program, state = await _built()
            program.trainable_variables[0].get_json()["description"] = value
            body = state.capture()
            state.apply(body)
            found.append((value.tolist(), program.trainable_variables[0].get_json()["description"]))
        return found

    return asyncio.run(run())


class Opaque:
    """A type that JSON can't represent."""


def refusals(report: Report) -> dict[str, str]:
    """Return the errors for values that are not JSON, by name."""
    strict()
    cases = {
        "datetime": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "set": {1, 2},
        "object": Opaque(),
        "key": {1: 2},
    }

    async def run() -> dict[str, str]:
        found = {}
        for name, value in cases.items():
            program, state = await _built()
            program.trainable_variables[0].get_json()["examples"] = ["fine", {"deep": value}]
            try:
                state.capture()
            except BackupError as error:
                found[name] = f"{type(error).__name__}: {error}"
        return found

    return asyncio.run(run())


def applied_again(report: Report) -> dict[str, Any]:
    """Apply a state, train on, and apply the state once more."""
    strict()

    async def run() -> dict[str, Any]:
        program, state = await _built(optimizer="omega")
        difficulty = program.optimizer._difficulty
        difficulty["sample"] = {"mean": 0.5}
        program.trainable_variables[0].get_json()["examples"] = [{"a": 1}]
        expected, body = copy.deepcopy(complete_state(program)), state.capture({"trained": 1})
        wrong = []
        for _ in range(2):
            state.loop_state(body)
            for _ in range(2):
                state.apply(body)
                wrong += differences(expected, complete_state(program))
                program.trainable_variables[0].get_json()["examples"][0]["a"] = 2
                difficulty["sample"]["mean"] = difficulty["other"] = 0.7
                random.random()
                np.random.random()
        return {"wrong": wrong, "same_object": program.optimizer._difficulty is difficulty}

    return asyncio.run(run())


def other_objects(report: Report) -> str:
    """Return the error for other objects in `state_of`, and what was changed."""
    strict()

    async def run() -> str:
        program, _ = await _built()
        body = TrainingState(program, [Counter()]).capture()
        program.trainable_variables[0].get_json()["examples"] = [{"a": 1}]
        before = complete_state(program)
        try:
            TrainingState(program).apply(body)
        except BackupError as error:
            return f"{type(error).__name__}: {error} {differences(before, complete_state(program))}"
        return "no error"

    return asyncio.run(run())
