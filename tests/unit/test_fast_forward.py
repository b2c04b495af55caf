"""The wrapped methods of a fit, with a program, a standby and a listener that only note calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from distributed_backup.position import Position
from distributed_backup.training.cancellation import CancelScope
from distributed_backup.training.fast_forward import FastForward
from distributed_backup.training.running_fit import RunningFit
from tests.support.clocks import FakeClock

SAVED = {"trained": 1, "stop_training": False, "logs": {"reward": 0.5}, "batch_logs": {"reward": 0.5}}


class Optimizer:
    """Notes its hooks."""

    def __init__(self, calls: list[str]) -> None:
        for name in (
            "on_train_begin",
            "on_epoch_begin",
            "on_batch_begin",
            "on_batch_end",
            "on_epoch_end",
            "on_train_end",
        ):
            setattr(self, name, self._hook(calls, name))

    def _hook(self, calls: list[str], name: str) -> Callable[..., Awaitable[None]]:
        async def hook() -> None:
            calls.append(name)

        return hook


class Fit:
    """Program, standby and listener of one fit. `answers` are what the standby returns before its awaits."""

    steps_per_execution = 1
    trainable_variables = ("one",)
    stop_training = False

    def __init__(self, *answers: bool | Exception, target: Position | None = None) -> None:
        self.calls: list[str] = []
        self.optimizer: Any = Optimizer(self.calls)
        self.scope = CancelScope(FakeClock())
        self.errors: list[BaseException] = []
        self.must_wait = False
        self._answers = list(answers)
        stub = cast(Any, self)
        self.fast_forward = FastForward(stub, scope=self.scope, standby=stub, listener=stub)
        self.fast_forward.install(RunningFit(None), target, SAVED if target else {})

    # ---------------------------------------------------------------- the program

    async def train_on_batch(self) -> dict[str, float]:
        await self._note("train")
        return {"reward": 1.0}

    async def _note(self, call: str) -> None:
        """Note a call. The first of its name is cancelled if this worker must wait."""
        self.calls.append(call)
        if self.must_wait and self.calls.count(call) == 1:
            self.scope.set_deadline(0.0)
            await asyncio.Event().wait()
        for _ in range(3):
            await asyncio.sleep(0)  # a deadline that is still set cancels the call here

    async def test_on_batch(self) -> dict[str, float]:
        self.calls.append("test")
        return {"reward": 1.0}

    def get_metrics_result(self) -> dict[str, float]:
        return {"reward": 1.0}

    # ---------------------------------------------------------------- the standby

    def before_await(self) -> bool:
        answer = self._answers.pop(0) if self._answers else False
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def undo_await(self) -> bool:
        self.scope.withdraw_deadline()
        self.calls.append("undo")
        return self.must_wait

    def apply_last_boundary(self) -> None:
        self.calls.append("apply_last_boundary")

    # ---------------------------------------------------------------- the listener

    async def on_optimizer_reset(self) -> None:
        await self._note("reset")

    def on_target_reached(self, *, same_data: bool) -> None:
        assert same_data
        self.calls.append("target_reached")

    def on_error(self, error: BaseException) -> BaseException:
        self.errors.append(error)
        return error


def test_a_fit_whose_data_is_out_of_reach_resumes_inside_an_epoch() -> None:
    """A program with a fit of its own: its data can't be compared with that of the checkpoint."""
    fit = Fit(target=Position(0, 1))
    fit.fast_forward.epoch_begins(0)
    assert asyncio.run(fit.train_on_batch()) == SAVED["batch_logs"]
    assert fit.fast_forward.train_batch_ended(0) is None
    assert asyncio.run(fit.train_on_batch()) == {"reward": 1.0}
    assert (fit.fast_forward.train_batch_ended(1), fit.calls) == (Position(0, 2), ["target_reached", "train"])


def test_a_batch_that_was_cancelled_for_a_wait_is_repeated() -> None:
    """The state from before it has been set meanwhile."""
    fit = Fit()
    fit.must_wait = True
    assert asyncio.run(fit.train_on_batch()) == {"reward": 1.0}
    assert (fit.calls, fit.errors) == (["train", "undo", "train"], [])


def test_a_start_that_was_cancelled_for_a_wait_is_repeated() -> None:
    """The wait follows, when the state can be captured."""
    fit = Fit()
    fit.must_wait = True
    asyncio.run(fit.optimizer.on_train_begin())
    assert fit.calls == ["on_train_begin", "reset", "undo", "on_train_begin", "reset"]


def test_the_rest_of_a_fit_has_no_effect_once_its_run_has_finished() -> None:
    """No batch is asked for and no boundary is made. The final state is set before the optimizer's last hook."""
    fit = Fit(False, True)
    fast_forward = fit.fast_forward

    async def loop() -> None:
        await fit.optimizer.on_train_begin()
        fast_forward.epoch_begins(0)
        await fit.optimizer.on_batch_begin()
        await fit.train_on_batch()
        await fit.optimizer.on_batch_end()
        assert (fast_forward.train_batch_ended(0), fit.stop_training) == (None, True)
        fast_forward.test_begins()
        await fit.test_on_batch()
        assert fast_forward.test_batch_ended(0) is None
        fast_forward.test_ended()
        await fit.optimizer.on_epoch_end()
        assert fast_forward.epoch_ended(0) is None
        await fit.optimizer.on_train_end()

    asyncio.run(loop())
    assert fit.calls == ["on_train_begin", "reset", "on_batch_begin", "apply_last_boundary", "on_train_end"]


def test_other_callbacks_see_the_final_metrics_at_the_end_of_training() -> None:
    """Not those of the checkpoint that this fit had resumed from."""
    fit = Fit(True, target=Position(0, 1))
    fast_forward = fit.fast_forward

    async def loop() -> None:
        fast_forward.epoch_begins(0)
        await fit.train_on_batch()
        fast_forward.train_batch_ended(0)
        await fit.train_on_batch()
        fast_forward.train_batch_ended(1)
        assert fit.get_metrics_result() == SAVED["logs"]
        await fit.optimizer.on_train_end()

    asyncio.run(loop())
    assert (fit.get_metrics_result(), fit.stop_training) == ({"reward": 1.0}, False)


def test_a_run_that_finishes_while_the_last_hook_waits_is_the_result() -> None:
    """The optimizer ends the training of the final state."""
    fit = Fit(True)
    asyncio.run(fit.optimizer.on_train_end())
    assert (fit.calls, fit.stop_training) == (["apply_last_boundary", "on_train_end"], False)


def test_an_error_of_a_wait_ends_the_session() -> None:
    """It leaves `fit`, as an error of a batch does."""
    error = RuntimeError("no")
    fit = Fit(error)
    with pytest.raises(RuntimeError, match="no"):
        asyncio.run(fit.train_on_batch())
    assert (fit.calls, fit.errors) == ([], [error])
