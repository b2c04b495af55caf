"""Send requests of real models and fits through the seam in a child, for `test_model_calls`. Imports synalinks."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import litellm
import numpy as np
import synalinks
from synalinks.src.backend import ChatMessage, ChatMessages
from synalinks.src.testing.test_utils import mock_decision_model

from distributed_backup.training.model_calls import ModelCalls
from tests.integration.resume_scenarios import differences, strict
from tests.support.programs import Answer, Query, complete_state, samples
from tests.support.recorders import MemoryRecorder, Provider

Report = Callable[..., None]
# Counters of measured times.
_TIMES: Final = ("elapsed_s", "ttft_s", "ttlt_s")


@contextmanager
def provider() -> Iterator[Provider]:
    """Replace litellm's functions."""
    found, originals = Provider(), (litellm.acompletion, litellm.aembedding)
    litellm.acompletion, litellm.aembedding = found.acompletion, found.aembedding
    try:
        yield found
    finally:
        litellm.acompletion, litellm.aembedding = originals


def counters(*models: Any) -> list[dict[str, Any]]:
    """Return the counters of models, without measured times."""
    return [
        {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in vars(model).items()
            if ("cumulated_" in name or name.startswith("last_call")) and not name.endswith(_TIMES)
        }
        for model in models
    ]


def messages(text: str) -> ChatMessages:
    return ChatMessages(messages=[ChatMessage(role="user", content=text)])


def plain(result: Any) -> Any:
    return None if result is None else json.loads(json.dumps(result.get_json()))


# -------------------------------------------------------------------- calls of each kind of model


async def _texts(model: Any) -> list[Any]:
    return [plain(await model(messages(text))) for text in ("one", "two", "one")]


async def _language_model() -> tuple[Any, list[Any], list[Any]]:
    model = synalinks.LanguageModel(model="openai/gpt-4o-mini", api_key="SECRET-KEY")
    structured = await model(messages("three"), schema=Answer.get_schema())
    return model, [*await _texts(model), plain(structured)], []


async def _stream() -> tuple[Any, list[Any], list[Any]]:
    model = synalinks.LanguageModel(model="openai/gpt-4o-mini")
    streams = [await model(messages("one"), streaming=True) for _ in range(2)]
    return model, [[str(sorted(chunk.items())) async for chunk in stream] for stream in streams], []


async def _embedding_model() -> tuple[Any, list[Any], list[Any]]:
    model = synalinks.EmbeddingModel(model="openai/text-embedding-3-small")
    requests = [synalinks.EmbeddingRequest(texts=["one", "two"]), synalinks.EmbeddingRequest(texts=["one", "two"])]
    return model, [plain(await model(request)) for request in requests], []


class Verdict(synalinks.DataModel):  # type: ignore[misc]
    is_good: bool = synalinks.Field(description="Is it good?")


async def _decision_model() -> tuple[Any, list[Any], list[Any]]:
    os.environ["TYPESAFE_API_KEY"] = "SECRET"
    model = synalinks.DecisionModel(model="typesafe/jev-latest")
    payloads = mock_decision_model(model, *({"is_good": {"type": "noul", "noul": noul}} for noul in (0.9, 0.2)))
    schema = Verdict.get_schema()
    return model, [plain(await model(messages("one"), schema=schema)) for _ in range(2)], payloads


async def _oauth_model() -> tuple[Any, list[Any], list[Any]]:
    model = synalinks.OAuthLanguageModel(model="codex/gpt-6", retry=1)
    runs: list[str] = []
    model._codex = "codex"

    async def run(command: list[str], prompt: str, cwd: str | None = None) -> tuple[str, str, int]:
        if command[1:] == ["debug", "models"]:
            return json.dumps({"models": []}), "", 0
        runs.append(prompt)
        usage = {"input_tokens": 9, "cached_input_tokens": 4, "output_tokens": 2, "reasoning_output_tokens": 1}
        item = {"id": "item_0", "type": "agent_message", "text": f"answer {len(runs)}"}
        events = [{"type": "item.completed", "item": item}, {"type": "turn.completed", "usage": usage}]
        return "\n".join(map(json.dumps, events)), "", 0

    model._run = run
    return model, await _texts(model), runs


MODELS: Final = {
    "language model": _language_model,
    "stream": _stream,
    "embedding model": _embedding_model,
    "decision model": _decision_model,
    "oauth": _oauth_model,
}


def calls_of_a_model(report: Report, name: str) -> dict[str, Any]:
    """Make the same calls without the seam, recorded, and replayed."""
    strict()

    async def run(recorder: MemoryRecorder | None) -> dict[str, Any]:
        with provider() as made:
            calls = None if recorder is None else ModelCalls(recorder)
            if calls is not None:
                calls.install()
            model, results, sent_elsewhere = await MODELS[name]()
            if calls is not None:
                calls.remove()
            sent = made.calls + len(sent_elsewhere)
        return {"results": results, "counters": counters(model), "sent": sent}

    async def main() -> dict[str, Any]:
        bare = await run(None)
        recorder = MemoryRecorder()
        recorded = await run(recorder)
        replaying = recorder.replayed()
        replayed = await run(replaying)
        return {
            "bare": bare,
            "recorded": recorded,
            "replayed": replayed,
            "requests": recorder.requests,
            "left": replaying.left,
            "bytes": b"".join(item for _, answer in recorder.recorded for item in answer),
        }

    return asyncio.run(main())


# -------------------------------------------------------------------- fits


class Installing(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Installs the seam for the time of a fit."""

    def __init__(self, recorder: MemoryRecorder) -> None:
        super().__init__()
        self._calls = ModelCalls(recorder)

    def on_train_begin(self, logs: Any = None) -> None:
        self._calls.install()

    def on_train_end(self, logs: Any = None) -> None:
        self._calls.remove()


async def look_up(what: str) -> dict[str, Any]:
    """Look a thing up.

    Args:
        what (str): The thing.
    """
    return {"found": what}


async def _program(kind: str) -> tuple[Any, Any]:
    random.seed(7)
    np.random.seed(7)
    model = synalinks.LanguageModel(model="openai/gpt-4o-mini")
    inputs = synalinks.Input(data_model=Query)
    if kind == "agent":
        tools = [synalinks.Tool(look_up)]
        outputs = await synalinks.FunctionCallingAgent(data_model=Answer, tools=tools, language_model=model)(inputs)
    else:
        outputs = await synalinks.Generator(data_model=Answer, language_model=model)(inputs)
    program = synalinks.Program(inputs=inputs, outputs=outputs, name="toy", description="A toy program")
    omega = synalinks.optimizers.OMEGA(language_model=model, algorithm="ga", merging_rate=0.5)
    judge = synalinks.rewards.LMAsJudge(language_model=model)
    program.compile(
        optimizer=omega if kind == "omega" else synalinks.optimizers.RandomFewShot(sampling="random"),
        reward=judge if kind == "judge" else synalinks.rewards.ExactMatch(in_mask=["answer"]),
    )
    # Otherwise fit would run its first batch once more, before it calls any callback.
    await program.build(Query)
    for module in program._flatten_modules():
        if not module.built:
            await module.build()
    return program, model


def fits(report: Report, kind: str) -> dict[str, Any]:
    """Run one fit recorded and one replayed, each in a program of its own."""
    strict()

    async def run(recorder: MemoryRecorder) -> dict[str, Any]:
        with provider() as made:
            program, model = await _program(kind)
            x, y = samples(4)
            before = made.calls
            history = await program.fit(
                x, y, validation_data=(x, y), epochs=2, batch_size=2, minibatch_size=None, verbose=0,
                callbacks=[Installing(recorder)],
            )  # fmt: skip
            return {
                "state": complete_state(program),
                "counters": counters(model),
                "history": history.history,
                "sent": made.calls - before,
            }

    synalinks.clear_session()
    recorder = MemoryRecorder()
    first = asyncio.run(run(recorder))
    synalinks.clear_session()
    replaying = recorder.replayed()
    second = asyncio.run(run(replaying))
    return {
        "wrong": [
            *differences(first["state"], second["state"]),
            *differences(first["counters"], second["counters"]),
            *differences(first["history"], second["history"]),
        ],
        "sent": (first["sent"], second["sent"]),
        "requests": (recorder.requests, replaying.requests),
        "left": replaying.left,
        "keyless": recorder.keys.count(None),
    }
