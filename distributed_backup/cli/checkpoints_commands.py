"""`distributed-backup checkpoints`: look at a run's checkpoints, and take them elsewhere.

All but `prune` leave the run as it is, and all may be used while it goes on. DIR is the backup directory, or the URL of
one that is elsewhere: s3://…, gs://…, az://…, redis://….
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distributed_backup.cli.terminal import (
    PROBLEM,
    AsJson,
    RedactingCommand,
    RunId,
    chosen_run,
    console,
    exit_on_error,
    print_json,
)
from distributed_backup.errors import ConfigError

if TYPE_CHECKING:
    from distributed_backup.checkpoints.store import CheckpointStore

checkpoints = typer.Typer(
    help="Look at the checkpoints of a run, and take them elsewhere.", rich_markup_mode=None, no_args_is_help=True
)

Place = Annotated[str, typer.Argument(metavar="DIR", help="The backup directory of the run: a path, or its URL.")]
Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="As in `list`; left out, the newest.")]


@checkpoints.command("list", cls=RedactingCommand)
def list_checkpoints(place: Place, run: RunId = None, as_json: AsJson = False) -> None:
    """All checkpoints in DIR, the newest first; each is read and verified.

    JSON: [{"name", "term", "epoch", "batch": both as completed, "worker_id": the writer, "bytes": of the file,
    "created_at": ISO 8601, UTC, "valid"}]. worker_id and created_at are null where "valid" is false.

    Exit code: 0 fine, 1 at least one is not valid, 2 DIR is no run.
    """
    from distributed_backup.cli import status, tables

    with _store(place, run) as store:
        infos = store.list()
        rows = [status.checkpoint_row(info) for info in infos]
        if as_json:
            print_json(rows)
        elif not rows:
            typer.echo("no checkpoint yet")
        else:
            console().print(tables.checkpoints_table(list(zip(rows, infos, strict=True))))
        if not all(info.valid for info in infos):
            raise typer.Exit(PROBLEM)


@checkpoints.command(cls=RedactingCommand)
def verify(place: Place, run: RunId = None, as_json: AsJson = False) -> None:
    """Read every checkpoint in DIR and compare it with its digest.

    JSON: {"checked": how many, "bad": [{"name", "reason"}]}.

    Exit code: 0 all are good, 1 at least one is bad, each is named with the reason, 2 DIR is no run.
    """
    with _store(place, run) as store:
        rows = store.list()
        bad = [row for row in rows if not row.valid]
        if as_json:
            print_json({"checked": len(rows), "bad": [{"name": row.name, "reason": row.problem} for row in bad]})
        else:
            for row in bad:
                typer.echo(f"bad  {row.name}: {row.problem}")
            typer.echo(f"{len(rows)} checked, {len(bad)} bad")
        if bad:
            raise typer.Exit(PROBLEM)


@checkpoints.command(cls=RedactingCommand)
def show(place: Place, name: Name = None, run: RunId = None, as_json: AsJson = False) -> None:
    """The header of one checkpoint in DIR, and the tree of variables in it with their sizes.

    JSON: {"name", "bytes": of the file, "header": {"run_id", "term", "epoch", "batch", "worker_id", "created_at",
    "data", "length", "digest", "format"}, "variables": {group: {path: bytes of its JSON}}, "other": {"optimizer",
    "objects", "python_random", "numpy_random", …: bytes of what is no variable}}. A path that a group has more than
    once is told apart by "#2", "#3", ….

    Exit code: 0 fine, 1 it is damaged, or there is none, 2 DIR is no run, or NAME is not in it.
    """
    from distributed_backup.cli import status, tables

    with _store(place, run) as store:
        found = status.describe(status.checkpoint_in(store, name))
        if as_json:
            print_json(found)
        else:
            console().print(tables.checkpoint_tree(found))


@checkpoints.command(cls=RedactingCommand)
def prune(
    place: Place,
    keep: Annotated[int, typer.Option(min=1, metavar="N", help="How many of the newest stay.")] = 1,
    run: RunId = None,
    as_json: AsJson = False,
) -> None:
    """Remove all but the newest N checkpoints that verify, and what crashed writers of earlier terms left.

    Damaged ones above the oldest that stays are left for somebody to look at. The run may go on meanwhile.

    JSON: {"kept": names, the newest first, "removed": names}.

    Exit code: 0 fine, 1 a file could not be removed, 2 DIR is no run, or a wrong N.
    """
    with _store(place, run) as store:
        removed = store.prune(term=store.highest_term(), keep=keep)
        kept = store.names()
        if as_json:
            print_json({"kept": kept, "removed": removed})
        else:
            typer.echo(f"{len(removed)} removed, {len(kept)} kept")


@checkpoints.command(cls=RedactingCommand)
def export(
    place: Place,
    name: Name = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Ends in .variables.json; replaced if it is there.")
    ] = Path("latest.variables.json"),
    run: RunId = None,
    as_json: AsJson = False,
) -> None:
    """Write the variables of one checkpoint in DIR to a file that `program.load_variables` takes.

    For a look, or for using a program as it was at that point. To go on training exactly, restore from the checkpoint:
    synalinks' format has no random generators and drops empty values. It is not written into the directory of a run.

    JSON: {"name": of the checkpoint, "epoch", "batch": both as completed, "output": the file, "bytes"}.

    Exit code: 0 fine, 1 it is damaged, or there is none, or FILE can't be written, 2 DIR is no run, or a wrong name.
    """
    from distributed_backup.cli import status
    from distributed_backup.cli.export import export_variables

    with _store(place, run) as store:
        checkpoint = status.checkpoint_in(store, name)
        export_variables(checkpoint, output)
        position = checkpoint.position
        if as_json:
            print_json(
                {
                    "name": checkpoint.name,
                    "epoch": position.epoch,
                    "batch": position.batch,
                    "output": str(output),
                    "bytes": output.stat().st_size,
                }
            )
        else:
            typer.echo(f"wrote {output}: {position}, from {checkpoint.name}")


@checkpoints.command(cls=RedactingCommand)
def copy(
    place: Place,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Where to: a path or a URL, as DIR; made if needed.")],
    run: RunId = None,
    as_json: AsJson = False,
) -> None:
    """Copy the run in DIR to another place, where its workers can then go on: from a disk to a bucket, and so on.

    Every usable checkpoint is copied, read back and compared; DIR stays as it is. Stop the run first: what it commits
    later is not copied. Stopped half-way, the command may be repeated.

    JSON: {"run_id", "source", "target", "copied": names, "present": names that were there already, "skipped": names of
    checkpoints that don't verify, and of event logs that can't be read}.

    Exit code: 0 fine, 1 a place can't be read or written, or TARGET belongs to another run, 2 DIR is no run or has
    nothing usable, or TARGET has come further, or would not outlive the command (memory:).
    """
    from distributed_backup.cli import copy_run
    from distributed_backup.observability.events import is_event_log

    with _store(place, run) as store, _target(target, copy_run.run_id_of(store)) as goal:
        copied = copy_run.copy_run(store, goal)
        if as_json:
            print_json(asdict(copied))
        else:
            typer.echo(f"{len(copied.copied)} copied, {len(copied.present)} there already: {copied.target}")
            for name in copied.skipped:
                reason = "can't be read" if is_event_log(name) else "does not verify"
                typer.echo(f"left behind, it {reason}: {name}", err=True)


@contextmanager
def _target(target: str, run_id: str) -> Iterator[CheckpointStore]:
    from distributed_backup.checkpoints.store import CheckpointStore

    store = CheckpointStore(target, run_id=run_id)
    try:
        if store.location.startswith("memory:"):
            raise ConfigError(f"{store.location} is gone when this command ends: name another place")
        yield store
    finally:
        store.storage.close()


@contextmanager
def _store(place: str, run: str | None) -> Iterator[CheckpointStore]:
    from distributed_backup.cli.locate import open_store

    with exit_on_error():
        store = open_store(place, run_id=chosen_run(run))
        try:
            yield store
        finally:
            store.storage.close()
