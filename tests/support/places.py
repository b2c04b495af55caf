"""Media for the contract suites of storages and stores.

A place is one run's files on one medium. It makes connections as other processes would have them. A new storage joins
with one more line in `PLACES`.
"""

from __future__ import annotations

import atexit
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import override

from distributed_backup.storage import storage_from_url
from distributed_backup.storage.base import Storage
from tests.contract.harness import shared_server
from tests.support.buckets import GcsServer, S3Server
from tests.support.servers import binaries


class Place(ABC):
    """One run's place."""

    refuses_what_is_there = True
    """Whether `put` can tell in one step that a file is there."""

    sees_each_removal = True
    """Whether an append fails as soon as another process has removed the file. Otherwise it does after a listing."""

    def connect(self) -> Storage:
        """A storage for one more process."""
        return self.beside("run-42")

    @abstractmethod
    def beside(self, name: str) -> Storage:
        """The storage of another run on the same medium."""


class LocalPlace(Place):
    refuses_what_is_there = False

    def __init__(self, root: Path) -> None:
        self._root = root

    @override
    def beside(self, name: str) -> Storage:
        return storage_from_url(self._root / name)


class UrlPlace(Place):
    """A prefix of its own in a bucket."""

    sees_each_removal = False

    def __init__(self, scheme: str, _: Path) -> None:
        self._url = f"{scheme}{secrets.token_hex(4)}"

    @override
    def beside(self, name: str) -> Storage:
        return storage_from_url(f"{self._url}/{name}", limit=20.0)


class S3Place(UrlPlace):
    def __init__(self, root: Path) -> None:
        enter(s3_server().environment)
        super().__init__("s3://bucket/", root)


class GcsPlace(UrlPlace):
    def __init__(self, root: Path) -> None:
        enter(gcs_server().environment)
        super().__init__("gs://bucket/", root)


class RedisPlace(Place):
    def __init__(self, kind: str, root: Path) -> None:
        self._url = shared_server(kind).url
        self._run = secrets.token_hex(4)

    @override
    def beside(self, name: str) -> Storage:
        return storage_from_url(self._url, run_id=f"{self._run}-{name}", limit=20.0)


def enter(settings: Mapping[str, str]) -> None:
    """Have clients of this process use a server, for the rest of its life."""
    from fsspec.config import conf, set_conf_env

    os.environ.update(settings)
    set_conf_env(conf)


@cache
def s3_server() -> S3Server:
    """One server for the tests of one process."""
    server = S3Server()
    atexit.register(server.close)
    server.make_bucket("bucket")
    return server


@cache
def gcs_server() -> GcsServer:
    """One server for the tests of one process."""
    server = GcsServer()
    atexit.register(server.close)
    return server


OF_ONE_PROCESS = {"memory"}
"""Those that other processes can't see."""

PLACES: dict[str, Callable[[Path], Place]] = {
    "local": LocalPlace,
    "memory": partial(UrlPlace, "memory://"),
    "s3": S3Place,
    "gcs": GcsPlace,
    **{kind: partial(RedisPlace, kind) for kind in binaries()},
}
