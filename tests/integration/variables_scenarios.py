"""Restore programs of the same and of other structure in a child, for `test_variables`. Imports synalinks."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import synalinks

from distributed_backup.demo.offline_model import OfflineLanguageModel
from distributed_backup.errors import ProgramMismatchError
from distributed_backup.training.state import TrainingState
from tests.integration.resume_scenarios import Fit, Interruption, Report, differences, directory, part, strict
from tests.support.programs import Answer, Query, Thought, complete_state


def compiled(program: Any, model: Any, optimizer: str, metrics: Sequence[Any] = ()) -> Any:
    """Compile a program for `optimizer`."""
    program.compile(
        optimizer=(
            synalinks.optimizers.RandomFewShot()
            if optimizer == "few-shot"
            else synalinks.optimizers.OMEGA(language_model=model, algorithm="ga")
        ),
        reward=synalinks.rewards.ExactMatch(in_mask=["answer"]),
        metrics=list(metrics),
    )
    return program


async def chain(names: Sequence[str | None], optimizer: str = "few-shot") -> tuple[Any, Any]:
    """Return a chain of generators with these names and instructions, and its language model."""
    model = OfflineLanguageModel()
    inputs = outputs = synalinks.Input(data_model=Query)
    for name in names:
        outputs = await synalinks.Generator(
            data_model=Answer, language_model=model, name=name, instructions=f"I am {name}"
        )(outputs)
    program = synalinks.Program(inputs=inputs, outputs=outputs, name="chain", description="A chain")
    return compiled(program, model, optimizer), model


class Inner(synalinks.Program):  # type: ignore[misc]
    """A program with an unnamed and a named module."""

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__(**options)
        self.first = synalinks.Generator(data_model=Thought, language_model=model)
        self.second = synalinks.Generator(data_model=Answer, language_model=model, name="second")

    async def call(self, inputs: Any, training: bool = False) -> Any:
        return await self.second(await self.first(inputs, training=training), training=training)


async def large(optimizer: str) -> Any:
    """Return a program of nested, shared and unnamed modules, with unnamed metrics of which two share a path."""
    model = OfflineLanguageModel()
    inputs = synalinks.Input(data_model=Query)
    shared = synalinks.Generator(data_model=Answer, language_model=model)
    thought = await synalinks.ChainOfThought(data_model=Answer, language_model=model)(inputs)
    answers = [
        await shared(inputs),
        await shared(thought),
        await Inner(model)(inputs),
        await Inner(model, name="named")(inputs),
        await synalinks.Branch(
            question="Which one?",
            labels=["left", "right"],
            branches=[synalinks.Generator(data_model=Answer, language_model=model) for _ in range(2)],
            language_model=model,
        )(inputs),
        await synalinks.SelfCritique(language_model=model)(thought),
    ]
    outputs = synalinks.Or()
    program = synalinks.Program(inputs=inputs, outputs=await outputs(answers), name="large", description="Large")
    metrics = [synalinks.metrics.MeanMetricWrapper(synalinks.rewards.exact_match) for _ in range(2)]
    return compiled(program, model, optimizer, [*metrics, synalinks.metrics.F1Score(), synalinks.metrics.F1Score()])


def variables_of(program: Any) -> list[Any]:
    """Return the variables of a program, its optimizer and its metrics."""
    optimizer = program.optimizer
    return [*program.variables, *optimizer.trainable_variables, *optimizer.variables, *program.metrics_variables]


def restarts(report: Report, optimizer: str) -> dict[str, Any]:
    """Restore a large program, after others were built in the process. Return the differences, and the paths."""
    strict()

    async def run() -> dict[str, Any]:
        saved = await large(optimizer)
        state = TrainingState(saved)
        await state.build()
        for number, variable in enumerate(variables_of(saved)):
            variable.get_json()["mark"] = number
        expected, body = copy.deepcopy(complete_state(saved)), state.capture()
        await chain([None, "other", None])
        program = await large(optimizer)
        target = TrainingState(program)
        await target.build()
        target.apply(body)
        paths, own_paths = ({variable.path for variable in variables_of(one)} for one in (saved, program))
        return {"wrong": differences(expected, complete_state(program)), "equal_paths": sorted(paths & own_paths)}

    return asyncio.run(run())


def inner_variables(program: Any, variable: Any) -> list[Any]:
    """Return the variables with which OMEGA writes a trainable variable."""
    programs = [getattr(program.optimizer, f"{kind}_programs", {}) for kind in ("mutation", "crossover")]
    key = id(variable.get_schema())
    return [inner for by_schema in programs if key in by_schema for inner in by_schema[key].trainable_variables]


def changed(report: Report, optimizer: str, saved: list[str], own: list[str]) -> dict[str, Any]:
    """Interrupt a fit of generators with the names `saved` within an epoch, and continue it with the names `own`.

    Return by name the module whose state each generator has at the end, and those whose state OMEGA's have for it.
    """
    strict()
    fit = Fit(optimizer=optimizer)

    async def run(root: Path) -> dict[str, Any]:
        first, model = await chain(saved, optimizer)
        if optimizer == "omega":
            await first.optimizer.build(first.trainable_variables)
        for name, variable in zip(saved, first.trainable_variables, strict=True):
            for item in (variable, *inner_variables(first, variable)):
                item.get_json()["mark"] = name
        await part(fit, root, Interruption(at=1, hooks=("on_train_batch_end",)), program=(first, model))
        second = await chain(own, optimizer)
        error, logged = "", []
        try:
            logged = (await part(fit, root, program=second)).logged
        except ProgramMismatchError as mismatch:
            error = str(mismatch)
        marks = {
            name: [item.get_json().get("mark") for item in (variable, *inner_variables(second[0], variable))]
            for name, variable in zip(own, second[0].trainable_variables, strict=True)
        }
        return {"marks": marks, "error": error, "logged": logged}

    with directory() as root:
        return asyncio.run(run(root))
