"""Define `distributed-backup events` and `timeline`, which print and draw the history of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from distributed_backup.cli.terminal import AsJson, Place, RunId, console, exit_on_error, print_json, printable
from distributed_backup.errors import BackupError, ConfigError, StoreError

if TYPE_CHECKING:
    from distributed_backup.checkpoints.store import CheckpointStore
    from distributed_backup.observability.events import Event
    from distributed_backup.timeline.history import History
    from distributed_backup.timeline.incidents import IncidentCost

_SUFFIXES: Final = (".svg", ".html")


def events(place: Place, run: RunId = None, as_json: AsJson = False) -> None:
    """Print the events of all workers of a run, in order of time.

    Times come from the workers' own clocks, which may differ. Old parts of a long log keep transitions only. The text
    "epoch 2, batch 3" means that 2 epochs and 3 batches of the next one are completed.

    Example: distributed-backup events /mnt/run-42

    Exit codes: 0 fine, 1 no events or unreadable, 2 wrong usage.
    """
    with exit_on_error():
        found = _events_of(place, run)
        if as_json:
            print_json([json.loads(event.line()) for event in found])
            return
        for line in _lines(found):
            typer.echo(line)


def timeline(
    place: Place,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE", help="Ends in .svg or .html. An existing file is replaced."),
    ],
    run: RunId = None,
    as_json: AsJson = False,
) -> None:
    """Draw a run: its leaders, its workers, its progress, and the cost of each preemption.

    The costs are printed, too: seconds without a leader, seconds without training, and batches to repeat. The picture
    is one file without scripts or links. Times come from the workers' own clocks, which may differ. The text
    "epoch 2, batch 3" means that 2 epochs and 3 batches of the next one are completed.

    Example: distributed-backup timeline /mnt/run-42 -o run.svg

    Exit codes: 0 drawn, 1 no events, or a read or write failed, 2 wrong usage.
    """
    from distributed_backup.atomic import atomic_write
    from distributed_backup.timeline.chart import draw
    from distributed_backup.timeline.history import history_of
    from distributed_backup.timeline.html_page import page
    from distributed_backup.timeline.incidents import costs_of
    from distributed_backup.timeline.json_report import document

    with exit_on_error():
        kind = output.suffix.lower()
        if kind not in _SUFFIXES:
            problem = f"{output} must end in" if output.name else "-o must name a file that ends in"
            raise ConfigError(f"{problem} {' or '.join(_SUFFIXES)}")
        history = history_of(_events_of(place, run), now=time.time())
        costs = costs_of(history)
        picture = page(history, costs) if kind == ".html" else draw(history, costs)
        atomic_write(output, picture.encode())
        if as_json:
            print_json(document(history, costs))
        else:
            _print_summary(history, costs)
            typer.echo(f"Drawn: {output}")


def _print_summary(history: History, costs: list[IncidentCost]) -> None:
    from distributed_backup.cli.tables import table
    from distributed_backup.timeline.labels import HEADINGS, cells, summary, title

    for line in (title(history), *summary(history, costs)):
        typer.echo(printable(line))
    if costs:
        rows = [[printable(cell) for cell in cells(history, cost)] for cost in costs]
        console().print(table([heading.upper() for heading in HEADINGS], rows))


def _events_of(place: str, run: str | None) -> list[Event]:
    from distributed_backup.cli.locate import open_store
    from distributed_backup.timeline.log_reader import read_events

    store = open_store(place, run_id=run, allow_damaged=True)
    with closing(store.storage):
        found, skipped = read_events(store.storage, _run_id(store, run))
    if skipped:
        typer.echo(f"warning: {skipped} line(s) skipped: damaged, or written by another version", err=True)
    if not found:
        raise BackupError(f"{store.location} holds no events: no worker of this version has run there")
    return found


def _run_id(store: CheckpointStore, named: str | None) -> str | None:
    """Return the id of the run whose events to read, or None for all events in the place."""
    try:
        return store.find_run_id() or named
    except StoreError as error:
        # Events are needed most where a run is damaged.
        text = f"warning: {error}" + ("" if named else " (events of other runs may be included)")
        typer.echo(printable(text), err=True)
        return named


def _lines(found: list[Event]) -> Iterable[str]:
    from distributed_backup.timeline.labels import describe

    widest = max(len(event.worker) for event in found)
    longest = max(len(event.kind) for event in found)
    for event in found:
        at = event.at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "milliseconds")
        yield printable(f"{at}  {event.worker:{widest}}  {event.kind:{longest}}  {describe(event)}".rstrip())
