"""Continue a fit at a position: fast-forward, then apply. The only module that wraps methods of a fit.

A fit can't be told to begin at batch 3. So its loop runs from the start of the epoch, with everything that costs
or draws made a no-op, and at the boundary the state is applied: data is consumed just as it was the first time.
It promises the same only for a pipeline that yields the same data again.

Order inside `fit` (synalinks 0.10.14): callbacks' on_train_begin → optimizer.on_train_begin, which empties
candidates → per epoch reset_metrics, optimizer.on_epoch_begin, batches, validation, optimizer.on_epoch_end, callbacks'
on_epoch_end → optimizer.on_train_end → callbacks' on_train_end. Every await of that loop is one of the methods
wrapped here.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from distributed_backup.errors import RestoreError
from distributed_backup.position import Position
from distributed_backup.training.cancellation import CancelScope, DeadlineExceededError
from distributed_backup.training.running_fit import MethodPatch, RunningFit

logger = logging.getLogger(__name__)

_OPTIMIZER_HOOKS: Final = ("on_epoch_begin", "on_batch_begin", "on_batch_end", "on_epoch_end", "on_train_end")


class FitListener(Protocol):
    """What a resumed fit asks of the session that runs it."""

    async def prepare(self) -> None:
        """The optimizer's reset is over: build, apply the restored state, take the first snapshot."""

    def apply(self) -> None:
        """The boundary of the restored position was reached: apply the restored state again."""

    def cut_off(self) -> BaseException:
        """Training was cut off; the exception to raise out of `fit`."""

    def failed(self, error: BaseException) -> BaseException:
        """An exception is leaving `fit`; the one to raise in its place, or itself."""


class FastForward:
    """The methods of one program and its optimizer, wrapped for one fit.

    Args:
        program: The program of the fit.
        guard: Bounds what is awaited.
        listener: Asked and told.
    """

    def __init__(self, program: Any, *, scope: CancelScope, listener: FitListener) -> None:
        self._program = program
        self._scope = scope
        self._listener = listener
        self._wrapped: list[MethodPatch] = []
        self._target: Position | None = None
        self._begun = False
        self._epoch = 0
        self._trained = 0
        self._validating = False
        # Whether a callback has ended the training; what a signal handler or another thread sets does not count: a
        # program that is asked to stop because of a preemption has not come to its end.
        self._stopped = self._stopped_outside = False
        self._training_logs: dict[str, Any] = {}
        self._saved: Mapping[str, Any] = {}

    @property
    def skipping(self) -> bool:
        """Whether the fit is still being fast-forwarded."""
        return self._target is not None

    def loop_state(self) -> dict[str, Any]:
        """What the loop of `fit` itself remembers at this boundary, as JSON; `install` takes it to go on from there."""
        return {
            "trained": self._trained,
            "logs": self._training_logs,
            "stop_training": self._stopped,
            "stop_evaluating": self._stopped and bool(getattr(self._program, "stop_evaluating", False)),
        }

    def install(self, target: Position | None, saved: Mapping[str, Any] | None = None) -> None:
        """Wrap the methods.

        Args:
            target: Fast-forward to this position of its epoch; None to run from the start of the epoch.
            saved: The `loop_state` at that position.
        """
        self._target = target if target is not None and target.batch > 0 else None
        self._saved = saved if saved is not None and self._target is not None else {}
        self._wrap_methods()
        self._wrapped += RunningFit.find(self._program).silence_other_callbacks(lambda: self.skipping)
        if not self._program.trainable_variables:
            # Then fit calls no hook of the optimizer; and nothing in `prepare` has anything to wait for.
            _run_synchronously(self._listener.prepare())

    def _wrap_methods(self) -> None:
        self._replace(self._program, "get_metrics_result", self._get_metrics_result)
        self._wrap(self._program, "train_on_batch", self._train_on_batch)
        self._wrap(self._program, "test_on_batch", self._test_on_batch)
        optimizer = self._program.optimizer
        self._wrap(optimizer, "on_train_begin", self._on_train_begin)
        for name in _OPTIMIZER_HOOKS:
            self._wrap(optimizer, name, self._optimizer_hook)

    def remove(self) -> None:
        """Unwrap the methods; the program is as it was before the fit. May be called again."""
        while self._wrapped:
            self._wrapped.pop().remove()
        # synalinks never resets it, so a second fit would start late.
        self._program._initial_epoch = None  # noqa: SLF001 - the documented way for a callback to set the epoch

    # ---------------------------------------------------------------- what the callback's hooks report

    def epoch_begins(self, epoch: int) -> None:
        """An epoch begins."""
        self._epoch, self._trained, self._validating = epoch, 0, False

    def train_batch_ended(self, step: int) -> Position | None:
        """A training batch ended; the boundary reached, or None if it was skipped."""
        # synalinks counts steps in strides of `steps_per_execution`.
        self._trained = step + self._program.steps_per_execution
        if self.skipping and self._trained == self._saved.get("trained") and self._saved["stop_training"]:
            self._program.stop_training = True
        position = self._reached(self._trained)
        self._note_stop()
        # After this batch, or as saved after it, the loop takes them for the epoch's.
        self._training_logs = self._program.get_metrics_result()
        return position

    def test_begins(self) -> None:
        """A validation begins."""
        self._validating = True

    def test_batch_ended(self, step: int) -> Position | None:
        """A validation batch ended; the boundary reached, or None if it was skipped."""
        position = self._reached(self._trained + step + self._program.steps_per_execution)
        self._note_stop()
        return position

    def test_ended(self) -> None:
        """The validation ended."""
        self._validating = False

    def epoch_ended(self, epoch: int) -> Position:
        """An epoch ended.

        Raises:
            RestoreError: The position to fast-forward to was not in it.
        """
        if self._target is not None:
            raise RestoreError(
                f"the checkpoint is at {self._target}, which this fit's epoch {epoch} does not reach: is the data, "
                "the batch size or the validation another? restore with the same, or use another backup_dir"
            )
        self._note_stop()
        return Position(epoch + 1)

    def _note_stop(self) -> None:
        self._stopped = bool(self._program.stop_training) and not self._stopped_outside

    def _reached(self, batches: int) -> Position | None:
        if self._target is None:
            return Position(self._epoch, batches)
        if batches >= self._target.batch:
            self._target = None
            self._listener.apply()
            if self._validating and self._saved.get("stop_evaluating"):
                self._program.stop_evaluating = True
        return None

    # ---------------------------------------------------------------- the wrapped methods

    def _get_metrics_result(self, original: Callable[..., Any]) -> Any:
        if self.skipping and not self._validating and self._saved.get("logs"):
            return dict(self._saved["logs"])
        return original()

    async def _on_train_begin(self, original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        if self._begun:
            # The next fit of this program: ours has died of an exception that we did not see.
            self.remove()
            return await original(*args, **kwargs)
        self._begun = True

        async def begin() -> Any:
            result = await original(*args, **kwargs)
            await self._listener.prepare()
            return result

        return await self._guarded(begin())

    async def _train_on_batch(self, original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        if self.skipping:
            return self._program.get_metrics_result()
        return await self._guarded(original(*args, **kwargs))

    async def _test_on_batch(self, original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        if not self._validating:
            # An evaluation of the user's own, inside a callback: none of our business.
            return await original(*args, **kwargs)
        if self.skipping:
            return self._program.get_metrics_result()
        return await self._guarded(original(*args, **kwargs))

    async def _optimizer_hook(self, original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        if self.skipping:
            return None
        return await self._guarded(original(*args, **kwargs))

    async def _guarded(self, awaitable: Awaitable[Any]) -> Any:
        try:
            result = await self._scope.run(awaitable)
            self._stopped_outside = bool(self._program.stop_training) and not self._stopped
            return result  # noqa: TRY300 - the handlers below are for the await
        except DeadlineExceededError:
            raise self._listener.cut_off() from None
        except BaseException as error:
            replacement = self._listener.failed(error)
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
    """Run a coroutine that never waits, where there is nobody to await it."""
    try:
        next(iter(awaitable.__await__()))
    except StopIteration:
        return
    raise RestoreError("a program without trainable variables had something to wait for")
