"""Pipes, directories, sockets, devices and broken links in the place of files: named, counted, never waited for."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.checkpoints.journal_format import Link, segment_name
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.errors import CoordinatorUnavailableError, StoreError
from distributed_backup.position import Position
from distributed_backup.regular_file import IrregularFileError
from distributed_backup.storage.local import LocalStorage
from tests.support.cli_runs import NEWEST, call_json, commit
from tests.support.file_coordinators import beat, notice
from tests.support.segments import DIGESTS, answers, write_journal, write_segment

PATIENCE = 10.0
HIGHER = "0000000003-00000001-00000005.ckpt"
THIRD = segment_name(3, Position(1, 5))


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_directory(path: Path) -> None:
    path.mkdir()
    (path / "mine").touch()


def make_socket(path: Path) -> None:
    # The path of a socket may have 107 bytes only.
    here = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_link_to_directory(path: Path) -> None:
    path.symlink_to(path.parent)


def make_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "outside" / "gone")


def make_circle(path: Path) -> None:
    path.symlink_to(path)


KINDS = [
    make_pipe,
    make_directory,
    make_socket,
    make_link_to_device,
    make_link_to_directory,
    make_dangling_link,
    make_circle,
]
type Make = Callable[[Path], None]
of_each_kind = pytest.mark.parametrize("make", KINDS)


def in_time[T](call: Callable[[], T]) -> T:
    """Return the result of a call, or raise its error. It must not wait for the other end of a pipe."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert results or errors, "the call hangs"
    for error in errors:
        raise error
    return results[0]


@pytest.fixture
def links(run: Path) -> tuple[Link, Link]:
    return write_journal(CheckpointStore(run, run_id="job-42", keep=9))


# -------------------------------------------------------------------- the storage


@of_each_kind
@pytest.mark.parametrize(
    "use",
    [
        lambda storage: storage.read("a"),
        lambda storage: storage.read_from("a", 0, 9),
        lambda storage: storage.append("a", b"x", at=1),
    ],
)
def test_what_is_no_regular_file_is_neither_read_nor_appended_to(
    tmp_path: Path, make: Make, use: Callable[[LocalStorage], Any]
) -> None:
    make(tmp_path / "a")
    with pytest.raises(StoreError, match="can't") as caught:
        in_time(lambda: use(LocalStorage(tmp_path)))
    assert isinstance(caught.value.__cause__, IrregularFileError)
    assert not (tmp_path / "outside").exists()


@of_each_kind
def test_each_kind_is_listed_as_irregular_or_as_damage(tmp_path: Path, make: Make) -> None:
    """A broken link may be one to a checkpoint whose disk is not mounted, so it is listed as a file."""
    make(tmp_path / "a")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    storage = LocalStorage(tmp_path)
    is_broken = make in {make_dangling_link, make_circle}
    assert set(storage.names()) == {"file", "link", *["a"] * is_broken}
    assert storage.irregular() == ["a"] * (not is_broken)
    assert LocalStorage(tmp_path / "missing").irregular() == []


# -------------------------------------------------------------------- a run


@of_each_kind
def test_both_commands_count_it_as_bad(run: Path, links: tuple[Link, Link], make: Make) -> None:
    """The rest of the run is found as without it."""
    assert links
    for name in (HIGHER, THIRD):
        make(run / name)
    (found,) = in_time(lambda: call_json("checkpoints", "verify", run, code=1))["bad"]
    assert found["name"] == HIGHER
    assert "can't read" in found["reason"]
    (found,) = in_time(lambda: call_json("journal", "verify", run, code=1))["bad"]
    assert (found["name"], found["offset"]) == (THIRD, 0)
    assert "can't read" in found["reason"]
    verified = call_json("journal", "verify", run, code=1)
    assert (verified["checkpoint"], verified["log"]["answers"]) == (NEWEST, 2)
    assert [row["name"] for row in call_json("checkpoints", "list", run, code=1)][:2] == [HIGHER, NEWEST]
    assert [row["name"] for row in call_json("journal", "show", run, code=1)["segments"]][-1] == THIRD


@of_each_kind
def test_a_start_names_it_and_goes_on_without_it(
    run: Path, links: tuple[Link, Link], make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    assert links
    for name in (HIGHER, THIRD):
        make(run / name)
    store = CheckpointStore(run)
    in_time(store.open_run)
    newest = in_time(store.latest)
    assert newest is not None
    assert newest.name == NEWEST
    log = in_time(lambda: store.find_log(newest.position, DIGESTS))
    assert log is not None
    assert len(log.next_stage().answers) == 2
    for name in (HIGHER, THIRD):
        assert any(name in record.getMessage() for record in caplog.records if record.levelname == "WARNING"), name


@of_each_kind
def test_a_log_ends_before_a_segment_that_is_none(
    run: Path, links: tuple[Link, Link], make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """A later segment leads there. A start must not be refused, because nothing can be read there."""
    (run / links[1].name).unlink()
    make(run / links[1].name)
    store = CheckpointStore(run, run_id="job-42", keep=9)
    write_segment(store.storage, (3, Position(1, 3)), answers(1), after=links[1], digests=None)
    store.open_run()
    log = in_time(lambda: store.find_log(Position(1, 3), DIGESTS))
    assert log is None or log.next_stage().answers == ()
    assert f"journal segment skipped name={links[1].name}" in caplog.text


@of_each_kind
def test_a_commit_and_the_end_of_the_run_leave_a_directory(run: Path, links: tuple[Link, Link], make: Make) -> None:
    """What is behind a link is never touched."""
    assert links
    store = CheckpointStore(run, run_id="job-42", keep=1)
    for name in ("0000000001-00000000-00000000.ckpt", segment_name(1, Position(0))):
        make(run / name)
    commit(store, 3, Position(2))
    store.delete()
    assert not (run / "outside").exists()
    left = set(os.listdir(run)) if run.exists() else set()
    is_broken = make in {make_dangling_link, make_circle}
    assert left == (set() if is_broken else {"0000000001-00000000-00000000.ckpt", segment_name(1, Position(0))})


@of_each_kind
def test_the_identity_of_a_run_is_never_waited_for(run: Path, make: Make) -> None:
    (run / RUN_FILE).unlink()
    make(run / RUN_FILE)
    with pytest.raises(StoreError, match=r"run\.json"):
        in_time(CheckpointStore(run).open_run)


# -------------------------------------------------------------------- records of the file coordinator


@of_each_kind
@pytest.mark.parametrize("folder", ["members", "notices", "terms"])
def test_a_record_that_is_no_file_never_hangs_the_election(
    tmp_path: Path, make: Make, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator = FileCoordinator(tmp_path)
    beat(coordinator, "a")
    coordinator.notify(notice("n"))
    name = "0000000009" if folder == "terms" else "zzz"
    make(tmp_path / folder / f"{name}.json")
    for _ in range(3):
        # A leader gives the lease back, claims a higher term, and leads again.
        with suppress(CoordinatorUnavailableError):
            view = in_time(lambda: beat(coordinator, "a"))
    assert view.holder == "a"
    in_time(coordinator.members)
    assert in_time(coordinator.view).notices
    assert f"{name}.json" in caplog.text
    in_time(lambda: coordinator.leave("a"))
    in_time(coordinator.erase)
    assert [path.name for path in tmp_path.rglob("*.json")] == [f"{name}.json"] * (make is make_directory)
