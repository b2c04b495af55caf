"""Run fits with synalinks' own callback and with ours in a child, for `test_host_compatibility`."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import synalinks

from distributed_backup import BackupAndRestore, CheckpointStore
from distributed_backup.errors import NoUsableCheckpointError
from distributed_backup.observability.events import Event, Sink
from tests.integration.resume_scenarios import (
    HOOKS,
    Fit,
    InterruptedFitError,
    Interrupter,
    Interruption,
    Outcome,
    build,
    differences,
    directory,
    newest,
    part,
    run_part,
    strict,
)
from tests.support.programs import complete_state

Report = Callable[..., None]
HostBackup = synalinks.callbacks.BackupAndRestore


async def host_part(fit: Fit, root: Path, interruption: Interruption | None = None, **options: Any) -> Outcome:
    """`part` with synalinks' own callback."""
    program, model = await build(fit, seed=7)
    interrupter = Interrupter(interruption.hooks if interruption else HOOKS, interruption)
    interrupter.model = model
    outcome = Outcome(program=(program, model), log=interrupter.log, calls_at=interrupter.calls)
    try:
        outcome.history = await program.fit(
            **fit.inputs(),
            epochs=fit.epochs,
            minibatch_size=None,
            verbose=0,
            callbacks=[HostBackup(str(root), **options), interrupter],
        )
    except InterruptedFitError:
        outcome.interrupted = True
    outcome.state, outcome.calls = complete_state(program), model.calls
    return outcome


# -------------------------------------------------------------------- arguments


def signatures(report: Report) -> list[list[tuple[str, str]]]:
    """Name and default of the first four arguments, of the host's callback and of ours."""
    found = []
    for kind in (HostBackup, BackupAndRestore):
        parameters = list(inspect.signature(kind).parameters.values())[:4]
        found.append([(item.name, "" if item.default is item.empty else repr(item.default)) for item in parameters])
    return found


def refused(report: Report, cases: list[tuple[Any, ...]]) -> list[tuple[str, str]]:
    """For each tuple of arguments, what the host's callback raises and what ours does."""
    return [(_error(HostBackup, case), _error(BackupAndRestore, case)) for case in cases]


def _error(kind: Any, arguments: tuple[Any, ...]) -> str:
    try:
        kind(*arguments)
    except ValueError as error:
        return f"ValueError: {error}"
    return ""


# -------------------------------------------------------------------- what the host's callback gets wrong


class Watcher(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Lists the checkpoints at every hook."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root, self.seen, self.looks = root, set[str](), 0
        for name in HOOKS:
            setattr(self, name, self._look)

    def _look(self, *args: Any, **kwargs: Any) -> None:
        self.looks += 1
        self.seen |= {path.name for path in self.root.glob("*") if path.suffix == ".ckpt"}


def saves_without_schedule(report: Report) -> dict[str, Any]:
    """Files that fits with save_freq=False write, the host's and ours."""
    strict()
    with directory() as root:
        watcher = Watcher(root)
        run_part(Fit(), root, callbacks=lambda backup, interrupter: [backup, watcher])
        left = sorted(path.name for path in root.glob("*.ckpt"))
    with directory() as root:
        asyncio.run(host_part(Fit(), root, save_freq=False, delete_checkpoint=False))
        host = sorted(path.name for path in root.glob("*"))
    return {"seen": sorted(watcher.seen), "looks": watcher.looks, "left": left, "host": host}


def damaged(report: Report, double: bool) -> dict[str, Any]:
    """Truncate the newest checkpoint, and resume from the one before it, if there is one."""
    strict()
    fit, options = Fit(), {"save_freq": "epoch", "double_checkpoint": double}
    reference = run_part(fit, None)
    with directory() as root:
        run_part(fit, root, Interruption(at=2, hooks=("on_epoch_begin",), how="raise"), options=options)
        names = CheckpointStore(root).names()
        path = root / names[0]
        path.write_bytes(path.read_bytes()[:-100])
        try:
            outcome = run_part(fit, root, seed=99, options=options)
        except NoUsableCheckpointError as error:
            return {"names": names, "error": str(error), "left": CheckpointStore(root).names()}
    wrong = differences(reference.state, outcome.state)
    return {"names": names, "wrong": wrong, "logged": outcome.logged, "epochs": outcome.history.epoch}


class GracefulStop(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Sets `stop_training` during a batch, as a user's own SIGTERM handler would."""

    def __init__(self, at: int, backup: Any, notice: bool) -> None:
        super().__init__()
        self._at, self._backup, self._notice = at, backup, notice
        self._batches = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._batches += 1
        if self._batches == self._at:
            asyncio.get_running_loop().call_soon(self._stop)

    def _stop(self) -> None:
        self.program.stop_training = True
        if self._notice:
            self._backup._session._worker.give_notice("TEST")


def graceful_stop(report: Report) -> dict[str, Any]:
    """Stop the training by our callback and by the user's handler at once, then resume."""
    strict()
    fit, options = Fit(), {"delete_checkpoint": True}
    reference, wrong, kept = run_part(fit, None), [], []
    for at in range(1, 10):
        with directory() as root:
            first = run_part(
                fit,
                root,
                callbacks=lambda backup, interrupter, at=at: [GracefulStop(at, backup, notice=True), backup],
                options=options,
            )
            kept.append(newest(root))
            second = run_part(fit, root, seed=99, options=options)
            wrong += [] if first.preempted else [f"{at}: not preempted"]
            wrong += [f"{at}: {item}" for item in differences(reference.state, second.state)[:3]]
            wrong += [f"{at}: {first.calls} + {second.calls}"] if first.calls + second.calls != reference.calls else []
            wrong += [f"{at}: directory left"] if root.exists() else []
    return {"wrong": wrong, "kept": [(position.epoch, position.batch) for position in kept if position is not None]}


def resumed_by_both(report: Report) -> dict[str, Any]:
    """The same fit, interrupted in its second epoch and resumed, with the host's callback and with ours."""
    strict()
    fit = Fit(steps=4, optimizer="omega")
    reference = run_part(fit, None)
    interruption = Interruption(at=6, hooks=("on_train_batch_end",), how="raise")
    found: dict[str, Any] = {"calls": reference.calls}
    with directory() as root:
        first = run_part(fit, root, interruption, options={"save_freq": 1})
        found["ours"] = _resumed(reference, first, run_part(fit, root, options={"save_freq": 1}))
    with directory() as root:
        first = asyncio.run(host_part(fit, root, interruption, save_freq=1))
        found["host"] = _resumed(reference, first, asyncio.run(host_part(fit, root, save_freq=1)))
    return found


def _resumed(reference: Outcome, first: Outcome, second: Outcome) -> dict[str, Any]:
    return {
        "interrupted": first.interrupted,
        "exact": not differences(reference.state, second.state),
        "repeated": first.calls + second.calls - reference.calls,
        "in_flight": max(_batches(reference)),
    }


def _batches(reference: Outcome) -> list[int]:
    begins = [
        calls for name, calls in zip(reference.log, reference.calls_at, strict=True) if name == "on_train_batch_begin"
    ]
    ends = [
        calls for name, calls in zip(reference.log, reference.calls_at, strict=True) if name == "on_train_batch_end"
    ]
    return [end - begin for begin, end in zip(begins, ends, strict=True)]


def second_interruption(report: Report) -> dict[str, Any]:
    """Interrupted in its third epoch, resumed, and interrupted again in the first epoch it resumed."""
    strict()
    fit = Fit(epochs=4)
    first, again = (Interruption(at=at, hooks=("on_train_batch_end",), how="raise") for at in (7, 1))
    found = {}
    with directory() as root:
        run_part(fit, root, first, options={"save_freq": 1})
        run_part(fit, root, again, options={"save_freq": 1})
        position = newest(root)
        found["ours"] = position and (position.epoch, position.batch)
    with directory() as root:
        asyncio.run(host_part(fit, root, first, save_freq=1))
        asyncio.run(host_part(fit, root, again, save_freq=1))
        found["host"] = json.loads((root / "training_metadata.json").read_bytes())["epoch"]
    return found


def files_of_a_checkpoint(report: Report) -> dict[str, Any]:
    """What is in the directory of a preempted fit, and whether one checkpoint's file is all it takes to go on."""
    strict()
    fit = Fit()
    reference = run_part(fit, None)
    with directory() as root, directory() as other:
        run_part(fit, root, Interruption(at=20))
        files = sorted(path.name for path in root.iterdir())
        other.mkdir()
        (name,) = CheckpointStore(root).names()
        os.link(root / name, other / name)
        resumed = run_part(fit, other, seed=99)
        return {"files": files, "wrong": differences(reference.state, resumed.state)}


# -------------------------------------------------------------------- a backup of the host's


def _population(program: Any) -> Any:
    return copy.deepcopy([variable.get_json()["best_candidates"] for variable in program.trainable_variables])


class Prober(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Records the population at the start of the first epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Any = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.found is None:
            self.found = _population(self.program)


def legacy(report: Report, torn: bool = False) -> dict[str, Any]:
    """Back a fit up with the host's callback, and resume it with ours in its directory."""
    strict()
    fit = Fit()

    async def run(root: Path) -> dict[str, Any]:
        # Programs get the same names as in a fresh process, because the host matches variables by path.
        synalinks.clear_session()
        interruption = Interruption(at=2, hooks=("on_epoch_begin",), how="raise")
        first = await host_part(fit, root, interruption, double_checkpoint=True)
        expected = _population(first.program[0])
        if torn:
            path = root / "latest.variables.json"
            path.write_bytes(path.read_bytes()[:100])
        written = sorted(path.name for path in root.iterdir())
        synalinks.clear_session()
        prober = Prober()
        second = await part(
            fit,
            root,
            callbacks=lambda backup, interrupter: [prober, backup, interrupter],
            options={"delete_checkpoint": True, "save_freq": "epoch"},
        )
        return {
            "interrupted": first.interrupted,
            "written": written,
            "epochs": second.history.epoch,
            "population": len(expected[0]),
            "wrong": [] if torn else differences(expected, prober.found),
            "resumed_population": len(prober.found[0]),
            "logged": second.logged,
            "left": sorted(path.name for path in root.iterdir()) if root.exists() else [],
        }

    with directory() as root:
        return asyncio.run(run(root))


# -------------------------------------------------------------------- the end of a run


def finish(report: Report, delete: bool, early: bool) -> dict[str, Any]:
    """Return what is left of a run that has finished, by itself or by EarlyStopping."""
    strict()
    stop = synalinks.callbacks.EarlyStopping(monitor="val_reward", mode="max", stop_at=-1.0)
    with directory() as root:
        options = {"delete_checkpoint": delete, "save_freq": "epoch"}
        others = [stop] if early else []
        outcome = run_part(
            Fit(), root, callbacks=lambda backup, interrupter: [backup, *others, interrupter], options=options
        )
        position = newest(root)
        return {"epochs": outcome.history.epoch, "exists": root.exists(), "position": position}


# -------------------------------------------------------------------- a sink of a subclass


class Listening(BackupAndRestore):
    """Collects its own events."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kinds: list[str] = []
        self.closed = False

    def emit(self, event: Event) -> None:
        self.kinds.append(event.kind)

    def close(self, timeout: float) -> None:
        self.closed = True

    def _event_sinks(self) -> tuple[Sink, ...]:
        return (self,)


def event_sinks(report: Report) -> dict[str, Any]:
    """Return the kinds of events in a subclass and in the event log, and whether its sink was closed."""
    strict()
    with directory() as root:
        backup = Listening(root, delete_checkpoint=False)
        run_part(Fit(epochs=1), root, callbacks=lambda _, interrupter: [backup])
        [log] = root.glob("events-*.jsonl")
        logged = [json.loads(line)["event"] for line in log.read_bytes().splitlines()]
        return {"received": backup.kinds, "logged": logged, "closed": backup.closed}


# -------------------------------------------------------------------- how callbacks are given


class Noticing(BackupAndRestore):
    """Gives itself a notice after some training batches, and records the threads that call it."""

    def __init__(self, *args: Any, after: int | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._after, self._ended = after, 0
        self.threads: set[str] = set()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.threads.add(threading.current_thread().name)
        self._ended += 1
        if self._ended == self._after and self._session is not None:
            self._session._worker.give_notice("TEST")
        super().on_train_batch_end(batch, logs)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.threads.add(threading.current_thread().name)
        super().on_test_batch_end(batch, logs)


def order(report: Report) -> dict[str, Any]:
    """Run the same interrupted fits with our callback at every place of the list, in a tuple, and alone."""
    strict()
    fit = Fit(epochs=2)
    reference = run_part(fit, None)

    def others() -> list[Any]:
        return [
            synalinks.callbacks.History(),
            synalinks.callbacks.EarlyStopping(monitor="val_reward", patience=9),
        ]

    ways: dict[str, Callable[[Any], Any]] = {
        "first": lambda backup: [backup, *others()],
        "between": lambda backup: [others()[0], backup, others()[1]],
        "last": lambda backup: [*others(), backup],
        "in a tuple": lambda backup: (backup, *others()),
        "alone": lambda backup: backup,
    }
    wrong: list[str] = []
    threads: set[str] = set()
    for name, way in ways.items():
        for after in (1, 3, 4):
            with directory() as root:
                parts = []
                for seed, number in ((7, after), (99, None)):
                    parts.append(_noticed_part(fit, root, way, seed, number, threads))
                calls = sum(outcome.calls for outcome in parts)
                wrong += [] if parts[0].ended_early else [f"{name} {after}: not preempted"]
                wrong += [f"{name} {after}: {item}" for item in differences(reference.state, parts[1].state)[:3]]
                wrong += [f"{name} {after}: {calls} calls, not {reference.calls}"] if calls != reference.calls else []
    return {"wrong": wrong, "threads": sorted(threads)}


def _noticed_part(
    fit: Fit, root: Path, way: Callable[[Any], Any], seed: int, after: int | None, threads: set[str]
) -> Outcome:
    backup = Noticing(root, save_freq=False, delete_checkpoint=False, after=after)
    outcome = run_part(fit, root, seed=seed, callbacks=lambda _, interrupter: way(backup))
    threads |= backup.threads
    return outcome
