"""What the commands show to people: values in, lines and rich's renderables out; `cli` prints them.

What comes from a file or a server is text, never markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distributed_backup.urls import is_redis_url

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.tree import Tree

    from distributed_backup.checkpoints.reader import CheckpointInfo
    from distributed_backup.errors import BackupError


# -------------------------------------------------------------------- status


def status_lines(found: dict[str, Any], *, place: str, damaged: int) -> list[str]:
    """What `status` says before its table of workers.

    Args:
        found: As `inspection.status_of` gives it.
        place: Where the run is.
        damaged: How many checkpoints don't verify.
    """
    newest = found["checkpoint"]
    lines = [
        f"Run         {found['run_id'] or '(no id yet)'} in {place}",
        f"Leader      {found['leader'] or 'nobody'}, term {found['term']}{_lease(found)}",
        "Checkpoint  " + (_no_checkpoint(place, damaged) if newest is None else _checkpoint_line(newest)),
    ]
    if damaged:
        lines.append(f"            {damaged} damaged: see `checkpoints verify`")
    lines += [f"Notice      {_notice(notice)}" for notice in found["notices"]]
    return lines if found["members"] else [*lines, "Workers     none"]


def _no_checkpoint(place: str, damaged: int) -> str:
    if damaged:
        return "none that is usable"
    return "none announced yet" if is_redis_url(place) else "none yet"


def workers_table(found: dict[str, Any]) -> Table:
    """The workers of a run."""
    return table(
        ("WORKER", "ROLE", "EPOCHS DONE", "BATCHES OF THE NEXT", "LAST SEEN"),
        [
            (row["worker_id"], row["role"], text(row["epoch"]), text(row["batch"]), f"{row['last_seen']:.1f} s ago")
            for row in found["members"]
        ],
    )


def live_status(found: dict[str, Any], *, place: str, damaged: int, error: BackupError | None) -> RenderableType:
    """All that `status` says, and why it is not of just now, if so."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text("\n".join(status_lines(found, place=place, damaged=damaged)))]
    if found["members"]:
        parts.append(workers_table(found))
    if error is not None:
        parts.append(Text(f"error: {error}", style="red"))
    return Group(*parts)


def _lease(found: dict[str, Any]) -> str:
    if found["leader"] is None:
        return ""
    remaining = found["lease_remaining"]
    return ", for as long as it lives" if remaining is None else f", for {remaining:.1f} s unless renewed"


def _notice(notice: dict[str, Any]) -> str:
    who, left = notice["worker_id"], f"{notice['remaining']:.1f} s"
    if notice["wish"] == "resign":
        return f"{who} is asked to let another worker lead, for {left}"
    # As `operations` has it: nobody is preempted then.
    if notice["reason"] == "operator":
        return f"{who} asks for a save, for {left}"
    return f"{who} has {left} left ({notice['reason']})"


def _checkpoint_line(row: dict[str, Any]) -> str:
    told = f"{row['name']}: {_progress(row['epoch'], row['batch'])}"
    if row["valid"] is None:
        return f"{told}, as announced" + ("" if row["worker_id"] is None else f" by {row['worker_id']}")
    return f"{told}, {size(row['bytes'])}, {row['created_at']} by {row['worker_id']}"


# -------------------------------------------------------------------- requests


def saved_line(saved: dict[str, Any]) -> str:
    """What `preempt` says when the save is durable."""
    by = f"after {saved['seconds']:.2f} s, by {saved['leader']} under term {saved['term']}"
    if saved["checkpoint"] is None:
        return f"Nothing to save yet: no batch is complete; answered {by}"
    return f"Durable: {saved['checkpoint']}: {_progress(saved['epoch'], saved['batch'])}; {by}"


def handed_over_line(done: dict[str, Any]) -> str:
    """What `resign` says when another worker leads."""
    after = f"{done['seconds']:.2f} s after {done['previous']} was asked"
    return f"{done['leader']} leads now, under term {done['term']}, {after}"


def _progress(epoch: int, batch: int) -> str:
    return f"{epoch} epoch(s) and {batch} batch(es) done"


# -------------------------------------------------------------------- checkpoints


def checkpoints_table(rows: Sequence[tuple[dict[str, Any], CheckpointInfo]]) -> Table:
    """The checkpoints of a run, each as `checkpoints list --json` prints it and as the store gives it."""
    return table(
        ("CHECKPOINT", "TERM", "EPOCHS", "BATCHES", "SIZE", "WRITTEN", "BY", ""),
        [
            (
                *(row["name"], str(row["term"]), str(row["epoch"]), str(row["batch"]), size(row["bytes"])),
                *(text(row["created_at"]), text(row["worker_id"])),
                "" if info.valid else f"BAD: {info.problem}",
            )
            for row, info in rows
        ],
    )


def checkpoint_tree(found: dict[str, Any]) -> Tree:
    """What `checkpoints show` prints."""
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(f"{found['name']}  {size(found['bytes'])}"))
    about = tree.add("header")
    for key, value in found["header"].items():
        about.add(Text(f"{key}: {text(value)}"))
    variables = tree.add(Text(f"variables  {size(sum(sum(group.values()) for group in found['variables'].values()))}"))
    for name, group in found["variables"].items():
        branch = variables.add(Text(f"{name}  {size(sum(group.values()))}"))
        for path, count in group.items():
            branch.add(Text(f"{path}  {size(count)}"))
    other = tree.add(Text(f"other state  {size(sum(found['other'].values()))}"))
    for name, count in found["other"].items():
        other.add(Text(f"{name}  {size(count)}"))
    return tree


# -------------------------------------------------------------------- shared


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without lines."""
    from rich.table import Table
    from rich.text import Text

    made = Table(*headings, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def text(value: Any) -> str:
    """A value that may be unknown."""
    return "-" if value is None else str(value)


def size(count: int) -> str:
    """A number of bytes."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 10**6 else f"{count / 10**6:.1f} MB"
