"""Read the variables of a program, and give each one its value from a checkpoint.

`matching` decides which value is whose. This module knows synalinks: the groups of variables, and the automatic names.

Facts relied on (synalinks 0.10.14): an automatic name is the snake-case name of the class, with `_N` from the second
object on. OMEGA's names contain the `id(...)` of a trainable variable's schema. `get_state_tree` drops empty dicts, so
it can't be used.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from distributed_backup.once import OnceLogger
from distributed_backup.training.matching import Layout, match


class Variables:
    """The variables of a program, its optimizer and its metrics, as they are when this object is made."""

    def __init__(self, program: Any) -> None:
        optimizer = program.optimizer
        self._program = program
        self._groups: dict[str, list[Any]] = {
            "trainable": program.trainable_variables,
            "non_trainable": program.non_trainable_variables,
            "optimizer_trainable": optimizer.trainable_variables,
            "optimizer_non_trainable": optimizer.non_trainable_variables,
            "metrics": program.metrics_variables,
        }
        self.layout = {name: [_describe(item) for item in group] for name, group in self._groups.items()}
        """The path and a digest of the schema of each variable, by group."""
        self._warnings = OnceLogger(logging.getLogger(__name__))

    def values(self) -> dict[str, list[Any]]:
        """Return the values by group, in the order of `layout`."""
        return {name: [variable.get_json() for variable in group] for name, group in self._groups.items()}

    def arrange(self, values: Mapping[str, Sequence[Any]], layout: Layout) -> dict[str, list[Any]]:
        """Return the values of a checkpoint in the order of this program's variables. `layout` is the checkpoint's.

        Raises:
            ProgramMismatchError: The program does not fit the checkpoint.
        """
        if layout == self.layout:
            return {group: list(values[group]) for group in self._groups}
        found = match(
            self.layout,
            layout,
            automatic=self._automatic_names(),
            schema_ids=[str(id(variable.get_schema())) for variable in self._groups["trainable"]],
        )
        if found.renamed:
            self._warnings.warning(
                "no name of these variables is in the checkpoint, so they were restored by their order, as name=saved: "
                "%s. If they are other modules, use another backup_dir",
                ", ".join(f"{own}={saved}" for own, saved in found.renamed),
            )
        return {group: [values[group][place] for place in places] for group, places in found.places.items()}

    def assign(self, values: Mapping[str, Sequence[Any]]) -> None:
        """Set each variable to its value. `values` is in the order of `layout`."""
        for name, group in self._groups.items():
            for variable, value in zip(group, values[name], strict=True):
                variable.assign(value)

    def _automatic_names(self) -> set[str]:
        """Return the names in paths, without their counters, that are made from the name of a class."""
        objects = list(self._named_objects())
        classes = {type(item).__name__.replace("_", "").lower() for item in objects}
        # The parts of paths are needed too: an object may have been renamed after its variables were made.
        parts = {part for group in self._groups.values() for variable in group for part in variable.path.split("/")}
        names = parts | {item.name for item in objects}
        bases = names | {re.sub(r"_\d+$", "", name) for name in names}
        return {base for base in bases if base.replace("_", "") in classes}

    def _named_objects(self) -> Iterator[Any]:
        """Yield each object whose name may be part of a path."""
        optimizer = self._program.optimizer
        yield optimizer
        for module in (self._program, *optimizer._modules):  # noqa: SLF001 - no public way in 0.10
            yield from module._flatten_modules()  # noqa: SLF001
        metrics = list(self._program.metrics)
        while metrics:
            metric = metrics.pop()
            yield metric
            metrics += [*getattr(metric, "metrics", ()), *getattr(metric, "_metrics", ())]
        for group in self._groups.values():
            yield from group


def _describe(variable: Any) -> dict[str, str]:
    shape = orjson.dumps(_shape(variable.get_schema()), option=orjson.OPT_SORT_KEYS)
    return {"path": variable.path, "schema": hashlib.blake2b(shape, digest_size=8).hexdigest()}


def _shape(schema: Any) -> Any:
    """Remove titles and descriptions from a schema. Automatic titles depend on what else the process has built."""
    if isinstance(schema, dict):
        return {key: _shape(value) for key, value in schema.items() if key not in {"title", "description"}}
    return [_shape(item) for item in schema] if isinstance(schema, list) else schema
