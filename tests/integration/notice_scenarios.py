"""Make a callback in a child, for `test_notice_sources`. Imports synalinks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed_backup import BackupAndRestore
from distributed_backup.errors import ConfigError


def make(report: Callable[..., None], directory: Path, variable: str, arguments: dict[str, Any]) -> Any:
    """Make a callback. Return its sources and whether it serves notices, or the text of its error."""
    os.environ["DISTRIBUTED_BACKUP_NOTICES"] = variable
    try:
        options = BackupAndRestore(directory, **arguments)._settings.session
    except ConfigError as error:
        return str(error)
    names = ["signal"] * options.notices.signal + [source.name for source in options.notices.others]
    return names, options.save_before_preemption
