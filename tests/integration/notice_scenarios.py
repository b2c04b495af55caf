"""What the children of the tests of notices run. Imports synalinks, through the callback."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed_backup import BackupAndRestore
from distributed_backup.errors import ConfigError


def make(report: Callable[..., None], directory: Path, variable: str, arguments: dict[str, Any]) -> Any:
    """Make a callback: the sources it takes notices from and whether it serves any, or why there is none."""
    os.environ["DISTRIBUTED_BACKUP_NOTICES"] = variable
    try:
        options = BackupAndRestore(directory, **arguments)._options
    except ConfigError as error:
        return str(error)
    names = ["signal"] * options.notices.signal + [source.name for source in options.notices.others]
    return names, options.save_before_preemption
