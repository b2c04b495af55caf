"""Define `distributed-backup checkpoints`: inspect, prune, export and copy the checkpoints of a run.

Only `prune` changes the run. All commands work while the run is training. DIR is the backup directory: a path, or a URL
such as s3://…, gs://…, az://… or redis://….
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distributed_backup.cli.terminal import (
    PROBLEM,
    AsJson,
    Place,
    RedactingCommand,
    RunId,
    console,
    opened_store,
    print_json,
    print_result,
)
from distributed_backup.errors import ConfigError

if TYPE_CHECKING:
    from distributed_backup.checkpoints.store import CheckpointStore

checkpoints = typer.Typer(
    help="Inspect, prune, export and copy the checkpoints of a run.", rich_markup_mode=None, no_args_is_help=True
)

Name = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="Name from `checkpoints list`. Default: the newest checkpoint that verifies."),
]


@checkpoints.command("list", cls=RedactingCommand)
def list_checkpoints(place: Place, run: RunId = None, as_json: AsJson = False) -> None:
    """List all checkpoints in DIR, newest first. Each one is read and verified.

    Example: distributed-backup checkpoints list /mnt/run-42

    Exit codes: 0 all valid, 1 one is damaged or unreadable, 2 wrong usage.
    """
    from distributed_backup.cli.status import checkpoint_rows

    with opened_store(place, run) as store:
        infos = store.list()
        rows = checkpoint_rows(store, infos)
        if as_json:
            print_json(rows)
        elif not rows:
            typer.echo("no checkpoint yet")
        else:
            from distributed_backup.cli.tables import checkpoints_table

            console().print(checkpoints_table(list(zip(rows, infos, strict=True))))
        if not all(info.valid for info in infos):
            raise typer.Exit(PROBLEM)


@checkpoints.command(cls=RedactingCommand)
def verify(place: Place, run: RunId = None, as_json: AsJson = False) -> None:
    """Read every checkpoint in DIR and compare it with its digest. Damaged ones are listed with the reason.

    Example: distributed-backup checkpoints verify /mnt/run-42

    Exit codes: 0 all valid, 1 one is damaged or unreadable, 2 wrong usage.
    """
    with opened_store(place, run) as store:
        rows = store.list()
        bad = [{"name": row.name, "reason": row.problem} for row in rows if not row.valid]
        lines = [f"bad  {row['name']}: {row['reason']}" for row in bad]
        lines.append(f"{len(rows)} checked, {len(bad)} bad")
        print_result({"checked": len(rows), "bad": bad}, "\n".join(lines), as_json=as_json)
        if bad:
            raise typer.Exit(PROBLEM)


@checkpoints.command(cls=RedactingCommand)
def show(place: Place, name: Name = None, run: RunId = None, as_json: AsJson = False) -> None:
    """Show the header of one checkpoint in DIR, and the tree of its variables with their sizes.

    Example: distributed-backup checkpoints show /mnt/run-42

    Exit codes: 0 fine, 1 no usable checkpoint, 2 wrong usage or no such NAME.
    """
    from distributed_backup.cli.status import checkpoint_in, describe

    with opened_store(place, run) as store:
        found = describe(checkpoint_in(store, name))
        if as_json:
            print_json(found)
        else:
            from distributed_backup.cli.tables import checkpoint_tree

            console().print(checkpoint_tree(found))


@checkpoints.command(cls=RedactingCommand)
def prune(
    place: Place,
    keep: Annotated[int, typer.Option(min=1, metavar="N", help="Number of checkpoints to keep.")] = 1,
    run: RunId = None,
    as_json: AsJson = False,
) -> None:
    """Remove all checkpoints in DIR except the newest N that verify, and the leftovers of crashed writers.

    Segments of the journal that continue none of the kept checkpoints are removed, too.

    A damaged checkpoint is kept for inspection if it is newer than the oldest one kept. Leftovers of the newest term
    are kept, because its writer may still be running.

    Example: distributed-backup checkpoints prune /mnt/run-42 --keep 3

    Exit codes: 0 fine, 1 a file could not be removed, 2 wrong usage.
    """
    from distributed_backup.checkpoints.journal import segments_among

    with opened_store(place, run) as store:
        removed = store.prune(term=store.highest_term(), keep=keep)
        kept = store.names()
        segments = segments_among(removed)
        line = f"{len(removed) - len(segments)} removed, {len(kept)} kept"
        if segments:
            line += f", {len(segments)} segment(s) of the journal removed"
        print_result({"kept": kept, "removed": removed}, line, as_json=as_json)


@checkpoints.command(cls=RedactingCommand)
def export(
    place: Place,
    name: Name = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="Ends in .variables.json. An existing file is replaced."),
    ] = Path("latest.variables.json"),
    run: RunId = None,
    as_json: AsJson = False,
) -> None:
    """Write the variables of one checkpoint in DIR to a file for `program.load_variables`.

    Use the file to inspect or run the program as it was then. It can't continue training exactly: synalinks' format has
    no random generators and drops empty values. FILE must be outside the directory of a run.

    Example: distributed-backup checkpoints export /mnt/run-42

    Exit codes: 0 written, 1 not written, 2 wrong usage or no such NAME.
    """
    from distributed_backup.cli.export import export_variables
    from distributed_backup.cli.status import checkpoint_in

    with opened_store(place, run) as store:
        checkpoint = checkpoint_in(store, name)
        export_variables(checkpoint, output)
        position = checkpoint.position
        facts = {"name": checkpoint.name, **asdict(position), "output": str(output), "bytes": output.stat().st_size}
        print_result(facts, f"wrote {output}: {position}, from {checkpoint.name}", as_json=as_json)


@checkpoints.command(cls=RedactingCommand)
def copy(
    place: Place,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Destination: a path or a URL, as DIR. It is created.")
    ],
    run: RunId = None,
    as_json: AsJson = False,
) -> None:
    """Copy the run in DIR to TARGET, where its workers can continue: from a disk to a bucket, for example.

    Every usable checkpoint is copied, and the segments of the journal that continue one. All are read back and
    compared. DIR is not changed. Stop the run first: later commits and answers are not copied. An interrupted copy can
    be repeated.

    Example: distributed-backup checkpoints copy /mnt/run-42 s3://bucket/run-42

    Exit codes: 0 copied, 1 a place failed or is another run's, 2 wrong usage.
    """
    from distributed_backup.cli.copy_run import copy_run

    with opened_store(place, run) as store, _target(target, store) as goal:
        copied = copy_run(store, goal)
        if as_json:
            print_json(asdict(copied))
        else:
            typer.echo(f"{len(copied.copied)} copied, {len(copied.present)} already present: {copied.target}")
            if copied.segments:
                typer.echo(f"{len(copied.segments)} segment(s) of the journal copied")
            for name in copied.skipped:
                typer.echo(f"{_reason_of_skip(name)}: {name}", err=True)


def _reason_of_skip(name: str) -> str:
    from distributed_backup.checkpoints.journal_format import parse_segment_name
    from distributed_backup.observability.events import is_event_log

    if is_event_log(name):
        return "not copied, it can't be read"
    if parse_segment_name(name) is None:
        return "not copied, it does not verify"
    return "not copied as a whole, it or the segment before it does not verify"


@contextmanager
def _target(target: str, source: CheckpointStore) -> Iterator[CheckpointStore]:
    from distributed_backup.checkpoints.store import CheckpointStore

    run_id = source.find_run_id()
    if run_id is None:
        raise ConfigError(f"{source.location} has no usable checkpoint to copy")
    store = CheckpointStore(target, run_id=run_id)
    with closing(store.storage):
        if store.location.startswith("memory:"):
            raise ConfigError(f"{store.location} is lost when this command exits: choose another TARGET")
        yield store
