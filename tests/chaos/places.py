"""Where the runs of a campaign keep their files, and what elects their leaders. Imports no synalinks."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from distributed_backup.storage import storage_from_url
from tests.chaos.plan import Place
from tests.support.buckets import S3Server
from tests.support.servers import RedisServer

COORDINATORS: Final = ("file", "redis")
STORES: Final = ("dir", "redis", "s3")

type Places = Callable[[Path], Place]
"""Returns the place of a new run, whose files may be in this directory."""


@contextmanager
def places(root: Path, *, store: str, coordinator: str) -> Iterator[Places]:
    """Start the servers of a campaign."""
    with ExitStack() as stack:
        url = None
        if "redis" in (store, coordinator):
            url = stack.enter_context(RedisServer(root / "redis", port=0)).url
        if store == "s3":
            server = S3Server()
            stack.callback(server.close)
            os.environ.update(server.environment)
            server.make_bucket("bucket")

        def place(directory: Path) -> Place:
            run_id = f"run-{secrets.token_hex(6)}"
            backup_dir = {"dir": str(directory / "run"), "redis": url or "", "s3": f"s3://bucket/{run_id}"}[store]
            lock = f"file://{directory}/lock" if store != "dir" else None
            return Place(
                backup_dir=backup_dir,
                coordinator=url if coordinator == "redis" else lock,
                run_id=run_id,
                is_leased=url is not None,
            )

        yield place


def names_in(place: Place) -> list[str]:
    """Return the names of the files of a run."""
    storage = storage_from_url(place.backup_dir, run_id=place.run_id)
    return sorted(storage.names())
