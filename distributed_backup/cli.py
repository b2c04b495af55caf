"""`distributed-backup`: look at a run, and see one be preempted. The only module that prints.

Exit codes: 0 fine, 1 a problem was found, 2 wrong usage (a wrong option, a path that is no run, no such checkpoint).
Looking changes nothing, see `inspection`; all commands work while the run goes on.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from distributed_backup.errors import BackupError, ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from distributed_backup.demo.messages import Plan
    from distributed_backup.demo.verdict import Verdict
    from distributed_backup.store import CheckpointInfo

_PROBLEM: Final = 1
_USAGE: Final = 2
_INTERRUPTED: Final = 130
# What a pipe is taken to be wide: tables for people must not be cut where a program reads them.
_PIPE_WIDTH: Final = 200

# Without rich's markup: its help costs 0.2 s of imports, and --help must be quick.
app = typer.Typer(
    name="distributed-backup",
    help="Preemption-safe backup of synalinks fits: look at a run, or watch one be preempted.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)
checkpoints = typer.Typer(help="Look at the checkpoints of a run.", rich_markup_mode=None, no_args_is_help=True)
app.add_typer(checkpoints, name="checkpoints")

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The backup directory of the run.")]
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
def status(directory: Directory, as_json: AsJson = False) -> None:
    """Who leads the run in DIR, who takes part, and how far it has come.

    JSON: {"run_id", "leader": its worker id or null, "term": the newest granted, "lease_remaining": seconds, or null
    where the lease lasts as long as the leader lives, "members": [{"worker_id", "role", "epoch", "batch", "last_seen":
    seconds ago}], "checkpoint": the newest usable one as in `checkpoints list`, or null, "notices": [{"worker_id",
    "reason", "remaining": seconds}] of preemptions that are coming}. Epochs and batches are those completed; null
    before a worker knows.

    Exit code: 0 fine, 1 there are checkpoints and none is usable, or the run can't be read, 2 DIR is no run.
    """
    from distributed_backup import inspection

    with _errors_in_one_line():
        found, damaged = inspection.status_of(directory)
        if as_json:
            _print_json(found)
        else:
            _print_status(directory, found, damaged)
        if damaged and found["checkpoint"] is None:
            raise BackupError(f"none of the {damaged} checkpoint(s) in {directory} is usable: see checkpoints verify")


def _print_status(directory: Path, found: dict[str, Any], damaged: int) -> None:
    newest = found["checkpoint"]
    typer.echo(f"Run         {found['run_id'] or '(no id yet)'} in {directory}")
    typer.echo(f"Leader      {found['leader'] or 'nobody'}, term {found['term']}{_lease(found)}")
    typer.echo("Checkpoint  " + ("none that is usable" if newest is None else _checkpoint_line(newest)))
    if damaged:
        typer.echo(f"            {damaged} damaged: see `checkpoints verify`")
    for notice in found["notices"]:
        typer.echo(f"Notice      {notice['worker_id']} has {notice['remaining']:.1f} s left ({notice['reason']})")
    if not found["members"]:
        typer.echo("Workers     none")
        return
    _print_table(
        ("WORKER", "ROLE", "EPOCHS DONE", "BATCHES OF THE NEXT", "LAST SEEN"),
        [
            (row["worker_id"], row["role"], _text(row["epoch"]), _text(row["batch"]), f"{row['last_seen']:.1f} s ago")
            for row in found["members"]
        ],
    )


def _lease(found: dict[str, Any]) -> str:
    if found["leader"] is None:
        return ""
    remaining = found["lease_remaining"]
    return ", for as long as it lives" if remaining is None else f", for {remaining:.1f} s unless renewed"


def _checkpoint_line(row: dict[str, Any]) -> str:
    return (
        f"{row['name']}: {row['epoch']} epoch(s) and {row['batch']} batch(es) done, {_size(row['bytes'])}, "
        f"{row['created_at']} by {row['worker_id']}"
    )


# -------------------------------------------------------------------- checkpoints


@checkpoints.command("list")
def list_checkpoints(directory: Directory, as_json: AsJson = False) -> None:
    """All checkpoints in DIR, the newest first; each is read and verified.

    JSON: [{"name", "term", "epoch", "batch": both as completed, "worker_id": the writer, "bytes": of the file,
    "created_at": ISO 8601, UTC, "valid"}]. worker_id and created_at are null where "valid" is false.

    Exit code: 0 fine, 1 at least one is not valid, 2 DIR is no run.
    """
    from distributed_backup import inspection

    with _errors_in_one_line():
        rows = inspection.run_in(directory).list()
        if as_json:
            _print_json([inspection.checkpoint_row(row) for row in rows])
        elif not rows:
            typer.echo("no checkpoint yet")
        else:
            _print_table(
                ("CHECKPOINT", "TERM", "EPOCHS", "BATCHES", "SIZE", "WRITTEN", "BY", ""),
                [_checkpoint_cells(row) for row in rows],
            )
        if not all(row.valid for row in rows):
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
    from distributed_backup import inspection

    with _errors_in_one_line():
        found = inspection.describe(inspection.checkpoint_in(directory, name))
        if as_json:
            _print_json(found)
        else:
            _print_tree(found)


def _print_tree(found: dict[str, Any]) -> None:
    from rich.text import Text
    from rich.tree import Tree

    header = found["header"]
    tree = Tree(Text(f"{found['name']}  {_size(found['bytes'])}"))
    about = tree.add("header")
    for key, value in header.items():
        about.add(Text(f"{key}: {_text(value)}"))
    variables = tree.add(Text(f"variables  {_size(sum(sum(group.values()) for group in found['variables'].values()))}"))
    for name, group in found["variables"].items():
        branch = variables.add(Text(f"{name}  {_size(sum(group.values()))}"))
        for path, size in group.items():
            branch.add(Text(f"{path}  {_size(size)}"))
    other = tree.add(Text(f"other state  {_size(sum(found['other'].values()))}"))
    for name, size in found["other"].items():
        other.add(Text(f"{name}  {_size(size)}"))
    _console().print(tree)


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
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON, all else to stderr.")] = False,
) -> None:
    """Watch a real fit survive SIGTERM and SIGKILL: real processes, an offline language model, under a minute.

    Starts workers that train the same program, ends two leaders, one politely and one not, restarts them, and
    compares the final states with an uninterrupted run's. Uses no network. Calls of the language model count as
    repeated if a worker's earlier life had begun them beyond the position at which its next life resumed.

    JSON: {"holds", "final_state_equal", "workers", "differences", "checkpoints_written", "calls_uninterrupted",
    "calls_by_worker", "sigterm": {"worker", "last_boundary", "on_disk", "durable_ms", "in_flight_durable_ms",
    "gone_ms", "next_leader_ms", "grace_period_ms", "exit_code", "calls_repeated", "calls_in_flight"}, "sigkill":
    {"worker", "next_leader_ms", "calls_repeated"}, "backup_deleted": null if it is kept, "problems"}.

    Exit code: 0 everything that is promised held, 1 something did not, or the demonstration failed, 2 wrong usage.
    """
    from distributed_backup.demo.messages import Plan
    from distributed_backup.demo.words import pronounce

    plan = Plan(latency=latency, grace_period=grace)
    with _errors_in_one_line():
        try:
            verdict = _perform(plan, workers=workers, backup_dir=backup_dir, plain=plain, quiet_stdout=as_json)
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


def _perform(plan: Plan, *, workers: int, backup_dir: Path | None, plain: bool, quiet_stdout: bool) -> Verdict:
    from tempfile import TemporaryDirectory

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
    with _terminated_politely(), TemporaryDirectory(prefix="distributed-backup-demo-") as scratch, screen:
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


def _checkpoint_cells(info: CheckpointInfo) -> tuple[str, ...]:
    from distributed_backup.inspection import checkpoint_row

    row = checkpoint_row(info)
    numbers = (str(row["term"]), str(row["epoch"]), str(row["batch"]))
    written = (_text(row["created_at"]), _text(row["worker_id"]))
    return (row["name"], *numbers, _size(row["bytes"]), *written, "" if info.valid else f"BAD: {info.problem}")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        # Text, for what comes from a file is not markup.
        table.add_row(*(Text(cell) for cell in row))
    _console().print(table)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False)


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 10**6 else f"{count / 10**6:.1f} MB"


if __name__ == "__main__":
    main()
