"""Run single cases of exact resume in a child, for `test_exact_resume` and `test_interruptions`. Imports synalinks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import litellm
import synalinks

from distributed_backup import BackupAndRestore, Preempted
from distributed_backup.clock import SystemClock
from distributed_backup.errors import ProgramMismatchError
from distributed_backup.training.cancellation import CancelScope, DeadlineExceededError
from tests.integration.resume_scenarios import (
    HOOKS,
    Fit,
    InterruptedFitError,
    Interrupter,
    Interruption,
    Outcome,
    Report,
    build,
    differences,
    directory,
    exit_interpreter,
    newest,
    part,
    run_part,
    strict,
)
from tests.support.programs import Query, complete_state, samples


def instance_attributes(program: Any) -> dict[str, list[str]]:
    """Return the attributes set on a program and its optimizer. Methods have `()` after their names."""
    return {
        role: sorted(f"{name}()" if callable(value) else name for name, value in vars(owner).items())
        for role, owner in (("program", program), ("optimizer", program.optimizer))
    }


def second_fit(report: Report) -> dict[str, Any]:
    """Run several fits of one program, one of them resumed. Return their epochs and the instances' attributes."""
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
    """Let another callback's exception end a fit unseen. Run the program's next fit without our callback."""
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
    """Give a program the checkpoint of another one. Return the error and the program's differences."""
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
    """Interrupt a fit in its second epoch, and resume it with other data."""
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
    """Preempt a fit that is one task of a running loop, and resume it as a task of another loop."""
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
    """Draw programs, data, schedules and interruptions. Return the first that did not resume exactly."""
    from hypothesis import HealthCheck, example, given, settings
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
        # Besides the two examples.
        max_examples=examples - 2,
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
    # What is drawn depends on the constants in the code of the package. So what the test asks for is given.
    @example(fit=Fit(steps=2, epochs=2), save_freq=1, how="notice", boundary=[2, 2, 2])
    @example(fit=Fit(steps=2, epochs=2), save_freq="epoch", how="raise", boundary=[20])
    def check(fit: Fit, save_freq: Any, how: str, boundary: list[int]) -> None:
        key = repr(fit)
        if key not in references:
            references[key] = run_part(fit, None)
        reference, options = references[key], {"save_freq": save_freq}
        calls, interrupted = 0, 0
        with directory() as root:
            for number in [*boundary, None]:
                # Without a checkpoint the fit begins again, with the same seed, and says so.
                begins_anew = newest(root) is None
                seed = 7 if begins_anew else 100 + interrupted
                what = None if number is None else Interruption(at=number % reference.hooks, how=how)
                outcome = run_part(fit, root, what, seed=seed, options=options)
                calls += outcome.calls
                interrupted += outcome.ended_early
                if not outcome.ended_early:
                    break
        seen.append((how, save_freq, interrupted))
        assert differences(reference.state, outcome.state)[:3] == []
        told = [item for item in outcome.logged if "was led before and has no checkpoint" in item]
        assert outcome.logged == told
        assert len(told) == (begins_anew and interrupted > 0)
        assert calls == reference.calls if how == "notice" else calls >= reference.calls

    try:
        check()
    except AssertionError as error:
        return {"wrong": "\n".join([str(error), *getattr(error, "__notes__", [])]), "seen": seen}
    return {"wrong": None, "seen": seen}


def tasks_after_a_cut(report: Report, streams: int) -> tuple[int, list[str]]:
    """Cut off a batch of 8 streams when some of them have begun. Return the number of requests, and the tasks left."""
    strict()
    clock = SystemClock()
    scope = CancelScope(clock)
    asked: list[int] = []

    async def chunks() -> AsyncIterator[Any]:
        await asyncio.sleep(600)
        yield None

    async def acompletion(**_: Any) -> Any:
        asked.append(len(asked))
        if len(asked) == 8:
            # In a moment: by then, all tasks of the batch wait.
            asyncio.get_running_loop().call_later(0.01, lambda: scope.set_deadline(clock.now()))
        if len(asked) <= streams:
            return chunks()
        return await asyncio.sleep(600)

    async def run() -> tuple[int, list[str]]:
        inputs = synalinks.Input(data_model=Query)
        model = synalinks.LanguageModel(model="openai/gpt-4o-mini")
        outputs = await synalinks.Generator(language_model=model, streaming=True)(inputs)
        program = synalinks.Program(inputs=inputs, outputs=outputs)
        litellm.acompletion = acompletion
        with suppress(DeadlineExceededError):
            await scope.run(program.predict_on_batch(samples(8)[0]))
        await scope.end_cancelled()
        return len(asked), [str(task) for task in asyncio.all_tasks() - {asyncio.current_task()}]

    return asyncio.run(run())
