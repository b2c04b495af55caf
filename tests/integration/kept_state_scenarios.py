"""Interrupt fits with stateful callbacks, metrics and optimizers, resume them, and compare. Imports synalinks.

For `test_kept_state`. A resumed part has new objects, as a new process has.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import litellm
import numpy as np
import synalinks
from synalinks.src.backend.common.op_scope import read_phase_wall_clock_s

from distributed_backup.checkpoints.state_body import decode_state, encode_state
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.cli.export import state_tree
from distributed_backup.demo.offline_model import OfflineLanguageModel
from distributed_backup.training.counters import Counters
from distributed_backup.training.host_callbacks import HostCallback
from distributed_backup.training.in_place import InPlace
from distributed_backup.training.state import TrainingState
from tests.integration.resume_scenarios import (
    ENDS,
    Counter,
    Fit,
    Interruption,
    Outcome,
    build,
    differences,
    directory,
    newest,
    part,
    strict,
)
from tests.support.programs import complete_state

Report = Callable[..., None]


class CountingModel(OfflineLanguageModel):
    """Reports usage and cost, which depend on the prompt."""

    async def _acompletion(self, formatted_messages: Any, **kwargs: Any) -> Any:
        response = await super()._acompletion(formatted_messages, **kwargs)
        tokens = len(str(formatted_messages)) % 17
        response["usage"] = {"prompt_tokens": tokens, "completion_tokens": 3, "total_tokens": tokens + 3}
        made = litellm.ModelResponse(**response)
        made._hidden_params = {"response_cost": tokens / 7}
        return made


async def counting_program(seed: int = 7) -> tuple[Any, Any]:
    """A program with metrics of tokens, cost, calls and a user's own, and with a model that has cost before the fit."""
    random.seed(seed)
    np.random.seed(seed)
    program, _ = await build(Fit(), seed)
    model = CountingModel()
    for module in program._flatten_modules():
        if hasattr(module, "language_model"):
            module.language_model = model
    # Counted before the fit, and not alike in each process.
    model.cumulated_tokens = model.inference_cumulated_tokens = seed
    program.compile(
        optimizer=synalinks.optimizers.RandomFewShot(),
        reward=synalinks.rewards.ExactMatch(in_mask=["answer"]),
        metrics=[
            synalinks.metrics.TotalTokens(),
            synalinks.metrics.Cost(),
            synalinks.metrics.ProgramCalls(),
            Latest(),
        ],
    )
    return program, model


class Latest(synalinks.metrics.Metric):  # type: ignore[misc]
    """A user's metric whose state is in attributes: the size of the set of answers so far."""

    def __init__(self, name: str = "latest", **masks: Any) -> None:
        super().__init__(name=name, **masks)
        self.answers: set[str] = set()
        self.updates = 0

    def reset_state(self) -> None:
        self.updates = 0

    async def update_state(self, y_true: Any, y_pred: Any) -> None:
        self.updates += 1
        self.answers.add(f"{y_true.get('answer')} {y_pred.get('answer')} {self.updates}")

    def result(self) -> int:
        return len(self.answers) * 100 + self.updates


def stack(root: Path, *, append: bool = False) -> list[Any]:
    """The callbacks of synalinks with state, as its guides recommend them."""
    root.mkdir(exist_ok=True)
    return [
        synalinks.callbacks.ProgramCheckpoint(str(root / "best.json"), mode="max", save_best_only=True),
        synalinks.callbacks.ProgramCheckpoint(
            str(root / "{epoch}-{batch}.variables.json"), save_freq=2, save_variables_only=True
        ),
        synalinks.callbacks.EarlyStopping(patience=2, min_delta=0.01, restore_best_variables=True, stop_at=9),
        synalinks.callbacks.CSVLogger(root / "log.csv", append=append),
        synalinks.callbacks.BudgetStopping(max_cost=10_000.0, max_tokens=100_000),
    ]


def remembered(callbacks: Sequence[Any], root: Path) -> dict[str, Any]:
    """Return what a user sees of the callbacks: attributes, files and budgets."""
    first, second, stopping, log, budget = callbacks
    return {
        "best": (first.best, second._batches_seen_since_last_saving, second._last_batch_seen),
        "stopping": (stopping.wait, stopping.best, stopping.best_epoch, stopping.stopped_epoch),
        "best variables": stopping.best_variables,
        "budget": (round(budget.spent_cost, 9), budget.spent_tokens, budget.stop_reason, budget.stopped_epoch),
        "keys": log.keys,
        "csv": (root / "log.csv").read_text(),
        # Automatic names have a number that depends on what else this process has built.
        "files": {path.name: re.sub(r"_\d+\b", "", path.read_text()) for path in root.glob("*.json")},
    }


def counters(model: Any) -> dict[str, Any]:
    """Return the counters of a model, without those of time, which differ between runs."""
    return {name: value for name, value in vars(model).items() if "cumulated_" in name and not name.endswith("_s")}


def run_fit(
    root: Path | None,
    interruption: Interruption | None = None,
    *,
    fit: Fit | None = None,
    callbacks: Sequence[Any] = (),
    program: Callable[[int], Any] = counting_program,
    seed: int = 7,
    **options: Any,
) -> Outcome:
    """Run one part of a fit with these callbacks, in an event loop of its own."""

    async def run() -> Outcome:
        return await part(
            fit or Fit(),
            root,
            interruption,
            hooks=None if interruption else ENDS,
            callbacks=lambda backup, interrupter: [*callbacks, interrupter, backup],
            options=options,
            program=await program(seed),
        )

    return asyncio.run(run())


def run_stack(
    fit: Fit, root: Path, interruption: Interruption | None = None, *, seed: int = 7, append: bool = False
) -> tuple[dict[str, Any], Outcome]:
    """Run one part of a fit with the stack of callbacks in `root`. Return what they remember."""
    others = stack(root, append=append)
    outcome = run_fit(root / "backup", interruption, fit=fit, callbacks=others, seed=seed)
    return {**remembered(others, root), "counters": counters(outcome.program[1])}, outcome


def stacked(report: Report, fit: dict[str, Any], append: bool = False) -> dict[str, Any]:
    """Interrupt a fit with the stack of callbacks at each boundary, resume, and compare with the uninterrupted fit."""
    strict()
    chosen, wrong = Fit(**fit), []

    def prepared(root: Path) -> Path:
        root.mkdir()
        if append:
            (root / "log.csv").write_text("epoch,earlier\n0,1\n")
        return root

    with directory() as root:
        expected, reference = run_stack(chosen, prepared(root), append=append)
    for at in range(reference.hooks):
        with directory() as root:
            _, first = run_stack(chosen, prepared(root), Interruption(at=at, hooks=ENDS), append=append)
            position = newest(root / "backup")
            # As after a kill: rows and files that were written after the checkpoint.
            with (root / "log.csv").open("a") as file:
                file.write("9,9\n")
            found, second = run_stack(chosen, root, seed=50 + at, append=append)
        where = f"{at} {reference.log[at]} from {position}"
        wrong += [] if first.ended_early else [f"{where}: was not interrupted"]
        wrong += [f"{where}: {item}" for item in differences(expected, found)]
        wrong += [f"{where}: {item}" for item in differences(reference.state, second.state)[:3]]
        wrong += [f"{where}: logged {item}" for item in first.logged + second.logged]
        epochs = second.history.epoch
        wrong += [
            f"{where}: history of {name}"
            for name, values in second.history.history.items()
            if values != reference.history.history[name][epochs[0] if epochs else 0 :]
        ]
    return {"wrong": wrong, "tried": reference.hooks, "csv": expected["csv"], "best": expected["stopping"]}


def restarted(report: Report) -> dict[str, Any]:
    """Finish a fit, and start it again: nothing is left to do, and nothing may be lost."""
    strict()
    with directory() as root:
        root.mkdir()
        first, _ = run_stack(Fit(epochs=2), root)
        second, two = run_stack(Fit(epochs=2), root, seed=9)
        return {"differences": differences(first, second), "calls": two.calls, "csv": first["csv"]}


class LastWord(synalinks.callbacks.Callback):  # type: ignore[misc]
    """A user's callback that changes the program as training ends, differently in each process."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.last = text, ""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.last = str(complete_state(self.program)["variables"])

    def on_train_end(self, logs: Any = None) -> None:
        self.program.trainable_variables[0].update({"instructions": self.text})
        random.random()


def final_state(report: Report) -> dict[str, Any]:
    """Finish a fit that others change as it ends. Export it, start it again, and continue it with more epochs."""
    strict()

    def run(root: Path, text: str, epochs: int = 2, seed: int = 7) -> tuple[Outcome, str]:
        # Its best variables are those of the first epoch, and it sets them as training ends.
        early = synalinks.callbacks.EarlyStopping(
            monitor="val_reward", mode="min", patience=9, min_delta=9.0, restore_best_variables=True, stop_at=9
        )
        word = LastWord(text)
        outcome = run_fit(root, fit=Fit(epochs=epochs), callbacks=[early, word], seed=seed)
        return outcome, word.last

    with directory() as root:
        first, last = run(root, "first")
        files = CheckpointStore(root).names()
        checkpoint = CheckpointStore(root).latest()
        assert checkpoint is not None
        exported = state_tree(checkpoint)
        again, _ = run(root, "again", seed=9)
        more, _ = run(root, "more", epochs=3, seed=10)
    with directory() as root:
        whole, _ = run(root, "more", epochs=3)
    return {
        "differences": {
            "export": differences(first.program[0].get_state_tree(), exported),
            "restarted": differences(first.state, again.state),
            "continued": differences(whole.state, more.state),
        },
        "calls": again.calls,
        "files": files,
        "best": str(first.state["variables"]),
        "last": last,
    }


class Closing(synalinks.callbacks.Callback):  # type: ignore[misc]
    """A user's callback that can't tell its state once training has ended."""

    is_closed = False

    def get_state(self) -> dict[str, Any]:
        assert not self.is_closed, "it has closed its file"
        return {}

    def set_state(self, state: Any) -> None:
        pass

    def on_train_end(self, logs: Any = None) -> None:
        self.is_closed = True


def closed_objects(report: Report) -> list[str]:
    """Finish a fit with an object that can't be saved after training. Return the checkpoints."""
    strict()
    with directory() as root:
        closing = Closing()
        run_fit(root, fit=Fit(epochs=1), callbacks=[closing], state_of=[closing])
        return CheckpointStore(root).names()


def budget(report: Report) -> dict[str, Any]:
    """Return where a budget stops a fit, interrupted and not."""
    strict()

    def run(root: Path, interruption: Interruption | None = None, seed: int = 7) -> Any:
        limit = synalinks.callbacks.BudgetStopping(max_tokens=350)
        run_fit(root, interruption, callbacks=[limit], seed=seed)
        return limit.stop_reason, limit.stopped_epoch, limit.stopped_batch, limit.spent_tokens

    with directory() as root:
        whole = run(root)
    with directory() as root:
        run(root, Interruption(at=2, hooks=ENDS))
        return {"whole": whole, "resumed": run(root, seed=60)}


# -------------------------------------------------------------------- other callbacks than were saved


def stopping(patience: int, monitor: str = "val_reward") -> Any:
    return synalinks.callbacks.EarlyStopping(patience=patience, monitor=monitor, mode="max", stop_at=9)


def saving(root: Path) -> Any:
    return synalinks.callbacks.ProgramCheckpoint(str(root / "best.json"), mode="max", save_best_only=True)


def changed_list(report: Report) -> dict[str, Any]:
    """Interrupt after the first epoch, and resume with other callbacks in the list or another `state_of`."""
    strict()
    cases: dict[str, Callable[[Path], tuple[list[Any], dict[str, Any]]]] = {
        "same": lambda root: ([stopping(5), saving(root), stopping(6, "reward")], {}),
        "other order": lambda root: ([saving(root), stopping(5), stopping(6, "reward")], {}),
        "one added": lambda root: ([stopping(5), stopping(6, "reward"), saving(root), stopping(7)], {}),
        "one removed": lambda root: ([stopping(5), saving(root)], {}),
        "switched off": lambda root: ([stopping(5), saving(root), stopping(6, "reward")], {"state_of": ()}),
    }
    found: dict[str, Any] = {}
    for name, case in cases.items():
        with directory() as root:
            root.mkdir()
            first = [stopping(5), saving(root), stopping(6, "reward")]
            at_second_epoch = Interruption(at=3, hooks=("on_train_batch_begin",))
            run_fit(root / "run", at_second_epoch, callbacks=first)
            # Nothing is trained after the resume: so all that the new objects know was restored.
            others, options = case(root)
            outcome = run_fit(
                root / "run", Interruption(at=0, hooks=("on_epoch_begin",)), callbacks=others, seed=8, **options
            )
            known = [getattr(item, "best", None) for item in others]
            found[name] = {"known": known, "saved": [item.best for item in first], "logged": outcome.logged}
            found[name]["patience"] = [getattr(item, "patience", None) for item in others]
    return found


# -------------------------------------------------------------------- optimizers


class Annealing(synalinks.optimizers.RandomFewShot):  # type: ignore[misc]
    """Remembers its steps in attributes, and proposes instructions that depend on them."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.temperature = 1.0
        self.rng = np.random.default_rng(3)
        self._py, self._legacy = random.Random(4), np.random.RandomState(5)
        self._recent: Any = deque([1], maxlen=3)
        self._tabu: set[Any] = set()
        self._counts: dict[Any, int] = {}
        self._weights = np.ones(2, dtype=np.float32)
        self._last: tuple[Any, ...] = (0,)
        self._sketch = b""

    async def propose_new_candidates(self, step: Any, trainable_variables: Any, **kwargs: Any) -> None:
        await super().propose_new_candidates(step, trainable_variables, **kwargs)
        self.temperature *= 0.5
        self._recent.append(sum(self._recent))
        self._tabu.add((len(self._tabu), "a"))
        self._counts[len(self._counts)] = 1
        self._weights *= 2
        self._last = (*self._last, step)
        self._sketch += b"\\xff"
        seen = [self.temperature, self._recent, sorted(self._tabu), self._counts, self._weights.tolist(), self._last]
        draws = [self.rng.random(), self._py.random(), self._legacy.rand()]
        for variable in trainable_variables:
            variable.update({"instructions": f"{seen} {draws} {self._sketch!r}"})


def annealing_program(**settings: Any) -> Callable[[int], Any]:
    """Return a maker of programs whose optimizer is a user's, with these settings."""

    async def make(seed: int) -> tuple[Any, Any]:
        program, model = await build(Fit(), seed)
        optimizer = Annealing(name="opt")
        for name, value in settings.items():
            setattr(optimizer, name, value)
        program.compile(optimizer=optimizer, reward=synalinks.rewards.ExactMatch(in_mask=["answer"]))
        return program, model

    return make


def optimizer_state(report: Report) -> dict[str, Any]:
    """Interrupt a fit with a user's optimizer at each boundary, resume with another setting, and compare."""
    strict()
    fit, wrong, named = Fit(epochs=2), [], []
    with directory() as root:
        reference = run_fit(root, fit=fit, program=annealing_program())
    for at in range(reference.hooks):
        with directory() as root:
            first = run_fit(root, Interruption(at=at, hooks=ENDS), fit=fit, program=annealing_program())
            # The few shots are as many as the saved ones, so another size of the population changes nothing else.
            changed = annealing_program(population_size=23)
            second = run_fit(root, fit=fit, program=changed, seed=50 + at)
        optimizer = second.program[0].optimizer
        wrong += [f"{at}: {item}" for item in differences(reference.state, second.state)[:3]]
        wrong += [f"{at}: logged {item}" for item in first.logged]
        named += [message.partition(": ")[2].partition(". ")[0] for message in second.logged]
        wrong += [] if optimizer.population_size == 23 else [f"{at}: the user's population_size has lost"]
        wrong += [] if (type(optimizer._recent), optimizer._recent.maxlen) == (deque, 3) else [f"{at}: no deque"]
    return {"wrong": wrong, "tried": reference.hooks, "named": named}


# -------------------------------------------------------------------- bodies of earlier versions


def old_body(report: Report) -> dict[str, Any]:
    """Apply a body in the form of the version before: attributes and objects as plain JSON."""
    strict()

    async def run() -> dict[str, Any]:
        program, _ = await annealing_program()(7)
        state = TrainingState(program)
        await state.build()
        body = decode_state(state.capture())
        saved = {"wait": 3, "best": {"$set": [1]}}
        early = {"class": "EarlyStopping", "state": saved, "functions": {"monitor_op": "less"}}
        own = {"class": "Counter", "state": {"epochs": [1, 2]}, "functions": {}}
        body["optimizer"], body["objects"] = {"_difficulty": {"$tuple": [1]}, "_last": [0, 1]}, [early, own]
        program, _ = await annealing_program()(8)
        others = [synalinks.callbacks.EarlyStopping(), Counter()]
        state = TrainingState(program, others)
        await state.build()
        state.apply(encode_state(body))
        stopping, counter = others
        return {
            "wait": stopping.wait,
            "best": stopping.best,
            "function": stopping.monitor_op is np.less,
            "epochs": counter._epochs,
            "difficulty": {key: list(value) for key, value in program.optimizer._difficulty.items()},
            "last": list(program.optimizer._last),
        }

    return asyncio.run(run())


def old_final(report: Report) -> list[str]:
    """Add a final state to a body of version 0.3, which had other marks. Return the values of a named object."""
    strict()

    def tagged(value: Any) -> Any:
        if isinstance(value, dict):
            return {f"${key}": tagged(item) for key, item in value.items()}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(value)}
        return [tagged(item) for item in value] if isinstance(value, list) else value

    async def run() -> list[str]:
        program, _ = await annealing_program()(7)
        state = TrainingState(program, [Counter()])
        await state.build()
        body = decode_state(state.capture())
        saved = {"epochs": [math.inf, math.nan, -math.inf]}
        body["optimizer"], body["objects"] = {}, [{"class": "Counter", "state": saved, "functions": {}}]
        final = state.capture_final(json.dumps({"tagged": tagged(body)}).encode())
        counter = Counter()
        state = TrainingState(program, [counter])
        await state.build()
        state.apply(final)
        return sorted(map(str, counter._epochs))

    return asyncio.run(run())


# -------------------------------------------------------------------- parts by themselves


def time_of_phases(report: Report) -> dict[str, Any]:
    """Restore the counters of one program in another one. Return times and counts."""
    strict()

    async def run() -> dict[str, Any]:
        program, model = await counting_program()
        program._phase_clock.add("inference", 5.0)
        model.cumulated_details["prompt_audio"] = 3
        state = Counters(program).capture()
        other, model = await counting_program(seed=9)
        model.cumulated_calls, details = 4, model.cumulated_details
        details["old"] = 1
        restored = Counters(other).restore(state)
        seconds = read_phase_wall_clock_s("inference", other._phase_clock)
        return {"restored": restored, "seconds": seconds, "calls": model.cumulated_calls, "details": dict(details)}

    return asyncio.run(run())


def other_models(report: Report) -> dict[str, Any]:
    """Resume with a second model in the program. Return what a budget has spent, and what was logged."""
    strict()

    async def two_models(seed: int) -> tuple[Any, Any]:
        program, model = await counting_program(seed)
        model.fallback = CountingModel()
        model.fallback.cumulated_tokens = 1000
        return program, model

    with directory() as root:
        first, second = (synalinks.callbacks.BudgetStopping(max_tokens=100_000) for _ in range(2))
        run_fit(root, Interruption(at=2, hooks=ENDS), callbacks=[first])
        saved = first.spent_tokens
        at_once = Interruption(at=0, hooks=("on_epoch_begin",))
        outcome = run_fit(root, at_once, callbacks=[second], program=two_models, seed=8)
        since = outcome.program[1].cumulated_tokens - 8
        return {"saved": saved, "since": since, "logged": outcome.logged, "spent": second.spent_tokens}


def monitor(report: Report) -> dict[str, Any]:
    """Return the state of a `Monitor` that was restored, and one of its settings."""
    first, second = (
        synalinks.callbacks.Monitor(experiment_name=name, tracking_uri="file:/nowhere") for name in ("old", "new")
    )
    first._steps, first._logged_models, first._model_best = {"train": 5, "val": 2, "test": 0}, [(0, "m-1", 0.5)], 0.5
    state = decode_state(encode_state({"variables": {}, "objects": HostCallback(first).capture()}))["objects"]
    HostCallback(second).restore(state, InPlace())
    return {"state": [second._steps, second._logged_models, second._model_best], "name": second.experiment_name}


def missing_file(report: Report) -> dict[str, Any]:
    """Remove the file of a `CSVLogger` during the fit, and resume elsewhere. Return the rows and what was logged."""
    strict()

    class Remover(synalinks.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                (root / "log.csv").unlink()

    with directory() as root:
        root.mkdir()
        log = synalinks.callbacks.CSVLogger(root / "log.csv")
        first = run_fit(root / "run", Interruption(at=4, hooks=("on_train_batch_end",)), callbacks=[log, Remover()])
        log = synalinks.callbacks.CSVLogger(root / "log.csv")
        second = run_fit(root / "run", callbacks=[log])
        lines = (root / "log.csv").read_text().splitlines()
        return {"logged": first.logged + second.logged, "epochs": [line.partition(",")[0] for line in lines]}
