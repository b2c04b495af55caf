"""Where the runs of a campaign keep their files, and what elects their leaders. Imports no synalinks."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distributed_backup.storage import storage_from_url
from tests.chaos.plan import Place
from tests.support.buckets import S3Server
from tests.support.processes import Child
from tests.support.servers import RedisServer

COORDINATORS: Final = ("file", "redis")
STORES: Final = ("dir", "redis", "s3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The servers of a campaign. Call it for the place of a new run, whose files may be in this directory."""

    store: str
    coordinator: str
    server: RedisServer | None
    bucket: S3Server | None

    def __call__(self, directory: Path) -> Place:
        run_id = f"run-{secrets.token_hex(6)}"
        url = "" if self.server is None else self.server.url
        backup_dir = {"dir": str(directory / "run"), "redis": url, "s3": f"s3://bucket/{run_id}"}[self.store]
        lock = f"file://{directory}/lock" if self.store != "dir" else None
        return Place(
            backup_dir=backup_dir,
            coordinator=url if self.coordinator == "redis" else lock,
            run_id=run_id,
            is_leased=self.server is not None,
            full=str(directory / "full") if self.store == "dir" else None,
        )


@contextmanager
def places(root: Path, *, store: str, coordinator: str) -> Iterator[Places]:
    """Start the servers of a campaign. A Redis server keeps its data over a restart."""
    with ExitStack() as stack:
        server, bucket = None, None
        if "redis" in (store, coordinator):
            config = {"appendonly": "yes"}
            server = stack.enter_context(RedisServer(root / "redis", port=0, config=config))
        if store == "s3":
            bucket = S3Server()
            stack.callback(bucket.close)
            os.environ.update(bucket.environment)
            bucket.make_bucket("bucket")
        # The import of synalinks is no part of a life. The server that forks lives has the environment of now.
        with Child(_nothing) as child:
            child.join()
        yield Places(store=store, coordinator=coordinator, server=server, bucket=bucket)


def _nothing(_: Callable[..., None]) -> None:
    """Do nothing. A child that does so waits for the server that forks it."""


def names_in(place: Place) -> list[str]:
    """Return the names of the files of a run."""
    storage = storage_from_url(place.backup_dir, run_id=place.run_id)
    try:
        return sorted(storage.names())
    finally:
        storage.close()
