"""Commands that operators call while a run goes on, in processes of their own. Imports no synalinks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.chaos.plan import Place
from tests.support.processes import Child

_TIMEOUT: Final = "3"
# These ask the coordinator, too.
_ASKING: Final = frozenset({"status", "preempt", "resign"})


def call(words: str, place: Place, log: Path) -> tuple[int, str]:
    """Call a command, and return its exit code and its output."""
    with Child("tests.chaos.operators:command", arguments(words, place), log=log) as child:
        code = child.join()
        return code, child.output()


def arguments(words: str, place: Place) -> list[str]:
    """Return the command line of a command on a run."""
    line = [*words.split(), place.backup_dir, "--run", str(place.run_id), "--json"]
    if words in {"preempt", "resign"}:
        line += ["--timeout", _TIMEOUT]
    is_named = words in _ASKING and place.coordinator is not None and place.coordinator != place.backup_dir
    return [*line, "--coordinator", str(place.coordinator)] if is_named else line


def is_possible(words: str, place: Place) -> bool:
    """Whether there is such a command for a place. A run in Redis is coordinated over the same server."""
    is_elsewhere = place.coordinator is not None and not place.coordinator.startswith("redis")
    return not (words in _ASKING and place.backup_dir.startswith("redis") and is_elsewhere)


def command(_: Callable[..., Any], line: list[str]) -> None:
    """Run the console script in this process. Its exit code is that of the process."""
    from distributed_backup.cli.app import main

    sys.argv = ["distributed-backup", *line]
    main()
