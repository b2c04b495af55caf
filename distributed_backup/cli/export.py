"""Export the variables of a checkpoint to a file for `program.load_variables`.

An export holds less than a checkpoint. synalinks' format has no random generators, drops empty dictionaries, and
matches the optimizer's variables by path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import orjson

from distributed_backup.atomic import atomic_write
from distributed_backup.checkpoints.format import Checkpoint
from distributed_backup.checkpoints.state_body import decode_state
from distributed_backup.cli.locate import holds_run
from distributed_backup.errors import BackupError, ConfigError, StateError

_SUFFIX: Final = ".variables.json"
# Our groups of variables to those of `Program.get_state_tree` (synalinks 0.10).
_GROUPS: Final = {
    "trainable": "trainable_variables",
    "non_trainable": "non_trainable_variables",
    "optimizer_trainable": "optimizer_trainable_variables",
    "optimizer_non_trainable": "optimizer_non_trainable_variables",
    "metrics": "metrics_variables",
}


def export_variables(checkpoint: Checkpoint, path: Path) -> None:
    """Write the variables of a checkpoint to `path`, in the format of `Program.save_variables`.

    An existing file is replaced when the new one is complete.

    Raises:
        ConfigError: `path` does not end in `.variables.json`, or lies in the directory of a run.
        BackupError: The checkpoint holds values that the format can't express.
        StoreError: The file can't be written.
    """
    if not path.name.endswith(_SUFFIX):
        raise ConfigError(f"{path} must end in {_SUFFIX}: program.load_variables takes no other name")
    if _is_in_run(path):
        raise ConfigError(
            f"{path} lies in the directory of a run, where it would be deleted with the run or mistaken for a backup: "
            "choose another place with -o"
        )
    tree = state_tree(checkpoint)
    try:
        json.dumps(tree, allow_nan=False)  # orjson writes NaN and infinity as null
        text = orjson.dumps(tree, option=orjson.OPT_INDENT_2)
    except (TypeError, ValueError):
        raise BackupError(
            f"{checkpoint.name} holds values that synalinks can't read from JSON: NaN, infinity, an integer beyond 64 "
            "bits, or an unpaired surrogate"
        ) from None
    atomic_write(path, text)


def state_tree(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the variables of a checkpoint in the form of `Program.get_state_tree`, the final ones if it has them.

    Raises:
        BackupError: The body is not a training state of this version, or two variables share a path.
    """
    with reading_state(checkpoint):
        state = decode_state(checkpoint.body)
        state = state.get("final", state)
        paths = {group: [item["path"] for item in state["schema"][group]] for group in _GROUPS}
        return {_GROUPS[group]: _nested(paths[group], state["variables"][group], checkpoint.name) for group in _GROUPS}


@contextmanager
def reading_state(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn the errors of a body of unknown form into a `BackupError`."""
    try:
        yield
    except (StateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise BackupError(
            f"{checkpoint.name} verifies, but its body is not a training state that this version can read"
        ) from None


def _is_in_run(path: Path) -> bool:
    # If the directory is missing or unreadable, the write reports it.
    with suppress(OSError):
        return holds_run(child.name for child in path.parent.iterdir())
    return False


def _nested(paths: list[str], values: list[Any], name: str) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in zip(paths, values, strict=True):
        *parents, last = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        if last in place:
            raise BackupError(
                f"{name} has two variables with the path {path}, which synalinks' format can't distinguish"
            )
        place[last] = value
    return tree
