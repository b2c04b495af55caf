"""Define `distributed-backup journal`: inspect the answers of models that a run has recorded.

Neither command changes the run, and both work while it is training. The text of an answer is printed by
`show --answers` only. Memory does not grow with the number or the size of the answers. DIR is the backup directory: a
path, or a URL such as s3://…, gs://…, az://… or redis://….
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from distributed_backup.cli.terminal import (
    PROBLEM,
    AsJson,
    Place,
    RedactingCommand,
    RunId,
    opened_store,
    print_json,
    print_result,
    printable,
)

if TYPE_CHECKING:
    from distributed_backup.checkpoints.journal_format import Answer
    from distributed_backup.checkpoints.journal_scan import Scanned
    from distributed_backup.storage.base import Storage

# Bytes of a long answer that are printed at once.
_CHUNK: Final = 2**20
# Hex digits of a digest that are shown to people.
_SHOWN_DIGITS: Final = 8
# JSON holds these between its values only. The values of a journal were not parsed.
_WITHOUT_CONTROLS: Final = bytes(code if code >= 32 and code != 127 else 32 for code in range(256))

journal = typer.Typer(
    help="Inspect the answers of models that a run has recorded.", rich_markup_mode=None, no_args_is_help=True
)


@journal.command(cls=RedactingCommand)
def show(
    place: Place,
    answers: Annotated[
        bool, typer.Option("--answers", help="Print each answer, too: its key, number and JSON.")
    ] = False,
    run: RunId = None,
    as_json: AsJson = False,
) -> None:
    """Show the segments of the journal in DIR, newest last, and their sum. The text of answers is not shown.

    An answer may hold anything that a model has returned. --answers prints it.

    Example: distributed-backup journal show /mnt/run-42

    Exit codes: 0 fine, 1 a segment does not verify, 2 wrong usage.
    """
    from distributed_backup.cli.journal_report import damage_in, read_journal, segment_row, totals

    with opened_store(place, run) as store:
        segments = read_journal(store.storage)
        damage = damage_in(store, segments)
        rows = [segment_row(segment, damage.get(segment.name)) for segment in segments]
        if not as_json:
            _print_rows(store.storage, rows, totals(segments), answers=answers)
        elif answers:
            _print_json_with_answers(store.storage, rows, totals(segments))
        else:
            print_json({**totals(segments), "segments": rows})
        if damage:
            raise typer.Exit(PROBLEM)


@journal.command(cls=RedactingCommand)
def verify(place: Place, run: RunId = None, as_json: AsJson = False) -> None:
    """Read every record of the journal in DIR, and find the log of the newest checkpoint.

    Each segment that does not verify is listed with the byte and the reason. An incomplete record at the end of a
    segment is normal: its writer was killed, or is about to complete it. No log is normal before the first answer.
    Answers are named whose checkpoint is missing.

    Example: distributed-backup journal verify /mnt/run-42

    Exit codes: 0 all valid, 1 a segment does not verify, 2 wrong usage.
    """
    from distributed_backup.checkpoints.abandoned import AbandonedAnswers
    from distributed_backup.cli.journal_report import damage_in, newest_log, read_journal, totals

    with opened_store(place, run) as store:
        segments = read_journal(store.storage)
        damage = damage_in(store, segments)
        bad = [{"name": name, "offset": found.offset, "reason": found.reason} for name, found in damage.items()]
        log, recorded = newest_log(store), totals(segments)["answers"]
        lines = [printable(f"bad  {row['name']} at byte {row['offset']}: {row['reason']}") for row in bad]
        lines.append(f"{len(segments)} segments, {recorded} answers, {len(bad)} bad")
        lines.append(printable(_log_line(log)))
        if log["abandoned"] is not None:
            lines.append(str(AbandonedAnswers(name=log["abandoned"]["name"], count=log["abandoned"]["answers"])))
        document = {"segments": len(segments), "answers": recorded, "bad": bad, **log}
        print_result(document, "\n".join(lines), as_json=as_json)
        if bad:
            raise typer.Exit(PROBLEM)


def _log_line(found: dict[str, Any]) -> str:
    if found["log_problem"] is not None:
        return f"no log can be looked for: {found['log_problem']}"
    if found["checkpoint"] is None:
        return "no checkpoint yet"
    if found["log"] is None:
        return f"no log continues {found['checkpoint']}"
    log = found["log"]
    return f"{found['checkpoint']} is continued by {log['name']} from byte {log['offset']} on: {log['answers']} answers"


# -------------------------------------------------------------------- for people


def _print_rows(storage: Storage, rows: list[dict[str, Any]], total: dict[str, int], *, answers: bool) -> None:
    for row in rows:
        for line in _lines(row):
            typer.echo(printable(line))
        if answers:
            for scanned, answer in _recorded(storage, row):
                typer.echo(f"  answer {printable(answer.key)} {answer.number}: ", nl=False)
                decoder = codecs.getincrementaldecoder("utf-8")("replace")
                for part in _value(storage, row["name"], scanned, answer):
                    typer.echo(printable(decoder.decode(part)), nl=False)
                typer.echo()
    typer.echo(f"{len(rows)} segments, {_size(total)}" if rows else "no journal yet")


def _lines(row: dict[str, Any]) -> Iterator[str]:
    """Yield a line for a segment, and a line for each further fact about it."""
    yield (
        f"{row['name']}  term {row['term']} by {row['worker_id'] or '-'}, from epoch {row['epoch']}, "
        f"batch {row['batch']}: {_size(row)}"
    )
    if row["after"] is not None:
        yield f"  continues {row['after']['name']} after {row['after']['bytes']} bytes"
    if (last := row["last_boundary"]) is not None:
        digests = ", ".join(f"{name} {str(digest)[:_SHOWN_DIGITS]}" for name, digest in sorted(last["digests"].items()))
        yield f"  last boundary: epoch {last['epoch']}, batch {last['batch']} ({digests})"
    marks = [
        f"unanswered {row['unanswered']}" if row["unanswered"] else "",
        f"unrecorded {row['unrecorded']}" if row["unrecorded"] else "",
        f"failed {row['failed']} ({row['error']})" if row["failed"] else "",
        f"void {row['void']}" if row["void"] else "",
        "left" if row["left"] else "",
    ]
    if any(marks):
        yield f"  marks: {', '.join(filter(None, marks))}"
    if row["continued_at"] is not None and row["continued_at"] < row["bytes"]:
        yield f"  cut off: a later segment continues it after {row['continued_at']} bytes"
    if row["torn"]:
        yield f"  torn: {row['torn']} bytes of an incomplete record at the end"
    if row["problem"] is not None:
        yield f"  bad at byte {row['problem']['offset']}: {row['problem']['reason']}"


def _size(counts: dict[str, Any]) -> str:
    from rich.filesize import decimal

    return f"{counts['answers']} answers, {counts['boundaries']} boundaries, {decimal(counts['bytes'])}"


# -------------------------------------------------------------------- answers


def _print_json_with_answers(storage: Storage, rows: list[dict[str, Any]], total: dict[str, int]) -> None:
    """Print the document in parts, because it may be larger than the memory."""
    typer.echo(f'{json.dumps(total)[:-1]}, "segments": [', nl=False)
    for index, row in enumerate(rows):
        typer.echo(f'{"," if index else ""}\n{json.dumps(row)[:-1]}, "recorded": [', nl=False)
        for count, (scanned, answer) in enumerate(_recorded(storage, row)):
            head = json.dumps({"key": answer.key, "number": answer.number})
            typer.echo(f'{"," if count else ""}\n {head[:-1]}, "value": ', nl=False)
            for part in _value(storage, row["name"], scanned, answer):
                typer.echo(part.translate(_WITHOUT_CONTROLS), nl=False)
            typer.echo("}", nl=False)
        typer.echo("]}", nl=False)
    typer.echo("\n]}")


def _recorded(storage: Storage, row: dict[str, Any]) -> Iterator[tuple[Scanned, Answer]]:
    """Yield the answers in the part of a segment that was verified."""
    from distributed_backup.checkpoints.journal_format import Answer
    from distributed_backup.checkpoints.journal_scan import SegmentScan

    for scanned in SegmentScan(storage, row["name"], end=row["bytes"]):
        if isinstance(scanned.record, Answer):
            yield scanned, scanned.record


def _value(storage: Storage, name: str, scanned: Scanned, answer: Answer) -> Iterator[bytes]:
    """Yield the JSON of an answer in parts."""
    if answer.value or scanned.value is None:
        yield answer.value
        return
    at, end = scanned.value
    while at < end and (part := storage.read_from(name, at, min(_CHUNK, end - at))):
        yield part
        at += len(part)
