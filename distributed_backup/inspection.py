"""A run as seen from outside: the values that the command line shows.

Looking changes nothing that counts: nobody joins and nothing is made, only records of members and notices that have
expired are cleared away, as any worker does. What vanishes while we look is passed over, for the run may be going on.
A run is seen from its directory and the coordinator that meets for it, or from a coordinator on a server alone: then
its newest checkpoint is what was announced, and nobody has verified it here. Nothing that is shown holds credentials.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from distributed_backup.checkpoint import Checkpoint, parse_name
from distributed_backup.config import LeaseTimings
from distributed_backup.coordinators import coordinator_from_url
from distributed_backup.coordinators.base import Announcement, ClusterView, Coordinator, Member
from distributed_backup.coordinators.urls import REDIS_SCHEMES, is_redis_url, without_credentials
from distributed_backup.errors import BackupError, ConfigError, StoreError
from distributed_backup.store import CheckpointInfo, CheckpointStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that can be looked at, and asked.

    Args:
        run_id: Its id; None if its directory does not tell.
        place: Where it is, to be shown.
        coordinator: Opened.
        store: Its checkpoints; None where no directory was named.
    """

    run_id: str | None
    place: str
    coordinator: Coordinator
    store: CheckpointStore | None


@contextmanager
def opened(target: str, *, run_id: str | None, coordinator: str | None) -> Iterator[Run]:
    """The run that `target` names; its connections are closed at the end.

    Args:
        target: The URL of a Redis deployment, or a directory.
        run_id: Its id; None for the directory's, or for the only run on the server.
        coordinator: URL of the coordinator of a run whose directory is named; None for "file:".

    Raises:
        ConfigError: There is no such run, or it is not clear which is meant.
        BackupError: It can't be reached or read.
    """
    if is_redis_url(target):
        run = _run_on_server(target, run_id)
    elif "://" in target:
        schemes = ", ".join(f"{scheme}://" for scheme in REDIS_SCHEMES)
        raise ConfigError(f"{without_credentials(target)} is neither a directory nor begins with one of {schemes}")
    else:
        run = _run_in_directory(Path(target), run_id, coordinator or "file:")
    try:
        yield run
    finally:
        run.coordinator.close()


def _run_on_server(url: str, run_id: str | None) -> Run:
    from distributed_backup.coordinators.redis import RedisCoordinator

    coordinator, place = RedisCoordinator(url), without_credentials(url)
    if run_id is None:
        found = coordinator.runs()
        if len(found) != 1:
            names = f"{len(found)} runs on {place}, name one with --run: {', '.join(found)}"
            raise ConfigError(names if found else f"no run on {place}")
        run_id = found[0]
    elif run_id not in coordinator.runs():
        raise ConfigError(f"no run {run_id} on {place}")
    coordinator.open(run_id, LeaseTimings())
    return Run(run_id=run_id, place=place, coordinator=coordinator, store=None)


def _run_in_directory(directory: Path, wanted: str | None, url: str) -> Run:
    store = run_in(directory)
    run_id = store.read_run_id()
    if run_id is None:
        with suppress(StoreError):
            newest = store.newest_header()
            run_id = None if newest is None else newest.run_id
    if wanted is not None and run_id not in {None, wanted}:
        raise ConfigError(f"{directory} belongs to run {run_id!r}, and {wanted!r} was named")
    run_id = run_id or wanted
    if url.startswith("memory:"):
        raise ConfigError("the coordinator memory: is inside one process, and can't be asked from another")
    coordinator = coordinator_from_url(url, backup_dir=directory)
    if run_id is not None:
        coordinator.open(run_id, LeaseTimings())
    elif is_redis_url(url):
        raise ConfigError(f"{directory} does not tell which run it belongs to: name it with --run")
    place = f"{directory}" if url == "file:" else f"{directory}, led over {without_credentials(url)}"
    return Run(run_id=run_id, place=place, coordinator=coordinator, store=store)


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
        if directory.exists():
            raise ConfigError(f"{directory} is not a directory")
        raise ConfigError(f"{without_credentials(str(directory))} is not there")
    run_id = CheckpointStore(directory).read_run_id()
    # With its id, a checkpoint of another run that was copied in does not count as valid.
    store = CheckpointStore(directory, run_id=run_id)
    if run_id is None and not store.names() and not (directory / "coordinator").is_dir():
        raise ConfigError(f"{directory} is not the backup directory of a run: it has no run.json and no checkpoints")
    return store


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
            "wish": notice.wish,
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
