"""Checkpoints in buckets, on emulators of S3 and Google Cloud Storage, with injected faults.

Each fit runs in its own process.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot, checkpoint_name
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.cli.app import app
from distributed_backup.cli.copy_run import copy_run
from distributed_backup.clock import SystemClock
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import StoreError
from distributed_backup.observability.reporter import Reporter
from distributed_backup.position import Position
from distributed_backup.storage import storage_from_url
from distributed_backup.storage.fsspec_client import make_client
from distributed_backup.storage.object_store import ObjectStorage
from distributed_backup.worker.options import WorkerOptions
from distributed_backup.worker.worker import Worker
from tests.support.buckets import (
    AzureUploads,
    Fault,
    GcsServer,
    S3Server,
    conflicting,
    denied,
    held_until,
    refused_in_a_word,
    reply_lost,
    unavailable,
)
from tests.support.buckets import refused as without_condition
from tests.support.places import enter, gcs_server, s3_server
from tests.support.processes import PATIENCE, Child
from tests.support.servers import RedisServer, wait_for

SCENARIOS = "tests.integration.storage_scenarios"
SECRET = "wJalrXUtnFEMI-7319"
FOR_EVER = 1000
# Of a request that is not to end by its limit, however slow the machine is.
LONG = 60.0
# What a client takes to notice that its time is up, on two noisy cores.
MARGIN = 4.0


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Return a new prefix on a server that the tests of this process share."""
    server = s3_server()
    enter(server.environment)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    yield server
    server.mend()


@pytest.fixture(autouse=True)
def discreet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that we log in any of these tests holds a key."""
    caplog.set_level(logging.DEBUG, logger="distributed_backup")
    yield
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("distributed_backup")]
    assert SECRET not in "".join(ours)


@pytest.fixture
def url() -> str:
    return f"s3://bucket/{secrets.token_hex(4)}/run"


def opened(url: str) -> CheckpointStore:
    """A store as one more process has it."""
    return CheckpointStore(storage_from_url(url, limit=LONG))


def hurried(url: str, limit: float) -> CheckpointStore:
    """A store whose requests have little time, once its client is set up: that takes what this machine takes."""
    store = opened(url)
    store.newest_header()
    assert isinstance(store.storage, ObjectStorage)
    store.storage._limit = limit
    return store


def snapshot(epoch: int) -> Snapshot:
    return Snapshot(position=Position(epoch), body=b'{"epoch":%d}' % epoch)


def commit(store: CheckpointStore, epoch: int, *, term: int = 1, worker: str = "w") -> CheckpointHeader:
    return store.commit(snapshot(epoch), term=term, worker_id=worker)


def newest(url: str) -> tuple[int, bytes]:
    """Epoch and body of the newest checkpoint, as another process reads it."""
    latest = opened(url).latest()
    assert latest is not None
    return latest.position.epoch, latest.body


def refused(store: CheckpointStore, epoch: int) -> str:
    """Why a commit failed: one line, and no key in it."""
    with pytest.raises(StoreError) as caught:
        commit(store, epoch)
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in f"{text}{caught.value.__cause__}"
    return text


def noting(seen: list[str | None]) -> Fault:
    """No fault: the request is carried out, and its condition is noted."""

    def note(app: Callable[..., Any], environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        seen.append(environ.get("HTTP_IF_NONE_MATCH"))
        return app(environ, start)  # type: ignore[no-any-return]

    return note


# -------------------------------------------------------------------- what it costs


def test_a_commit_is_one_put_that_carries_the_condition(s3: S3Server, url: str) -> None:
    """Two listings and a look at the run's id before it, and a removal after it.

    This is what a bucket bills, and what a save before a kill takes. s3fs asks for the size before it reads.
    """
    store, conditions = opened(url), list[str | None]()
    commit(store, 1)
    commit(store, 2)
    s3.forget()
    s3.next("PUT", noting(conditions))
    # As the saver does.
    store.newest_header()
    name = commit(store, 3).name
    assert conditions == ["*"]
    assert [method for method, _ in s3.requests] == ["GET", "GET", "HEAD", "GET", "PUT", "DELETE"]
    assert (s3.count("GET", "run.json"), s3.count("PUT", name)) == (1, 1)


def test_a_term_is_claimed_by_one_put_that_carries_the_condition(s3: S3Server, url: str) -> None:
    """Between two listings."""
    store, conditions = opened(url), list[str | None]()
    commit(store, 1)
    s3.forget()
    s3.next("PUT", noting(conditions))
    assert store.claim_term(2)
    assert conditions == ["*"]
    assert [method for method, _ in s3.requests] == ["GET", "PUT", "GET"]


def test_a_commit_is_one_request_at_any_size(s3: S3Server, url: str) -> None:
    """The client would make parts of it, which stay behind, and are billed, if it is given up."""
    storage = storage_from_url(url, limit=LONG)
    storage.names()
    s3.forget()
    storage.put("a", [bytes(101 * 2**20)], new=True)
    assert [method for method, _ in s3.requests] == ["PUT"]
    assert storage.size("a") == 101 * 2**20
    with pytest.raises(StoreError) as caught:
        storage.put("a", [bytes(101 * 2**20)], new=True)
    assert isinstance(caught.value.__cause__, FileExistsError)


def test_a_commit_to_google_is_one_request_at_any_size(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would begin an upload that can be resumed."""
    from gcsfs import core

    enter(gcs_server().environment)
    uploads = list[tuple[int, str]]()

    async def note(fs: Any, bucket: str, key: str, data: bytes, *_: Any, mode: str, **__: Any) -> None:
        uploads.append((len(data), mode))

    # The function that sends one request. The emulator would take 30 s for it.
    monkeypatch.setattr(core, "simple_upload", note)
    storage = storage_from_url(url.replace("s3://", "gs://"), limit=LONG)
    storage.put("a", [bytes(51 * 2**20)], new=True)
    assert uploads == [(51 * 2**20, "create")]


# The driver warns of any large body. The warning is hidden by default.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_commit_to_azure_is_one_request_at_any_size(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would make blocks of it, which stay behind if it is given up."""
    server = AzureUploads()
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        storage = storage_from_url(url.replace("s3://", "az://"), limit=LONG)
        storage.put("a", [bytes(65 * 2**20)], new=True)
    finally:
        server.close()
    assert server.requests == [("", "*", 65 * 2**20)]


# -------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("answer", [without_condition, refused_in_a_word])
def test_a_store_that_does_not_say_which_condition_is_understood(s3: S3Server, url: str, answer: Fault) -> None:
    """The client makes a bad argument of it."""
    storage = storage_from_url(url, limit=LONG)
    assert storage.create("a", b"1")
    s3.next("PUT", answer)
    assert not storage.create("a", b"2")
    s3.next("PUT", answer)
    with pytest.raises(StoreError) as caught:
        storage.put("a", [b"2"], new=True)
    assert isinstance(caught.value.__cause__, FileExistsError)
    assert not caught.value.retryable


def test_a_write_that_meets_another_s_is_tried_again(s3: S3Server, url: str) -> None:
    """S3 refuses one of two at once, and does not say whether the other was carried out."""
    store = opened(url)
    store.open_run()
    s3.forget()
    s3.next("PUT", conflicting, 3)
    assert store.claim_term(1)
    assert s3.count("PUT", ".term") == 4
    s3.next("PUT", conflicting, 2)
    commit(store, 1)
    assert newest(url) == (1, b'{"epoch":1}')


def test_a_write_that_meets_others_for_ever_is_given_up_at_the_limit(s3: S3Server, url: str) -> None:
    """It may be tried again later."""
    commit(opened(url), 1)
    store = hurried(url, 1.0)
    s3.next("PUT", conflicting, FOR_EVER)
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        commit(store, 2)
    assert time.monotonic() - began < 1.0 + MARGIN
    assert caught.value.retryable


def test_a_wrong_key_is_told_and_the_right_one_works_again(s3: S3Server, url: str) -> None:
    """It may lack the right to write or even the right to list. Existing files stay as they are."""
    store = opened(url)
    name = commit(store, 1).name.replace("1-00000000.", "2-00000000.")
    reason = "The AWS Access Key Id you provided does not exist in our records"
    s3.next("PUT", denied)
    assert refused(store, 2) == f"can't write {url}/{name}: {reason}"
    s3.next("GET", denied)
    assert refused(store, 2) == f"can't list {url}: {reason}"
    assert newest(url) == (1, b'{"epoch":1}')
    commit(store, 2)
    assert newest(url) == (2, b'{"epoch":2}')


def test_a_bucket_that_is_not_there_is_told(s3: S3Server) -> None:
    """The error comes before the training begins. Making a bucket is the user's task."""
    enter(gcs_server().environment)
    for url in ("s3://missing/run", "s3://missing/exist", "s3://missing", "gs://missing/run"):
        store = opened(url)
        for look in (store.names, store.open_run):
            with pytest.raises(StoreError) as caught:
                look()
            assert str(caught.value) == f"can't list {url}: there is no such file or bucket"


# -------------------------------------------------------------------- what fails for a while


def test_a_store_that_is_too_busy_for_a_while_is_asked_again(s3: S3Server, url: str) -> None:
    """By the client, within the limit of one request."""
    store = opened(url)
    commit(store, 1)
    injected = s3.injected
    s3.next("PUT", unavailable)
    commit(store, 2)
    assert s3.injected == injected + 1
    assert newest(url) == (2, b'{"epoch":2}')


@pytest.mark.parametrize("what", ["busy", "slow"])
def test_a_store_that_does_not_get_it_done_is_given_up_at_the_limit(s3: S3Server, url: str, what: str) -> None:
    """The previous checkpoint is as it was, and the next commit works."""
    commit(opened(url), 1)
    store, release = hurried(url, 1.0), threading.Event()
    s3.next("PUT", unavailable if what == "busy" else held_until(release), FOR_EVER)
    began = time.monotonic()
    assert refused(store, 2) == f"can't write {url}/{checkpoint_name(1, Position(2))}: not done within 1 s"
    assert time.monotonic() - began < 1.0 + MARGIN
    release.set()
    s3.mend()
    assert newest(url) == (1, b'{"epoch":1}')
    commit(opened(url), 2)
    assert newest(url) == (2, b'{"epoch":2}')


def test_a_store_that_nobody_answers_for_is_given_up_at_the_limit(
    s3: S3Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server listens at this port."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    storage = storage_from_url(url, limit=1.0)
    with pytest.raises(StoreError) as caught:
        storage.create("run.json", b"{}")
    assert str(caught.value) == f"can't write {url}/run.json: not done within 1 s"


def test_a_prefix_may_hold_what_urls_escape_and_stand_beside_many(s3: S3Server, url: str) -> None:
    """It is used as it is, and the listing of an empty prefix leaves out its neighbours."""
    for name in ("50%25off", "a%41", "ä b"):
        store = opened(f"{url}-{name}")
        assert store.names() == []
        commit(store, 1)
        assert opened(f"{url}-{name}").names() == [checkpoint_name(1, Position(1))]
    s3.forget()
    assert opened(f"{url}-fresh").storage.names() == []
    assert len(s3.requests) == 1


def test_the_client_for_google_is_the_one_that_heeds_conditions() -> None:
    """What gcsfs takes by default asks another service first, and ignores conditions in some buckets."""
    from gcsfs.core import GCSFileSystem

    enter(gcs_server().environment)
    assert type(make_client("gs://bucket/run").fs) is GCSFileSystem


def test_a_look_up_that_hangs_does_not_keep_the_process(s3: S3Server, tmp_path: Path) -> None:
    """The interpreter waits for the threads of executors when it ends, and a preempted one has no time for that."""
    script = """
import os, socket, threading
from distributed_backup.errors import StoreError
from distributed_backup.storage import storage_from_url
def hang(*args, **kwargs):
    print("hanging", flush=True)
    threading.Event().wait()
storage_from_url("s3://bucket/run").names()  # loads the client
os.environ["AWS_ENDPOINT_URL"] = "http://nowhere.invalid:9"
socket.getaddrinfo = hang
try:
    storage_from_url("s3://bucket/run", limit=2.0).names()
except StoreError as error:
    print(error)
"""
    command, environment = [sys.executable, "-c", script], {**os.environ, **s3.environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.splitlines() == ["hanging", "can't list s3://bucket/run: not done within 2 s"]


def test_a_server_that_tests_share_does_not_keep_their_process(s3: S3Server) -> None:
    """Without xdist, all of them had passed and the process never ended."""
    script = "from tests.support.places import gcs_server; gcs_server()"
    subprocess.run([sys.executable, "-c", script], timeout=PATIENCE, check=True)


# -------------------------------------------------------------------- replies that are lost


def test_a_commit_whose_reply_is_lost_is_a_commit(s3: S3Server, url: str) -> None:
    """The client repeats the request, and the reply is that the file exists. The file is our own."""
    store = opened(url)
    commit(store, 1)
    s3.forget()
    s3.next("PUT", reply_lost)
    header = commit(store, 2)
    assert s3.count("PUT", header.name) >= 2
    assert newest(url) == (2, b'{"epoch":2}')
    commit(store, 3)
    assert opened(url).names() == [checkpoint_name(1, Position(3))]


def test_a_claim_whose_reply_is_lost_has_no_second_winner(s3: S3Server, url: str) -> None:
    """It may have none. Then a higher term has one."""
    store, other = opened(url), opened(url)
    store.open_run()
    s3.next("PUT", reply_lost)
    assert not store.claim_term(1)
    assert not other.claim_term(1)
    assert store.highest_term() == 1
    assert (other.claim_term(2), store.claim_term(2)) == (True, False)


def test_a_store_that_ignores_conditions_is_told_of_once(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Many S3-compatible stores do. A store that enforces conditions causes no warning."""
    place = url.replace("s3://", "gs://")
    enter(gcs_server().environment)
    store = opened(place)
    assert store.open_run()
    assert store.claim_term(1)
    assert "conditional" not in caplog.text
    server = GcsServer(conditional=False)
    try:
        enter(server.environment)
        store = opened(place)
        store.open_run()
        assert [store.claim_term(term) for term in (1, 2, 3)] == [True, True, True]
    finally:
        server.close()
    said = [record.getMessage() for record in caplog.records if "conditional" in record.getMessage()]
    assert said == [
        f"{place} ignores conditional writes, so two workers that start together may make two run ids, and a "
        "coordinator that loses its data may grant a term twice: set run_id"
    ]


def probes(url: str) -> list[str]:
    return [name for name in storage_from_url(url, limit=LONG).names() if name.startswith(".probe-")]


def test_a_probe_whose_reply_is_lost_tells_that_conditions_are_heeded(
    s3: S3Server, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client asks again and is refused: what else is to be learnt? Nothing is left of it."""
    storage = storage_from_url(url, limit=LONG)
    s3.next("PUT", reply_lost)
    assert storage.create("a", b"1")
    assert isinstance(storage, ObjectStorage)
    assert storage._conditional is True
    assert "conditional" not in caplog.text
    assert storage.names() == ["a"]


def test_a_probe_is_removed_also_if_the_second_write_fails(s3: S3Server, url: str) -> None:
    """It is then unknown whether conditions are enforced. The next `create` tests it again."""
    storage = storage_from_url(url, limit=LONG)
    s3.next("PUT", noting([]))
    s3.next("PUT", denied)
    assert storage.create("a", b"1")
    assert probes(url) == []
    s3.forget()
    assert storage.create("b", b"1")
    assert s3.count("PUT", ".probe-") == 2
    assert probes(url) == []


# -------------------------------------------------------------------- notices


class Busy:
    """Start a worker over a bucket. Its first checkpoint is committed, and the upload of its second hangs."""

    def __init__(self, s3: S3Server, url: str, release: threading.Event, *, grace_period: float, hanging: int) -> None:
        store = hurried(url, grace_period / 3)  # as the callback has it
        self.worker = Worker(
            store=store,
            coordinator=MemoryCoordinator(),
            clock=SystemClock(),
            options=WorkerOptions(grace_period=grace_period, timings=LeaseTimings.for_grace_period(grace_period)),
            report=Reporter("w"),
        )
        self.worker.join()
        self.worker.await_start()
        self.worker.training_started(Position(0))
        self.worker.boundary(snapshot(1), due=True)
        wait_for(lambda: store.newest_header() is not None or None, "the first is saved", PATIENCE)
        injected = s3.injected
        s3.next("PUT", held_until(release), hanging)
        self.worker.boundary(snapshot(2), due=True)
        wait_for(lambda: s3.injected > injected or None, "the upload hangs", PATIENCE)


def test_an_upload_that_hangs_for_ever_does_not_hold_a_worker_past_its_deadline(s3: S3Server, url: str) -> None:
    """It leaves on its own, and the previous checkpoint is there."""
    release, grace_period = threading.Event(), 3.0
    busy = Busy(s3, url, release, grace_period=grace_period, hanging=FOR_EVER)
    try:
        busy.worker.give_notice("SIGTERM")
        preempted = busy.worker.preempt()
        assert newest(url) == (1, b'{"epoch":1}')
    finally:
        release.set()
    assert preempted.seconds < grace_period
    assert preempted.position == Position(1)


def test_an_upload_that_hangs_once_is_tried_again_in_time(s3: S3Server, url: str) -> None:
    """A request takes a third of the grace period at most."""
    release, grace_period = threading.Event(), 6.0
    busy = Busy(s3, url, release, grace_period=grace_period, hanging=1)
    try:
        busy.worker.give_notice("SIGTERM")
        preempted = busy.worker.preempt()
    finally:
        release.set()
    assert preempted.seconds < grace_period
    assert preempted.position == Position(2)
    assert newest(url) == (2, b'{"epoch":2}')


# -------------------------------------------------------------------- the command line


def call(*words: str) -> Any:
    """What a command prints as JSON."""
    result = CliRunner().invoke(app, [*words, "--json"])
    assert SECRET not in result.output
    assert result.exit_code in {0, 1}, result.output
    return json.loads(result.stdout)


def test_a_run_in_a_bucket_is_looked_at_by_its_url(s3: S3Server, url: str) -> None:
    """As one in a directory. The same holds for a copy of it."""
    store = CheckpointStore(storage_from_url(url, limit=LONG), keep=2)
    names = [commit(store, epoch).name for epoch in (1, 2)][::-1]
    assert [(row["name"], row["valid"]) for row in call("checkpoints", "list", url)] == [(name, True) for name in names]
    store.storage.put(names[0], [b"torn"])
    copied = call("checkpoints", "copy", url, f"{url}-2")
    assert (copied["copied"], copied["skipped"], copied["target"]) == ([names[1]], [names[0]], f"{url}-2")
    assert call("checkpoints", "verify", url) == {
        "checked": 2,
        "bad": [{"name": names[0], "reason": "the header is not JSON"}],
    }
    assert call("checkpoints", "verify", f"{url}-2") == {"checked": 1, "bad": []}


def test_a_copy_on_a_bucket_has_what_is_in_the_directory(s3: S3Server, url: str, tmp_path: Path) -> None:
    """Its workers go on there, under terms of their own."""
    source = CheckpointStore(tmp_path / "run")
    commit(source, 1, term=7)
    copy_run(source, CheckpointStore(storage_from_url(url, limit=LONG), run_id=source.open_run()))
    target = opened(url)
    assert (target.read_run_id(), newest(url)) == (source.read_run_id(), (1, b'{"epoch":1}'))
    assert (target.claim_term(7), target.claim_term(8)) == (False, True)


# -------------------------------------------------------------------- fits


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "server", config={"appendonly": "yes"}) as server:
        yield server


def assert_exact(found: dict[str, Any]) -> None:
    """It ended as if nothing had come between, and no call was made twice but those of the batch in flight."""
    assert (found["wrong"], found["logged"]) == ([], [])
    assert found["interrupted"]
    assert 0 <= found["repeated"] <= 2
    assert any(re.fullmatch(r"\d{10}-\d{8}-\d{8}\.final\.ckpt", name) for name in found["found"])
    assert len([name for name in found["found"] if name.startswith("events-")]) == 2
    assert found["left"] == []


def test_a_fit_resumes_exactly_from_a_bucket(s3: S3Server, url: str, tmp_path: Path) -> None:
    """And leaves nothing there when it has finished."""
    options = {"coordinator": f"file://{tmp_path}/coordinator"}
    arguments = url, options, s3.environment
    with Child(f"{SCENARIOS}:preempted_and_resumed", *arguments, log=tmp_path / "log") as child:
        assert_exact(child.result())


def test_a_fit_resumes_exactly_from_a_server_and_is_led_over_it(redis_server: RedisServer, tmp_path: Path) -> None:
    """With nothing but the server's URL and the run's id."""
    arguments = redis_server.url, {"run_id": "job-42"}, dict[str, str]()
    with Child(f"{SCENARIOS}:preempted_and_resumed", *arguments, log=tmp_path / "log") as child:
        found = child.result()
    assert_exact(found)
    assert found["led"] == ("job-42",)
    assert redis_server.client().keys() == []


def test_a_callback_fits_its_limits_to_the_grace_period(tmp_path: Path) -> None:
    """A request takes a third of it at most, a lease and a tick three fifths. Options that are given win."""
    cases: list[tuple[str, dict[str, Any]]] = [
        ("s3://bucket/run", {"grace_period": 12.0, "coordinator": "memory:"}),
        ("redis://redis", {"grace_period": 30.0, "run_id": "job-42"}),
        ("file:///mnt/run", {"grace_period": 8.5}),
        ("redis://redis", {"run_id": "x", "coordinator": "memory:", "timings": LeaseTimings(duration=20.0)}),
    ]
    with Child(f"{SCENARIOS}:made", cases, log=tmp_path / "log") as child:
        found = child.result()
    assert found == [
        ("MemoryCoordinator", 4.0, pytest.approx(7.2 * 15 / 17)),
        ("RedisCoordinator", 5.0, 15.0),
        ("FileCoordinator", None, pytest.approx(4.5)),
        ("MemoryCoordinator", 5.0, 20.0),
    ]


def test_an_export_is_what_the_program_would_have_written(tmp_path: Path) -> None:
    """And another program that loads it has the variables of the first."""
    with Child(f"{SCENARIOS}:exported", tmp_path, log=tmp_path / "log") as child:
        assert child.result() == {"few-shot": [], "omega": []}
