"""`distributed-backup check` on emulators of buckets, sound ones and ones with a fault."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from distributed_backup.inspection.finding import Finding
from distributed_backup.inspection.pairs import checks_with_process
from distributed_backup.storage.base import Storage
from distributed_backup.storage.fsspec_client import make_client
from tests.support.buckets import S3Server, Wsgi, denied
from tests.support.check_names import OF_BUCKETS, OF_PAIRS
from tests.support.cli_runs import assert_refused, call, call_json
from tests.support.places import enter, gcs_server, s3_server

FOR_EVER = 1000


@pytest.fixture
def s3() -> Iterator[S3Server]:
    """A server that the tests of this process share."""
    server = s3_server()
    enter(server.environment)
    yield server
    server.mend()


@pytest.fixture
def url() -> str:
    return f"s3://bucket/{secrets.token_hex(4)}/run"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests is no finding. The emulator of Google takes long for large files."""
    monkeypatch.setattr("distributed_backup.inspection.bucket._LARGE", 100_000)
    for limit, value in (("files._SLOW_COMMIT", 60.0), ("files._SLOW_RATE", 0.0), ("meeting._SOON", 60.0)):
        monkeypatch.setattr(f"distributed_backup.inspection.{limit}", value)


def found_at(url: str, *, code: int = 0) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in call_json("check", url, code=code)["checks"]}


def stored(url: str) -> list[str]:
    """All objects of the bucket below the parent of a run's prefix."""
    client = make_client(url.rpartition("/")[0])
    return list(client.fs.find(client.path))


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_sound_bucket_passes_all_checks_and_keeps_nothing(s3: S3Server, url: str, scheme: str) -> None:
    if scheme == "gs":
        enter(gcs_server().environment)
        url = url.replace("s3://", "gs://")
    found = found_at(url)
    assert list(found) == [*OF_BUCKETS, *OF_PAIRS]
    assert {each["status"] for each in found.values()} == {"ok"}
    assert stored(url) == []


def with_request(change: Callable[[dict[str, Any]], None]) -> Any:
    """A fault that changes a request, and lets it pass."""

    def fault(app: Wsgi, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        change(environ)
        return app(environ, start)

    return fault


def test_a_bucket_that_ignores_conditions_is_dangerous(s3: S3Server, url: str) -> None:
    """As S3-compatible stores do that know no If-None-Match."""
    s3.next("PUT", with_request(lambda environ: environ.pop("HTTP_IF_NONE_MATCH", None)), FOR_EVER)
    found = found_at(url, code=1)
    assert [name for name, each in found.items() if each["status"] == "danger"] == ["exclusive create", OF_PAIRS[1]]
    assert "conditions are ignored" in found["exclusive create"]["found"]
    assert "set run_id" in found["exclusive create"]["advice"]
    assert "of 5 names were created by both processes" in found[OF_PAIRS[1]]["found"]


def test_a_bucket_that_lists_late_is_dangerous(s3: S3Server, url: str) -> None:
    """The listing shows nothing yet. The read of a known name works."""
    empty = b"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>"

    def stale(app: Wsgi, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if "list-type" not in environ["QUERY_STRING"]:
            return app(environ, start)
        start("200 OK", [("Content-Type", "application/xml")])
        return [empty]

    s3.next("GET", stale, FOR_EVER)
    found = found_at(url, code=1)
    assert list(found) == ["write and read", "other checks"]
    assert "missing in the listing" in found["write and read"]["found"]
    assert s3.injected


def test_a_bucket_that_shows_appends_to_one_client_only_is_dangerous(
    s3: S3Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process lists another bucket, as behind a cache that is not consistent."""
    monkeypatch.setattr("distributed_backup.inspection.party._PATIENCE", 1.0)
    s3.make_bucket("elsewhere")

    def elsewhere(storage: Storage, place: str) -> Iterator[Finding]:
        return checks_with_process(storage, place.replace("/bucket/", "/elsewhere/"))

    monkeypatch.setattr("distributed_backup.inspection.bucket.checks_with_process", elsewhere)
    found = found_at(url, code=1)
    assert [name for name, each in found.items() if each["status"] == "danger"] == ["append is seen"]
    assert "no bytes of the other process were seen" in found["append is seen"]["found"]


def test_a_wrong_key_and_a_missing_bucket_are_dangerous(s3: S3Server, url: str) -> None:
    s3.next("PUT", denied, FOR_EVER)
    found = found_at(url, code=1)
    assert list(found) == ["write and read", "other checks"]
    assert "The AWS Access Key Id you provided does not exist" in found["write and read"]["found"]
    s3.mend()
    found = found_at("s3://no-such-bucket/run", code=1)
    assert list(found) == ["write and read", "other checks"]
    assert found["write and read"]["advice"]
    # No other machine is waited for.
    assert call("check", "s3://no-such-bucket/run", "--wait", "600").stderr == ""


def test_missing_credentials_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of Azure is not made without them. So nothing can be removed either."""
    for name in [each for each in os.environ if each.startswith("AZURE")]:
        monkeypatch.delenv(name)
    result = call("check", "az://container/run")
    assert (result.exit_code, result.stderr, result.stdout.count("credentials!!")) == (1, "", 1)


def test_a_user_who_may_not_delete_is_found(s3: S3Server, url: str) -> None:
    for method in ("DELETE", "POST"):
        s3.next(method, denied, FOR_EVER)
    found = found_at(url, code=1)
    assert found["delete"]["status"] == "danger"
    assert "can't remove" in found["delete"]["found"]


def test_a_url_that_can_not_be_used_is_wrong_usage() -> None:
    assert_refused(call("check", "s3://key:secret@bucket/run"), 2, "credentials come from the client's environment")
    assert_refused(call("check", "https://host/run"), 2, "nothing can be written over https")
