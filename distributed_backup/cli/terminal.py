"""Share what all commands need: exit codes, one-line errors, JSON, and a console for tables.

Only `cli` prints.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Final, override

import typer
from typer.core import TyperCommand

from distributed_backup.errors import BackupError, ConfigError
from distributed_backup.urls import without_credentials

if TYPE_CHECKING:
    from rich.console import Console

    from distributed_backup.checkpoints.store import CheckpointStore

PROBLEM: Final = 1
USAGE: Final = 2
_INTERRUPTED: Final = 130
_OUTPUT_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})
# Columns of a table in a pipe. A narrow table would cut the names of checkpoints.
_PIPE_WIDTH: Final = 200
_URL: Final = re.compile(r"[a-z+]+://[^\s)]*")


def _run_of_the_job(option: str | None) -> str | None:
    return option or os.environ.get("DISTRIBUTED_BACKUP_RUN_ID", "").strip() or None


RunId = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="ID",
        callback=_run_of_the_job,
        help="Id of the run. Default: $DISTRIBUTED_BACKUP_RUN_ID, else the run in DIR or the only run on the server.",
    ),
]
Place = Annotated[
    str, typer.Argument(metavar="DIR", help="The run's backup directory: a path or a URL (s3://…, redis://…).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON. deploy/JSON_OUTPUT.md lists the keys.")]


class RedactingCommand(TyperCommand):
    """A command whose usage errors quote URLs without credentials.

    A URL in the wrong place must not print its password to the screen or a job's log.
    """

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments and redact the message of a usage error."""
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
    """Print a `BackupError` as one line and exit: `USAGE` for a `ConfigError`, else `PROBLEM`."""
    try:
        yield
    except BackupError as error:
        typer.echo(printable(f"error: {error}"), err=True)
        raise typer.Exit(USAGE if isinstance(error, ConfigError) else PROBLEM) from None


@contextmanager
def exit_on_output_error() -> Iterator[None]:
    """Exit with `USAGE` if the output can't be written. 1 would mean that a command has found a problem.

    A closed pipe is not meant: click ends the program then.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS or error.filename is not None:  # an error of this program
            raise
        with suppress(OSError):  # that may be the output which can't be written
            typer.echo(f"error: the output can't be written: {error.strerror}. Write it to another place", err=True)
        raise SystemExit(USAGE) from None


@contextmanager
def opened_store(place: str, run: str | None) -> Iterator[CheckpointStore]:
    """Open the store of the run in a place, close it at the end, and exit on errors as `exit_on_error` does."""
    from distributed_backup.cli.locate import open_store

    with exit_on_error():
        store = open_store(place, run_id=run)
        with closing(store.storage):
            yield store


@contextmanager
def exit_on_stop(message: str) -> Iterator[None]:
    """Turn SIGTERM into `SystemExit(143)`, so that `finally` blocks run. After Ctrl-C, print `message` and exit."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {message}", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def print_json(value: Any) -> None:
    """Print one indented JSON document."""
    typer.echo(json.dumps(value, indent=2))


def print_result(value: Any, line: str, *, as_json: bool) -> None:
    """Print the result of a command as JSON, or as a line for people."""
    if as_json:
        print_json(value)
    else:
        typer.echo(line)


def console(*, stderr: bool = False) -> Console:
    """Make the rich console that prints tables."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False)


def progress(epoch: int, batch: int) -> str:
    """Return a position for people."""
    return f"{epoch} epoch(s) and {batch} batch(es) done"


def printable(text: str) -> str:
    """Replace control characters and newlines, which text from a file or a server may hold."""
    if text.isprintable():  # the common case, much faster
        return text
    return "".join(letter if letter.isprintable() else " " for letter in text)
