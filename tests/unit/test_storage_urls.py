"""Where a run is kept, named by a path or a URL: what each names, what is refused, and that no password is shown.

No server is asked.
"""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from fsspec import register_implementation
from fsspec.implementations.local import LocalFileSystem

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination import coordinator_from_url, is_server_url
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import ConfigError, StoreError
from distributed_backup.storage import storage_from_url
from distributed_backup.storage.local import LocalStorage
from distributed_backup.storage.object_store import ObjectStorage
from distributed_backup.storage.redis import RedisStorage
from distributed_backup.urls import REDIS_SCHEMES, is_url, without_credentials

SECRET = "s3cr3t"


def refusal(place: Any, **options: Any) -> str:
    """What is said of a place that can't be used: one line, and no password in it."""
    with pytest.raises(ConfigError) as caught:
        storage_from_url(place, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


# -------------------------------------------------------------------- what a place names


@pytest.mark.parametrize("place", ["s3://bucket", "memory://x", "S3://bucket/x", "redis+sentinel://a,b/main", "x://"])
def test_a_scheme_and_two_slashes_make_a_url(place: str) -> None:
    assert is_url(place)


@pytest.mark.parametrize(
    "place",
    ["", "run", "/mnt/run", Path("run"), "a:b", "s3:bucket", "./s3://x", "://x", "1s://x", "s3://x ", "s3://x\u00a0"],
)
def test_everything_else_is_a_path(place: str | Path) -> None:
    assert not is_url(place)


@pytest.mark.parametrize(
    ("place", "kind", "location"),
    [
        ("/mnt/shared/run-42", LocalStorage, "/mnt/shared/run-42"),
        (Path("/mnt/run"), LocalStorage, "/mnt/run"),
        ("file:///mnt/run", LocalStorage, "/mnt/run"),
        ("FILE:///mnt/run", LocalStorage, "/mnt/run"),
        ("file:///mnt/a%20run/", LocalStorage, "/mnt/a run"),
        ("s3://bucket/run-42", ObjectStorage, "s3://bucket/run-42"),
        ("S3://bucket/run-42/", ObjectStorage, "s3://bucket/run-42"),
        ("gs://bucket", ObjectStorage, "gs://bucket"),
        ("az://container@account/run-42", ObjectStorage, "az://container@account/run-42"),
        ("memory://run-42", ObjectStorage, "memory://run-42"),
        ("redis://redis:6379/0", RedisStorage, "redis://redis:6379/0/run-42"),
        ("REDISS://redis", RedisStorage, "rediss://redis/run-42"),
    ],
)
def test_a_place_names_a_storage(place: str | Path, kind: type, location: str) -> None:
    """And none is asked for anything when it is made."""
    storage = storage_from_url(place, run_id="run-42")
    assert (type(storage), storage.location) == (kind, location)
    assert storage.path_of("a") == f"{location}/a"


def test_a_relative_path_means_the_directory_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training script may change its working directory later."""
    monkeypatch.chdir(tmp_path)
    storage = storage_from_url("run")
    monkeypatch.chdir("/")
    assert storage.location == str(tmp_path / "run")


def test_a_lock_is_beside_the_checkpoints_whatever_the_working_directory_is_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers with two working directories would otherwise both lead."""
    monkeypatch.chdir(tmp_path)
    coordinators = [coordinator_from_url("file:", backup_dir="run"), FileCoordinator("run/coordinator")]
    monkeypatch.chdir("/")
    assert [each.root for each in coordinators if isinstance(each, FileCoordinator)] == [
        tmp_path / "run/coordinator"
    ] * 2


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """For store and lock alike. A URL or a text that begins with ./ names a directory called ~."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir("/")
    assert storage_from_url("~/run").location == storage_from_url(Path("~/run")).location == "/home/me/run"
    coordinator = coordinator_from_url("file:", backup_dir="~/run")
    assert isinstance(coordinator, FileCoordinator)
    assert coordinator.root == Path("/home/me/run/coordinator")
    assert storage_from_url("./~/run").location == storage_from_url("file:///~/run").location == "/~/run"


# -------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("place", [None, 5, b"/mnt/run", ["/mnt/run"]])
def test_what_is_neither_path_nor_url_is_refused(place: Any) -> None:
    assert refusal(place) == f"the backup directory must be a path or a URL, got {place!r}"


@pytest.mark.parametrize("place", ["", "/mnt/a\0b"])
def test_what_is_no_path_is_refused(place: str) -> None:
    assert refusal(place) == f"the backup directory must be a path, got {place!r}"


def test_a_home_directory_that_is_unknown_is_refused() -> None:
    """A directory of that name would else be made in the working directory."""
    problem = "names a home directory that does not exist: use an absolute path"
    assert refusal("~nobody-of-that-name/run") == f"the backup directory '~nobody-of-that-name/run' {problem}"


def test_a_relative_path_in_a_directory_that_was_removed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert refusal("run") == "the backup directory 'run' is relative to a working directory that was removed"


@pytest.mark.parametrize("root", ["", "/mnt/a\0b"])
def test_a_lock_needs_a_directory(root: str) -> None:
    """An empty path would mean the working directory."""
    with pytest.raises(ConfigError, match="the coordinator's directory must be a path, got "):
        FileCoordinator(root)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("file://", "file://"),
        ("file://host/mnt/run", "file://host/mnt/run"),
        (f"file:///mnt/run?password={SECRET}", "file:///mnt/run"),
        ("file:///mnt/run#x", "file:///mnt/run"),
    ],
)
def test_a_directory_has_an_absolute_path_on_this_machine(url: str, shown: str) -> None:
    assert refusal(url) == f"a directory is named by its absolute path, got {shown!r}: use file:///path"


@pytest.mark.parametrize("url", ["s3://", "s3:///", "gs://", "memory://"])
def test_a_url_without_a_place_is_refused(url: str) -> None:
    scheme = url.partition(":")[0]
    assert refusal(url) == f"{scheme}:// names no place: give a bucket and a prefix, as in {scheme}://bucket/run-42"


@pytest.mark.parametrize("url", ["s3://bucket/run?endpoint=x", f"s3://bucket/run?secret={SECRET}", "gs://bucket/run#1"])
def test_a_url_of_a_bucket_has_no_options(url: str) -> None:
    """They may hold passwords, so they are not shown."""
    shown = url.replace("#", "?").partition("?")[0]
    assert refusal(url) == f"{shown} goes on with a '?' or '#': settings come from the client's environment"


@pytest.mark.parametrize("url", ["nope://bucket/run", f"nope://user:{SECRET}@host/run", "redis+nope://host", "x://y"])
def test_an_unknown_scheme_is_refused_with_those_that_are_known(url: str) -> None:
    text = refusal(url)
    assert text.endswith(
        "can't be used as a backup directory: the scheme is unknown; want a path, s3://, gs://, az://, file://, "
        "memory://, redis:// or what fsspec knows"
    )
    assert text.startswith(url.partition("://")[0])


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("s3://bucket/run", "s3fs", "s3"),
        ("s3a://bucket/run", "s3fs", "s3"),
        ("gs://bucket/run", "gcsfs", "gcs"),
        ("gcs://bucket/run", "gcsfs", "gcs"),
        ("az://container/run", "adlfs", "azure"),
        ("abfs://container@account/run", "adlfs", "azure"),
        ("abfss://container@account/run", "adlfs", "azure"),
    ],
)
def test_a_client_that_is_missing_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    """When the callback is made, and not at the first commit."""
    found = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == module else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert refusal(url) == f"{url} needs {module}: pip install 'distributed-backup[{extra}]'"


def test_a_missing_client_of_another_store_is_named_as_fsspec_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed here."""
    import fsspec

    def missing(scheme: str) -> type:
        raise ImportError(f"{scheme} requires its client")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    shown = "sftp://host/run needs a client that is not installed: sftp requires its client"
    assert refusal(f"sftp://user:{SECRET}@host/run") == shown


def test_checkpoints_on_a_server_need_the_id_of_the_run() -> None:
    """They are kept under it."""
    wanted = "checkpoints at redis://redis:6379/0 are kept by run id: set run_id"
    assert refusal(f"redis://user:{SECRET}@redis:6379/0") == wanted
    assert "run_id must be 1 to 128" in refusal("redis://redis", run_id="{a}")


@pytest.mark.parametrize("limit", [0, -1.0, float("inf"), float("nan"), True, "30"])
def test_a_limit_is_a_time(limit: Any) -> None:
    assert refusal("memory://x", limit=limit) == f"limit must be a positive number of seconds, got {limit!r}"


@pytest.mark.parametrize("url", [f"https://user:{SECRET}@host/run", "http://host/run", "github://a:b@/run"])
def test_a_place_where_nothing_can_be_written_is_refused(url: str) -> None:
    """Not only at the first commit."""
    scheme = url.partition(":")[0]
    assert refusal(url).endswith(f"can't be used as a backup directory: nothing can be written over {scheme}")


# -------------------------------------------------------------------- what is shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"ftp://user:{SECRET}@host/run", "ftp://host/run"),
        (f"ftp://user:p@{SECRET}@host/run", "ftp://host/run"),
        (f"ftp://user:p/{SECRET}@host/run", "ftp://host/run"),
        (f"ftp://:{SECRET}@host/run", "ftp://host/run"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    """Not even one whose signs were not escaped."""
    assert storage_from_url(url).location == shown


@pytest.mark.parametrize("scheme", ["redis ", "\u00a0redis", "u:s3cr3t@redis", "redis", ""])
def test_no_option_is_shown_of_what_is_almost_a_url(scheme: str) -> None:
    assert without_credentials(f"{scheme}://u:s3cr3t@h?password=s3cr3t").endswith("://h")
    assert "s3cr3t" not in without_credentials(f"{scheme}://u:s3cr3t@h?password=s3cr3t")


def test_no_password_is_in_what_a_client_complains_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No server listens at this port. The cause is the driver's error."""
    caplog.set_level(logging.DEBUG)
    storage = storage_from_url(f"ftp://user:{SECRET}@127.0.0.1:1/run")
    with pytest.raises(StoreError, match="Connection refused") as caught:
        storage.names()
    assert str(caught.value) == "can't use ftp://127.0.0.1:1/run: Connection refused"
    assert SECRET not in f"{caught.value}{caught.value.__cause__}{caplog.text}"


# -------------------------------------------------------------------- the coordinator that nobody named


def test_a_run_on_a_server_is_led_over_the_same() -> None:
    coordinator = coordinator_from_url("file:", backup_dir=f"redis://:{SECRET}@redis:6379/3")
    assert isinstance(coordinator, RedisCoordinator)
    assert repr(coordinator) == "RedisCoordinator('redis://redis:6379/3')"


@pytest.mark.parametrize("place", ["/mnt/a run", "file:///mnt/a%20run", "file:///mnt/a%20run/", Path("/mnt/a run")])
def test_a_run_in_a_directory_is_led_over_a_lock_in_it(place: str | Path) -> None:
    coordinator = coordinator_from_url("file:", backup_dir=place)
    assert isinstance(coordinator, FileCoordinator)
    assert coordinator.root == Path("/mnt/a run/coordinator")


@pytest.mark.parametrize(
    ("place", "shown"),
    [("s3://bucket/run", "s3://bucket/run"), (f"sftp://u:{SECRET}@host/run", "sftp://host/run"), ("memory://x",) * 2],
)
def test_a_bucket_holds_no_lock(place: str, shown: str) -> None:
    """The message says what to name."""
    with pytest.raises(ConfigError) as caught:
        coordinator_from_url("file:", backup_dir=place)
    assert str(caught.value) == (
        f"{shown} can hold no lock, so name a coordinator: redis://… for the workers of many machines, file:///path "
        "for those of one, memory: for a single worker"
    )


@pytest.mark.parametrize("url", ["memory:", "file:///mnt/lock", "redis://redis"])
def test_a_coordinator_that_was_named_is_taken_for_a_bucket_too(url: str) -> None:
    assert coordinator_from_url(url, backup_dir="s3://bucket/run") is not None


@pytest.mark.parametrize(
    "url",
    ["", "/mnt/run", "etcd://host", "memory://", "memory:x", "file:run", "file://host/run", "redis:x", "s3://b/r"],
)
def test_a_coordinator_of_an_unknown_form_is_refused_with_the_forms_there_are(url: str) -> None:
    """The message lists what the table of schemes has."""
    with pytest.raises(ConfigError, match=r"^coordinator has an unknown form, got ") as caught:
        coordinator_from_url(url)
    listed = str(caught.value).partition(": use one of ")[2].split(", ")
    assert listed == ["file:", "file:///absolute/path", "memory:", *(f"{scheme}://…" for scheme in REDIS_SCHEMES)]


def test_a_server_is_known_by_its_url() -> None:
    """What is no server keeps one run."""
    assert all(is_server_url(f"{scheme}://host") for scheme in (*REDIS_SCHEMES, "REDIS"))
    assert not any(map(is_server_url, ("file:", "file:///mnt/run", "memory:", "/mnt/redis://x", "s3://b/r", "redis:x")))
    assert (RedisCoordinator.is_server, FileCoordinator.is_server) == (True, False)


# -------------------------------------------------------------------- times


def test_leases_are_the_usual_ones_where_there_is_time_for_them() -> None:
    assert LeaseTimings.for_grace_period(120.0) == LeaseTimings.for_grace_period(30.0) == LeaseTimings()


@pytest.mark.parametrize("grace_period", [0.5, 3.0, 10.0, 15.0, 25.0, 28.0])
def test_a_lease_runs_out_in_time_for_another_to_save(grace_period: float) -> None:
    """In the same proportions, and with two fifths of the grace period left."""
    timings, usual = LeaseTimings.for_grace_period(grace_period), LeaseTimings()
    assert timings.duration + timings.retry_period == pytest.approx(0.6 * grace_period)
    assert timings.renew_deadline / timings.duration == pytest.approx(usual.renew_deadline / usual.duration)
    assert timings.retry_period / timings.duration == pytest.approx(usual.retry_period / usual.duration)


# -------------------------------------------------------------------- what is imported


def test_a_client_is_imported_when_it_is_needed() -> None:
    """Neither by the package, nor by a directory, nor by the name of a bucket: some take seconds."""
    code = (
        "import sys, distributed_backup.cli.checkpoints_commands, distributed_backup.cli.copy_run\n"
        "from distributed_backup.checkpoints.store import CheckpointStore\n"
        "CheckpointStore('/tmp/run'), CheckpointStore('s3://bucket/run'), CheckpointStore('gs://bucket/run')\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    assert "distributed_backup" in imported
    clients = {"fsspec", "s3fs", "gcsfs", "adlfs", "aiobotocore", "redis", "numpy", "synalinks"}
    assert not imported & clients


def test_a_store_takes_what_a_storage_is_named_by(tmp_path: Path) -> None:
    """Or a storage."""
    storage = storage_from_url("memory://x")
    assert CheckpointStore(storage).storage is storage
    assert CheckpointStore(f"file://{tmp_path}/run").location == str(tmp_path / "run")


@pytest.mark.parametrize("place", ["FILE:///mnt/run", "local:///mnt/run", "/mnt/a://b"])
def test_what_is_a_directory_can_hold_a_lock(place: str) -> None:
    """Storage and coordinator agree on what is a URL, in any case of letters. A path with a colon is none."""
    storage = storage_from_url(place)
    assert isinstance(storage, LocalStorage)
    coordinator = coordinator_from_url("file:", backup_dir=place)
    assert isinstance(coordinator, FileCoordinator)
    assert coordinator.root == storage.root / "coordinator"


def test_a_url_that_became_a_path_is_refused() -> None:
    """`Path` makes one slash of two, and the run would be kept in a directory called "s3:"."""
    for place in (Path("s3://bucket/run-42"), "s3:/bucket/run-42", "FILE:/mnt/run-42"):
        with pytest.raises(ConfigError, match=r"has lost a slash, as a URL does that is made a path: give it as text"):
            storage_from_url(place)
    for place in (Path("redis://user:s3cr3t@redis:6379/0"), "redis:/user:s3cr3t@redis:6379/0"):
        with pytest.raises(ConfigError, match=r"^redis://redis:6379/0 has lost a slash") as caught:
            storage_from_url(place)
        assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        "u:s3cr3t@127.0.0.1:6379",
        "redis:user:s3cr3t@127.0.0.1/",
        " redis://u:s3cr3t@127.0.0.1:1",
        "\tredis://:s3cr3t@127.0.0.1",
        " redis://127.0.0.1?password=s3cr3t",
        "\1redis://127.0.0.1?password=s3cr3t",
        "user:s3/cr3t@127.0.0.1",
        "u:s3\ncr3t@127.0.0.1",
        "redis://u:s3cr3t@127.0.0.1 ",
        "redis://127.0.0.1?password=s3cr3t\n",
        "\u00a0redis://127.0.0.1?password=s3cr3t",
        "\ufeffredis://127.0.0.1?password=s3cr3t",
        "'redis://127.0.0.1?password=s3cr3t'",
        "1redis://u:s3cr3t@127.0.0.1?password=s3cr3t",
    ],
)
def test_an_address_without_its_scheme_is_refused_and_not_shown(place: str) -> None:
    """It would be taken for a directory, whose name each log shows."""
    for named in (place, Path(place)):
        with pytest.raises(ConfigError) as caught:
            storage_from_url(named)
        assert str(caught.value).endswith(
            ("as in redis://host:6379, or begin the path of a directory with ./", "give it as text")
        )
        with pytest.raises(ConfigError) as of_lock:
            coordinator_from_url("file:", backup_dir=named)
        assert str(of_lock.value) == str(caught.value)
        said = str(caught.value)
        assert "127.0.0.1" in said
        assert not {"s3", "cr3t"} & set(re.split(r"\W", said))


@pytest.mark.parametrize(
    "place", ["runs/2024:05@home", "a@b", "./u:p@h", "/u:p@h", "a:b/c", " runs", "/a ", " a/x://y "]
)
def test_a_directory_may_have_these_names(place: str) -> None:
    assert isinstance(coordinator_from_url("file:", backup_dir=place), FileCoordinator)
    assert storage_from_url(place).location == os.path.abspath(place)  # noqa: PTH100 - as a user would name it


@pytest.mark.parametrize(
    "url", ["u:s3cr3t@h", " redis://u:s3cr3t@h", "redis://h?password=s3cr3t ", "'redis://:s3cr3t@h'"]
)
def test_a_coordinator_without_its_scheme_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as in redis://host:6379") as caught:
        coordinator_from_url(url)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://key:s3cr3t@bucket/run", "gs://t0ken@bucket/run"])
def test_credentials_in_a_bucket_s_url_are_refused_and_not_shown(url: str) -> None:
    """No client takes them there, and a log that shows the URL would show them."""
    with pytest.raises(ConfigError, match="credentials come from the client's environment") as caught:
        storage_from_url(url)
    assert "s3cr3t" not in str(caught.value)
    assert "t0ken" not in str(caught.value)


class FileServer(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A client without time limits and conditions, as those of file servers are."""

    protocol = "fileserver"
    cut_off = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("fileserver://").rstrip("/")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if self.cut_off:
            super().pipe_file(path, value[: len(value) // 2])
            raise OSError("connection lost")
        super().pipe_file(path, value)


def test_a_write_to_a_file_server_that_is_cut_off_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clients write in place: half a checkpoint, or half a run's id, must not get the name."""
    register_implementation("fileserver", FileServer, clobber=True)
    place = tmp_path / "run"
    storage = ObjectStorage(f"fileserver://{place}", limit=5.0)
    storage.prepare()
    assert storage.create("run.json", b"whole")
    assert not storage.create("run.json", b"other")
    monkeypatch.setattr(FileServer, "cut_off", True)
    with pytest.raises(StoreError, match="connection lost"):
        storage.put("run.json", [b"longer than it was"])
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {"run.json": b"whole"}


def test_a_directory_without_hard_links_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on SMB: the run's id can't be made exclusively there, and nothing is left behind."""

    def unsupported(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.link", unsupported)
    with pytest.raises(StoreError, match=r"can't write .*/run\.json: Operation not supported"):
        CheckpointStore(tmp_path).open_run()
    assert list(tmp_path.iterdir()) == []
