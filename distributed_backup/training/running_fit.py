"""Reach the callbacks, the data and the functions of the running `fit`, which synalinks gives to no callback.

Facts relied on (synalinks 0.10.14): `callbacks`, `epoch_iterator`, `x` and `initial_epoch` are locals of `Trainer.fit`.
It draws validation minibatches with a function of its module. A program with a `fit` of its own has no such frame.
`data_batch` is a local exactly if `fit` has run a batch to build the program, before it makes the list of callbacks.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final

from distributed_backup.training.data_stream import DataStream
from distributed_backup.training.method_patch import MethodPatch

logger = logging.getLogger(__name__)

BATCH_HOOKS: Final = ("on_train_batch_begin", "on_train_batch_end", "on_test_batch_begin", "on_test_batch_end")
EPOCH_HOOKS: Final = ("on_epoch_begin", "on_epoch_end", "on_test_begin", "on_test_end")
_MINIBATCH_DRAW: Final = "stratified_minibatch_indices"


class RunningFit:
    """The running `fit` that called a hook: its callbacks and its data.

    Both are locals of `Trainer.fit`, whose frame is up the stack while `on_train_begin` runs. Without that frame the
    methods do nothing.
    """

    def __init__(self, frame: FrameType | None) -> None:
        self._frame = frame

    @classmethod
    def find(cls, program: Any) -> RunningFit:
        """Return the fit of `program` whose frame is up the stack."""
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe() is the same
        while frame is not None:
            names = frame.f_locals
            if frame.f_code.co_name == "fit" and names.get("self") is program and "epoch_iterator" in names:
                break
            frame = frame.f_back
        return cls(frame)

    def may_run(self) -> bool:
        """Whether this fit may still run, for a caller in the same task: its frame is up the stack, or unknown."""
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as above
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is self._frame

    @property
    def callbacks(self) -> tuple[Any, ...]:
        """The callbacks of the fit, in the order in which they are called."""
        return () if self._frame is None else tuple(self._frame.f_locals["callbacks"].callbacks)

    def warn_if_unbuilt(self) -> None:
        """Warn that `fit` has paid for a batch to build the program. No callback is called before that."""
        if self._frame is not None and "data_batch" in self._frame.f_locals:
            logger.warning(
                "the program was not built, so fit has run its first batch once more to build it, and pays for that at "
                "each restart. Before fit, call `await program.build(InputModel)`, and then `await module.build()` for "
                "each module of program._flatten_modules() whose `built` is False"
            )

    def call_last(self, callback: Any) -> None:
        """Make `callback` the last callback of the fit, called in the training thread.

        The state that it captures then includes the effects of all others. A callback that is given outside a list
        would be called from a thread pool, while the next batch is running.
        """
        if self._frame is not None:
            container = self._frame.f_locals["callbacks"]
            others = [item for item in container.callbacks if item is not callback]
            # A new list: the container is iterating over the old one.
            container.callbacks = [*others, callback]
            container._async_train = container._async_test = False  # noqa: SLF001 - there is no public way

    def silence_other_callbacks(self, hooks: Iterable[str], condition: Callable[[], bool]) -> list[MethodPatch]:
        """Call these hooks of the last callback only, while `condition` holds.

        The others have already seen these batches, or nothing is trained in them. A call might count them twice, stop
        the training, or pay for an evaluation.
        """
        if self._frame is None:
            return []
        container = self._frame.f_locals["callbacks"]

        def wrapper(name: str) -> Callable[..., None]:
            def wrapped(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
                if condition():
                    getattr(container.callbacks[-1], name)(*args, **kwargs)
                else:
                    original(*args, **kwargs)

            return wrapped

        return [MethodPatch(container, name, wrapper(name)) for name in hooks]

    def data_stream(self, on_repeated: Callable[[int, int], None]) -> DataStream | None:
        """Return the training data, see `DataStream`. None without the frame."""
        if self._frame is None:
            return None
        return DataStream(
            self._frame.f_locals["epoch_iterator"],
            self._frame.f_locals["x"],
            initial_epoch=self._frame.f_locals["initial_epoch"],
            on_repeated=on_repeated,
        )

    def wrap_minibatch_draw(self, wrapper: Callable[..., Any]) -> list[MethodPatch]:
        """Wrap the function that `fit` draws a validation minibatch with. It is one for all fits of the process."""
        module = None if self._frame is None else sys.modules.get(self._frame.f_globals["__name__"])
        return [MethodPatch(module, _MINIBATCH_DRAW, wrapper)] if hasattr(module, _MINIBATCH_DRAW) else []

    @property
    def is_found(self) -> bool:
        """Whether the frame was found."""
        return self._frame is not None
