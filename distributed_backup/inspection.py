"""A run as seen from outside: the values that the command line shows.

Looking changes nothing that counts: nobody joins and nothing is made, only records of members and notices that have
expired are cleared away, as any worker does. What vanishes while we look is passed over, for the run may be going on.
Only the file coordinator in the run's directory is asked; the leader of a run that meets elsewhere is not seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from distributed_backup.checkpoint import Checkpoint, parse_name
from distributed_backup.coordinators import coordinator_from_url
from distributed_backup.coordinators.base import ClusterView, Member
from distributed_backup.errors import BackupError, ConfigError, StoreError
from distributed_backup.store import CheckpointInfo, CheckpointStore


def run_in(directory: Path) -> CheckpointStore:
    """The store of the run in `directory`.

    Raises:
        ConfigError: There is no run.
        StoreError: It can't be read.
    """
    try:
        found = directory.is_dir()
    except OSError as error:
        raise StoreError(f"can't look at {directory}: {error.strerror or error}", path=str(directory)) from None
    if not found:
        raise ConfigError(f"{directory} is {'not a directory' if directory.exists() else 'not there'}")
    run_id = CheckpointStore(directory).read_run_id()
    # With its id, a checkpoint of another run that was copied in does not count as valid.
    store = CheckpointStore(directory, run_id=run_id)
    if run_id is None and not store.names() and not (directory / "coordinator").is_dir():
        raise ConfigError(f"{directory} is not the backup directory of a run: it has no run.json and no checkpoints")
    return store


def status_of(directory: Path) -> tuple[dict[str, Any], int]:
    """What `status --json` prints, and how many checkpoints don't verify.

    Raises:
        ConfigError: There is no run.
        BackupError: It can't be read.
    """
    store = run_in(directory)
    coordinator = coordinator_from_url("file:", backup_dir=directory)
    view, members, rows = coordinator.view(), coordinator.members(), store.list()
    usable = next((row for row in rows if row.valid), None)
    run_id = store.read_run_id() or (usable.header.run_id if usable and usable.header else None)
    status = {
        "run_id": run_id,
        "leader": view.holder,
        "term": view.term,
        "lease_remaining": _rounded(view.remaining),
        "members": [_member_row(member) for member in members],
        "checkpoint": None if usable is None else checkpoint_row(usable),
        "notices": _notice_rows(view),
    }
    return status, sum(not row.valid for row in rows)


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
        {"worker_id": notice.worker_id, "reason": notice.reason, "remaining": _rounded(notice.remaining)}
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


def checkpoint_in(directory: Path, name: str | None) -> Checkpoint:
    """The checkpoint called `name`, or the newest that verifies.

    Raises:
        ConfigError: There is no run, or no such checkpoint in it.
        BackupError: It does not verify, or there is none at all.
    """
    store = run_in(directory)
    if name is None:
        newest = store.latest()
        if newest is None:
            raise BackupError(f"there is no checkpoint in {directory} yet")
        return newest
    if parse_name(name) is None:
        raise ConfigError(f"{name!r} is not the name of a checkpoint: see `checkpoints list`")
    if name not in store.names():
        raise ConfigError(f"{directory} has no checkpoint {name}: see `checkpoints list`")
    return store.load(name)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `checkpoints show --json` prints.

    Raises:
        BackupError: Its body is no training state as this version writes it.
    """
    from distributed_backup.training_state import decode_state  # imports numpy, which nothing else here needs

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
