"""Build small synalinks programs and data, and read the complete state of a fit. Imports synalinks.

From its import on, synalinks computes each JSON schema and each template once in a process, and applies masks without a
thread. Fits become about four times as fast.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Coroutine, Iterator
from typing import Any

import jinja2
import numpy as np
import pydantic
import synalinks
from synalinks.src.backend.common import json_data_model

from distributed_backup.demo.offline_model import OfflineLanguageModel


def _remember_schemas() -> None:
    """Cache the schemas of data models, which synalinks asks for at each call. Each caller gets a copy of its own."""
    compute = pydantic.BaseModel.model_json_schema.__func__  # type: ignore[attr-defined]
    known: dict[Any, bytes] = {}

    def remembered(cls: type[pydantic.BaseModel], *args: Any, **kwargs: Any) -> Any:
        key = (cls, args, tuple(sorted(kwargs.items())))
        if key not in known:
            known[key] = pickle.dumps(compute(cls, *args, **kwargs))
        return pickle.loads(known[key])

    pydantic.BaseModel.model_json_schema = classmethod(remembered)  # type: ignore[assignment]


def _remember_templates() -> None:
    """Cache the compiled templates, which are constant."""
    compute = jinja2.Environment.compile
    known: dict[Any, Any] = {}

    def remembered(environment: jinja2.Environment, *args: Any, **kwargs: Any) -> Any:
        key = (args, tuple(sorted(kwargs.items())))
        if key not in known:
            known[key] = compute(environment, *args, **kwargs)
        return known[key]

    jinja2.Environment.compile = remembered  # type: ignore[assignment,method-assign]


def _mask_in_this_thread() -> None:
    """Run the operations of a data model, which never wait, without a thread and an event loop for each."""

    def run(operation: Coroutine[Any, Any, Any]) -> Any:
        try:
            operation.send(None)
        except StopIteration as done:
            return done.value
        raise AssertionError("the operation waits")

    json_data_model.run_maybe_nested = run


_remember_schemas()
_remember_templates()
_mask_in_this_thread()


class Query(synalinks.DataModel):  # type: ignore[misc]
    query: str = synalinks.Field(description="The question")


class Thought(synalinks.DataModel):  # type: ignore[misc]
    thought: str = synalinks.Field(description="A thought on the question")


class Answer(synalinks.DataModel):  # type: ignore[misc]
    answer: str = synalinks.Field(description="The answer")


async def build_program(
    *, optimizer: str = "few-shot", modules: int = 1, latency: float = 0.0, seed: int = 7
) -> tuple[Any, OfflineLanguageModel]:
    """Return a compiled program with one or two trainable modules and its language model. Seed both generators."""
    random.seed(seed)
    np.random.seed(seed)
    model = OfflineLanguageModel(latency=latency)
    inputs = synalinks.Input(data_model=Query)
    outputs = inputs
    if modules == 2:
        outputs = await synalinks.Generator(data_model=Thought, language_model=model)(outputs)
    outputs = await synalinks.Generator(data_model=Answer, language_model=model)(outputs)
    program = synalinks.Program(inputs=inputs, outputs=outputs, name="toy", description="A toy program")
    program.compile(
        optimizer=(
            synalinks.optimizers.RandomFewShot()
            if optimizer == "few-shot"
            else synalinks.optimizers.OMEGA(language_model=model, algorithm="ga", merging_rate=0.5)
        ),
        reward=synalinks.rewards.ExactMatch(in_mask=["answer"]),
        metrics=[synalinks.metrics.MeanMetricWrapper(synalinks.rewards.exact_match)],
    )
    return program, model


def samples(count: int, offset: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return `count` questions and answers."""
    numbers = range(offset, offset + count)
    x = np.array([Query(query=f"question {number}") for number in numbers], dtype="object")
    y = np.array([Answer(answer="yes" if number % 3 else "no") for number in numbers], dtype="object")
    return x, y


def batches(count: int, batch_size: int) -> Iterator[tuple[Any, Any]]:
    """Yield batches, once."""
    for index in range(count):
        yield samples(batch_size, offset=index * batch_size)


def complete_state(program: Any) -> dict[str, Any]:
    """Return the state that a resumed fit must share with an uninterrupted one."""
    optimizer = program.optimizer
    groups = {
        "trainable": program.trainable_variables,
        "non_trainable": program.non_trainable_variables,
        "metrics": program.metrics_variables,
        "optimizer_trainable": optimizer.trainable_variables,
        "optimizer_non_trainable": optimizer.non_trainable_variables,
    }
    numpy_state = np.random.get_state(legacy=True)
    assert isinstance(numpy_state, tuple)
    return {
        "variables": {name: [copy.deepcopy(item.get_json()) for item in group] for name, group in groups.items()},
        "difficulty": copy.deepcopy(dict(getattr(optimizer, "_difficulty", {}))),
        "python_random": random.getstate(),
        "numpy_random": [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
    }
