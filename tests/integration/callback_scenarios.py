"""Use the callback as programs use callbacks, in a child, for `test_callback`. Imports synalinks."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
import synalinks

from distributed_backup import BackupAndRestore, FileCoordinator, MemoryCoordinator, NoticeSource
from distributed_backup.demo.offline_model import OfflineLanguageModel
from distributed_backup.errors import ConfigError
from tests.support.programs import Answer, Query, build_program, samples

Report = Callable[..., None]


async def _fit(callbacks: Any, *, latency: float = 0.0, program: Any = None) -> int:
    """Run a fit of two epochs of two batches. Return the calls that it made."""
    if program is None:
        program, model = await build_program(latency=latency)
    else:
        program, model = program
    x, y = samples(6)
    await program.fit(x, y, validation_split=1 / 3, epochs=2, batch_size=2, verbose=0, callbacks=callbacks)
    return int(model.calls)


class StopError(Exception):
    """Raised by `Fail`."""


class Fail(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Raises at the first batch."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        raise StopError


# -------------------------------------------------------------------- two at once


def two_in_one_fit(report: Report, root: Path) -> dict[str, Any]:
    """Give one fit two callbacks, or one callback twice, in several forms."""
    one, two = BackupAndRestore(root / "one"), BackupAndRestore(root / "two")
    refused = []
    for callbacks in ([one, two], (two, synalinks.callbacks.History(), one), [one, one]):
        program = asyncio.run(build_program())
        try:
            asyncio.run(_fit(callbacks, program=program))
        except ConfigError as error:
            refused.append((str(error), program[1].calls))
    return {"refused": refused, "left": [str(path) for path in root.iterdir()], "calls": asyncio.run(_fit([one]))}


def one_in_two_fits(report: Report, root: Path) -> dict[str, Any]:
    """Run two fits at once with one callback, then a third one."""

    async def both() -> list[Any]:
        callback = BackupAndRestore(root)
        first = asyncio.create_task(_fit([callback], latency=0.02))
        second = asyncio.create_task(_fit([callback]))
        return list(await asyncio.gather(first, second, return_exceptions=True))

    first, second = asyncio.run(both())
    return {"first": first, "second": f"{type(second).__name__}: {second}", "alone": asyncio.run(_fit([]))}


def again_after_an_error(report: Report, root: Path) -> list[int]:
    """Use a callback again after a fit that another callback has ended, in the same task and in another one."""
    callback = BackupAndRestore(root)

    async def fails() -> None:
        try:
            await _fit([callback, Fail()])
        except StopError:
            return
        raise AssertionError("it did not fail")

    async def in_one_task() -> int:
        await fails()
        return await _fit([callback])

    asyncio.run(fails())
    return [asyncio.run(_fit([callback])), asyncio.run(in_one_task())]


# -------------------------------------------------------------------- copies


class Source(NoticeSource):
    """A notice source of a user."""

    name, period = "mine", 5.0

    def poll(self) -> None:
        return None


class Counting(BackupAndRestore):
    """A subclass with attributes of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches = [0]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, logs)
        self.batches[0] += 1


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


def copies(report: Report, root: Path) -> dict[str, Any]:
    """Copy a callback before, during and after a fit. Return the attributes of the copies and the calls of a fit."""
    os.chdir(root)
    original = Counting("run", 2, True, False, run_id="job", notices=["signal", Source()])
    taken: dict[str, Any] = {}

    class Taker(synalinks.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            taken.update({f"{name} during": make(original) for name, make in COPIES.items()})

    taken.update({f"{name} before": make(original) for name, make in COPIES.items()})
    paid = asyncio.run(_fit([original, Taker()]))
    taken.update({f"{name} after": make(original) for name, make in COPIES.items()})
    os.chdir("/")
    return {
        "paid": paid,
        # The run is complete, so a copy that restores it pays nothing.
        "again": {name: asyncio.run(_fit([each])) for name, each in taken.items()},
        "attributes": {
            name: (each.backup_dir, each.save_freq, each.double_checkpoint, each.delete_checkpoint)
            for name, each in {"original": original, "copy": COPIES["pickle"](original)}.items()
        },
        "free_of_the_fit": COPIES["pickle"](original).program is None,
        "own": {name: each.batches is original.batches for name, each in taken.items()},
    }


def copied_with_others(report: Report, root: Path) -> bool:
    """Copy a list of callbacks. Return whether the copy of ours saves the state of the copy of the other."""
    stopping = synalinks.callbacks.EarlyStopping(monitor="val_reward")
    backup = BackupAndRestore(root, state_of=[stopping], notices="signal,gce,aws,azure,file:/notice")
    made = COPIES["pickle"](copy.deepcopy([stopping, backup]))
    return made[1]._settings.session.state_of == (made[0],) and made[0] is not stopping


def copied_coordinators(report: Report, root: Path) -> dict[str, Any]:
    """Copy and pickle callbacks with a coordinator or a client of the user."""
    found: dict[str, Any] = {}
    given: list[Any] = [
        MemoryCoordinator(),
        FileCoordinator(root / "lock"),
        redis.Redis(port=1),
        "memory:",
        "redis://host",
    ]
    for each in given:
        callback = BackupAndRestore(root / "run", run_id="job", coordinator=each)
        made = copy.deepcopy(callback)
        try:
            pickle.dumps(callback)
            text = ""
        except pickle.PicklingError as error:
            text = str(error)
        found[type(each).__name__ + (each if isinstance(each, str) else "")] = (
            made._settings.coordinator.value is each,
            made._coordinator is callback._coordinator,
            text,
        )
    return found


# -------------------------------------------------------------------- the host's class


def host_methods(report: Report, root: Path) -> dict[str, Any]:
    """Run and resume fits while each method of the host's class raises."""
    host = synalinks.callbacks.BackupAndRestore

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a method of the host was called")

    names = [name for name, value in vars(host).items() if callable(value)]
    for name in names:
        setattr(host, name, refuse)
    calls = [asyncio.run(_fit([BackupAndRestore(root, 1, delete_checkpoint=False)])) for _ in range(2)]
    return {
        "is_instance": isinstance(BackupAndRestore(root), host),
        "names": names,
        "not_ours": sorted(name for name in names if name not in vars(BackupAndRestore)),
        "calls": calls,
    }


# -------------------------------------------------------------------- programs that are not built


class OneGenerator(synalinks.Program):  # type: ignore[misc]
    """A program that synalinks can build only with an input."""

    def __init__(self, model: Any) -> None:
        super().__init__(name="one", description="A generator")
        self.generator = synalinks.Generator(data_model=Answer, language_model=model)

    async def call(self, inputs: Any, training: bool = False) -> Any:
        return await self.generator(inputs, training=training)


async def look_up(word: str) -> dict[str, Any]:
    """Look a word up.

    Args:
        word (str): The word.
    """
    return {"result": word}


async def _unbuilt(kind: str) -> tuple[Any, OfflineLanguageModel]:
    model = OfflineLanguageModel()
    if kind == "subclass":
        program: Any = OneGenerator(model)
    else:
        tools = [synalinks.Tool(look_up)] if kind == "tools" else []
        inputs = synalinks.Input(data_model=Query)
        agent = synalinks.FunctionCallingAgent(data_model=Answer, tools=tools, language_model=model, max_iterations=1)
        program = synalinks.Program(inputs=inputs, outputs=await agent(inputs), name="agent", description="An agent")
    program.compile(
        optimizer=synalinks.optimizers.RandomFewShot(), reward=synalinks.rewards.ExactMatch(in_mask=["answer"])
    )
    return program, model


def unbuilt(report: Report, root: Path, kind: str) -> dict[str, int]:
    """Run a fit of a program as it is, and of one that was built by the remedy of the warning."""

    async def both() -> dict[str, int]:
        raw = await _unbuilt(kind)
        assert not all(module.built for module in raw[0]._flatten_modules())
        found = {"raw": await _fit([BackupAndRestore(root / "raw")], program=raw)}
        program, model = await _unbuilt(kind)
        await program.build(Query)
        for module in program._flatten_modules():
            if not module.built:
                await module.build()
        found["build"] = model.calls
        print("BUILT", flush=True)
        return {**found, "built": await _fit([BackupAndRestore(root / "built")], program=(program, model))}

    return asyncio.run(both())
