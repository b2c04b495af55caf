"""`distributed-backup`: look at a run, ask it for a save, and see one be preempted.

Exit codes: 0 fine, 1 a problem was found, 2 wrong usage (a wrong option, a path that is no run, no such checkpoint).
Looking changes nothing, see `inspection`; all commands work while the run goes on. Nothing printed holds credentials.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from distributed_backup.cli.checkpoints_commands import checkpoints
from distributed_backup.cli.demo_command import demo
from distributed_backup.cli.terminal import (
    INTERRUPTED,
    AsJson,
    RedactingCommand,
    RunId,
    chosen_run,
    console,
    exit_on_error,
    print_json,
    sigterm_as_exit,
)
from distributed_backup.cli.timeline_commands import events, timeline
from distributed_backup.errors import BackupError, ConfigError

if TYPE_CHECKING:
    from distributed_backup.cli.locate import Run

# Seconds between two looks of --watch.
_WATCH_PERIOD: Final = 1.0

# Without rich's markup: its help costs 0.2 s of imports, and --help must be quick.
app = typer.Typer(
    name="distributed-backup",
    help="Preemption-safe backup of synalinks fits: look at a run, ask it for a save, or watch one be preempted.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)
app.add_typer(checkpoints, name="checkpoints")

Target = Annotated[
    str,
    typer.Argument(
        metavar="URL|DIR", help="The Redis server that the run is led over, or its backup directory (a path or s3://…)."
    ),
]
CoordinatorUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="How the run in DIR is led, as its workers know. Default: $DISTRIBUTED_BACKUP_COORDINATOR; else file:.",
    ),
]
Timeout = Annotated[float, typer.Option(max=86400.0, metavar="SECONDS", help="How long to wait.")]


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
    """Entry point of the console script."""
    # Else logging's last resort prints the library's warnings, which the commands report in their own way.
    logging.getLogger("distributed_backup").addHandler(logging.NullHandler())
    app()


# -------------------------------------------------------------------- status


@app.command(cls=RedactingCommand)
def status(
    target: Target,
    run: RunId = None,
    coordinator: CoordinatorUrl = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again once a second, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Who leads the run, who takes part, and how far it has come.

    The newest checkpoint is read from DIR and verified; with URL, it is the one that was announced. With --watch, what
    goes wrong after the first look is told, and looking goes on. --json then prints one document per line.

    JSON: {"run_id", "leader": its worker id or null, "term": the newest granted, "lease_remaining": seconds, or null
    where the lease lasts as long as the leader lives, "members": [{"worker_id", "role", "epoch", "batch", "last_seen":
    seconds ago}], "checkpoint": the newest usable one as in `checkpoints list`, or null, "notices": [{"worker_id",
    "reason", "wish": "save", or "resign" if it is to let another lead, "remaining": seconds}] of preemptions that are
    coming, and of requests}. Epochs and batches are those completed; null before a worker knows. With URL, "bytes",
    "created_at" and "valid" of the checkpoint are null, and so is its "worker_id" if it is of an earlier term.

    Exit code: 0 fine, also after Ctrl-C with --watch, 1 there are checkpoints and none is usable, or the run can't be
    reached or read, 2 there is no such run, or it is not clear which is meant.
    """
    from distributed_backup.cli import status as run_status

    with exit_on_error(), _opened(target, run, coordinator) as found:
        if watch:
            with suppress(KeyboardInterrupt):
                _watch(found, as_json=as_json)
            return
        seen, damaged = run_status.status_of(found)
        if as_json:
            print_json(seen)
        else:
            _print_status(found, seen, damaged)
        if damaged and seen["checkpoint"] is None:
            raise BackupError(f"none of the {damaged} checkpoint(s) in {target} is usable: see checkpoints verify")


def _watch(run: Run, *, as_json: bool) -> None:
    from distributed_backup.cli import status as run_status
    from distributed_backup.cli import tables
    from distributed_backup.cli.operator_requests import poll
    from distributed_backup.clock import SystemClock

    looks = poll(lambda: run_status.status_of(run), period=_WATCH_PERIOD, clock=SystemClock())
    paper = console()
    if paper.is_terminal and not as_json:
        from rich.live import Live

        with Live(console=paper, auto_refresh=False) as live:
            for (seen, damaged), error in looks:
                live.update(tables.live_status(seen, place=run.place, damaged=damaged, error=error), refresh=True)
        return
    for (seen, damaged), error in looks:
        if error is not None:
            typer.echo(f"error: {error}", err=True)
        elif as_json:
            typer.echo(json.dumps(seen))
        else:
            _print_status(run, seen, damaged)
            typer.echo()


def _print_status(run: Run, seen: dict[str, Any], damaged: int) -> None:
    from distributed_backup.cli import tables

    for line in tables.status_lines(seen, place=run.place, damaged=damaged):
        typer.echo(line)
    if seen["members"]:
        console().print(tables.workers_table(seen))


# -------------------------------------------------------------------- requests


@app.command(cls=RedactingCommand)
def preempt(
    target: Target,
    run: RunId = None,
    coordinator: CoordinatorUrl = None,
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Ask the run for a save now, as before a preemption, and wait until it is durable. Nobody is stopped by it.

    For operators, and for a preStop hook: `distributed-backup preempt DIR` in a worker's container needs no more than
    the job's own environment. A preStop hook uses up the grace period: keep --timeout well below it. Where no batch is
    complete since the run began, there is nothing to save, which is fine.

    JSON: {"checkpoint": name of the newest, at least as new as the leader's last batch end when it was asked, or null
    if there is nothing to save, "epoch", "batch": both as completed, "leader": who saved, "term": its term, "seconds":
    from asking until it was known to be durable}.

    Exit code: 0 it is durable, 1 nobody takes part, or no save was reported in time, or the run can't be reached; 2
    there is no such run, or it is not clear which is meant; 130 after Ctrl-C. The request is taken back in any case.
    """
    from distributed_backup.cli import operator_requests, tables
    from distributed_backup.clock import SystemClock

    with _request(target, run, coordinator) as found:
        saved = asdict(operator_requests.ask_for_save(found.coordinator, timeout=timeout, clock=SystemClock()))
        if as_json:
            print_json(saved)
        else:
            typer.echo(tables.saved_line(saved))


@app.command(cls=RedactingCommand)
def resign(
    target: Target,
    run: RunId = None,
    coordinator: CoordinatorUrl = None,
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Ask the leader to save and to let another worker lead, and wait until one does. Nobody is stopped by it.

    The former leader trains on, and may lead again later.

    JSON: {"leader": who leads now, "term": its term, "previous": who was asked, "seconds": from asking until then}.

    Exit code: 0 another worker leads, 1 nobody leads, or nobody else takes part, or nobody else took over in time, or
    the run can't be reached; 2 there is no such run, or it is not clear which is meant; 130 after Ctrl-C. The request
    is taken back in any case.
    """
    from distributed_backup.cli import operator_requests, tables
    from distributed_backup.clock import SystemClock

    with _request(target, run, coordinator) as found:
        done = asdict(operator_requests.ask_to_resign(found.coordinator, timeout=timeout, clock=SystemClock()))
        if as_json:
            print_json(done)
        else:
            typer.echo(tables.handed_over_line(done))


@contextmanager
def _request(target: str, run: str | None, coordinator: str | None) -> Iterator[Run]:
    with exit_on_error(), sigterm_as_exit():
        try:
            with _opened(target, run, coordinator) as found:
                yield found
        except KeyboardInterrupt:
            typer.echo("interrupted: the request was taken back", err=True)
            raise typer.Exit(INTERRUPTED) from None


# -------------------------------------------------------------------- shared


@contextmanager
def _opened(target: str, run: str | None, coordinator: str | None) -> Iterator[Run]:
    from distributed_backup.cli.locate import open_run
    from distributed_backup.urls import is_redis_url

    if coordinator is not None and is_redis_url(target):
        raise ConfigError("--coordinator goes with a directory: a URL names the coordinator already")
    if not is_redis_url(target):
        coordinator = coordinator or os.environ.get("DISTRIBUTED_BACKUP_COORDINATOR", "").strip() or None
    with open_run(target, run_id=chosen_run(run), coordinator=coordinator) as found:
        yield found


app.command(cls=RedactingCommand)(events)
app.command(cls=RedactingCommand)(timeline)
app.command(cls=RedactingCommand)(demo)


if __name__ == "__main__":
    main()
