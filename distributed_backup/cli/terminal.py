"""What all commands share: exit codes, errors in one line, JSON, tables as wide as they need to be.

Only this module and those named `cli…` print.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, override

import typer
from typer.core import TyperCommand

from distributed_backup.errors import BackupError, ConfigError
from distributed_backup.urls import without_credentials

if TYPE_CHECKING:
    from rich.console import Console

PROBLEM: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
# What a pipe is taken to be wide: tables for people must not be cut where a program reads them.
_PIPE_WIDTH: Final = 200
_URL: Final = re.compile(r"[a-z+]+://[^\s)]*")


RunId = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="ID",
        help="Which run. Default: $DISTRIBUTED_BACKUP_RUN_ID; else the one in DIR, or the only one on the server.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON with the keys described above.")]


def chosen_run(option: str | None) -> str | None:
    """The run that is meant: an option wins over the environment of the job."""
    return option or os.environ.get("DISTRIBUTED_BACKUP_RUN_ID", "").strip() or None


class RedactingCommand(TyperCommand):
    """A command whose complaints about its arguments quote no password: a URL may stand where none is wanted."""

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; what is wrong is told without credentials."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            message = getattr(error, "message", None)
            if isinstance(message, str):
                shown = _URL.sub(lambda url: without_credentials(url[0]), message)
                error.message = shown  # type: ignore[attr-defined]
            raise


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print an error of ours as one line, and exit with its code."""
    try:
        yield
    except BackupError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE if isinstance(error, ConfigError) else PROBLEM) from None


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """SIGTERM tidies up as Ctrl-C does."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def print_json(value: Any) -> None:
    """Print a document."""
    typer.echo(json.dumps(value, indent=2))


def console(*, stderr: bool = False) -> Console:
    """Where tables are printed."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False)
