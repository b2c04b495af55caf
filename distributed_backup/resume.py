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

import asyncio
import logging
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Final, Protocol

from distributed_backup.checkpoint import Position
from distributed_backup.clock import Clock
from distributed_backup.errors import RestoreError

logger = logging.getLogger(__name__)

_OPTIMIZER_HOOKS: Final = ("on_epoch_begin", "on_batch_begin", "on_batch_end", "on_epoch_end", "on_train_end")


_CUT_PERIOD: Final = 0.02


class CutOffError(Exception):
    """What was awaited was cancelled, for the grace period is running out. Never leaves this package."""


class Guard:
    """Bounds what a fit awaits by an instant that another thread may set at any time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._instant: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cuts = 0

    def cut_off_at(self, instant: float) -> None:
        """Cancel what is awaited at `instant`; the earliest instant counts. From any thread."""
        with self._lock:
            self._instant = instant if self._instant is None else min(self._instant, instant)
            loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the loop was closed meanwhile: nothing is awaited any more
                loop.call_soon_threadsafe(self._arm)

    async def run(self, awaitable: Awaitable[Any]) -> Any:
        """Await `awaitable`.

        Raises:
            CutOffError: The instant came first.
        """
        with self._lock:
            self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._arm()
        try:
            return await awaitable
        except asyncio.CancelledError:
            if self._cuts:
                raise CutOffError from None
            raise
        finally:
            self._disarm()

    def _arm(self) -> None:
        if self._instant is None or self._task is None or self._loop is None or self._cuts:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, self._instant - self._clock.now()), self._cut)

    def _cut(self) -> None:
        # Again and again: synalinks retries language-model calls with tenacity, which takes a cancellation for one
        # more failure of the call and goes on. It ends when one falls into the pause between two tries.
        if self._task is not None and self._loop is not None:
            self._cuts += 1
            self._task.cancel()
            self._timer = self._loop.call_later(_CUT_PERIOD, self._cut)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        task, self._task, self._timer = self._task, None, None
        while task is not None and self._cuts:
            task.uncancel()
            self._cuts -= 1


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


class ResumableFit:
    """The methods of one program and its optimizer, wrapped for one fit.

    Args:
        program: The program of the fit.
        guard: Bounds what is awaited.
        listener: Asked and told.
    """

    def __init__(self, program: Any, *, guard: Guard, listener: FitListener) -> None:
        self._program = program
        self._guard = guard
        self._listener = listener
        self._wrapped: list[tuple[Any, str, Any]] = []
        self._target: Position | None = None
        self._epoch = 0
        self._trained = 0
        self._validating = False

    @property
    def skipping(self) -> bool:
        """Whether the fit is still being fast-forwarded."""
        return self._target is not None

    def install(self, target: Position | None) -> None:
        """Wrap the methods.

        Args:
            target: Fast-forward to this position of its epoch; None to run from the start of the epoch.
        """
        self._target = target if target is not None and target.batch > 0 else None
        self._wrap(self._program, "train_on_batch", self._train_on_batch)
        self._wrap(self._program, "test_on_batch", self._test_on_batch)
        optimizer = self._program.optimizer
        self._wrap(optimizer, "on_train_begin", self._on_train_begin)
        for name in _OPTIMIZER_HOOKS:
            self._wrap(optimizer, name, self._optimizer_hook)

    def remove(self) -> None:
        """Unwrap the methods; the program is as it was before the fit. May be called again."""
        while self._wrapped:
            owner, name, previous = self._wrapped.pop()
            if previous is None:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = previous
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
        return self._reached(self._trained)

    def test_begins(self) -> None:
        """A validation begins."""
        self._validating = True

    def test_batch_ended(self, step: int) -> Position | None:
        """A validation batch ended; the boundary reached, or None if it was skipped."""
        return self._reached(self._trained + step + self._program.steps_per_execution)

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
        return Position(epoch + 1)

    def _reached(self, batches: int) -> Position | None:
        if self._target is None:
            return Position(self._epoch, batches)
        if batches >= self._target.batch:
            self._target = None
            self._listener.apply()
        return None

    # ---------------------------------------------------------------- the wrapped methods

    async def _on_train_begin(self, original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
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
            return await self._guard.run(awaitable)
        except CutOffError:
            raise self._listener.cut_off() from None
        except BaseException as error:
            replacement = self._listener.failed(error)
            if replacement is error:
                raise
            raise replacement from error

    def _wrap(self, owner: Any, name: str, wrapper: Callable[..., Awaitable[Any]]) -> None:
        original = getattr(owner, name)

        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            return await wrapper(original, *args, **kwargs)

        self._wrapped.append((owner, name, vars(owner).get(name)))
        # Not setattr: program and optimizer track what is set on them.
        vars(owner)[name] = wrapped


class FitFrame:
    """The running `fit` that called a hook: its callbacks and its data.

    synalinks gives a callback neither. Both are locals of `Trainer.fit`, whose frame is up the stack while
    `on_train_begin` runs; a program with a `fit` of its own has none, and then only what needs them is missing.
    """

    def __init__(self, frame: FrameType | None) -> None:
        self._frame = frame

    @classmethod
    def find(cls, program: Any) -> FitFrame:
        """The fit of `program` up the stack."""
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe() is the same
        while frame is not None:
            names = frame.f_locals
            if frame.f_code.co_name == "fit" and names.get("self") is program and "epoch_iterator" in names:
                break
            frame = frame.f_back
        return cls(frame)

    def call_last(self, callback: Any) -> None:
        """Make `callback` the last of the fit's: what it captures then includes what the others did."""
        if self._frame is not None:
            container = self._frame.f_locals["callbacks"]
            others = [item for item in container.callbacks if item is not callback]
            # A new list: the container is iterating over the old one.
            container.callbacks = [*others, callback]

    def replay(self, epochs: int) -> None:
        """Consume the data of the first `epochs` epochs as the fit did, where later epochs depend on it.

        Arrays without `steps_per_epoch` start afresh at each epoch and need no replay; a generator, or arrays that
        are walked in portions, goes on where the epoch before ended.
        """
        if self._frame is None:
            if epochs:
                logger.warning("this program's fit is not synalinks' own: if its data is a generator, skip it yourself")
            return
        iterator = self._frame.f_locals["epoch_iterator"]
        if iterator.steps_per_epoch is None and iterator.data_adapter.batch_size is not None:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(epochs):
                with iterator.catch_stop_iteration():
                    for _ in iterator:
                        pass
