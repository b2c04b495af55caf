"""Run fits that are interrupted and resumed in a child. Imports synalinks.

For `test_exact_resume`, `test_resumed_data` and `test_interruptions`.

One child runs a whole matrix of fits, each with its own program, so that synalinks is imported once. A resumed fit
starts with other seeds than the interrupted one, so an equal state at the end was restored.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import tempfile
import warnings
from collections import Counter as Counted
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import synalinks

from distributed_backup import BackupAndRestore, CheckpointStore, Preempted
from distributed_backup.position import Position
from distributed_backup.training import session as fit_session
from tests.support.datasets import shuffled
from tests.support.programs import batches, build_program, complete_state, samples

Report = Callable[..., None]

# Every hook of a fit except the first and the last: those at which an interruption is possible.
HOOKS = (
    "on_epoch_begin",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_begin",
    "on_test_batch_begin",
    "on_test_batch_end",
    "on_test_end",
    "on_epoch_end",
)
ENDS = ("on_train_batch_end", "on_test_batch_end", "on_epoch_end")


class InterruptedFitError(Exception):
    """The error that a user's callback raises, as in synalinks' own tests."""


class Batches:
    """Batches that can be iterated many times."""

    def __init__(self, count: int, batch_size: int) -> None:
        self._count, self._batch_size = count, batch_size

    def __iter__(self) -> Iterator[Any]:
        return batches(self._count, self._batch_size)


class SizedBatches(Batches):
    """Batches with a length."""

    def __len__(self) -> int:
        return self._count


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fit: 3 training batches of 2 and 2 validation batches of 1 in each of 3 epochs, unless said otherwise."""

    optimizer: str = "few-shot"
    modules: int = 1
    trainable: bool = True
    data: str = "arrays"
    steps: int = 3
    batch_size: int = 2
    epochs: int = 3
    val_size: int = 2
    latency: float = 0.0
    steps_per_execution: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)

    def inputs(self) -> dict[str, Any]:
        """The data, with a validation set that no training batch contains."""
        validation = {
            "validation_data": samples(self.val_size, offset=1000),
            "validation_batch_size": 1,
        }
        if self.data == "arrays":
            x, y = samples(self.steps * self.batch_size)
            return {"x": x, "y": y, "batch_size": self.batch_size, **validation}
        if self.data == "arrays in portions":
            x, y = samples(self.steps * self.batch_size * self.epochs)
            return {"x": x, "y": y, "batch_size": self.batch_size, "steps_per_epoch": self.steps, **validation}
        if self.data == "re-iterable":
            return {"x": Batches(self.steps, self.batch_size), **validation}
        if self.data == "sized re-iterable":
            return {"x": SizedBatches(self.steps, self.batch_size), **validation}
        if self.data == "generator":
            count = self.steps * self.epochs
            return {"x": batches(count, self.batch_size), "steps_per_epoch": self.steps, **validation}
        if self.data == "generator until it ends":
            return {"x": batches(self.steps, self.batch_size), **validation}
        data, in_portions = self.data.removesuffix(", in portions"), self.data.endswith(", in portions")
        count = self.steps * self.epochs if in_portions else self.steps
        arguments = shuffled(data, count=count, batch_size=self.batch_size, epochs=self.epochs)
        return {**arguments, **({"steps_per_epoch": self.steps} if in_portions else {}), **validation}


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """An interruption: at which call of which hooks, and how."""

    at: int
    hooks: tuple[str, ...] = HOOKS
    how: str = "notice"


class Interrupter(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Counts hooks, and interrupts at one of them."""

    def __init__(self, hooks: tuple[str, ...], interruption: Interruption | None) -> None:
        super().__init__()
        self.backup: Any = None
        self.model: Any = None
        self.log: list[str] = []
        self.calls: list[int] = []
        self._interruption = interruption
        for name in hooks:
            setattr(self, name, self._hook(name))

    def _hook(self, name: str) -> Callable[..., None]:
        def called(*args: Any, **kwargs: Any) -> None:
            self.log.append(name)
            self.calls.append(self.model.calls)
            if self._interruption is not None and len(self.log) == self._interruption.at + 1:
                self._interrupt(self._interruption.how)

        return called

    def _interrupt(self, how: str) -> None:
        if how == "raise":
            raise InterruptedFitError
        if how == "cancel":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            return
        if how == "cut off":
            self.model.latency = 600.0
        self.backup._session._worker.give_notice("TEST")


@dataclass(kw_only=True)
class Outcome:
    """The result of one part of a fit."""

    state: dict[str, Any] = field(default_factory=dict)
    calls: int = 0
    history: Any = None
    preempted: Preempted | None = None
    interrupted: bool = False
    logged: list[str] = field(default_factory=list)
    program: Any = None
    log: list[str] = field(default_factory=list)
    calls_at: list[int] = field(default_factory=list)
    optimizer_hooks: Counted[str] = field(default_factory=Counted)

    @property
    def hooks(self) -> int:
        return len(self.log)

    @property
    def ended_early(self) -> bool:
        return self.preempted is not None or self.interrupted


async def part(
    fit: Fit,
    backup_dir: Path | None,
    interruption: Interruption | None = None,
    *,
    seed: int = 7,
    callbacks: Callable[[Any, Interrupter], Any] = lambda backup, interrupter: [interrupter, backup],
    options: dict[str, Any] | None = None,
    hooks: tuple[str, ...] | None = None,
    program: Any = None,
) -> Outcome:
    """Run one fit from the content of `backup_dir` to its end or to the interruption."""
    program, model = program or await build(fit, seed)
    calls = model.calls
    interrupter = Interrupter(hooks or (interruption.hooks if interruption else HOOKS), interruption)
    options = {"save_freq": False, "delete_checkpoint": False, **(options or {})}
    backup = None if backup_dir is None else BackupAndRestore(backup_dir, **options)
    interrupter.backup, interrupter.model = backup, model
    chosen = [interrupter] if backup is None else callbacks(backup, interrupter)
    outcome = Outcome(program=(program, model), log=interrupter.log, calls_at=interrupter.calls)
    outcome.optimizer_hooks = _count_hooks(program.optimizer)
    arguments = {**fit.inputs(), "epochs": fit.epochs, "minibatch_size": None, "verbose": 0, **fit.arguments}
    with _logged() as outcome.logged:
        try:
            outcome.history = await program.fit(callbacks=chosen, **arguments)
        except Preempted as preempted:
            outcome.preempted = preempted
        except (InterruptedFitError, asyncio.CancelledError):
            outcome.interrupted = True
    if outcome.interrupted and backup_dir is not None:
        exit_interpreter(backup_dir)
    outcome.state, outcome.calls = complete_state(program), model.calls - calls
    return outcome


def _count_hooks(optimizer: Any) -> Counted[str]:
    """Make an optimizer count the calls of its hooks."""
    kind = type(optimizer)
    counts = Counted[str]()

    class Counting(kind):  # type: ignore[misc,valid-type]
        async def on_batch_begin(self, *args: Any, **kwargs: Any) -> None:
            counts["on_batch_begin"] += 1
            await super().on_batch_begin(*args, **kwargs)

        async def on_batch_end(self, *args: Any, **kwargs: Any) -> None:
            counts["on_batch_end"] += 1
            await super().on_batch_end(*args, **kwargs)

        async def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            counts["on_epoch_end"] += 1
            await super().on_epoch_end(*args, **kwargs)

    # The automatic name of an optimizer is that of its class.
    Counting.__name__ = kind.__name__
    optimizer.__class__ = Counting
    return counts


async def build(fit: Fit, seed: int = 7) -> tuple[Any, Any]:
    """A program and its model. Metrics have the names that they would have in a process of their own."""
    program, model = await build_program(optimizer=fit.optimizer, modules=fit.modules, latency=fit.latency, seed=seed)
    program.steps_per_execution = fit.steps_per_execution
    program.trainable = fit.trainable
    for metric in program._compile_metrics._user_metrics:
        metric.name = "accuracy"
    return program, model


def exit_interpreter(root: Path) -> None:
    """End the sessions of `root`, as the interpreter's exit would."""
    for session in list(fit_session._open_sessions):
        if session.location == str(root.absolute()):
            session.end()


def run_part(fit: Fit, backup_dir: Path | None, interruption: Interruption | None = None, **more: Any) -> Outcome:
    """`part` in an event loop of its own, as a fresh process would."""
    return asyncio.run(part(fit, backup_dir, interruption, **more))


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Collect our log messages from WARNING up, except those of the notices that the test gives."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not record.getMessage().startswith("notice worker="):
                messages.append(record.getMessage())

    handler = Collector(logging.WARNING)
    logger = logging.getLogger("distributed_backup")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


@contextmanager
def directory() -> Iterator[Path]:
    """A directory for one run."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name) / "run"


def strict() -> None:
    """Make warnings errors, except those that synalinks and its dependencies cause."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module=r"(pydantic|litellm|synalinks)(\.|$)")


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return the places where two states differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [item for key in one for item in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other) < 100:
        return [
            item for index in range(len(one)) for item in differences(one[index], other[index], f"{where}[{index}]")
        ]
    return [] if repr(one) == repr(other) else [f"{where}: {repr(one)[:80]} != {repr(other)[:80]}"]


def newest(root: Path) -> Position | None:
    """Return the position of the newest checkpoint in a directory."""
    header = CheckpointStore(root).newest_header()
    return None if header is None else header.position


# -------------------------------------------------------------------- the matrix


def matrix(
    report: Report,
    fit: dict[str, Any],
    hooks: tuple[str, ...] = HOOKS,
    how: str = "notice",
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Interrupt a fit at each of its hooks in turn, resume it, and compare it with the same fit without our callback.

    Return the broken promises under "wrong", the number of interruptions, and the number of positions resumed from. For
    each interruption return the calls that were repeated, and the calls of the batch in flight.
    """
    strict()
    chosen, options = Fit(**fit), options or {}
    draws = chosen.arguments.get("minibatch_size") is not None
    with directory() as root:
        # synalinks draws minibatches without a seed, so only a fit with our callback can be repeated.
        reference = run_part(chosen, root if draws else None, hooks=hooks, options=options if draws else None)
    wrong = [f"undisturbed: {item}" for item in undisturbed(chosen, reference, options)]
    repeated, resumed_at = [], set()
    for at in range(reference.hooks):
        with directory() as root:
            first = run_part(chosen, root, Interruption(at=at, hooks=hooks, how=how), options=options)
            position = newest(root)
            # Without a checkpoint the fit begins again, with the same seed.
            second = run_part(chosen, root, seed=7 if position is None else 100 + at, options=options)
        where = f"{at} {reference.log[at]} from {position}"
        wrong += [] if first.ended_early else [f"{where}: was not interrupted"]
        wrong += [f"{where}: {item}" for item in differences(reference.state, second.state)[:3]]
        told = [item for item in second.logged if "was led before and has no checkpoint" in item]
        wrong += [f"{where}: logged {item}" for item in first.logged + second.logged if item not in told]
        if len(told) != (position is None):
            wrong.append(f"{where}: told {len(told)} times that it begins anew")
        hooks_called = first.optimizer_hooks + second.optimizer_hooks
        if how == "notice" and hooks_called != reference.optimizer_hooks:
            wrong.append(f"{where}: {hooks_called}, not {reference.optimizer_hooks}")
        resumed_at.add(position)
        repeated.append(first.calls + second.calls - reference.calls)
    return {
        "wrong": wrong,
        "tried": reference.hooks,
        "repeated": repeated,
        "in_flight": in_flight(reference),
        "resumed_at": len(resumed_at),
    }


def undisturbed(fit: Fit, reference: Outcome, options: dict[str, Any]) -> list[str]:
    """Return the differences between a fit with our callback and one without."""
    with directory() as root:
        outcome = run_part(fit, root, options=options)
    found = differences(reference.state, outcome.state) + outcome.logged
    found += differences(reference.history.history, outcome.history.history, "history")
    return found + ([] if outcome.calls == reference.calls else [f"{outcome.calls} calls, not {reference.calls}"])


def in_flight(reference: Outcome) -> list[int]:
    """Return for each hook the calls from it to the next."""
    calls = [*reference.calls_at, reference.calls]
    return [later - earlier for earlier, later in itertools.pairwise(calls)]


def chain(report: Report, fit: dict[str, Any], cases: list[list[int]]) -> dict[str, Any]:
    """Interrupt a fit more than once: for each case, at these hooks of its successive parts."""
    strict()
    chosen = Fit(**fit)
    reference = run_part(chosen, None)
    wrong, walked = [], []
    for case in cases:
        with directory() as root:
            outcomes, passed = [], []
            for number, at in enumerate(case):
                outcomes.append(run_part(chosen, root, Interruption(at=at), seed=50 + number if number else 7))
                passed.append(newest(root) or Position(0))
            last = run_part(chosen, root, seed=99)
        calls = sum(outcome.calls for outcome in outcomes) + last.calls
        wrong += [] if all(outcome.ended_early for outcome in outcomes) else [f"{case}: was not interrupted"]
        wrong += [f"{case} {passed}: {item}" for item in differences(reference.state, last.state)[:3]]
        wrong += [f"{case}: {calls} calls, not {reference.calls}"] if calls != reference.calls else []
        wrong += [f"{case}: logged {item}" for outcome in outcomes for item in outcome.logged]
        walked.append([(position.epoch, position.batch) for position in passed])
    return {"wrong": wrong, "walked": walked}


# -------------------------------------------------------------------- the state of other callbacks


class Stopper(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Stops training in the middle of an epoch, as a budget does. synalinks still validates that epoch."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.batches = after, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        if self.batches == self.after:
            self.program.stop_training = True


class Counter(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Has private state, with `get_state` and `set_state`."""

    def __init__(self) -> None:
        super().__init__()
        self._epochs: set[int] = set()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._epochs.add(epoch)

    def get_state(self) -> dict[str, Any]:
        return {"epochs": sorted(self._epochs)}

    def set_state(self, state: dict[str, Any]) -> None:
        self._epochs = set(state["epochs"])


def observers(stop: dict[str, Any]) -> list[Any]:
    """Return callbacks with state, which must end with that of the whole run."""
    stopping = [synalinks.callbacks.EarlyStopping(**stop)] if "monitor" in stop else []
    stopping += [Stopper(**stop)] if "after" in stop else []
    return [synalinks.callbacks.History(), Counter(), *stopping]


def remembered(callbacks: list[Any]) -> list[Any]:
    """Return the public attributes of callbacks."""
    hidden = {"params", "_program", "monitor_op"}
    return [{name: value for name, value in vars(item).items() if name not in hidden} for item in callbacks]


def state_of(report: Report, fit: dict[str, Any], stop: dict[str, Any]) -> dict[str, Any]:
    """Interrupt a fit with other callbacks at each hook, resume, and compare their state."""
    strict()
    chosen, wrong = Fit(**fit), []

    def observed(at: int | None, root: Path | None, **more: Any) -> tuple[list[Any], Outcome]:
        others = observers(stop)
        hooks = ("on_train_batch_end", "on_test_begin", "on_test_batch_end", "on_epoch_end")
        interruption = Interruption(at=-1 if at is None else at, hooks=hooks)
        return others, run_part(
            chosen,
            root,
            interruption,
            callbacks=lambda backup, interrupter: [backup, *others, interrupter],
            options={"state_of": others},
            **more,
        )

    with directory() as root:
        others, reference = observed(None, root)
    for at in range(reference.hooks):
        with directory() as root:
            _, first = observed(at, root)
            position = newest(root)
            restored, second = observed(None, root, seed=100 + at)
        where = f"{at} {reference.log[at]} from {position}"
        wrong += [] if first.ended_early else [f"{where}: was not interrupted"]
        wrong += [f"{where}: {item}" for item in differences(remembered(others), remembered(restored))]
        wrong += [f"{where}: {item}" for item in differences(reference.state, second.state)[:3]]
        if first.calls + second.calls != reference.calls:
            wrong.append(f"{where}: {first.calls} + {second.calls} calls, not {reference.calls}")
    epochs = others[0].epoch
    return {"wrong": wrong, "tried": reference.hooks, "epochs": epochs, "resumed_part_only": resumed_history(chosen)}


def resumed_history(fit: Fit) -> list[int]:
    """Return the epochs in the history of a fit that resumed after its first epoch, without `state_of`."""
    with directory() as root:
        run_part(fit, root, Interruption(at=0, hooks=("on_epoch_end",)))
        return list(run_part(fit, root).history.epoch)
