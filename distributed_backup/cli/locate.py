"""Find the run that a user names by its place or by the server that coordinates it.

Finding creates nothing and joins no run. The place is a directory, a prefix in a bucket, or a key on a server. From the
URL of a server alone, a run whose checkpoints are elsewhere has no store: its newest checkpoint is the announced one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from distributed_backup.checkpoints.format import parse_name
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination import coordinator_from_url, is_server_url
from distributed_backup.coordination.base import Coordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import ConfigError, StoreError
from distributed_backup.storage.local import LocalStorage
from distributed_backup.urls import without_credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One located run.

    `place` is for display, without credentials. `coordinator` is opened. `store` is None if only the server was named
    and the checkpoints are elsewhere.
    """

    run_id: str | None
    place: str
    coordinator: Coordinator
    store: CheckpointStore | None


@contextmanager
def open_run(target: str, *, run_id: str | None, coordinator: str | None) -> Iterator[Run]:
    """Locate the run that `target` names, and close its connections at the end.

    Args:
        target: The URL of a Redis server, a directory, or another URL that `storage_from_url` takes.
        run_id: Its id. None for the place's id, or for the only run on the server.
        coordinator: `--coordinator`, for a directory only. None for `DISTRIBUTED_BACKUP_COORDINATOR`, else `file:`.

    Raises:
        ConfigError: The run does not exist, several match, or an option does not fit.
        BackupError: The run is unreachable or unreadable.
    """
    if not is_server_url(target):
        run = _run_in_place(target, run_id, coordinator or _coordinator_of_the_job() or "file:")
    elif coordinator is None:
        run = _run_on_server(target, run_id)
    else:
        raise ConfigError("the URL of a server already names the coordinator: omit --coordinator, or name a directory")
    try:
        yield run
    finally:
        run.coordinator.close()
        if run.store is not None:
            run.store.storage.close()


def _coordinator_of_the_job() -> str:
    return os.environ.get("DISTRIBUTED_BACKUP_COORDINATOR", "").strip()


def _run_on_server(url: str, run_id: str | None) -> Run:
    from distributed_backup.coordination.redis import RedisCoordinator
    from distributed_backup.storage.redis import runs_at

    coordinator, place = RedisCoordinator(url), without_credentials(url)
    # A run that was copied to the server and has had no leader yet has a store only.
    run_id = _chosen(run_id, tuple(sorted({*coordinator.runs(), *runs_at(url)})), place)
    coordinator.open(run_id, LeaseTimings())
    store = CheckpointStore(url, run_id=run_id)
    # Most runs that a server coordinates have their checkpoints elsewhere.
    return Run(run_id=run_id, place=place, coordinator=coordinator, store=store if store.storage.names() else None)


def _chosen(run_id: str | None, found: tuple[str, ...], place: str) -> str:
    if run_id is None and len(found) != 1:
        names = f"{len(found)} runs on {place}, name one with --run: {', '.join(found)}"
        raise ConfigError(names if found else f"no run on {place}")
    if run_id not in {None, *found}:
        raise ConfigError(f"no run {run_id} on {place}")
    return run_id or found[0]


def _run_in_place(place: str, wanted: str | None, url: str) -> Run:
    store = open_store(place, run_id=None)
    run_id = None
    # `preempt` and `resign` need the id, and do not need the checkpoints.
    with suppress(StoreError):
        run_id = store.find_run_id()
    _check_same_run(store, found=run_id, wanted=wanted)
    run_id = run_id or wanted
    if url.startswith("memory:"):
        raise ConfigError(
            "the coordinator memory: exists inside one process, so this command can't reach it. `events` needs none"
        )
    coordinator = coordinator_from_url(url, backup_dir=place)
    if run_id is not None:
        coordinator.open(run_id, LeaseTimings())
    elif coordinator.is_server:
        raise ConfigError(f"{store.location} has no run id, which a server needs: name the run with --run")
    shown = store.location if url == "file:" else f"{store.location}, coordinated by {without_credentials(url)}"
    return Run(run_id=run_id, place=shown, coordinator=coordinator, store=store)


def open_store(place: str, *, run_id: str | None, allow_damaged: bool = False) -> CheckpointStore:
    """Open the store of the run in a place.

    Args:
        place: A directory, or a URL that `storage_from_url` takes.
        run_id: Id of the run, which must be the place's. None for the only run there.
        allow_damaged: Accept a place whose `run.json` can't be read.

    Raises:
        ConfigError: The place has no run, or several match.
        StoreError: The place can't be read.
    """
    if is_server_url(place):
        from distributed_backup.storage.redis import runs_at

        return CheckpointStore(place, run_id=_chosen(run_id, runs_at(place), without_credentials(place)))
    unnamed = CheckpointStore(place)
    # A file:// URL and a path name the same directory.
    local = _directory(unnamed.storage.root) if isinstance(unnamed.storage, LocalStorage) else None
    try:
        found = unnamed.read_run_id()
    except StoreError:
        if not allow_damaged:
            raise
        found = None
    # A store that knows its run id rejects checkpoints that were copied in from another run.
    store = CheckpointStore(place, run_id=found or run_id)
    _check_same_run(store, found=found, wanted=run_id)
    is_coordinated = local is not None and (local / "coordinator").is_dir()
    if found is None and not is_coordinated and not holds_run(store.storage.names()):
        raise ConfigError(
            f"{store.location} is not the backup directory of a run: it has no {RUN_FILE} and no checkpoints"
        )
    return store


def holds_run(names: Iterable[str]) -> bool:
    """Whether a directory with these files belongs to a run."""
    return any(name == RUN_FILE or parse_name(name) for name in names)


def _check_same_run(store: CheckpointStore, *, found: str | None, wanted: str | None) -> None:
    if None not in {found, wanted} and found != wanted:
        raise ConfigError(
            f"{store.location} belongs to run {found!r}, and --run or DISTRIBUTED_BACKUP_RUN_ID names {wanted!r}"
        )


def _directory(path: Path) -> Path:
    try:
        found = path.is_dir()
    except OSError as error:
        raise StoreError(f"can't access {path}: {error.strerror or error}", path=str(path)) from None
    if not found:
        if path.exists():
            raise ConfigError(f"{path} is not a directory")
        raise ConfigError(f"{without_credentials(str(path))} does not exist")
    return path
