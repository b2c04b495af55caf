"""Reach the callbacks, the data and the methods of the running `fit`, which synalinks gives to no callback.

Facts relied on (synalinks 0.10.14): `callbacks` and `epoch_iterator` are locals of `Trainer.fit`, and Python looks a
method up on the instance first. A program with a `fit` of its own has no such frame.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

logger = logging.getLogger(__name__)

_BATCH_HOOKS: Final = ("on_train_batch_begin", "on_train_batch_end", "on_test_batch_begin", "on_test_batch_end")


class MethodPatch:
    """A method of one instance, wrapped until `remove`. Patches may be removed in any order."""

    def __init__(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        self._owner, self._name = owner, name
        self.wrapper: Callable[..., Any] | None = wrapper
        self.previous = vars(owner).get(name)
        self._original = getattr(owner, name)
        # Not setattr: program and optimizer track the attributes that are set on them.
        vars(owner)[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapper with the original as its first argument. After `remove`, call the original."""
        if self.wrapper is None:
            return self._original(*args, **kwargs)
        return self.wrapper(self._original, *args, **kwargs)

    def remove(self) -> None:
        """Pass calls through. Restore the method if this patch is on top, below it all patches removed before."""
        self.wrapper = None
        attributes = vars(self._owner)
        top = attributes.get(self._name)
        while isinstance(top, MethodPatch) and top.wrapper is None:
            top = top.previous
        if top is None:
            attributes.pop(self._name, None)
        else:
            attributes[self._name] = top


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

    def silence_other_callbacks(self, condition: Callable[[], bool]) -> list[MethodPatch]:
        """Call batch hooks of the last callback only, while `condition` holds.

        The others have already seen these batches. A second call might count them twice, stop the training, or pay for
        an evaluation.
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

        return [MethodPatch(container, name, wrapper(name)) for name in _BATCH_HOOKS]

    def replay(self, epochs: int) -> None:
        """Consume the data of the first `epochs` epochs, where later epochs depend on it.

        Arrays without `steps_per_epoch` start again at each epoch and need no replay. A generator, or arrays with
        `steps_per_epoch`, continue where the epoch before ended.
        """
        if self._frame is None:
            if epochs:
                logger.warning(
                    "this program has a fit of its own, so its data is not skipped: skip %d epochs of a generator",
                    epochs,
                )
            return
        iterator = self._frame.f_locals["epoch_iterator"]
        if iterator.steps_per_epoch is None and iterator.data_adapter.batch_size is not None:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(self._frame.f_locals["initial_epoch"], epochs):
                with iterator.catch_stop_iteration():
                    for _ in iterator:
                        pass
