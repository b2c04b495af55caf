"""Capture the exact state of a fit as bytes, check it, and apply it.

The state has these parts:

- every variable of program, optimizer and metrics (`variables`)
- the optimizer's state outside variables (OMEGA's `_difficulty`)
- both global random generators that synalinks draws from: `random` and `numpy.random`
- the objects of the callback's `state_of`

Not covered are a language model's cache or counters, and generators of the user such as `numpy.random.default_rng()`.

Facts relied on (synalinks 0.10.14): CompileMetrics and OMEGA are built at their first sample, so they must be built
before their state can be applied.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from distributed_backup.checkpoints.state_json import decode_state, encode_state, is_json
from distributed_backup.errors import ProgramMismatchError
from distributed_backup.training.variables import Variables

_PLAIN: Final = (dict, list, tuple, int, float, str, bool, type(None), np.number)
# Attributes of every optimizer that are not state: they describe it or refer to its program.
_NOT_STATE: Final = frozenset(
    {"_lock", "_program", "_tracker", "_iterations", "_trainable_variables", "_non_trainable_variables", "_modules"}
)
FIT_ATTRIBUTES: Final = frozenset({"params", "_program"})


class TrainingState:
    """The state of one compiled program in one fit, with the objects of the callback's `state_of`."""

    def __init__(self, program: Any, state_of: Sequence[Any] = ()) -> None:
        self._program = program
        self._objects = tuple(state_of)
        self._cached: Variables | None = None
        self._decoded: tuple[bytes, dict[str, Any]] | None = None

    @property
    def _variables(self) -> Variables:
        return self._cached or Variables(self._program)

    async def build(self) -> None:
        """Build the parts that synalinks builds at the first sample, so that all variables exist. Costs no LM call."""
        program = self._program
        if program.trainable_variables and not program.optimizer.built:
            await program.optimizer.build(program.trainable_variables)
        placeholder = [0] * len(getattr(program, "outputs", None) or [0])
        y = placeholder if len(placeholder) > 1 else placeholder[0]
        for lazy in (program._compile_metrics, program._compile_reward):  # noqa: SLF001 - no public way in 0.10
            if lazy is not None and not lazy.built:
                lazy.build(y, y)
        self._cached = Variables(program)

    def capture(self, loop: Mapping[str, Any] | None = None) -> bytes:
        """Return the state as one line of JSON. `loop_state` returns `loop` again.

        Raises:
            StateError: A value is not JSON. The message names it.
        """
        variables = self._variables
        state = {
            "variables": variables.values(),
            "optimizer": _attributes_of_optimizer(self._program.optimizer),
            "objects": [_state_of(item) for item in self._objects],
            "python_random": _without_none(random.getstate()),
            "numpy_random": np.random.get_state(),
            "loop": dict(loop or {}),
            "schema": variables.layout(),
        }
        return encode_state(state)

    def loop_state(self, body: bytes) -> dict[str, Any]:
        """Return the `loop` that was given to `capture`. Empty if none was."""
        self._decoded = body, decode_state(body)
        loop: dict[str, Any] = self._decoded[1].get("loop", {})
        return loop

    def apply(self, body: bytes) -> None:
        """Set the program and the random generators to the state in `body`.

        Raises:
            ProgramMismatchError: The program does not fit the checkpoint. Nothing was changed.
        """
        state = self._checked(body)
        self._variables.assign(state["variables"])
        for name, value in state["optimizer"].items():
            _put(self._program.optimizer, name, value)
        for item, value in zip(self._objects, state["objects"], strict=True):
            _set_state(item, value)
        version, words, *gauss = state["python_random"]
        random.setstate((version, tuple(words), gauss[0] if gauss else None))
        kind, key, *rest = state["numpy_random"]
        np.random.set_state((kind, np.array(key, dtype=np.uint32), *rest))

    def _checked(self, body: bytes) -> dict[str, Any]:
        # Decoding is the slowest step, so `loop_state` shares its result. It is used once, because the program may
        # change the values that it was given.
        decoded, self._decoded = self._decoded, None
        state = decoded[1] if decoded is not None and decoded[0] is body else decode_state(body)
        state["variables"] = self._variables.arrange(state["variables"], state["schema"])
        saved, own = state["objects"], [type(item).__name__ for item in self._objects]
        if [item["class"] for item in saved] != own:
            raise ProgramMismatchError(
                f"state_of does not fit the checkpoint: it holds {[item['class'] for item in saved]}, not {own}"
            )
        return state


# -------------------------------------------------------------------- objects


def _attributes_of_optimizer(optimizer: Any) -> dict[str, Any]:
    """Return the private attributes that are JSON: the state outside variables. Public attributes are settings."""
    return {
        name: value
        for name, value in vars(optimizer).items()
        if name.startswith("_") and name not in _NOT_STATE and isinstance(value, _PLAIN) and is_json(value)
    }


def _state_of(item: Any) -> dict[str, Any]:
    if hasattr(item, "get_state") and hasattr(item, "set_state"):
        state = item.get_state()
    else:
        state = {
            name: value
            for name, value in vars(item).items()
            if name not in FIT_ATTRIBUTES and isinstance(value, _PLAIN) and is_json(value)
        }
    # EarlyStopping and others choose a function of numpy once, and change other attributes at the same time.
    functions = {name: value.__name__ for name, value in vars(item).items() if isinstance(value, np.ufunc)}
    return {"class": type(item).__name__, "state": state, "functions": functions}


def _set_state(item: Any, saved: dict[str, Any]) -> None:
    if hasattr(item, "get_state") and hasattr(item, "set_state"):
        item.set_state(saved["state"])
        return
    for name, value in saved["state"].items():
        _put(item, name, value)
    for name, function in saved["functions"].items():
        setattr(item, name, getattr(np, function))


def _put(item: Any, name: str, value: Any) -> None:
    """Set an attribute. Change a dict or list in place, because other objects may refer to it."""
    old = getattr(item, name, None)
    if isinstance(old, dict) and isinstance(value, dict):
        old.clear()
        old.update(value)
    elif isinstance(old, list) and isinstance(value, list):
        old[:] = value
    else:
        setattr(item, name, value)


def _without_none(state: tuple[Any, ...]) -> tuple[Any, ...]:
    """The state of `random` without the None it mostly ends in: a null in every body would tell nothing."""
    return state[:-1] if state[-1] is None else state
