"""Capture the exact state of a fit as bytes, check it, and apply it.

The state has these parts:

- every variable of program, optimizer and metrics (`variables`)
- both global random generators that synalinks draws from: `random` and `numpy.random`
- the state of other objects: see `objects`

Not covered are a language model's cache, attributes of modules, and generators of the user that no saved object holds.

Facts relied on (synalinks 0.10.14): CompileMetrics and OMEGA are built at their first sample, so they must be built
before their state can be applied.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distributed_backup.checkpoints.state_json import decode_state, encode_state
from distributed_backup.training.objects import FitObjects, packed_objects
from distributed_backup.training.variables import Variables


class TrainingState:
    """The state of one compiled program in one fit, and of the objects that `FitObjects` finds."""

    def __init__(self, program: Any, state_of: Sequence[Any] | None = (), callbacks: Sequence[Any] = ()) -> None:
        self._program = program
        self._objects = FitObjects(program, state_of, callbacks)
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
        self._objects.begin()

    def capture(self, loop: Mapping[str, Any] | None = None) -> bytes:
        """Return the state as one line of JSON. `loop_state` returns `loop` again.

        Raises:
            StateError: A value is not JSON. The message names it.
        """
        variables = self._variables
        state = {
            "variables": variables.values(),
            "objects": self._objects.capture(),
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
        self._objects.restore(state["objects"])
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
        state["objects"] = packed_objects(state)
        self._objects.check(state["objects"])
        return state


def _without_none(state: tuple[Any, ...]) -> tuple[Any, ...]:
    """The state of `random` without the None it mostly ends in: a null in every body would tell nothing."""
    return state[:-1] if state[-1] is None else state
