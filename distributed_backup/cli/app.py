"""Define the console script `distributed-backup` and its commands `status`, `preempt` and `resign`.

All commands work while the run is training. Output never contains credentials. Exit codes: 0 fine, 1 a problem was
found, 2 wrong usage (a wrong option, a path without a run, an unknown checkpoint) or output that can't be written. The
keys that `--json` prints are listed in `deploy/JSON_OUTPUT.md`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from distributed_backup.cli.check_command import check
from distributed_backup.cli.checkpoints_commands import checkpoints
from distributed_backup.cli.demo_command import demo
from distributed_backup.cli.journal_commands import journal
from distributed_backup.cli.terminal import (
    AsJson,
    RedactingCommand,
    RunId,
    console,
    exit_on_error,
    exit_on_output_error,
    exit_on_stop,
    print_json,
    print_result,
    printable,
    progress,
)
from distributed_backup.cli.timeline_commands import events, timeline
from distributed_backup.errors import BackupError

if TYPE_CHECKING:
    from distributed_backup.cli.locate import Run
    from distributed_backup.cli.operator_requests import Saved

# Seconds between two reads of --watch.
_WATCH_PERIOD: Final = 1.0
_WITHDRAWN: Final = "the request was withdrawn"

# rich's markup would add 0.2 s of imports to --help.
app = typer.Typer(
    name="distributed-backup",
    help="Inspect and operate preemption-safe backups of synalinks fits.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)
app.add_typer(checkpoints, name="checkpoints")
app.add_typer(journal, name="journal")

Target = Annotated[
    str,
    typer.Argument(
        metavar="URL|DIR", help="URL of the run's Redis server, or its backup directory (a path or s3://…)."
    ),
]
CoordinatorUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Coordinator that the workers of the run in DIR use. Default: $DISTRIBUTED_BACKUP_COORDINATOR, else file:",
    ),
]
Timeout = Annotated[float, typer.Option(max=86400.0, metavar="SECONDS", help="Longest wait, in seconds.")]


def _print_version(wanted: bool) -> None:
    """Print the installed version and exit, if `--version` is among the options."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"distributed-backup {version('distributed-backup')}")
        raise typer.Exit


@app.callback()
def _global_options(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the console script."""
    # Without a handler, Python prints the library's warnings to stderr. The commands report problems themselves.
    logging.getLogger("distributed_backup").addHandler(logging.NullHandler())
    with exit_on_output_error():
        app()


# -------------------------------------------------------------------- status


@app.command(cls=RedactingCommand)
def status(
    target: Target,
    run: RunId = None,
    coordinator: CoordinatorUrl = None,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every second until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the leader, the workers, the newest checkpoint and the pending notices of a run.

    The newest checkpoint is read from DIR and verified. With URL it is the one that the leader announced. A worker is
    presumed dead if its last heartbeat is more than 6 s old, three times the default retry_period. With --watch, an
    error after the first read is printed and reading continues. --json then prints one document per line.

    Example: distributed-backup status /mnt/run-42 --watch

    Exit codes: 0 fine, 1 no usable checkpoint or unreachable, 2 wrong usage.
    """
    from distributed_backup.cli.status import status_of

    with _open(target, run, coordinator) as found:
        if watch:
            with suppress(KeyboardInterrupt):
                _watch(found, as_json=as_json)
            return
        seen, damaged = status_of(found)
        if as_json:
            print_json(seen)
        else:
            _print_status(found, seen, damaged)
        if damaged and seen["checkpoint"] is None:
            raise BackupError(
                f"none of the {damaged} checkpoint(s) in {found.place} is usable: see `checkpoints verify`"
            )


def _watch(run: Run, *, as_json: bool) -> None:
    from distributed_backup.cli.operator_requests import poll
    from distributed_backup.cli.status import status_of
    from distributed_backup.clock import SystemClock

    frames = poll(lambda: status_of(run), period=_WATCH_PERIOD, clock=SystemClock())
    if not as_json and (terminal := console()).is_terminal:
        from rich.live import Live

        from distributed_backup.cli.tables import status_view

        with Live(console=terminal, auto_refresh=False) as live:
            for (seen, damaged), error in frames:
                live.update(status_view(run, seen, damaged=damaged, error=error), refresh=True)
        return
    for (seen, damaged), error in frames:
        if error is not None:
            typer.echo(printable(f"error: {error}"), err=True)
        elif as_json:
            typer.echo(json.dumps(seen))
        else:
            _print_status(run, seen, damaged)
            typer.echo()


def _print_status(run: Run, seen: dict[str, Any], damaged: int) -> None:
    from distributed_backup.cli.tables import status_view

    console().print(status_view(run, seen, damaged=damaged), crop=False)


# -------------------------------------------------------------------- requests


@app.command(cls=RedactingCommand)
def preempt(
    target: Target,
    run: RunId = None,
    coordinator: CoordinatorUrl = None,
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Ask the leader for a save now and wait until it is durable. No worker stops.

    For operators and preStop hooks: in a worker's container, `distributed-backup preempt DIR` needs only the job's
    environment. A preStop hook uses up the grace period, so keep --timeout well below it. Before the first complete
    batch there is nothing to save, which is fine. The request ends with the command.

    Example: distributed-backup preempt /mnt/run-42 --timeout 20

    Exit codes: 0 durable, 1 failed or timed out, 2 wrong usage, 130 Ctrl-C.
    """
    from distributed_backup.cli.operator_requests import ask_for_save
    from distributed_backup.clock import SystemClock

    with exit_on_stop(_WITHDRAWN), _open(target, run, coordinator) as found:
        saved = ask_for_save(found.coordinator, timeout=timeout, clock=SystemClock())
        print_result(asdict(saved), _saved_line(saved), as_json=as_json)


def _saved_line(saved: Saved) -> str:
    reported = f"reported by {saved.leader} under term {saved.term} after {saved.seconds:.2f} s"
    if saved.checkpoint is None:
        return f"Nothing to save yet, no batch is complete: {reported}"
    return f"Durable: {saved.checkpoint}: {progress(saved.epoch, saved.batch)}, {reported}"


@app.command(cls=RedactingCommand)
def resign(
    target: Target,
    run: RunId = None,
    coordinator: CoordinatorUrl = None,
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Ask the leader to save and hand over, and wait until another worker leads. No worker stops.

    The former leader continues to train, or waits with standby=True, and may lead again later. The request ends with
    the command.

    Example: distributed-backup resign /mnt/run-42 --timeout 20

    Exit codes: 0 handed over, 1 failed or timed out, 2 wrong usage, 130 Ctrl-C.
    """
    from distributed_backup.cli.operator_requests import ask_to_resign
    from distributed_backup.clock import SystemClock

    with exit_on_stop(_WITHDRAWN), _open(target, run, coordinator) as found:
        done = ask_to_resign(found.coordinator, timeout=timeout, clock=SystemClock())
        after = f"{done.seconds:.2f} s after the request to {done.previous}"
        print_result(asdict(done), f"{done.leader} leads now, under term {done.term}, {after}", as_json=as_json)


@contextmanager
def _open(target: str, run: str | None, coordinator: str | None) -> Iterator[Run]:
    from distributed_backup.cli.locate import open_run

    with exit_on_error(), open_run(target, run_id=run, coordinator=coordinator) as found:
        yield found


app.command(cls=RedactingCommand)(check)
app.command(cls=RedactingCommand)(events)
app.command(cls=RedactingCommand)(timeline)
app.command(cls=RedactingCommand)(demo)


if __name__ == "__main__":
    main()
