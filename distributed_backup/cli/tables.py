"""Format values for people as lines, tables and trees of rich.

The commands print them. Text from a file or a server is shown as it is, without control characters, and never as
rich's markup. Import this module only to print for people: it imports rich.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from distributed_backup.checkpoints.reader import CheckpointInfo
from distributed_backup.cli.locate import Run
from distributed_backup.cli.terminal import printable, progress
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import BackupError

# A worker with an older heartbeat is presumed dead. By default a worker sends one every 2 s or more often.
_SILENCE: Final = 3 * LeaseTimings().retry_period

# -------------------------------------------------------------------- status


def status_view(run: Run, found: dict[str, Any], *, damaged: int, error: BackupError | None = None) -> RenderableType:
    """Return what `status` shows of the result of `status_of`. `error` is why a frame of `--watch` is old."""
    newest = found["checkpoint"]
    lines = [
        f"Run         {found['run_id'] or '(no id yet)'} in {run.place}",
        f"Leader      {found['leader'] or 'none'}, term {found['term']}{_lease(found)}",
        "Checkpoint  " + (_no_checkpoint(run, damaged) if newest is None else _checkpoint_line(newest)),
        *([f"            {damaged} damaged: see `checkpoints verify`"] if damaged else []),
        *(f"Notice      {_notice(notice)}" for notice in found["notices"]),
        *([] if found["members"] else ["Workers     none"]),
    ]
    parts: list[RenderableType] = [Text("\n".join(map(printable, lines)), no_wrap=True, overflow="ignore")]
    if found["members"]:
        parts.append(_workers_table(found))
    if error is not None:
        parts.append(Text(printable(f"error: {error}"), style="red"))
    return Group(*parts)


def _no_checkpoint(run: Run, damaged: int) -> str:
    if damaged:
        return "none usable"
    return "none announced yet" if run.store is None else "none yet"


def _workers_table(found: dict[str, Any]) -> Table:
    return table(
        ("WORKER", "ROLE", "EPOCHS DONE", "BATCHES OF THE NEXT", "BEHIND", "LAST HEARTBEAT"),
        [
            (
                *(row["worker_id"], _role(row, found["leader"]), text(row["epoch"]), text(row["batch"])),
                *(_lag(row), _heartbeat(row)),
            )
            for row in found["members"]
        ],
    )


def _role(row: dict[str, Any], leader: str | None) -> str:
    # The role is as of the last heartbeat. The lease may have been lost since.
    is_former = row["role"] == "leader" and row["worker_id"] != leader
    return "former leader" if is_former else str(row["role"])


def _lag(row: dict[str, Any]) -> str:
    if row["epochs_behind"]:
        return f"{row['epochs_behind']} epoch(s)"
    return "-" if row["batches_behind"] is None else f"{row['batches_behind']} batch(es)"


def _heartbeat(row: dict[str, Any]) -> str:
    suffix = ", presumed dead" if row["last_seen"] > _SILENCE else ""
    return f"{row['last_seen']:.1f} s ago{suffix}"


def _lease(found: dict[str, Any]) -> str:
    if found["leader"] is None:
        return ""
    remaining = found["lease_remaining"]
    return ", until its process exits" if remaining is None else f", for {remaining:.1f} s unless renewed"


def _notice(notice: dict[str, Any]) -> str:
    worker, remaining = notice["worker_id"], f"{notice['remaining']:.1f} s"
    if notice["wish"] == "resign":
        return f"{worker} is asked to hand over, request expires in {remaining}"
    # `operator_requests` gives this reason: no worker is preempted.
    if notice["reason"] == "operator":
        return f"{worker} asks for a save, request expires in {remaining}"
    return f"{worker} is preempted ({notice['reason']}), {remaining} remain"


def _checkpoint_line(row: dict[str, Any]) -> str:
    line = f"{row['name']}: {progress(row['epoch'], row['batch'])}"
    if row["valid"] is None:
        return f"{line}, as announced" + ("" if row["worker_id"] is None else f" by {row['worker_id']}")
    since = "" if row["answers_since"] is None else f", {row['answers_since']} answer(s) recorded since"
    return f"{line}, {decimal(row['bytes'])}, {row['created_at']} by {row['worker_id']}{since}"


# -------------------------------------------------------------------- checkpoints


def checkpoints_table(rows: Sequence[tuple[dict[str, Any], CheckpointInfo]]) -> Table:
    """Return the table of `checkpoints list`, from pairs of a row of its JSON and the store's row."""
    return table(
        ("CHECKPOINT", "TERM", "EPOCHS", "BATCHES", "SIZE", "WRITTEN", "BY", "ANSWERS SINCE", "PROBLEM"),
        [
            (
                *(row["name"], str(row["term"]), str(row["epoch"]), str(row["batch"]), decimal(row["bytes"])),
                *(text(row["created_at"]), text(row["worker_id"]), text(row["answers_since"])),
                "" if info.valid else f"BAD: {info.problem}",
            )
            for row, info in rows
        ],
    )


def checkpoint_tree(found: dict[str, Any]) -> Tree:
    """Return the tree of `checkpoints show`."""
    tree = Tree(Text(printable(f"{found['name']}  {decimal(found['bytes'])}")))
    header = tree.add("header")
    for key, value in found["header"].items():
        header.add(Text(printable(f"{key}: {text(value)}")))
    _add_sizes(tree, "variables", found["variables"])
    _add_sizes(tree, "other state", found["other"])
    return tree


def _add_sizes(parent: Tree, name: str, size: Any) -> None:
    """Add a branch with its size in bytes. `size` is a number, or the sizes of the parts by name."""
    branch = parent.add(Text(printable(f"{name}  {decimal(_total(size))}")))
    if isinstance(size, dict):
        for part, its_size in size.items():
            _add_sizes(branch, part, its_size)


def _total(size: Any) -> int:
    return sum(map(_total, size.values())) if isinstance(size, dict) else size


# -------------------------------------------------------------------- shared


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Make a table without lines."""
    made = Table(*headings, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made


def text(value: Any) -> str:
    """Return a value that may be unknown as text."""
    return "-" if value is None else str(value)
