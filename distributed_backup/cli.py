"""`distributed-backup`: look at a run, ask it for a save, and see one be preempted. The only module that prints.

Exit codes: 0 fine, 1 a problem was found, 2 wrong usage (a wrong option, a path that is no run, no such checkpoint).
Looking changes nothing, see `inspection`; all commands work while the run goes on. Nothing printed holds credentials.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from distributed_backup.errors import BackupError, ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from distributed_backup.demo.messages import Plan
    from distributed_backup.demo.verdict import Verdict
    from distributed_backup.inspection import Run

_PROBLEM: Final = 1
_USAGE: Final = 2
_INTERRUPTED: Final = 130
# What a pipe is taken to be wide: tables for people must not be cut where a program reads them.
_PIPE_WIDTH: Final = 200
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
checkpoints = typer.Typer(help="Look at the checkpoints of a run.", rich_markup_mode=None, no_args_is_help=True)
app.add_typer(checkpoints, name="checkpoints")

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The backup directory of the run.")]
Target = Annotated[
    str, typer.Argument(metavar="URL|DIR", help="The Redis server that the run is led over, or its backup directory.")
]
RunId = Annotated[
    str | None,
    typer.Option(
        metavar="ID",
        help="Which run. Default: $DISTRIBUTED_BACKUP_RUN_ID; else the one in DIR, or the only one on the server.",
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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON with the keys described above.")]


def main() -> None:
    """Entry point of the console script."""
    # Else logging's last resort prints the library's warnings, which the commands report in their own way.
    logging.getLogger("distributed_backup").addHandler(logging.NullHandler())
    app()


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except BackupError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_USAGE if isinstance(error, ConfigError) else _PROBLEM) from None


# -------------------------------------------------------------------- status


@app.command()
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
    from distributed_backup import inspection

    with _errors_in_one_line(), _opened(target, run, coordinator) as found:
        if watch:
            with suppress(KeyboardInterrupt):
                _watch(found, as_json=as_json)
            return
        seen, damaged = inspection.status_of(found)
        if as_json:
            _print_json(seen)
        else:
            _print_status(found, seen, damaged)
        if damaged and seen["checkpoint"] is None:
            raise BackupError(f"none of the {damaged} checkpoint(s) in {target} is usable: see checkpoints verify")


def _watch(run: Run, *, as_json: bool) -> None:
    from distributed_backup import display, inspection
    from distributed_backup.clock import SystemClock
    from distributed_backup.operations import look_again_and_again

    looks = look_again_and_again(lambda: inspection.status_of(run), period=_WATCH_PERIOD, clock=SystemClock())
    console = _console()
    if console.is_terminal and not as_json:
        from rich.live import Live

        with Live(console=console, auto_refresh=False) as live:
            for (seen, damaged), error in looks:
                live.update(display.live_status(seen, place=run.place, damaged=damaged, error=error), refresh=True)
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
    from distributed_backup import display

    for line in display.status_lines(seen, place=run.place, damaged=damaged):
        typer.echo(line)
    if seen["members"]:
        _console().print(display.workers_table(seen))


# -------------------------------------------------------------------- requests


@app.command()
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
    from distributed_backup import display, operations
    from distributed_backup.clock import SystemClock

    with _request(target, run, coordinator) as found:
        saved = asdict(operations.ask_for_save(found.coordinator, timeout=timeout, clock=SystemClock()))
        if as_json:
            _print_json(saved)
        else:
            typer.echo(display.saved_line(saved))


@app.command()
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
    from distributed_backup import display, operations
    from distributed_backup.clock import SystemClock

    with _request(target, run, coordinator) as found:
        done = asdict(operations.ask_to_resign(found.coordinator, timeout=timeout, clock=SystemClock()))
        if as_json:
            _print_json(done)
        else:
            typer.echo(display.handed_over_line(done))


@contextmanager
def _request(target: str, run: str | None, coordinator: str | None) -> Iterator[Run]:
    with _errors_in_one_line(), _terminated_politely():
        try:
            with _opened(target, run, coordinator) as found:
                yield found
        except KeyboardInterrupt:
            typer.echo("interrupted: the request was taken back", err=True)
            raise typer.Exit(_INTERRUPTED) from None


# -------------------------------------------------------------------- checkpoints


@checkpoints.command("list")
def list_checkpoints(directory: Directory, as_json: AsJson = False) -> None:
    """All checkpoints in DIR, the newest first; each is read and verified.

    JSON: [{"name", "term", "epoch", "batch": both as completed, "worker_id": the writer, "bytes": of the file,
    "created_at": ISO 8601, UTC, "valid"}]. worker_id and created_at are null where "valid" is false.

    Exit code: 0 fine, 1 at least one is not valid, 2 DIR is no run.
    """
    from distributed_backup import display, inspection

    with _errors_in_one_line():
        infos = inspection.run_in(directory).list()
        rows = [inspection.checkpoint_row(info) for info in infos]
        if as_json:
            _print_json(rows)
        elif not rows:
            typer.echo("no checkpoint yet")
        else:
            _console().print(display.checkpoints_table(list(zip(rows, infos, strict=True))))
        if not all(info.valid for info in infos):
            raise typer.Exit(_PROBLEM)


@checkpoints.command()
def verify(directory: Directory, as_json: AsJson = False) -> None:
    """Read every checkpoint in DIR and compare it with its digest.

    JSON: {"checked": how many, "bad": [{"name", "reason"}]}.

    Exit code: 0 all are good, 1 at least one is bad, each is named with the reason, 2 DIR is no run.
    """
    from distributed_backup import inspection

    with _errors_in_one_line():
        rows = inspection.run_in(directory).list()
        bad = [row for row in rows if not row.valid]
        if as_json:
            _print_json({"checked": len(rows), "bad": [{"name": row.name, "reason": row.problem} for row in bad]})
        else:
            for row in bad:
                typer.echo(f"bad  {row.name}: {row.problem}")
            typer.echo(f"{len(rows)} checked, {len(bad)} bad")
        if bad:
            raise typer.Exit(_PROBLEM)


@checkpoints.command()
def show(
    directory: Directory,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="As in `list`; left out, the newest.")] = None,
    as_json: AsJson = False,
) -> None:
    """The header of one checkpoint in DIR, and the tree of variables in it with their sizes.

    JSON: {"name", "bytes": of the file, "header": {"run_id", "term", "epoch", "batch", "worker_id", "created_at",
    "data", "length", "digest", "format"}, "variables": {group: {path: bytes of its JSON}}, "other": {"optimizer",
    "objects", "python_random", "numpy_random", …: bytes of what is no variable}}. A path that a group has more than
    once is told apart by "#2", "#3", ….

    Exit code: 0 fine, 1 it is damaged, or there is none, 2 DIR is no run, or NAME is not in it.
    """
    from distributed_backup import display, inspection

    with _errors_in_one_line():
        found = inspection.describe(inspection.checkpoint_in(directory, name))
        if as_json:
            _print_json(found)
        else:
            _console().print(display.checkpoint_tree(found))


# -------------------------------------------------------------------- demo


@app.command()
def demo(
    workers: Annotated[int, typer.Option(min=2, max=16, help="How many workers.")] = 3,
    latency: Annotated[
        float, typer.Option(min=0.05, max=60.0, help="Seconds that a call of the language model takes.")
    ] = 0.2,
    grace: Annotated[
        float, typer.Option(min=0.5, max=600.0, help="Seconds between SIGTERM and the end of a worker.")
    ] = 10.0,
    plain: Annotated[
        bool, typer.Option("--plain", help="One line per event; the default where there is no terminal.")
    ] = False,
    backup_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the backup here; left out, it is deleted as usual.")
    ] = None,
    coordinator: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="How the workers agree on a leader: file:, a lock in the backup directory; the URL of a Redis or "
            "Valkey server, as redis://host:6379/0; or embedded-redis, a server that is started for this.",
        ),
    ] = "file:",
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON, all else to stderr.")] = False,
) -> None:
    """Watch a real fit survive SIGTERM and SIGKILL: real processes, an offline language model, under a minute.

    Starts workers that train the same program, ends two leaders, one politely and one not, restarts them, and
    compares the final states with an uninterrupted run's. Uses no network but a coordinator's. Calls of the language
    model count as repeated if a worker's earlier life had begun them beyond the position at which its next life
    resumed.

    On a Redis server nothing is left of it; there, another worker leads when the killed leader's lease has run out.

    JSON: {"holds", "final_state_equal", "coordinator": without credentials, "workers", "differences",
    "checkpoints_written", "calls_uninterrupted", "calls_by_worker", "sigterm": {"worker", "last_boundary", "on_disk",
    "durable_ms", "in_flight_durable_ms", "gone_ms", "next_leader_ms", "grace_period_ms", "exit_code",
    "calls_repeated", "calls_in_flight"}, "sigkill": {"worker", "next_leader_ms", "lease_ms", "limit_ms": of the lease
    and one tick, both null with file:, "calls_repeated"}, "backup_deleted": null if it is kept, "problems"}.

    Exit code: 0 everything that is promised held, 1 something did not, or the demonstration failed, 2 wrong usage.
    """
    from distributed_backup.demo.messages import Plan
    from distributed_backup.demo.words import pronounce

    plan = Plan(latency=latency, grace_period=grace)
    with _errors_in_one_line():
        try:
            verdict = _perform(
                plan, coordinator, workers=workers, backup_dir=backup_dir, plain=plain, quiet_stdout=as_json
            )
        except KeyboardInterrupt:
            typer.echo("interrupted: all workers were stopped", err=True)
            raise typer.Exit(_INTERRUPTED) from None
    if as_json:
        _print_json(verdict.as_json())
    else:
        for line in ("", *pronounce(verdict, plan)):
            typer.echo(line if plain else typer.style(line, **_emphasis(line, verdict)))
        if backup_dir is not None:
            typer.echo(f"Have a look: distributed-backup checkpoints list {backup_dir}")
    if not verdict.holds:
        raise typer.Exit(_PROBLEM)


def _emphasis(line: str, verdict: Verdict) -> dict[str, Any]:
    if line.startswith("VERDICT"):
        return {"bold": True, "fg": "green" if verdict.holds else "red"}
    return {"fg": "red"} if line.startswith("  PROBLEM") else {}


def _perform(
    plan: Plan, coordinator: str, *, workers: int, backup_dir: Path | None, plain: bool, quiet_stdout: bool
) -> Verdict:
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from distributed_backup.demo.coordination import arranged
    from distributed_backup.demo.director import Director
    from distributed_backup.demo.process import end_server
    from distributed_backup.demo.screen import LiveScreen, PlainScreen
    from distributed_backup.demo.verdict import judge

    keep = backup_dir is not None
    if backup_dir is not None and backup_dir.exists() and not (backup_dir.is_dir() and not any(backup_dir.iterdir())):
        raise ConfigError(f"--backup-dir must be empty or not exist yet: {backup_dir}")
    console = _console(stderr=quiet_stdout)
    screen = (
        PlainScreen(plan, lambda line: typer.echo(line, err=quiet_stdout))
        if plain or not console.is_terminal
        else LiveScreen(plan, console)
    )
    with (
        _terminated_politely(),
        TemporaryDirectory(prefix="distributed-backup-demo-") as scratch,
        arranged(coordinator, plan, scratch=Path(scratch)) as arrangement,
        screen,
    ):
        plan = replace(plan, coordination=arrangement.coordination)
        director = Director(
            plan,
            workers=workers,
            backup_dir=backup_dir or Path(scratch) / "run",
            keep=keep,
            logs=Path(scratch),
            audience=screen,
        )
        try:
            recording = director.run()
            recording.left_behind += arrangement.left_behind()
        finally:
            end_server()
    return judge(recording, plan, keep=keep)


@contextmanager
def _terminated_politely() -> Iterator[None]:
    """SIGTERM to the demonstration itself tidies up too."""
    import signal

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


# -------------------------------------------------------------------- shared


@contextmanager
def _opened(target: str, run: str | None, coordinator: str | None) -> Iterator[Run]:
    from distributed_backup.coordinators.urls import is_redis_url
    from distributed_backup.inspection import opened

    if coordinator is not None and is_redis_url(target):
        raise ConfigError("--coordinator goes with a directory: a URL names the coordinator already")
    # An option wins over the environment of the job.
    run = run or os.environ.get("DISTRIBUTED_BACKUP_RUN_ID", "").strip() or None
    coordinator = coordinator or os.environ.get("DISTRIBUTED_BACKUP_COORDINATOR", "").strip() or None
    with opened(target, run_id=run, coordinator=coordinator) as found:
        yield found


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False)


if __name__ == "__main__":
    main()
