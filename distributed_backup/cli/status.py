"""Collect the values that `status` and `checkpoints` print.

Reading joins no run and creates nothing. Like any worker, it clears expired records of members and notices. Files that
vanish during the read are skipped, because the run may be training. No value holds credentials.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from distributed_backup.checkpoints.format import Checkpoint, parse_name
from distributed_backup.checkpoints.reader import CheckpointInfo, CheckpointReader
from distributed_backup.checkpoints.state_body import decode_state
from distributed_backup.cli.export import reading_state
from distributed_backup.cli.journal_report import answers_since
from distributed_backup.cli.locate import Run
from distributed_backup.coordination.base import Announcement, ClusterView, Member
from distributed_backup.errors import BackupError, ConfigError
from distributed_backup.position import Position


def status_of(run: Run) -> tuple[dict[str, Any], int]:
    """Return the document of `status --json`, and the number of damaged checkpoints.

    Raises:
        ConfigError: The run does not exist.
        BackupError: The run can't be read.
    """
    view, members = run.coordinator.view(), run.coordinator.members()
    if run.store is None:
        if view.term == 0 and not members:
            raise ConfigError(f"no run {run.run_id} on {run.place}")
        checkpoint, damaged = _announced_row(view.announcement), 0
    else:
        rows = run.store.list()
        usable = next((row for row in rows if row.valid), None)
        checkpoint = None if usable is None else checkpoint_row(usable, answers_since(run.store, usable.name))
        damaged = sum(not row.valid for row in rows)
    status = {
        "run_id": run.run_id,
        "leader": view.holder,
        "term": view.term,
        "lease_remaining": _rounded(view.remaining),
        "members": [_member_row(member, _first(members)) for member in members],
        "checkpoint": checkpoint,
        "notices": _notice_rows(view),
    }
    return status, damaged


def _first(members: Iterable[Member]) -> Position | None:
    """Return the position of the worker that has come furthest."""
    return max((member.position for member in members if member.position is not None), default=None)


def _lag(position: Position | None, first: Position | None) -> tuple[int | None, int | None]:
    """Return how many epochs and batches a worker is behind the first. Batches of other epochs can't be counted."""
    if position is None or first is None:
        return None, None
    epochs = first.epoch - position.epoch
    return epochs, first.batch - position.batch if epochs == 0 else None


def _member_row(member: Member, first: Position | None) -> dict[str, Any]:
    position = member.position
    epochs, batches = _lag(position, first)
    return {
        "worker_id": member.worker_id,
        "role": member.role,
        "epoch": None if position is None else position.epoch,
        "batch": None if position is None else position.batch,
        "epochs_behind": epochs,
        "batches_behind": batches,
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


def checkpoint_row(row: CheckpointInfo, answers: int | None = None) -> dict[str, Any]:
    """Return one row of `checkpoints list --json`. `answers` were recorded since, None if that is not known."""
    return {
        "name": row.name,
        "term": row.term,
        "epoch": row.position.epoch,
        "batch": row.position.batch,
        "worker_id": None if row.header is None else row.header.worker_id,
        "bytes": row.bytes,
        "created_at": None if row.header is None else row.header.created_at,
        "valid": row.valid,
        "answers_since": answers,
    }


def checkpoint_rows(store: CheckpointReader, infos: Sequence[CheckpointInfo]) -> list[dict[str, Any]]:
    """Return the rows of `checkpoints list --json`. Answers since are counted for the newest usable checkpoint."""
    newest = next((info for info in infos if info.valid), None)
    return [checkpoint_row(info, answers_since(store, info.name) if info is newest else None) for info in infos]


def _announced_row(made: Announcement | None) -> dict[str, Any] | None:
    """Return the same keys for an announced checkpoint, with None for facts that only its file holds."""
    if made is None or made.checkpoint is None:
        return None
    named = parse_name(made.checkpoint)
    term = None if named is None else named[0]
    return {
        "name": made.checkpoint,
        "term": term,
        "epoch": made.position.epoch,
        "batch": made.position.batch,
        # A term has one holder, so an announcement under the checkpoint's own term comes from its writer.
        "worker_id": made.worker_id if made.term == term else None,
        "bytes": None,
        "created_at": None,
        "valid": None,
        "answers_since": None,
    }


def checkpoint_in(store: CheckpointReader, name: str | None) -> Checkpoint:
    """Return the checkpoint with this name, or the newest one that verifies.

    Raises:
        ConfigError: The name is malformed or absent.
        BackupError: The checkpoint does not verify, or the run has none.
    """
    if name is None:
        newest = store.latest()
        if newest is None:
            raise BackupError(f"{store.location} has no checkpoint yet")
        return newest
    if parse_name(name) is None:
        raise ConfigError(f"{name!r} is not the name of a checkpoint: see `checkpoints list`")
    if name not in store.names():
        raise ConfigError(f"{store.location} has no checkpoint {name}: see `checkpoints list`")
    return store.load(name)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the document of `checkpoints show --json`.

    Raises:
        BackupError: The body is not a training state of this version.
    """
    header = checkpoint.header.fields
    with reading_state(checkpoint):
        state = decode_state(checkpoint.body)
        variables, schema = state.pop("variables"), state.pop("schema")
        tree = {group: _sizes([item["path"] for item in schema[group]], values) for group, values in variables.items()}
        other = {key: _json_size(value) for key, value in state.items()}
    line = orjson.dumps(header, option=orjson.OPT_SORT_KEYS)
    return {
        "name": checkpoint.name,
        "bytes": len(line) + len(checkpoint.body) + 2,  # the header's line and the body's, each with a newline
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
    # orjson rejects integers beyond 64 bits and half surrogate pairs, which a state may hold.
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass"))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
