"""Commits: their order, their names, and what they refuse."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.checkpoints.format import Snapshot, checkpoint_name
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import (
    ConfigError,
    StoreError,
)
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage
from tests.support.stores import Recorded, commit, files, newest, snapshot


def test_making_a_store_touches_no_disk(tmp_path: Path) -> None:
    """The constructor and every read create no file. The first write creates the directory."""
    store = CheckpointStore(tmp_path / "a" / "b")
    assert (store.names(), store.latest(), store.newest_header(), store.list()) == ([], None, None, [])
    assert (store.highest_term(), store.read_run_id()) == (0, None)
    store.prune(term=1)
    store.delete()
    assert files(tmp_path) == []


@pytest.mark.parametrize("keep", [0, -1, True, 1.5, "1", None])
def test_keep_is_a_whole_number_of_at_least_one(tmp_path: Path, keep: Any) -> None:
    """Other values of `keep` are refused: a store that keeps no checkpoint is no backup."""
    with pytest.raises(ConfigError, match="keep"):
        CheckpointStore(tmp_path, keep=keep)


@pytest.mark.parametrize("worker_id", ["", "../x", "a/b", "a\0b", "x" * 129])
def test_a_worker_id_that_is_no_file_name_is_refused(tmp_path: Path, worker_id: str) -> None:
    """A wrong worker id is refused before a checkpoint is written."""
    store = CheckpointStore(tmp_path)
    with pytest.raises(ConfigError, match="worker_id"):
        store.commit(snapshot(1), term=1, worker_id=worker_id)
    assert files(tmp_path) == [RUN_FILE]


@pytest.mark.parametrize("root", ["", "a\0b"])
def test_a_directory_that_is_no_path_is_refused(root: str) -> None:
    """An empty path is refused: it would mean the working directory."""
    with pytest.raises(ConfigError, match="directory"):
        CheckpointStore(root)


def test_a_change_of_the_working_directory_does_not_move_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is resolved when the store is made."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = CheckpointStore("backup")
    commit(store, 1)
    monkeypatch.chdir("elsewhere")
    commit(store, 2)
    assert files(tmp_path / "elsewhere") == []
    assert newest(CheckpointStore(tmp_path / "backup")) == (1, 2)


def test_what_was_committed_is_read_back(tmp_path: Path) -> None:
    """Another instance reads the same header and body by `latest`, by `load` and in `list`."""
    header = CheckpointStore(tmp_path, run_id="run").commit(
        Snapshot(position=Position(2, 3), body=b'{"x":[1,2]}', data="print"), term=7, worker_id="w-1"
    )
    reader = CheckpointStore(tmp_path)
    latest = reader.latest()
    assert latest is not None
    assert (latest.header, latest.body) == (header, b'{"x":[1,2]}')
    assert (header.run_id, header.term, header.worker_id, header.data) == ("run", 7, "w-1", "print")
    assert reader.load(header.name) == latest
    assert reader.newest_header() == header
    (row,) = reader.list()
    assert (row.name, row.term, row.position, row.header) == (header.name, 7, Position(2, 3), header)
    assert row.valid
    assert row.bytes == (tmp_path / header.name).stat().st_size
    assert reader.verify() == []
    assert reader.highest_term() == 7


def test_a_commit_keeps_its_order(tmp_path: Path) -> None:
    """The order is write, fsync, rename, fsync of the directory, and then the removal of the older checkpoint."""
    storage = Recorded(tmp_path)
    store = CheckpointStore(storage)
    older = commit(store, 1)
    storage.calls.clear()
    commit(store, 2)
    assert storage.calls == ["write", "write", "write", "sync", "publish", "sync directory", f"remove {older.name}"]


def test_directories_that_were_made_are_durable_too(tmp_path: Path) -> None:
    """The parent of each directory that was made is synced, so a power cut can't remove the directory."""
    storage = Recorded(tmp_path / "a" / "b")
    CheckpointStore(storage).open_run()
    assert [call for call in storage.calls if "parent" in call] == ["sync parent of b", "sync parent of a"]


def test_a_large_body_is_written_whole_by_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit continues where write(2) took fewer bytes than it was given."""
    store = CheckpointStore(tmp_path)
    store.open_run()
    real, sizes = os.write, []

    def short(descriptor: int, data: Any) -> int:
        sizes.append(len(data))
        return real(descriptor, data[:1000])

    monkeypatch.setattr(os, "write", short)
    body = bytes(range(256)) * 40
    store.commit(snapshot(1, body=body), term=1, worker_id="w")
    monkeypatch.undo()
    assert len(sizes) > 10
    found = store.latest()
    assert found is not None
    assert found.body == body


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(root: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in root.iterdir()}


@pytest.mark.parametrize(
    ("directory", "file"),
    [(0o700, 0o600), (0o755, 0o600), (0o750, 0o600), (0o730, 0o600), (0o770, 0o660), (0o777, 0o660), (0o2770, 0o660)],
)
@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o277, 0o777])
def test_files_are_for_the_group_exactly_if_the_directory_is(
    tmp_path: Path, mask: int, directory: int, file: int
) -> None:
    """Checkpoints, claims, event logs and `run.json`, under every umask. Others have no access."""
    root = tmp_path / "run"
    root.mkdir()
    root.chmod(directory)
    store = CheckpointStore(root)
    with umask(mask):
        commit(store, 1)
        assert store.claim_term(2)
        store.storage.put("events-20260101T000000Z-w-12345678.jsonl", [b"{}\n"], durable=False)
    assert len(modes(root)) == 4
    assert set(modes(root).values()) == {file}


def test_a_file_that_a_killed_writer_left_is_not_more_open(tmp_path: Path) -> None:
    """Its mode is set before the first byte."""
    tmp_path.chmod(0o777)

    class Killed(LocalStorage):
        def _write(self, descriptor: int, chunk: bytes | memoryview) -> None:
            assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o660
            raise KeyboardInterrupt

    with umask(0), pytest.raises(KeyboardInterrupt):
        Killed(tmp_path).put("x", [b"1"])


@pytest.mark.parametrize(("parent", "made"), [(0o2775, 0o2770), (0o2755, 0o2755), (0o775, 0o755), (0o1777, 0o755)])
def test_a_new_directory_is_for_the_group_in_a_directory_that_hands_its_group_down(
    tmp_path: Path, parent: int, made: int
) -> None:
    """The volume of an `fsGroup` is such a directory. Elsewhere the umask decides."""
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(parent)
    with umask(0o022):
        CheckpointStore(volume / "team" / "run").open_run()
    assert modes(volume) == {"team": made}
    assert modes(volume / "team") == {"run": made}


@pytest.mark.parametrize("term", [0, -1, 10**10, True, 1.5])
def test_a_commit_under_what_is_no_term_writes_nothing(tmp_path: Path, term: Any) -> None:
    """A term outside 1 to 9,999,999,999 is refused before the directory is made."""
    store = CheckpointStore(tmp_path)
    with pytest.raises(ConfigError, match="term"):
        commit(store, 1, term=term)
    assert files(tmp_path) == []


def test_the_highest_term_there_can_be_works(tmp_path: Path) -> None:
    """A commit under term 9,999,999,999 succeeds."""
    assert commit(CheckpointStore(tmp_path), 1, term=10**10 - 1).name.startswith("9999999999-")


def test_a_commit_under_a_name_that_is_a_directory_fails_cleanly(tmp_path: Path) -> None:
    """The error names the path, and the previous checkpoint stays."""
    store = CheckpointStore(tmp_path)
    commit(store, 1)
    blocked = tmp_path / checkpoint_name(1, Position(2))
    blocked.mkdir()
    with pytest.raises(StoreError, match="can't write") as caught:
        commit(store, 2)
    assert caught.value.path == str(blocked)
    assert newest(store) == (1, 1)
    assert not list(tmp_path.glob(".partial-*"))


def test_threads_share_an_instance(tmp_path: Path) -> None:
    """A prune in another thread waits for a running commit, instead of removing its partial file."""
    staged, blocked_or_done = threading.Event(), threading.Event()

    class Slow(LocalStorage):
        def _publish(self, partial: Path, path: Path) -> None:
            staged.set()
            assert blocked_or_done.wait(30)
            super()._publish(partial, path)

    class Observed:
        """The store's lock. It sets `blocked_or_done` when a thread asks for it while a commit is staged."""

        def __init__(self, lock: threading.Lock) -> None:
            self._lock = lock

        def __enter__(self) -> None:
            if staged.is_set():
                blocked_or_done.set()
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    store = CheckpointStore(Slow(tmp_path))
    store._lock = Observed(store._lock)  # type: ignore[assignment]
    results: list[object] = []

    def committing() -> None:
        try:
            results.append(commit(store, 1).position)
        except StoreError as error:
            results.append(error)

    def pruning() -> None:
        store.prune(term=1)
        blocked_or_done.set()

    threads = [threading.Thread(target=committing), threading.Thread(target=pruning)]
    threads[0].start()
    assert staged.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join(30)
    assert results == [Position(1)]
