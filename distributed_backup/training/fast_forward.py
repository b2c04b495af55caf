"""Continue a fit at a position: fast-forward, then apply the state. Only this module wraps methods of a fit.

`fit` can't start at batch 3. So its loop runs from the start of the epoch, and calls that cost money or draw random
numbers do nothing. At the position the state is applied. The loop reads the epoch's data as it did the first time, see
`data_stream`.

A standby may have to wait in the middle of its fit, see `worker.standby`. An await that was cancelled for that is
repeated after the wait. If the run has finished meanwhile, the rest of the loop does nothing either.

Order inside `fit` (synalinks 0.10.14), where every await is one of the methods wrapped here:

1. `on_train_begin` of the callbacks, then of the optimizer, which empties its candidates.
2. For each epoch: `reset_metrics`, the optimizer's `on_epoch_begin`, the batches, the validation.
3. At its end: `on_epoch_end` of the optimizer, then of the callbacks.
4. `on_train_end` of the optimizer, then of the callbacks.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Protocol

import numpy as np

from distributed_backup.errors import RestoreError
from distributed_backup.position import Position
from distributed_backup.training.cancellation import CancelScope, DeadlineExceededError
from distributed_backup.training.data_stream import DataStream, is_same_data
from distributed_backup.training.method_patch import MethodPatch
from distributed_backup.training.random_states import derived_seed
from distributed_backup.training.running_fit import BATCH_HOOKS, EPOCH_HOOKS, RunningFit
from distributed_backup.training.standby_wait import StandbyWait

logger = logging.getLogger(__name__)

_SAVED_LOGS: Final = (str, int, float, np.number)
_OPTIMIZER_HOOKS: Final = ("on_epoch_begin", "on_batch_begin", "on_batch_end", "on_epoch_end")
_CANCELLED: Final = object()


class FitListener(Protocol):
    """The session of a fit, as the wrapped methods call it."""

    async def on_optimizer_reset(self) -> None:
        """Prepare the state: the optimizer has emptied its own."""

    def on_target_reached(self, *, same_data: bool) -> None:
        """Apply the restored state again: the loop has reached its position. `same_data`: it has read the same data."""

    def on_batch_skipped(self, epoch: int, batches: int) -> None:
        """Note that the batch after `batches` of `epoch` is read again, for nothing."""

    def on_deadline(self) -> BaseException:
        """Return the exception to raise out of `fit`: the deadline has cancelled training."""

    def on_error(self, error: BaseException) -> BaseException:
        """Return the exception to raise out of `fit` in place of `error`, or `error` itself."""


class FastForward:
    """The methods of one program and its optimizer, wrapped for one fit. Everything awaited is awaited in `scope`."""

    def __init__(self, program: Any, *, scope: CancelScope, standby: StandbyWait, listener: FitListener) -> None:
        self._program = program
        self._scope = scope
        self._standby = standby
        self._listener = listener
        self._wrapped: list[MethodPatch] = []
        self._target: Position | None = None
        self._skips_rest = False
        self._begun = False
        self._epoch = 0
        self._trained = 0
        self._validating = False
        # Whether a callback has stopped the training. A stop by a signal handler or another thread does not count: a
        # program that is stopped because of a preemption has not finished.
        self._stopped = self._stopped_outside = False
        self._training_logs: dict[str, Any] = {}
        self._batch_logs: dict[str, Any] = {}
        self._saved: Mapping[str, Any] = {}
        self._minibatch_seed = 0
        self._data: DataStream | None = None
        # As of the last training batch. The stream of the next epoch may be made before the validation.
        self._data_state: dict[str, Any] = {}

    @property
    def active(self) -> bool:
        """Whether nothing is trained: the loop has not yet reached the position, or the rest of it is skipped."""
        return self._target is not None or self._skips_rest

    def loop_state(self) -> dict[str, Any]:
        """Return the variables of the loop of `fit` at this boundary, as JSON. `install` takes them."""
        now = {} if self._data is None else self._data.state()
        is_new_stream = now.get("first_epoch") != self._data_state.get("first_epoch")
        return {
            "trained": self._trained,
            "logs": self._training_logs,
            "batch_logs": self._batch_logs,
            "stop_training": self._stopped,
            "stop_evaluating": self._stopped and bool(getattr(self._program, "stop_evaluating", False)),
            "minibatch_seed": self._minibatch_seed,
            "data": self._data_state,
            "next_data": now if is_new_stream else {},
        }

    def read_data(self, frame: RunningFit, start: Position, saved: Mapping[str, Any]) -> None:
        """Read the data that `start` depends on again. `saved` is the `loop_state` there, empty at a fresh start."""
        self._data = frame.data_stream(self._listener.on_batch_skipped)
        if self._data is not None:
            self._data.repeat_until(start.epoch, saved.get("data", {}), saved.get("next_data", {}))
            if start.batch == 0:
                self._data.position_reached()
            self._data_state = self._data.state()

    def install(self, frame: RunningFit, target: Position | None, saved: Mapping[str, Any]) -> None:
        """Wrap the methods, to fast-forward to `target` if it is inside an epoch. `saved` is the `loop_state` there."""
        self._minibatch_seed = saved.get("minibatch_seed") or derived_seed()
        self._target = target if target is not None and target.batch > 0 else None
        self._saved = saved if self._target is not None else {}
        self._wrap_methods()
        self._wrapped += frame.silence_other_callbacks(BATCH_HOOKS, lambda: self.active)
        self._wrapped += frame.silence_other_callbacks(EPOCH_HOOKS, lambda: self._skips_rest)
        self._wrapped += frame.wrap_minibatch_draw(self._draw_minibatch)
        if not self._program.trainable_variables:
            # Then `fit` calls no hook of the optimizer, and the listener has nothing to wait for.
            _run_synchronously(self._listener.on_optimizer_reset())

    def _wrap_methods(self) -> None:
        self._replace(self._program, "get_metrics_result", self._get_metrics_result)
        self._wrap(self._program, "train_on_batch", self._train_on_batch)
        self._wrap(self._program, "test_on_batch", self._test_on_batch)
        optimizer = self._program.optimizer
        self._wrap(optimizer, "on_train_begin", self._on_train_begin)
        for name in _OPTIMIZER_HOOKS:
            self._wrap(optimizer, name, self._optimizer_hook)
        self._wrap(optimizer, "on_train_end", self._on_train_end)

    def remove(self) -> None:
        """Unwrap the methods. The program is as it was before the fit. May be called again."""
        while self._wrapped:
            self._wrapped.pop().remove()
        if self._data is not None:
            self._data.remove()
        # synalinks never resets it, so a second fit would start at this epoch.
        self._program._initial_epoch = None  # noqa: SLF001 - the documented way for a callback to set the epoch

    # ---------------------------------------------------------------- from the callback's hooks

    def epoch_begins(self, epoch: int) -> None:
        """Note the epoch that begins."""
        self._epoch, self._trained, self._validating, self._training_logs = epoch, 0, False, {}
        if self._data is not None:
            self._data.epoch_begins(epoch)

    def train_batch_ended(self, step: int) -> Position | None:
        """Return the boundary of a training batch. None if the batch was skipped."""
        # synalinks counts steps in strides of `steps_per_execution`.
        self._trained = step + self._program.steps_per_execution
        self._note_data()
        if self.active and self._trained == self._saved.get("trained") and self._saved["stop_training"]:
            self._program.stop_training = True
        position = self._reached(self._trained)
        self._note_stop()
        return position

    def test_begins(self) -> None:
        """Note that a validation begins."""
        # `fit` reports these metrics as the epoch's training logs. The validation resets them.
        self._training_logs = self._program.get_metrics_result()
        self._validating = True

    def test_batch_ended(self, step: int) -> Position | None:
        """Return the boundary of a validation batch. None if the batch was skipped."""
        position = self._reached(self._trained + step + self._program.steps_per_execution)
        self._note_stop()
        return position

    def test_ended(self) -> None:
        """Note that a validation has ended."""
        self._validating = False

    def epoch_ended(self, epoch: int) -> Position | None:
        """Return the boundary of an epoch. None if it was skipped.

        Raises:
            RestoreError: The epoch ended before the position to fast-forward to.
        """
        if self._skips_rest:
            return None
        if self._target is not None:
            raise RestoreError(
                f"the checkpoint is at {self._target}, but this fit's epoch {epoch} ended before it: use the data, the "
                "batch size and the validation that it was saved with, or another backup_dir"
            )
        self._note_stop()
        self._note_data()
        return Position(epoch + 1)

    def _note_data(self) -> None:
        if self._data is not None:
            self._data_state = self._data.state()

    def _note_stop(self) -> None:
        self._stopped = bool(self._program.stop_training) and not self._stopped_outside

    def _reached(self, batches: int) -> Position | None:
        if self._skips_rest:
            return None
        if self._target is None:
            return Position(self._epoch, batches)
        if batches >= self._target.batch:
            self._target = None
            if self._data is not None:
                self._data.position_reached()
            self._listener.on_target_reached(same_data=is_same_data(self._saved.get("data", {}), self._data_state))
            if self._validating and self._saved.get("stop_evaluating"):
                self._program.stop_evaluating = True
        return None

    # ---------------------------------------------------------------- the wrapped methods

    def _get_metrics_result(self, original: Callable[..., Any]) -> Any:
        if self.active and not self._validating and self._saved.get("logs"):
            return dict(self._saved["logs"])
        return original()

    async def _on_train_begin(self, original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        if self._begun:
            # The next fit of this program: another callback's exception has left ours unseen.
            self.remove()
            return await original(*args, **kwargs)
        self._begun = True

        async def begin() -> Any:
            result = await original(*args, **kwargs)
            await self._listener.on_optimizer_reset()
            return result

        return await self._repeated(begin)

    def _draw_minibatch(self, original: Callable[..., Any], y: Any, size: int, rng: Any = None) -> Any:
        if rng is None and RunningFit.find(self._program).is_found:
            # synalinks draws from a generator without a seed, so no run could be repeated.
            rng = np.random.default_rng([self._minibatch_seed, self._epoch, self._trained])
        return original(y, size, rng)

    async def _train_on_batch(self, original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        logs = await self._unless_skipped(partial(original, *args, **kwargs))
        if self.active:
            return self._saved.get("batch_logs") or self._program.get_metrics_result()
        # A log of the user's own may be of any type. One that can't be saved must not end the training.
        self._batch_logs = {name: value for name, value in logs.items() if isinstance(value, _SAVED_LOGS)}
        return logs

    async def _test_on_batch(self, original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        if not self._validating:
            # An evaluation that a callback of the user runs: not part of the fit.
            return await original(*args, **kwargs)
        logs = await self._unless_skipped(partial(original, *args, **kwargs))
        return self._program.get_metrics_result() if self.active else logs

    async def _optimizer_hook(self, original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        return await self._unless_skipped(partial(original, *args, **kwargs))

    async def _on_train_end(self, original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        result = await self._unless_skipped(partial(original, *args, **kwargs))
        if not self._skips_rest:
            return result
        # The loop is over. What follows happens as after any fit.
        self._skips_rest = self._program.stop_training = False
        with self._errors_reported():
            self._standby.apply_last_boundary()
        return await self._repeated(partial(original, *args, **kwargs))

    async def _unless_skipped(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Return the result of a call. None if it is skipped, also because the run has finished in another worker."""
        while not self.active:
            with self._errors_reported():
                has_finished = self._standby.before_await()
            if has_finished:
                # The loop ends after this batch or validation, and the rest of it has no effect.
                self._skips_rest = self._program.stop_training = True
                break
            result = await self._in_scope(call)
            if result is not _CANCELLED:
                return result
        return None

    async def _repeated(self, call: Callable[[], Awaitable[Any]]) -> Any:
        while (result := await self._in_scope(call)) is _CANCELLED:
            pass
        return result

    async def _in_scope(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Return the result of a call. `_CANCELLED` if it was cancelled and undone, because a standby must wait."""
        with self._errors_reported():
            try:
                result = await self._scope.run(call())
            except DeadlineExceededError:
                if await self._standby.undo_await():
                    return _CANCELLED
                raise self._listener.on_deadline() from None
            self._stopped_outside = bool(self._program.stop_training) and not self._stopped
            return result

    @contextmanager
    def _errors_reported(self) -> Iterator[None]:
        """Raise out of `fit` what the listener returns for an error."""
        try:
            yield
        except BaseException as error:
            replacement = self._listener.on_error(error)
            if replacement is error:
                raise
            raise replacement from error

    def _wrap(self, owner: Any, name: str, wrapper: Callable[..., Awaitable[Any]]) -> None:
        async def wrapped(original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
            return await wrapper(original, *args, **kwargs)

        self._replace(owner, name, wrapped)

    def _replace(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        self._wrapped.append(MethodPatch(owner, name, wrapper))


def _run_synchronously(awaitable: Awaitable[None]) -> None:
    """Run a coroutine that never waits, from a caller that can't await."""
    try:
        next(iter(awaitable.__await__()))
    except StopIteration:
        return
    raise RestoreError("the build of a program without trainable variables must not wait, but it did")
