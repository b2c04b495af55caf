"""A run found by what a user names: its place, or the server that it is led over.

Finding makes nothing and joins nobody. A run is seen from its place (a directory, a prefix in a bucket, a key on a
server) and the coordinator that meets for it; or from a coordinator on a server alone: then its newest checkpoint is
what was announced, and nobody has verified it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from distributed_backup.checkpoints.format import parse_name
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination import coordinator_from_url
from distributed_backup.coordination.base import Coordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import ConfigError, StoreError
from distributed_backup.storage.local import LocalStorage
from distributed_backup.urls import is_redis_url, without_credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that can be looked at, and asked.

    Args:
        run_id: Its id; None if its place does not tell.
        place: Where it is, to be shown.
        coordinator: Opened.
        store: Its checkpoints; None where only the server that it is led over was named, and they are not there.
    """

    run_id: str | None
    place: str
    coordinator: Coordinator
    store: CheckpointStore | None


@contextmanager
def open_run(target: str, *, run_id: str | None, coordinator: str | None) -> Iterator[Run]:
    """The run that `target` names; its connections are closed at the end.

    Args:
        target: The URL of a Redis deployment, a directory, or another URL that `storage_from_url` takes.
        run_id: Its id; None for the place's, or for the only run on the server.
        coordinator: URL of the coordinator of a run whose place is named; None for "file:".

    Raises:
        ConfigError: There is no such run, or it is not clear which is meant.
        BackupError: It can't be reached or read.
    """
    if is_redis_url(target):
        run = _run_on_server(target, run_id)
    else:
        run = _run_in_place(target, run_id, coordinator or "file:")
    try:
        yield run
    finally:
        run.coordinator.close()
        if run.store is not None:
            run.store.storage.close()


def _run_on_server(url: str, run_id: str | None) -> Run:
    from distributed_backup.coordination.redis import RedisCoordinator
    from distributed_backup.storage.redis import runs_at

    coordinator, place = RedisCoordinator(url), without_credentials(url)
    # One that nobody has led yet was copied there.
    run_id = _chosen(run_id, tuple(sorted({*coordinator.runs(), *runs_at(url)})), place)
    coordinator.open(run_id, LeaseTimings())
    store = CheckpointStore(url, run_id=run_id)
    # Most runs that are led over a server have their checkpoints elsewhere.
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
    run_id = store.read_run_id()
    if run_id is None:
        with suppress(StoreError):
            newest = store.newest_header()
            run_id = None if newest is None else newest.run_id
    if wanted is not None and run_id not in {None, wanted}:
        raise ConfigError(f"{store.location} belongs to run {run_id!r}, and {wanted!r} was named")
    run_id = run_id or wanted
    if url.startswith("memory:"):
        raise ConfigError("the coordinator memory: is inside one process, and can't be asked from another")
    coordinator = coordinator_from_url(url, backup_dir=place)
    if run_id is not None:
        coordinator.open(run_id, LeaseTimings())
    elif is_redis_url(url):
        raise ConfigError(f"{store.location} does not tell which run it belongs to: name it with --run")
    shown = store.location if url == "file:" else f"{store.location}, led over {without_credentials(url)}"
    return Run(run_id=run_id, place=shown, coordinator=coordinator, store=store)


def open_store(place: str, *, run_id: str | None, even_damaged: bool = False) -> CheckpointStore:
    """The store of the run in a place.

    Args:
        place: A directory, or a URL that `storage_from_url` takes.
        run_id: Id of the run, which must be the one in the place; None for the only one there.
        even_damaged: Also where the file that tells the id can't be read.

    Raises:
        ConfigError: There is no run, or it is not clear which is meant.
        StoreError: It can't be read.
    """
    if is_redis_url(place):
        from distributed_backup.storage.redis import runs_at

        return CheckpointStore(place, run_id=_chosen(run_id, runs_at(place), without_credentials(place)))
    unnamed = CheckpointStore(place)
    # However it is named, by its path or by its URL.
    local = _directory(unnamed.storage.root) if isinstance(unnamed.storage, LocalStorage) else None
    try:
        found = unnamed.read_run_id()
    except StoreError:
        if not even_damaged:
            raise
        found = None
    # With its id, a checkpoint of another run that was copied in does not count as valid.
    store = CheckpointStore(place, run_id=found or run_id)
    if run_id is not None and found not in {None, run_id}:
        raise ConfigError(f"{store.location} belongs to run {found!r}, and {run_id!r} was named")
    led = local is not None and (local / "coordinator").is_dir()
    if found is None and not led and not _is_run(store):
        raise ConfigError(
            f"{store.location} is not the backup directory of a run: it has no run.json and no checkpoints"
        )
    return store


def _is_run(store: CheckpointStore) -> bool:
    return any(name == RUN_FILE or parse_name(name) for name in store.storage.names())


def _directory(path: Path) -> Path:
    try:
        found = path.is_dir()
    except OSError as error:
        raise StoreError(f"can't look at {path}: {error.strerror or error}", path=str(path)) from None
    if not found:
        if path.exists():
            raise ConfigError(f"{path} is not a directory")
        raise ConfigError(f"{without_credentials(str(path))} is not there")
    return path
