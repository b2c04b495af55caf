"""Build the programs that are killed, and their data. Imports synalinks."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import synalinks

from tests.chaos.plan import BATCH_SIZE, SAMPLES, VALIDATION_SAMPLES
from tests.chaos.provider import Client, Provider
from tests.support.programs import Answer, Query


class Verdict(synalinks.DataModel):  # type: ignore[misc]
    is_good: bool = synalinks.Field(description="Is it good?")


@dataclass(frozen=True, kw_only=True)
class Built:
    """A compiled program, its data, and what the journal is to record besides the models."""

    program: Any
    data: dict[str, Any]
    journal_of: tuple[tuple[Any, str], ...] = ()


class Shuffled:
    """Permutes its samples with numpy.random when an epoch begins."""

    def __init__(self, x: Any, y: Any) -> None:
        self._x, self._y = x, y

    def __len__(self) -> int:
        return len(self._x) // BATCH_SIZE

    def __iter__(self) -> Iterator[Any]:
        order = np.random.permutation(len(self._x))
        for start in range(0, len(order), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            yield self._x[chosen], self._y[chosen]


async def build(
    name: str, provider: Provider, *, seed: int, is_shuffled: bool, on_tool: Callable[[str], None]
) -> Built:
    """Return one of `plan.PROGRAMS`, compiled and built. Seed both generators."""
    random.seed(seed)
    np.random.seed(seed)
    client = Client(provider)
    # The pauses between retries are of no interest here.
    model = synalinks.LanguageModel(
        model="openai/gpt-4o-mini",
        retry=2 if name == "refused" else 20,
        retry_max_wait=0,
        fallback=synalinks.LanguageModel(model="openai/gpt-4o", retry=1) if name == "refused" else None,
    )
    inputs = synalinks.Input(data_model=Query)
    outputs = await _module(name, model, on_tool)(inputs)
    program = synalinks.Program(inputs=inputs, outputs=outputs, name="toy", description="A toy program")
    omega = synalinks.optimizers.OMEGA(language_model=model, algorithm="ga", merging_rate=0.5)
    program.compile(
        # Random rewards may all be 0, which the other ways of sampling can't take.
        optimizer=omega if name == "omega" else synalinks.optimizers.RandomFewShot(sampling="random"),
        reward=_reward(name, model, client),
    )
    # Otherwise fit would run its first batch once more, before it calls any callback.
    await program.build(Query)
    for module in program._flatten_modules():
        if not module.built:
            await module.build()
    return Built(
        program=program,
        data=_data(name, is_shuffled=is_shuffled),
        journal_of=((client, "grade"),) if name == "client" else (),
    )


def _module(name: str, model: Any, on_tool: Callable[[str], None]) -> Any:
    if name == "agent":

        async def look_up(what: str) -> dict[str, Any]:
            """Look a thing up.

            Args:
                what (str): The thing.
            """
            on_tool("look_up")
            return {"found": f"more on {what}"}

        tools = [synalinks.Tool(look_up)]
        return synalinks.FunctionCallingAgent(data_model=Answer, tools=tools, language_model=model)
    if name == "stream":
        return synalinks.Generator(language_model=model, streaming=True)
    if name == "decision":
        os.environ["TYPESAFE_API_KEY"] = "none"
        decision_model = synalinks.DecisionModel(model="typesafe/jev-latest")
        return synalinks.Generator(data_model=Verdict, decision_model=decision_model)
    return synalinks.Generator(data_model=Answer, language_model=model)


def _reward(name: str, model: Any, client: Client) -> Any:
    if name == "judge":
        return synalinks.rewards.LMAsJudge(language_model=model)
    if name == "embeddings":
        embedding_model = synalinks.EmbeddingModel(model="openai/text-embedding-3-small")
        return synalinks.rewards.CosineSimilarity(embedding_model=embedding_model, in_mask=["answer"])
    if name == "client":

        async def graded(y_true: Any, y_pred: Any) -> float:
            return float((await client.grade(str(y_pred.get_json())))["grade"])

        return synalinks.rewards.RewardFunctionWrapper(fn=graded, name="graded")
    mask = {"decision": "is_good", "stream": "content"}.get(name, "answer")
    return synalinks.rewards.ExactMatch(in_mask=[mask])


def _data(name: str, *, is_shuffled: bool) -> dict[str, Any]:
    x, y = _samples(name, SAMPLES)
    data = {"x": Shuffled(x, y)} if is_shuffled else {"x": x, "y": y, "batch_size": BATCH_SIZE}
    return {
        **data,
        "validation_data": _samples(name, VALIDATION_SAMPLES, offset=1000),
        "validation_batch_size": BATCH_SIZE // 2,
        "minibatch_size": None,
    }


def _samples(name: str, count: int, offset: int = 0) -> tuple[Any, Any]:
    numbers = range(offset, offset + count)
    queries = [Query(query=f"question {number // 2 if name == 'twins' else number}") for number in numbers]
    return np.array(queries, dtype="object"), np.array([_gold(name, number) for number in numbers], dtype="object")


def _gold(name: str, number: int) -> Any:
    is_true = number % 3 > 0
    if name == "decision":
        return Verdict(is_good=is_true)
    text = "yes" if is_true else "no"
    if name == "stream":
        return synalinks.ChatMessage(role="assistant", content=text)
    return Answer(answer=text)
