"""The exact state of a fit: captured as bytes, checked, and applied.

State is every variable of program, optimizer and metrics, in the order they were created; what the optimizer
keeps outside variables (OMEGA's `_difficulty`); both global random generators that synalinks draws from; and
what the user names with `state_of`. Variables are matched by group and order, not by path: an OMEGA path holds
`id(...)` and differs in every process. What lives elsewhere is not covered: a language model's cache or counters,
generators of a user's own, `numpy.random.default_rng()`.

Facts leant on (synalinks 0.10.14): `get_state_tree` flattens empty dicts away, so it can't be used; CompileMetrics
and OMEGA are built at their first sample, so they must be built before their state can be applied.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import orjson

from distributed_backup.checkpoints.state_json import decode_state, encode_state, is_json
from distributed_backup.errors import ProgramMismatchError

_PLAIN: Final = (dict, list, tuple, int, float, str, bool, type(None), np.number)
# Attributes of every optimizer that describe it or tie it to a program, and are no state.
_NOT_STATE: Final = frozenset(
    {"_lock", "_program", "_tracker", "_iterations", "_trainable_variables", "_non_trainable_variables", "_modules"}
)
FIT_ATTRIBUTES: Final = frozenset({"params", "_program"})


class TrainingState:
    """Captures and applies the state of one program in one fit.

    Args:
        program: A compiled `synalinks.Program`.
        state_of: Callbacks and other objects whose state belongs to the fit's: `get_state` and `set_state` where
            they have them, else their attributes that are JSON.
    """

    def __init__(self, program: Any, state_of: Sequence[Any] = ()) -> None:
        self._program = program
        self._objects = tuple(state_of)
        self._cached: tuple[dict[str, list[Any]], bytes] | None = None
        self._decoded: tuple[bytes, dict[str, Any]] | None = None

    async def prepare(self) -> None:
        """Build what is otherwise built at the first sample, so that all variables exist. Costs no LM call."""
        program = self._program
        if program.trainable_variables and not program.optimizer.built:
            await program.optimizer.build(program.trainable_variables)
        placeholder = [0] * len(getattr(program, "outputs", None) or [0])
        y = placeholder if len(placeholder) > 1 else placeholder[0]
        for lazy in (program._compile_metrics, program._compile_reward):  # noqa: SLF001 - no public way in 0.10
            if lazy is not None and not lazy.built:
                lazy.build(y, y)
        self._cached = self._layout()

    def capture(self, loop: Mapping[str, Any] | None = None) -> bytes:
        """The state as one line of JSON.

        Args:
            loop: What the loop of `fit` remembers, to be had again from `loop_state`.

        Raises:
            StateError: Something in it is not JSON; the message says what.
        """
        groups, schema = self._cached or self._layout()
        state = {
            "variables": {name: [variable.get_json() for variable in group] for name, group in groups.items()},
            "optimizer": _attributes_of_optimizer(self._program.optimizer),
            "objects": [_state_of(item) for item in self._objects],
            "python_random": _without_none(random.getstate()),
            "numpy_random": np.random.get_state(),
            "loop": dict(loop or {}),
            "schema": orjson.loads(schema),
        }
        return encode_state(state)

    def loop_state(self, body: bytes) -> dict[str, Any]:
        """What was given to `capture` as `loop`; empty where that was nothing."""
        self._decoded = body, decode_state(body)
        loop: dict[str, Any] = self._decoded[1].get("loop", {})
        return loop

    def apply(self, body: bytes) -> None:
        """Make the state in `body` the program's.

        Raises:
            ProgramMismatchError: The program does not fit; nothing was changed.
        """
        state = self._checked(body)
        groups, _ = self._cached or self._layout()
        for name, group in groups.items():
            for variable, value in zip(group, state["variables"][name], strict=True):
                variable.assign(value)
        for name, value in state["optimizer"].items():
            _put(self._program.optimizer, name, value)
        for item, value in zip(self._objects, state["objects"], strict=True):
            _set_state(item, value)
        version, words, *gauss = state["python_random"]
        random.setstate((version, tuple(words), gauss[0] if gauss else None))
        kind, key, *rest = state["numpy_random"]
        np.random.set_state((kind, np.array(key, dtype=np.uint32), *rest))

    def _checked(self, body: bytes) -> dict[str, Any]:
        # Reading it takes longest of all; and each `apply` needs values that nobody has changed since.
        decoded, self._decoded = self._decoded, None
        state = decoded[1] if decoded is not None and decoded[0] is body else decode_state(body)
        _, schema = self._cached or self._layout()
        _check_schema(saved=state["schema"], own=orjson.loads(schema))
        saved, own = state["objects"], [type(item).__name__ for item in self._objects]
        if [item["class"] for item in saved] != own:
            raise ProgramMismatchError(
                f"state_of does not fit the checkpoint: it holds {[item['class'] for item in saved]}, given were {own}"
            )
        return state

    def _layout(self) -> tuple[dict[str, list[Any]], bytes]:
        """The variables by group, and the description that a checkpoint is matched against."""
        program, optimizer = self._program, self._program.optimizer
        groups = {
            "trainable": program.trainable_variables,
            "non_trainable": program.non_trainable_variables,
            "optimizer_trainable": optimizer.trainable_variables,
            "optimizer_non_trainable": optimizer.non_trainable_variables,
            "metrics": program.metrics_variables,
        }
        schema = {name: [_describe(variable) for variable in group] for name, group in groups.items()}
        return groups, orjson.dumps(schema)


def _describe(variable: Any) -> dict[str, str]:
    shape = orjson.dumps(_shape(variable.get_schema()), option=orjson.OPT_SORT_KEYS)
    return {"path": variable.path, "schema": hashlib.blake2b(shape, digest_size=8).hexdigest()}


def _shape(schema: Any) -> Any:
    """A schema without what is only for people; automatic titles depend on what else the process has built."""
    if isinstance(schema, dict):
        return {key: _shape(value) for key, value in schema.items() if key not in {"title", "description"}}
    return [_shape(item) for item in schema] if isinstance(schema, list) else schema


def _check_schema(*, saved: dict[str, list[dict[str, str]]], own: dict[str, list[dict[str, str]]]) -> None:
    for group, variables in own.items():
        theirs = saved.get(group, [])
        if [item["schema"] for item in theirs] != [item["schema"] for item in variables]:
            raise ProgramMismatchError(
                f"the program does not fit the checkpoint: its {group} variables are {_paths(variables)}, the "
                f"checkpoint's are {_paths(theirs)} (path#schema); restore with the program that made it, or use "
                "another backup_dir"
            )


def _paths(variables: list[dict[str, str]]) -> list[str]:
    return [f"{item['path']}#{item['schema']}" for item in variables]


# -------------------------------------------------------------------- objects


def _attributes_of_optimizer(optimizer: Any) -> dict[str, Any]:
    """Private attributes that are JSON: what an optimizer remembers outside variables. Public ones are settings."""
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
    # EarlyStopping and others choose a function of numpy once, and change other attributes along with it.
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
    """Set an attribute; a dict or list is changed in place, for others may hold on to it."""
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
