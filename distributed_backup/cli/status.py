"""A run as seen from outside: the values that the command line shows.

Looking changes nothing that counts: nobody joins and nothing is made, only records of members and notices that have
expired are cleared away, as any worker does. What vanishes while we look is passed over, for the run may be going on.
How a run is found is told in `opening`. Nothing that is shown holds credentials.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import orjson

from distributed_backup.checkpoints.format import Checkpoint, parse_name
from distributed_backup.checkpoints.reader import CheckpointInfo, CheckpointReader
from distributed_backup.cli.locate import Run
from distributed_backup.coordination.base import Announcement, ClusterView, Member
from distributed_backup.errors import BackupError, ConfigError


def status_of(run: Run) -> tuple[dict[str, Any], int]:
    """What `status --json` prints, and how many checkpoints don't verify.

    Raises:
        ConfigError: There is no run.
        BackupError: It can't be read.
    """
    view, members = run.coordinator.view(), run.coordinator.members()
    if run.store is None:
        if view.term == 0 and not members:
            raise ConfigError(f"no run {run.run_id} on {run.place}")
        checkpoint, damaged = _announced_row(view.announcement), 0
    else:
        rows = run.store.list()
        usable = next((row for row in rows if row.valid), None)
        checkpoint = None if usable is None else checkpoint_row(usable)
        damaged = sum(not row.valid for row in rows)
    status = {
        "run_id": run.run_id,
        "leader": view.holder,
        "term": view.term,
        "lease_remaining": _rounded(view.remaining),
        "members": [_member_row(member) for member in members],
        "checkpoint": checkpoint,
        "notices": _notice_rows(view),
    }
    return status, damaged


def _member_row(member: Member) -> dict[str, Any]:
    position = member.position
    return {
        "worker_id": member.worker_id,
        "role": member.role,
        "epoch": None if position is None else position.epoch,
        "batch": None if position is None else position.batch,
        "last_seen": _rounded(member.age),
    }


def _notice_rows(view: ClusterView) -> list[dict[str, Any]]:
    return [
        {
            "worker_id": notice.worker_id,
            "reason": notice.reason,
            "wish": notice.action,
            "remaining": _rounded(notice.remaining),
        }
        for notice in view.notices
    ]


def checkpoint_row(row: CheckpointInfo) -> dict[str, Any]:
    """What `checkpoints list --json` prints of one checkpoint."""
    return {
        "name": row.name,
        "term": row.term,
        "epoch": row.position.epoch,
        "batch": row.position.batch,
        "worker_id": None if row.header is None else row.header.worker_id,
        "bytes": row.bytes,
        "created_at": None if row.header is None else row.header.created_at,
        "valid": row.valid,
    }


def _announced_row(made: Announcement | None) -> dict[str, Any] | None:
    """The same keys for a checkpoint that was announced; null where only its file could tell."""
    if made is None or made.checkpoint is None:
        return None
    named = parse_name(made.checkpoint)
    term = None if named is None else named[0]
    return {
        "name": made.checkpoint,
        "term": term,
        "epoch": made.position.epoch,
        "batch": made.position.batch,
        # A term has one holder: who speaks under the checkpoint's own term wrote it.
        "worker_id": made.worker_id if made.term == term else None,
        "bytes": None,
        "created_at": None,
        "valid": None,
    }


def checkpoint_in(store: CheckpointReader, name: str | None) -> Checkpoint:
    """The checkpoint called `name`, or the newest that verifies.

    Raises:
        ConfigError: There is no such checkpoint.
        BackupError: It does not verify, or there is none at all.
    """
    if name is None:
        newest = store.latest()
        if newest is None:
            raise BackupError(f"there is no checkpoint in {store.location} yet")
        return newest
    if parse_name(name) is None:
        raise ConfigError(f"{name!r} is not the name of a checkpoint: see `checkpoints list`")
    if name not in store.names():
        raise ConfigError(f"{store.location} has no checkpoint {name}: see `checkpoints list`")
    return store.load(name)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `checkpoints show --json` prints.

    Raises:
        BackupError: Its body is no training state as this version writes it.
    """
    from distributed_backup.checkpoints.state_json import decode_state  # imports numpy, which nothing else here needs

    header = asdict(checkpoint.header)
    try:
        state = decode_state(checkpoint.body)
        variables, schema = state.pop("variables"), state.pop("schema")
        tree = {group: _sizes([item["path"] for item in schema[group]], values) for group, values in variables.items()}
        other = {key: _json_size(value) for key, value in state.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BackupError(
            f"{checkpoint.name} verifies, but holds no training state as this version writes it"
        ) from None
    line = orjson.dumps(header, option=orjson.OPT_SORT_KEYS)
    return {
        "name": checkpoint.name,
        "bytes": len(line) + len(checkpoint.body) + 2,  # two lines, each with its newline
        "header": header,
        "variables": tree,
        "other": other,
    }


def _sizes(paths: Sequence[str], values: Sequence[Any]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for path, value in zip(paths, values, strict=True):
        key, number = path, 1
        while key in sizes:
            number += 1
            key = f"{path}#{number}"
        sizes[key] = _json_size(value)
    return sizes


def _json_size(value: Any) -> int:
    # Not orjson: a state may hold integers beyond 64 bits.
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
