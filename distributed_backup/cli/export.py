"""Export the variables of a checkpoint as synalinks saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from distributed_backup.atomic import atomic_write
from distributed_backup.checkpoints.format import Checkpoint
from distributed_backup.cli.copy_run import _EXPORT_SUFFIX, _GROUPS, _is_run, _json, _nested
from distributed_backup.errors import BackupError, ConfigError

# -------------------------------------------------------------------- export


def export_variables(checkpoint: Checkpoint, path: Path) -> None:
    """Write the variables of a checkpoint as `Program.save_variables` does.

    Args:
        checkpoint: Which.
        path: Ends in `.variables.json`, as `Program.load_variables` wants it; replaced when the new file is complete.

    Raises:
        ConfigError: A wrong name, or a place that belongs to a run.
        BackupError: What the checkpoint holds has no such form.
        StoreError: The file can't be written.
    """
    if not path.name.endswith(_EXPORT_SUFFIX):
        raise ConfigError(f"{path} must end in {_EXPORT_SUFFIX}: program.load_variables takes no other name")
    if _is_run(path.parent):
        raise ConfigError(
            f"{path} would be in the directory of a run, which removes it at its end or takes it for a backup of "
            "synalinks' own callback: name another place with -o"
        )
    tree = state_tree(checkpoint)
    try:
        text = _json(tree)
        # As synalinks reads it; not the values themselves, for 2**64 equals the float that it would be.
        exact = _json(orjson.loads(text)) == text
    except ValueError:
        exact = False
    if not exact:
        raise BackupError(
            f"{checkpoint.name} holds what synalinks can't read from JSON: NaN, infinity, a whole number beyond 64 "
            "bits, or half a letter"
        )
    atomic_write(path, text)


def state_tree(checkpoint: Checkpoint) -> dict[str, Any]:
    """The variables of a checkpoint in the form of `Program.get_state_tree`.

    Raises:
        BackupError: Its body is no training state as this version writes it, or two variables share a path.
    """
    from distributed_backup.checkpoints.state_json import decode_state  # imports numpy, which nothing else here needs

    try:
        state = decode_state(checkpoint.body)
        paths = {group: [item["path"] for item in state["schema"][group]] for group in _GROUPS}
        return {_GROUPS[group]: _nested(paths[group], state["variables"][group], checkpoint.name) for group in _GROUPS}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BackupError(
            f"{checkpoint.name} verifies, but holds no training state as this version writes it"
        ) from None
