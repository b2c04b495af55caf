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

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from distributed_backup.checkpoints.format import Body
from distributed_backup.checkpoints.journal_format import Digests
from distributed_backup.checkpoints.state_body import decode_state, encode_state, encode_variables
from distributed_backup.checkpoints.state_digests import digests_of
from distributed_backup.checks import shown
from distributed_backup.errors import StateError
from distributed_backup.storage.base import Chunks
from distributed_backup.training.fit_start import check_loop
from distributed_backup.training.objects import FitObjects, packed_objects
from distributed_backup.training.random_states import get_states, saved_states, set_states
from distributed_backup.training.variables import Variables


class TrainingState:
    """The state of one compiled program in one fit, and of the objects that `FitObjects` finds."""

    def __init__(self, program: Any, state_of: Sequence[Any] | None = (), callbacks: Sequence[Any] = ()) -> None:
        self._program = program
        self._objects = FitObjects(program, state_of, callbacks)
        self._cached: Variables | None = None
        self._decoded: tuple[Body, dict[str, Any]] | None = None
        self._captured: Callable[[], Digests] = dict

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

    def capture(self, loop: Mapping[str, Any] | None = None) -> Chunks:
        """Return the state as the body of a checkpoint. `loop_state` returns `loop` again.

        Raises:
            StateError: A value is not JSON. The message names it.
        """
        state = {**self._program_state(), "objects": self._objects.capture(), "loop": dict(loop or {})}
        variables = encode_variables(state["variables"])
        random_states = state["python_random"], state["numpy_random"]
        self._captured = lambda: digests_of(variables, random_states)
        return encode_state(state, variables)

    def captured_digests(self) -> Callable[[], Digests]:
        """Return a function that computes the digests of the last `capture`, in any thread."""
        return self._captured

    def _program_state(self) -> dict[str, Any]:
        """Return the state without objects: variables and random generators."""
        variables, states = self._variables, get_states()
        return {
            "variables": variables.values(),
            "schema": variables.layout,
            "python_random": states[:3],
            "numpy_random": states[3:],
        }

    def loop_state(self, body: Body) -> dict[str, Any]:
        """Return the `loop` that was given to `capture`. Empty if none was.

        Raises:
            StateError: The body holds no state that this version can read.
        """
        self._decoded = body, decode_state(body)
        loop: dict[str, Any] = self._decoded[1].get("loop", {})
        with _reading():
            check_loop(loop)
        return loop

    def apply(self, body: Body) -> None:
        """Set the program and the random generators to the state in `body`.

        Raises:
            ProgramMismatchError: The program does not fit the checkpoint. Nothing was changed.
            StateError: The body holds no state that this version can read.
        """
        # Decoding is the slowest step, so `loop_state` shares its result. It is used once, because the program may
        # change the values that it was given.
        decoded, self._decoded = self._decoded, None
        state = decoded[1] if decoded is not None and decoded[0] is body else decode_state(body)
        with _reading():
            objects, variables = packed_objects(state), self._arranged(state)
            self._objects.check(objects)
            self._variables.assign(variables)
            self._objects.restore(objects)
            _set_random_states(state)

    def capture_final(self, boundary: Body) -> Chunks:
        """Return the body of the last checkpoint: that of the last `boundary`, and the final state beside it.

        The final state has the variables and the random generators as `fit` returns with them. Objects are those of
        the boundary, and are not asked again: callbacks have closed their files. A fit with more epochs continues at
        the boundary.
        """
        last = decode_state(boundary)
        # Packed: version 0.3 did not, and its values may be such that JSON lacks.
        return encode_state({**last, "objects": packed_objects(last), "final": self._program_state()})

    def apply_final(self, body: Body) -> None:
        """Set the final state that `capture_final` has added to `body`. Without one, that of the boundary counts.

        Raises:
            ProgramMismatchError: The program does not fit the checkpoint. Nothing was changed.
            StateError: The body holds no state that this version can read.
        """
        state = decode_state(body)
        final = state.get("final", state)
        with _reading():
            self._variables.assign(self._arranged(final))
            _set_random_states(final)

    def _arranged(self, state: Mapping[str, Any]) -> dict[str, list[Any]]:
        return self._variables.arrange(state["variables"], state["schema"])


@contextmanager
def _reading() -> Iterator[None]:
    """Turn the errors of a state of another form into a `StateError`. A checkpoint that verifies may hold any JSON."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        raise StateError(f"the checkpoint holds no state that this version can restore: {shown(error)}") from error


def _set_random_states(state: Mapping[str, Any]) -> None:
    set_states(saved_states(state["python_random"], state["numpy_random"]))
