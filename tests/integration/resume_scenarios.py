"""What the children of the tests of exact resume run: fits that are interrupted and go on. Imports synalinks.

One child runs a whole matrix of fits, each with a program of its own, so that synalinks is imported once. A fit that
goes on gets generators seeded otherwise than the interrupted one: what is equal at the end was restored.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
import tempfile
import warnings
from collections import Counter as Counted
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import pydantic
import synalinks

from distributed_backup import BackupAndRestore, CheckpointStore, Preempted
from distributed_backup.errors import ProgramMismatchError
from distributed_backup.position import Position
from distributed_backup.training import session as fit_session
from tests.support.programs import batches, build_program, complete_state, samples

Report = Callable[..., None]

# Every hook of a fit at which something can come between, but the first and the last.
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
    """What a callback of the user raises, as in synalinks' own tests of its backups."""


class Batches:
    """Batches that can be walked again and again."""

    def __init__(self, count: int, batch_size: int) -> None:
        self._count, self._batch_size = count, batch_size

    def __iter__(self) -> Iterator[Any]:
        return batches(self._count, self._batch_size)


class SizedBatches(Batches):
    """Batches that say how many they are."""

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
        raise ValueError(self.data)


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """What comes between, at the how manyeth of certain hooks."""

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
        if how == "cut off":
            self.model.latency = 600.0
        self.backup._session._worker.give_notice("TEST")


@dataclass(kw_only=True)
class Outcome:
    """What one part of a fit came to."""

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
    """One program's fit, from whatever is in `backup_dir`, to its end or to the interruption."""
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
        except InterruptedFitError:
            outcome.interrupted = True
    if outcome.interrupted and backup_dir is not None:
        exit_interpreter(backup_dir)
    outcome.state, outcome.calls = complete_state(program), model.calls - calls
    return outcome


def _count_hooks(optimizer: Any) -> Counted[str]:
    """Have an optimizer count the hooks that it is called at."""
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
    """Do what the interpreter's exit would do, of which a fit that died in a callback leaves the rest to."""
    for session in list(fit_session._open_sessions):
        if session._location == str(root.absolute()):
            session.end()


def run_part(fit: Fit, backup_dir: Path | None, interruption: Interruption | None = None, **more: Any) -> Outcome:
    """`part` in an event loop of its own, as a fresh process would."""
    return asyncio.run(part(fit, backup_dir, interruption, **more))


@contextmanager
def _logged() -> Iterator[list[str]]:
    """What our package logs as a warning or worse, but for the notices that we give ourselves."""
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
    """Warnings are errors, but for those that synalinks and its dependencies give by themselves."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module=r"(pydantic|litellm|synalinks)(\.|$)")


def _remember(owner: Any, name: str, wrap: Callable[[Any], Any] = lambda function: function) -> None:
    """Make fits some five times as fast: synalinks works the same schemas and templates out again at each call."""
    original = vars(owner)[name]
    function = getattr(original, "__func__", original)
    known: dict[Any, Any] = {}

    def remembered(first: Any, *args: Any, **kwargs: Any) -> Any:
        key = (first if wrap is classmethod else None, args, tuple(sorted(kwargs.items())))
        if key not in known:
            known[key] = function(first, *args, **kwargs)
        return copy.deepcopy(known[key])

    setattr(owner, name, wrap(remembered))


_remember(pydantic.BaseModel, "model_json_schema", classmethod)
_remember(jinja2.Environment, "compile")


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """The places where two states differ, for a message that can be read."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [item for key in one for item in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other) < 100:
        return [
            item for index in range(len(one)) for item in differences(one[index], other[index], f"{where}[{index}]")
        ]
    return [] if repr(one) == repr(other) else [f"{where}: {repr(one)[:80]} != {repr(other)[:80]}"]


def newest(root: Path) -> Position | None:
    """Where the newest checkpoint in a directory stands."""
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
    """Interrupt a fit at each of its hooks in turn, go on, and compare with the same fit without our callback.

    Returns:
        What was not as promised, under "wrong"; how many interruptions were tried; the calls that each repeated, and
        those of the batch that each fell into; at how many positions the fits went on.
    """
    strict()
    chosen, options = Fit(**fit), options or {}
    reference = run_part(chosen, None, hooks=hooks)
    wrong = [f"undisturbed: {item}" for item in undisturbed(chosen, reference, options)]
    repeated, resumed_at = [], set()
    for at in range(reference.hooks):
        with directory() as root:
            first = run_part(chosen, root, Interruption(at=at, hooks=hooks, how=how), options=options)
            position = newest(root)
            # A fit that has nothing to go on from begins again, with the generators as they were.
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
    """How a fit with our callback differs from one without."""
    with directory() as root:
        outcome = run_part(fit, root, options=options)
    found = differences(reference.state, outcome.state) + outcome.logged
    found += differences(reference.history.history, outcome.history.history, "history")
    return found + ([] if outcome.calls == reference.calls else [f"{outcome.calls} calls, not {reference.calls}"])


def in_flight(reference: Outcome) -> list[int]:
    """For each hook, the calls from it to the next."""
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
    """Stops training in the middle of an epoch, as a budget does; synalinks still validates that epoch."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.batches = after, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        if self.batches == self.after:
            self.program.stop_training = True


class Counter(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Keeps its state to itself, and gives it when it is asked."""

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
    """Callbacks that remember: what they hold at the end is to be that of the whole run."""
    stopping = [synalinks.callbacks.EarlyStopping(**stop)] if "monitor" in stop else []
    stopping += [Stopper(**stop)] if "after" in stop else []
    return [synalinks.callbacks.History(), Counter(), *stopping]


def remembered(callbacks: list[Any]) -> list[Any]:
    """What they hold, by their public attributes."""
    hidden = {"params", "_program", "monitor_op"}
    return [{name: value for name, value in vars(item).items() if name not in hidden} for item in callbacks]


def state_of(report: Report, fit: dict[str, Any], stop: dict[str, Any]) -> dict[str, Any]:
    """Interrupt a fit with other callbacks at each hook, go on, and compare what those remember."""
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
    """The epochs in the history of a fit that went on after its first epoch, without `state_of`."""
    with directory() as root:
        run_part(fit, root, Interruption(at=0, hooks=("on_epoch_end",)))
        return list(run_part(fit, root).history.epoch)


# -------------------------------------------------------------------- one case each


def instance_attributes(program: Any) -> dict[str, list[str]]:
    """What is set on a program and its optimizer; methods that were put there show by their names."""
    return {
        role: sorted(f"{name}()" if callable(value) else name for name, value in vars(owner).items())
        for role, owner in (("program", program), ("optimizer", program.optimizer))
    }


def second_fit(report: Report) -> dict[str, Any]:
    """Three fits of one program, the second one resumed: what each trains, and what is left on the instances."""
    strict()
    fit = Fit(optimizer="omega")

    async def run(root: Path) -> dict[str, Any]:
        first = await part(fit, None)
        before, finished = instance_attributes(first.program[0]), {"delete_checkpoint": True}
        second = await part(fit, root, program=first.program, options=finished)
        interrupted = await part(fit, root, Interruption(at=9), program=first.program)
        left_by_preemption = instance_attributes(first.program[0])
        resumed = await part(fit, root, program=first.program, options=finished)
        again = await part(fit, root, program=first.program, options=finished)
        return {
            "epochs": [outcome.history.epoch for outcome in (first, second, resumed, again)],
            "position": interrupted.preempted and interrupted.preempted.position,
            "before": before,
            "after": instance_attributes(first.program[0]),
            "after_preemption": left_by_preemption,
        }

    with directory() as root:
        return asyncio.run(run(root))


def fit_without_us_after_a_death(report: Report) -> dict[str, Any]:
    """A fit dies of another callback's exception, unseen by us; the program's next fits have no callback of ours."""
    strict()
    fit = Fit()

    async def unended(root: Path) -> Outcome:
        await part(fit, root, Interruption(at=3))
        program = await build(fit, seed=99)
        other = Interrupter(("on_epoch_end",), Interruption(at=0, how="raise"))
        other.model, backup = program[1], BackupAndRestore(root, save_freq=1)
        with suppress(InterruptedFitError):
            await program[0].fit(callbacks=[other, backup], **fit.inputs(), epochs=3, minibatch_size=None, verbose=0)
        return await part(fit, None, program=program)

    async def reference() -> Outcome:
        program = await build(fit)
        await part(fit, None, Interruption(at=0, hooks=("on_epoch_end",), how="raise"), program=program)
        return await part(fit, None, program=program)

    with directory() as root:
        expected, outcome = asyncio.run(reference()), asyncio.run(unended(root))
        attributes = instance_attributes(outcome.program[0])
        exit_interpreter(root)
        return {
            "wrong": differences(expected.state, outcome.state),
            "attributes": [
                instance_attributes(expected.program[0]),
                attributes,
                instance_attributes(outcome.program[0]),
            ],
            "calls": [expected.calls, outcome.calls],
        }


def mismatch(report: Report, saved: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A program finds a checkpoint of another one; what it says, and what it has become."""
    strict()

    async def run(root: Path) -> dict[str, Any]:
        await part(Fit(**saved), root, Interruption(at=9))
        program = await build(Fit(**other))
        await program[0].optimizer.on_train_begin(program[0].trainable_variables)
        expected = complete_state(program[0])
        program = await build(Fit(**other))
        attributes = instance_attributes(program[0])
        try:
            await part(Fit(**other), root, program=program)
        except ProgramMismatchError as error:
            message = str(error)
        else:
            message = "no error"
        wrong = [
            item
            for item in differences(expected, complete_state(program[0]))
            if not item.startswith((".variables.optimizer", ".variables.metrics"))
        ]
        return {
            "message": message,
            "wrong": wrong,
            "attributes": [
                {kind: [name for name in names if name.endswith("()")] for kind, names in item.items()}
                for item in (attributes, instance_attributes(program[0]))
            ],
            "initial_epoch": program[0]._initial_epoch,
            "position": newest(root),
        }

    with directory() as root:
        return asyncio.run(run(root))


def changed_data(report: Report, change: dict[str, Any]) -> dict[str, Any]:
    """A fit is interrupted within its second epoch and goes on with other data."""
    strict()
    fit = Fit()
    with directory() as root:
        first = run_part(fit, root, Interruption(at=1, hooks=("on_epoch_begin",)))
        second = run_part(replace(fit, **change), root, seed=100)
        return {
            "interrupted_at": first.preempted and first.preempted.position,
            "epochs": second.history.epoch,
            "batches": second.log.count("on_train_batch_end"),
            "logged": second.logged,
        }


def fit_as_a_task(report: Report) -> dict[str, Any]:
    """A fit runs as one task of many in a running loop, is preempted there, and goes on as another task."""
    strict()
    fit = Fit()
    reference = run_part(fit, None)

    async def train(root: Path, interruption: Interruption | None, seed: int, keep: list[Any]) -> Any:
        program, model = await build(fit, seed)
        keep.append((program, model))
        interrupter = Interrupter(HOOKS, interruption)
        interrupter.backup = backup = BackupAndRestore(root, save_freq=False, delete_checkpoint=False)
        interrupter.model = model
        arguments = {**fit.inputs(), "epochs": fit.epochs, "minibatch_size": None, "verbose": 0}
        ticking = asyncio.create_task(asyncio.sleep(600))
        task = asyncio.create_task(program.fit(callbacks=[interrupter, backup], **arguments))
        await asyncio.wait([task, ticking], return_when=asyncio.FIRST_COMPLETED)
        ticking.cancel()
        return complete_state(program)

    with directory() as root:
        programs: list[Any] = []
        try:
            asyncio.run(train(root, Interruption(at=20), 7, programs))
        except Preempted as preempted:
            position = preempted.position
        state = asyncio.run(train(root, None, 8, programs))
    calls = sum(model.calls for _, model in programs)
    return {"position": position, "wrong": differences(reference.state, state), "calls": calls - reference.calls}


def properties(report: Report, examples: int) -> dict[str, Any]:
    """Draw programs, data, ways to save and ways to be interrupted; what did not end as it should, if anything."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    strict()
    seen: list[Any] = []
    references: dict[str, Outcome] = {}
    fits = st.builds(
        Fit,
        optimizer=st.sampled_from(["few-shot", "omega"]),
        modules=st.integers(1, 2),
        data=st.sampled_from(["arrays", "arrays in portions", "re-iterable", "sized re-iterable", "generator"]),
        steps=st.integers(1, 4),
        batch_size=st.integers(1, 3),
        epochs=st.integers(1, 3),
        val_size=st.integers(1, 3),
        arguments=st.fixed_dictionaries(
            {"validation_freq": st.integers(1, 2), "validation_batch_size": st.integers(1, 2)}
        ),
    )

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        fit=fits,
        save_freq=st.sampled_from([False, 1, 2, 3, "epoch"]),
        how=st.sampled_from(["notice", "notice", "raise"]),
        boundary=st.lists(st.integers(0, 10_000), min_size=1, max_size=3),
    )
    def check(fit: Fit, save_freq: Any, how: str, boundary: list[int]) -> None:
        key = repr(fit)
        if key not in references:
            references[key] = run_part(fit, None)
        reference, options = references[key], {"save_freq": save_freq}
        calls, interrupted = 0, 0
        with directory() as root:
            for number in [*boundary, None]:
                seed = 7 if newest(root) is None else 100 + interrupted
                what = None if number is None else Interruption(at=number % reference.hooks, how=how)
                outcome = run_part(fit, root, what, seed=seed, options=options)
                calls += outcome.calls
                interrupted += outcome.ended_early
                if not outcome.ended_early:
                    break
        seen.append((how, save_freq, interrupted))
        assert differences(reference.state, outcome.state)[:3] == []
        assert outcome.logged == []
        assert calls == reference.calls if how == "notice" else calls >= reference.calls

    try:
        check()
    except AssertionError as error:
        return {"wrong": "\n".join([str(error), *getattr(error, "__notes__", [])]), "seen": seen}
    return {"wrong": None, "seen": seen}
