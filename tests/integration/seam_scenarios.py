"""Install and remove the seam under all circumstances in a child, for `test_model_calls`. Imports synalinks."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import AsyncMock, patch

import litellm
import synalinks
from synalinks.src.modules.language_models.language_model import LanguageModel

from distributed_backup.errors import ConfigError, RecordedFailureError
from distributed_backup.training.model_calls import ModelCalls
from tests.integration.model_calls_scenarios import Verdict, messages, provider
from tests.integration.resume_scenarios import strict
from tests.support.recorders import MemoryRecorder, response

Report = Callable[..., None]


class Deferring(synalinks.LanguageModel):  # type: ignore[misc]
    """Changes the request, and calls the inherited method. A stream asks only when it is read."""

    async def _acompletion(self, formatted_messages: Any, **kwargs: Any) -> Any:
        inherited = super()._acompletion
        if not kwargs.get("stream"):
            return await asyncio.create_task(inherited(formatted_messages, **kwargs))

        async def chunks() -> Any:
            async for chunk in await inherited(formatted_messages, **kwargs):
                yield chunk

        return chunks()


class Mixin:
    """Has the method, and is no language model."""

    async def _acompletion(self, formatted_messages: Any, **kwargs: Any) -> Any:
        return response({"content": "mixed in"})


class Mixed(Mixin, synalinks.LanguageModel):  # type: ignore[misc]
    """Inherits the method from the mixin."""


class PlainStream(synalinks.LanguageModel):  # type: ignore[misc]
    """Answers with a plain iterator of dicts, as tests do, and with a plain dict."""

    async def _acompletion(self, formatted_messages: Any, **kwargs: Any) -> Any:
        if kwargs.get("stream"):
            return iter([{"choices": [{"delta": {"content": text}}]} for text in "abc"])
        return {"choices": [{"message": {"content": "abc"}}]}


def attributes() -> dict[str, Any]:
    """Return everything that the seam wraps, as it is stored."""
    classes: list[type] = [LanguageModel, Mixin]
    for kind in classes:
        classes += kind.__subclasses__()
    found: dict[str, Any] = {repr(kind): vars(kind).get("_acompletion") for kind in classes}
    return found | {name: vars(litellm).get(name) for name in ("aembedding", "asystemone")}


def with_seam(*recorders: MemoryRecorder, also: Any = ()) -> list[ModelCalls]:
    made = [ModelCalls(recorder, also) for recorder in recorders]
    for calls in made:
        calls.install()
    return made


async def ask(model: Any = None, **kwargs: Any) -> Any:
    model = model or synalinks.LanguageModel(model="openai/gpt-4o-mini", retry=1)
    answer = await model(messages("one"), **kwargs)
    return [chunk async for chunk in answer] if kwargs.get("streaming") else answer.get_json()


# -------------------------------------------------------------------- each request once


def once(report: Report) -> dict[str, list[int]]:
    """Return how many requests a recorder counts for one call, and for one stream, of each class."""
    strict()

    async def count(kind: Any) -> list[int]:
        recorder = MemoryRecorder()
        (calls,) = with_seam(recorder)
        model, counts = kind(model="openai/gpt-4o-mini", retry=1), []
        for streaming in (False, True) if kind is not Mixed else (False,):
            await ask(model, streaming=streaming)
            counts.append(len(recorder.recorded))
        calls.remove()
        return counts

    async def main() -> dict[str, list[int]]:
        with provider():
            return {kind.__name__: await count(kind) for kind in (LanguageModel, Deferring, Mixed, PlainStream)}

    return asyncio.run(main())


def recorded_failures(report: Report, status: int | None) -> tuple[int, float]:
    """Return the attempts of a decision model whose requests fail in a replay, and its longest pause in seconds."""
    os.environ["TYPESAFE_API_KEY"] = "none"
    attempts, pauses = 0, [0.0]

    async def fail(**_: Any) -> Any:
        nonlocal attempts
        attempts += 1
        raise RecordedFailureError(error="Error", status_code=status)

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def main() -> None:
        model = synalinks.DecisionModel(model="typesafe/jev-latest", retry=3)
        model._systemone = fail
        with patch("asyncio.sleep", pause), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # all attempts have failed
            assert await model(messages("one"), schema=Verdict.get_schema()) is None

    asyncio.run(main())
    return attempts, max(pauses)


def failures(report: Report) -> dict[str, Any]:
    """Return what is recorded of a model that fails twice and is then answered by its fallback."""

    async def main() -> dict[str, Any]:
        recorder = MemoryRecorder()
        with provider() as made:
            answer = made.acompletion

            async def fail(**kwargs: Any) -> Any:
                if kwargs["model"] == "openai/fails":
                    made.calls += 1
                    raise ConnectionError("no network")
                return await answer(**kwargs)

            litellm.acompletion = fail
            (calls,) = with_seam(recorder)
            fallback = synalinks.LanguageModel(model="openai/gpt-4o-mini")
            model = synalinks.LanguageModel(model="openai/fails", retry=2, retry_max_wait=0, fallback=fallback)
            content = (await ask(model))["content"]
            calls.remove()
        return {"content": content, "sent": made.calls, "asked": len(recorder.keys), "recorded": len(recorder.recorded)}

    return asyncio.run(main())


# -------------------------------------------------------------------- whose request it is


def concurrent(report: Report) -> dict[str, Any]:
    """Run two fits and one piece of other code at once, which end in the order in which they began."""
    strict()
    before = attributes()

    async def fit(recorder: MemoryRecorder, text: str, ends: asyncio.Event, after: asyncio.Event | None) -> None:
        (calls,) = with_seam(recorder)
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(ask(synalinks.LanguageModel(model=f"openai/{text}")))
        if after is not None:
            await after.wait()
            await ask(synalinks.LanguageModel(model=f"openai/{text}"))
        calls.remove()
        await ask()
        ends.set()

    async def main() -> dict[str, Any]:
        one, two = MemoryRecorder(), MemoryRecorder()
        ended, other = asyncio.Event(), asyncio.Event()
        with provider() as made:
            async with asyncio.TaskGroup() as group:
                group.create_task(fit(one, "one", ended, None))
                group.create_task(fit(two, "two", other, ended))
                group.create_task(ask())
            return {
                "one": len(one.keys),
                "two": len(two.keys),
                "shared": len(set(one.keys) & set(two.keys)),
                "sent": made.calls,
            }

    found = asyncio.run(main())
    return {**found, "as_before": attributes() == before}


def nested(report: Report) -> dict[str, Any]:
    """Run a fit inside another one, remove both from other tasks and threads, and install the outer one again."""
    strict()

    async def main() -> dict[str, Any]:
        outer, inner = MemoryRecorder(), MemoryRecorder()
        counts = []

        async def count() -> None:
            await ask()
            counts.append((len(outer.keys), len(inner.keys)))

        async def remove(calls: ModelCalls) -> None:
            calls.remove()

        with provider():
            before = attributes()
            outside, inside = with_seam(outer, inner)
            await count()
            await asyncio.create_task(remove(inside))
            await count()
            await asyncio.to_thread(inside.remove)
            outside.install()
            await count()
            await asyncio.to_thread(outside.remove)
            await count()
            outside.install()
            outer.is_open = False
            await count()
            outer.is_open = True
            await count()
            outside.remove()
            outside.remove()
            as_before = attributes() == before
        return {"counts": counts, "as_before": as_before}

    return asyncio.run(main())


def freed(report: Report) -> bool:
    """Return whether nothing refers to the recorder of a fit that has ended in this task."""

    async def main() -> bool:
        recorder = MemoryRecorder()
        with provider():
            (calls,) = with_seam(recorder, also=[(Client(), "ask")])
            await ask()
            calls.remove()
        found = weakref.ref(recorder)
        del recorder, calls
        gc.collect()
        return found() is None

    return asyncio.run(main())


def other_loop(report: Report) -> dict[str, Any]:
    """Send requests from an event loop in another thread, as part of the fit and of other code."""
    strict()

    async def main() -> dict[str, Any]:
        recorder = MemoryRecorder()
        logged: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("distributed_backup").addHandler(handler)
        with provider() as made:
            (calls,) = with_seam(recorder)
            for _ in range(2):
                await asyncio.to_thread(lambda: asyncio.run(ask()))
            thread = threading.Thread(target=lambda: asyncio.run(ask()))
            thread.start()
            await asyncio.to_thread(thread.join)
            calls.remove()
            return {"sent": made.calls, "asked": len(recorder.keys), "logged": logged}

    return asyncio.run(main())


# -------------------------------------------------------------------- wrappers of others


def _tracing(original: Callable[..., Awaitable[Any]], seen: list[str]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def traced(*args: Any, **kwargs: Any) -> Any:
        seen.append("traced")
        return await original(*args, **kwargs)

    return traced


def wrapped_above(report: Report) -> dict[str, Any]:
    """Let another library wrap the method above the seam, outlive the fit, and be wrapped by a second fit."""
    strict()
    before = attributes()

    async def main() -> dict[str, Any]:
        seen: list[str] = []
        first, second = MemoryRecorder(), MemoryRecorder()
        with provider():
            model = synalinks.LanguageModel(model="openai/gpt-4o-mini")
            (calls,) = with_seam(first)
            below = LanguageModel._acompletion
            assert below is not before[repr(LanguageModel)], "the seam has wrapped nothing"
            tracing = LanguageModel._acompletion = _tracing(below, seen)
            await ask(model)
            calls.remove()
            kept = [LanguageModel._acompletion is tracing]
            await ask(model)
            (again,) = with_seam(second)
            await ask(model)
            again.remove()
            kept.append(LanguageModel._acompletion is tracing)
            await ask(model)
            # The library puts back what it has found, a wrapper of a fit that has ended.
            LanguageModel._acompletion = below
            await ask(model)
            (third,) = with_seam(second)
            await ask(model)
            third.remove()
        return {"counts": (len(first.keys), len(second.keys), len(seen)), "kept": kept}

    found = asyncio.run(main())
    return {**found, "as_before": attributes() == before}


def replaced_above(report: Report) -> dict[str, Any]:
    """Let a test's fake replace the function above the seam, before a second fit begins, and be taken off later."""
    strict()
    before = attributes()

    async def main() -> dict[str, Any]:
        first, second = MemoryRecorder(), MemoryRecorder()
        model = synalinks.LanguageModel(model="openai/gpt-4o-mini")
        with provider():
            (calls,) = with_seam(first)
            fake = AsyncMock(return_value=response({"content": "fake"}))
            with patch.object(LanguageModel, "_acompletion", fake):
                (again,) = with_seam(second)
                content = (await ask(model))["content"]
                again.remove()
                calls.remove()
                kept = LanguageModel._acompletion is fake
        return {"content": content, "asked": len(second.keys), "kept": kept, "fake_calls": fake.await_count}

    found = asyncio.run(main())
    (last,) = asyncio.run(_installed())
    last.remove()
    return {**found, "as_before": attributes() == before}


async def _installed() -> list[ModelCalls]:
    return with_seam(MemoryRecorder())


# -------------------------------------------------------------------- a user's own client


class Client:
    """A client that a user has written."""

    def __init__(self) -> None:
        self.calls = 0
        # Its address is different in each object.
        self.model = object()

    async def ask(self, prompt: str, *, api_key: str = "") -> Any:
        self.calls += 1
        return {"prompt": prompt, "number": self.calls}

    def sync(self) -> None:
        """Is not async."""


class Slotted:
    """Has no place for a wrapper."""

    __slots__ = ()

    async def ask(self) -> None:
        """Do nothing."""


def own_client(report: Report) -> dict[str, Any]:
    """Record and replay the method of an object, of a class, and of a module."""
    strict()

    async def run(recorder: MemoryRecorder, owner: Any, client: Client, other: Client) -> list[Any]:
        (calls,) = with_seam(recorder, also=[(owner, "ask")])
        found = [await client.ask("a", api_key="1"), await client.ask("a", api_key="2"), await client.ask("b")]
        found.append(await other.ask("a"))
        calls.remove()
        assert "ask" not in vars(client)
        return found

    async def main() -> dict[str, Any]:
        found = {}
        for name, is_class in (("object", False), ("class", True)):
            recorder, client = MemoryRecorder(), Client()
            first = await run(recorder, Client if is_class else client, client, Client())
            replaying, again = recorder.replayed(), Client()
            second = await run(replaying, Client if is_class else again, again, Client())
            found[name] = {
                "equal": first == second,
                "recorded": len(recorder.recorded),
                "keys": len(set(recorder.keys)),
                "calls": (client.calls, again.calls),
            }
        return found

    before = dict(vars(Client))
    result = asyncio.run(main())
    return {**result, "as_before": dict(vars(Client)) == before, "refused": _refused()}


def _refused() -> list[str]:
    messages = []
    for owner, name in (
        (Client(), "sync"),
        (Client(), "missing"),
        (Slotted(), "ask"),
        (Client, "calls"),
        (asyncio, "Event"),
    ):
        try:
            ModelCalls(MemoryRecorder(), [(owner, name)])
        except ConfigError as error:
            messages.append(str(error))
    return messages


def unnamed_client(report: Report) -> int:
    """Return how many answers a fit records of a client that only another fit has named."""

    async def other(recorder: MemoryRecorder, client: Client) -> None:
        (calls,) = with_seam(recorder)
        await client.ask("a")
        calls.remove()

    async def main() -> int:
        client, recorder = Client(), MemoryRecorder()
        (calls,) = with_seam(MemoryRecorder(), also=[(client, "ask")])
        await asyncio.create_task(other(recorder, client))
        calls.remove()
        return len(recorder.keys)

    return asyncio.run(main())
