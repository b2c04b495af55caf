"""What a callback needs of the running `fit` and synalinks does not give it: its callbacks, its data, its methods.

Facts leant on (synalinks 0.10.14): `callbacks` and `epoch_iterator` are locals of `Trainer.fit`, and a method is looked
up on the instance first. A program with a `fit` of its own has no such frame.
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
    """A method of one instance, wrapped until `remove`; wrappers may be removed in any order."""

    def __init__(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        self._owner, self._name = owner, name
        self.wrapper: Callable[..., Any] | None = wrapper
        self.previous = vars(owner).get(name)
        self._original = getattr(owner, name)
        # Not setattr: program and optimizer track what is set on them.
        vars(owner)[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapper with the original first, or the original once it was removed."""
        if self.wrapper is None:
            return self._original(*args, **kwargs)
        return self.wrapper(self._original, *args, **kwargs)

    def remove(self) -> None:
        """Let calls through; and leave, with any below that were removed before, once nothing is on top."""
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

    synalinks gives a callback neither. Both are locals of `Trainer.fit`, whose frame is up the stack while
    `on_train_begin` runs; a program with a `fit` of its own has none, and then only what needs them is missing.
    """

    def __init__(self, frame: FrameType | None) -> None:
        self._frame = frame

    @classmethod
    def find(cls, program: Any) -> RunningFit:
        """The fit of `program` up the stack."""
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe() is the same
        while frame is not None:
            names = frame.f_locals
            if frame.f_code.co_name == "fit" and names.get("self") is program and "epoch_iterator" in names:
                break
            frame = frame.f_back
        return cls(frame)

    def call_last(self, callback: Any) -> None:
        """Make `callback` the last of the fit's: what it captures then includes what the others did.

        And have it called in the training thread: `callbacks=callback`, not in a list, makes synalinks call it from a
        pool of threads while the next batch is already running.
        """
        if self._frame is not None:
            container = self._frame.f_locals["callbacks"]
            others = [item for item in container.callbacks if item is not callback]
            # A new list: the container is iterating over the old one.
            container.callbacks = [*others, callback]
            container._async_train = container._async_test = False  # noqa: SLF001 - there is no public way

    def silence_other_callbacks(self, condition: Callable[[], bool]) -> list[MethodPatch]:
        """Keep batches from all callbacks but the last one: the others were told of them when they were trained.

        They may count, stop the training, or spend calls on an evaluation of their own.
        """
        if self._frame is None:
            return []
        container = self._frame.f_locals["callbacks"]

        def wrapper(name: str) -> Callable[..., None]:
            def told(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
                if condition():
                    getattr(container.callbacks[-1], name)(*args, **kwargs)
                else:
                    original(*args, **kwargs)

            return told

        return [MethodPatch(container, name, wrapper(name)) for name in _BATCH_HOOKS]

    def replay(self, epochs: int) -> None:
        """Consume the data of the epochs before number `epochs` as the fit did, where later epochs depend on it.

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
            for _ in range(self._frame.f_locals["initial_epoch"], epochs):
                with iterator.catch_stop_iteration():
                    for _ in iterator:
                        pass
