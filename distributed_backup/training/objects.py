"""Capture and restore the state of a fit that is in no variable, and in no random generator of the process.

It has these parts, each under a key of its own:

- `optimizer`: private attributes, and public ones that training has changed (see `attributes`)
- `objects`: the objects that the user names in `state_of`, whole
- `callbacks`: synalinks' own callbacks in the fit's list (see `host_callbacks`)
- `metrics`: baselines of token metrics, and attributes that training has changed
- `counters`: calls, tokens, cost and time

`state_of=()` leaves out the last three. A checkpoint of an earlier version lacks them, and its fit resumes without.

Objects of `state_of` must be those that were saved. Callbacks and metrics are matched by class, and by order among
those of one class, so others may have come between. One that is missing in the resumed fit is named in a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from distributed_backup.errors import ProgramMismatchError
from distributed_backup.training.attributes import ObjectState, Rule
from distributed_backup.training.counters import Counters
from distributed_backup.training.host_callbacks import HostCallback, is_host_callback
from distributed_backup.training.in_place import InPlace
from distributed_backup.training.packing import pack

logger = logging.getLogger(__name__)

# Set by `set_params` and `set_program` for each fit.
_OF_THE_FIT: Final = frozenset({"params", "_program"})
# Attributes of every optimizer and metric that describe it, or refer to its variables and modules.
_NOT_STATE: Final = frozenset(
    {
        *("_lock", "_program", "_tracker", "_iterations", "_metrics", "_variables"),
        *("_trainable_variables", "_non_trainable_variables", "_modules"),
    }
)
# Operational metrics report the difference between a counter and one of these (synalinks 0.10.14).
_BASELINES: Final = frozenset({"_baselines", "_wall_baseline", "_program_baselines", "_model_cost_baseline"})


class FitObjects:
    """The objects of one fit. `callbacks` are those in its list. `state_of` is the user's argument, None by default."""

    def __init__(self, program: Any, state_of: Sequence[Any] | None, callbacks: Sequence[Any] = ()) -> None:
        self._program = program
        named = state_of or ()
        self._named = [(type(item).__name__, _whole(item)) for item in named]
        self._optimizer = ObjectState(program.optimizer, _rule_of_optimizer)
        self._has_defaults = state_of is None or len(named) > 0
        others = [item for item in callbacks if not any(item is each for each in named)]
        found = [HostCallback(item) for item in others if is_host_callback(item)]
        self._callbacks = [(item.kind, item) for item in found]
        self._metrics: list[tuple[str, ObjectState]] = []
        self._counters: Counters | None = None

    def begin(self) -> None:
        """Note what the start of the fit has set. Call it when all parts of the program are built."""
        self._optimizer.begin()
        for _, item in self._named:
            item.begin()
        if self._has_defaults:
            self._counters = Counters(self._program)
            metrics = {id(metric): metric for metric in _leaves(self._program.metrics)}.values()
            self._metrics = [(type(metric).__name__, ObjectState(metric, _rule_of_metric)) for metric in metrics]
            for _, metric in self._metrics:
                metric.begin()
            for _, callback in self._callbacks:
                callback.begin()

    def capture(self) -> dict[str, Any]:
        """Return the state as strict JSON. `restore` takes it."""
        state: dict[str, Any] = {"optimizer": self._optimizer.capture(), "named": _captured(self._named)}
        if self._counters is not None:
            state["callbacks"] = _captured(self._callbacks)
            state["metrics"] = _captured(self._metrics)
            state["counters"] = self._counters.capture()
        return state

    def check(self, saved: dict[str, Any]) -> None:
        """Raise a `ProgramMismatchError` if the objects of `state_of` are not those that were saved."""
        theirs, own = [item["class"] for item in saved["named"]], [name for name, _ in self._named]
        if theirs != own:
            raise ProgramMismatchError(f"state_of does not fit the checkpoint: it holds {theirs}, not {own}")
        for (name, item), state in zip(self._named, saved["named"], strict=True):
            if not item.fits(state):
                raise ProgramMismatchError(
                    f"state_of does not fit the checkpoint: the saved {name} has another form than this one, such as "
                    "another shape, limit or kind of random generator"
                )

    def restore(self, saved: dict[str, Any]) -> None:
        """Set the state, which `check` has accepted."""
        in_place = InPlace()
        self._optimizer.restore(saved["optimizer"], in_place)
        for (_, item), state in zip(self._named, saved["named"], strict=True):
            item.restore(state, in_place)
        if self._counters is None or "counters" not in saved:
            return
        # First the counters, because budgets and metrics are the difference to them.
        has_counters = self._counters.restore(saved["counters"])
        for callback, state in _matched("callback", self._callbacks, saved["callbacks"]):
            callback.restore(state, in_place)
        if has_counters:
            for metric, state in _matched("metric", self._metrics, saved["metrics"]):
                metric.restore(state, in_place)


def packed_objects(state: dict[str, Any]) -> dict[str, Any]:
    """Return what `capture` would have returned for the state in a checkpoint, of this or of an earlier version."""
    if isinstance(state["objects"], dict):
        return dict(state["objects"])
    return {
        "optimizer": {"attributes": _packed_attributes(state["optimizer"])},
        "named": [
            {
                "class": item["class"],
                "own": pack(item["state"]),
                "attributes": _packed_attributes(item["state"])
                | {name: {"$ufunc": function} for name, function in item["functions"].items()},
            }
            for item in state["objects"]
        ],
    }


def _packed_attributes(state: Any) -> dict[str, Any]:
    # `get_state` may have returned something else. It is not used then.
    return {name: pack(value) for name, value in state.items()} if isinstance(state, dict) else {}


def _whole(item: Any) -> ObjectState | HostCallback:
    return HostCallback(item, whole=True) if is_host_callback(item) else ObjectState(item, _rule_of_named)


def _rule_of_named(name: str) -> Rule:
    return Rule.NOT_STATE if name in _OF_THE_FIT else Rule.STATE


def _rule_of_optimizer(name: str) -> Rule:
    if name in _NOT_STATE:
        return Rule.NOT_STATE
    return Rule.STATE if name.startswith("_") else Rule.SETTING


def _rule_of_metric(name: str) -> Rule:
    if name in _NOT_STATE:
        return Rule.NOT_STATE
    return Rule.STATE if name in _BASELINES else Rule.SETTING


def _leaves(metrics: Iterable[Any]) -> Iterator[Any]:
    """Yield the metrics inside synalinks' lists of metrics."""
    for metric in metrics:
        inner = getattr(metric, "metrics", None)
        if isinstance(inner, list):
            yield from _leaves(inner)
        else:
            yield metric


def _captured(items: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
    return [{"class": name, **item.capture()} for name, item in items]


def _matched(
    kind: str, items: Iterable[tuple[str, Any]], saved: list[dict[str, Any]]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield each object with its saved state, matched by class and by order in it. Warn about what has no object."""
    left = list(saved)
    for name, item in items:
        state = next((state for state in left if state["class"] == name), None)
        if state is not None:
            left.remove(state)
            yield item, state
    for state in left:
        logger.warning(
            "the saved state of a %s %s is not used: the fit that resumes has fewer of this class",
            kind,
            state["class"],
        )
