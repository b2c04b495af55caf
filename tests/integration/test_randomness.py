"""Real clients of real servers, with what makes them draw numbers: the training's stay as they are."""

from __future__ import annotations

import importlib
import random
import secrets
from collections.abc import Iterator
from types import ModuleType

import pytest

from distributed_backup.checkpoints.format import Snapshot
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.position import Position
from distributed_backup.storage import storage_from_url
from distributed_backup.storage.fsspec_client import make_client
from tests.support.buckets import unavailable
from tests.support.places import enter, gcs_server, s3_server


@pytest.fixture
def unchanged() -> Iterator[None]:
    """The numbers to come are the same after the test."""
    before = random.getstate()
    yield
    assert random.getstate() == before


@pytest.mark.usefixtures("unchanged")
def test_a_busy_bucket_does_not_change_what_training_draws() -> None:
    """S3's client waits before it asks again, for a time that it draws."""
    server = s3_server()
    enter(server.environment)
    store = CheckpointStore(storage_from_url(f"s3://bucket/{secrets.token_hex(4)}", limit=60.0))
    injected = server.injected
    for epoch in (1, 2):
        server.next("PUT", unavailable)
        server.next("GET", unavailable)
        store.commit(Snapshot(position=Position(epoch), body=b"{}"), term=1, worker_id="w")
    assert server.injected >= injected + 4


@pytest.mark.parametrize(
    ("url", "modules"),
    [
        ("gs://bucket/run", ["gcsfs.retry", "google.auth._exponential_backoff"]),
        ("s3://bucket/run", ["botocore.retryhandler", "botocore.retries.standard", "botocore.utils"]),
        (
            "az://container/run",
            ["azure.core.pipeline.policies._authentication", "azure.storage.blob._shared.policies_async"],
        ),
    ],
)
def test_the_clients_of_buckets_draw_apart(url: str, modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each module of theirs that would draw, whether or not it was loaded with the client."""
    enter(gcs_server().environment)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ANON", "true")
    make_client(url)
    for name in modules:
        assert isinstance(importlib.import_module(name).random, ModuleType)
    assert [name for name in modules if importlib.import_module(name).random is random] == []


@pytest.mark.usefixtures("unchanged")
def test_azure_waits_before_it_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client makes a generator of its own for that."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ANON", "true")
    make_client("az://container/run")
    from azure.storage.blob._shared import policies, policies_async

    for module in (policies, policies_async):
        for kind in ("ExponentialRetry", "LinearRetry"):
            assert getattr(module, kind)().get_backoff_time({"count": 1}) > 0
