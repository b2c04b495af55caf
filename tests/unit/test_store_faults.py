"""Broken and full disks: the previous checkpoint stays, and the error names the path."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_backup.checkpoints.format import checkpoint_name
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import (
    StaleTermError,
    StoreError,
)
from distributed_backup.position import Position
from distributed_backup.regular_file import read_file
from distributed_backup.storage import local
from distributed_backup.storage.local import LocalStorage
from tests.support.stores import checkpoints, commit, damage, files, newest, write


class Broken(LocalStorage):
    """A disk that fails at one step, as often as it is tried.

    Args:
        root: The directory.
        step: Name of the method that fails.
        number: The errno.
    """

    def __init__(self, root: Path, step: str, number: int) -> None:
        super().__init__(root)
        self._step, self._number = step, number
        self.failed = 0

    def _fail(self, step: str) -> None:
        if step == self._step:
            self.failed += 1
            raise OSError(self._number, os.strerror(self._number))

    def _write(self, descriptor: int, chunk: bytes | memoryview) -> None:
        if self._step == "_write":
            super()._write(descriptor, chunk[: len(chunk) // 2])
        self._fail("_write")
        super()._write(descriptor, chunk)

    def _sync(self, descriptor: int) -> None:
        self._fail("_sync")
        super()._sync(descriptor)

    def _publish(self, partial: Path, path: Path) -> None:
        self._fail("_publish")
        super()._publish(partial, path)

    def _sync_directory(self) -> None:
        self._fail("_sync_directory")
        super()._sync_directory()


@pytest.mark.parametrize("step", ["_write", "_sync", "_publish", "_sync_directory"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_failed_step_leaves_the_previous_checkpoint_and_no_litter(tmp_path: Path, step: str, number: int) -> None:
    """The error names the path and the reason, and the next commit succeeds once the disk works again."""
    commit(CheckpointStore(tmp_path), 1)
    storage = Broken(tmp_path, step, number)
    with pytest.raises(StoreError, match="can't write") as caught:
        commit(CheckpointStore(storage), 2)
    assert storage.failed == 1
    assert caught.value.path == str(tmp_path / checkpoint_name(1, Position(2)))
    assert caught.value.path in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert (tmp_path / checkpoint_name(1, Position(1))).exists()
    if step != "_sync_directory":
        assert files(tmp_path) == [checkpoint_name(1, Position(1)), RUN_FILE]
    assert not list(tmp_path.glob(".partial-*"))
    commit(CheckpointStore(tmp_path), 3)
    assert newest(CheckpointStore(tmp_path)) == (1, 3)


def test_a_failed_commit_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    """`newest_header` ignores the failed commit, even if a damaged file has its name."""
    damage(write(tmp_path, 1))
    (tmp_path / RUN_FILE).write_bytes(b'{"run_id":"run"}')
    store = CheckpointStore(Broken(tmp_path, "_sync", errno.EIO))
    with pytest.raises(StoreError, match="can't write"):
        commit(store, 1)
    assert store.newest_header() is None
    commit(CheckpointStore(tmp_path), 1)
    assert store.newest_header() is not None


def test_an_interrupt_while_writing_leaves_no_litter(tmp_path: Path) -> None:
    """Ctrl-C during a write is raised, and the partial file is removed."""

    class Interrupted(LocalStorage):
        def _sync(self, descriptor: int) -> None:
            raise KeyboardInterrupt

    CheckpointStore(tmp_path).open_run()
    with pytest.raises(KeyboardInterrupt):
        commit(CheckpointStore(Interrupted(tmp_path)), 1)
    assert files(tmp_path) == [RUN_FILE]


def test_a_full_disk_does_not_stop_a_restart(tmp_path: Path) -> None:
    """Opening an existing run and reading its checkpoint writes nothing."""
    commit(CheckpointStore(tmp_path, run_id="run"), 1)
    storage = Broken(tmp_path, "_write", errno.ENOSPC)
    store = CheckpointStore(storage)
    assert store.open_run() == "run"
    assert newest(store) == (1, 1)
    assert storage.failed == 0


def test_a_file_that_cannot_be_removed_does_not_save_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit succeeds, the other files are pruned, and a warning names the file."""
    stuck = write(tmp_path, 1)
    write(tmp_path, 2)
    (tmp_path / ".partial-0000000001-00000002-00000000.ckpt-aaaa").touch()

    class Stuck(LocalStorage):
        def _unlink(self, path: Path) -> None:
            if path == stuck:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            super()._unlink(path)

    store = CheckpointStore(Stuck(tmp_path))
    with caplog.at_level(logging.WARNING):
        commit(store, 3)
    assert files(tmp_path) == [stuck.name, checkpoint_name(1, Position(3)), RUN_FILE]
    assert stuck.name in caplog.text
    with pytest.raises(StoreError, match="can't remove"):
        store.prune(term=1)


def test_a_directory_removed_in_mid_run_that_cannot_be_made_again_is_named(tmp_path: Path) -> None:
    """The commit fails with the path. A later one makes the directory again, if it can."""
    root = tmp_path / "backup"
    store = CheckpointStore(root)
    commit(store, 1)
    for name in os.listdir(root):
        (root / name).unlink()
    root.rmdir()
    root.write_text("a file")
    with pytest.raises(StoreError) as caught:
        commit(store, 2)
    assert not isinstance(caught.value, StaleTermError)
    assert str(root) in str(caught.value)
    root.unlink()
    assert store.latest() is None
    commit(store, 3)
    assert CheckpointStore(root).open_run() == store.open_run()


def test_a_directory_that_is_no_directory_is_named(tmp_path: Path) -> None:
    """Each operation raises an error with the path. None treats the file as an empty run."""
    root = tmp_path / "backup"
    root.write_text("a file")
    store = CheckpointStore(root)
    operations: list[Callable[[], object]] = [
        store.names,
        store.latest,
        store.newest_header,
        store.list,
        store.verify,
        store.highest_term,
        store.open_run,
        store.delete,
        lambda: store.prune(term=1),
        lambda: commit(store, 1),
        lambda: store.load(checkpoint_name(1, Position(1))),
    ]
    for operation in operations:
        with pytest.raises(StoreError) as caught:
            operation()
        assert str(root) in str(caught.value)
        assert caught.value.path.startswith(str(root))
    assert root.read_text() == "a file"


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permission denied is a `StoreError` with the path. The test simulates it, because root is never denied."""
    store = CheckpointStore(tmp_path)
    commit(store, 1)

    def denied(*_: object) -> object:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    for operation in (store.names, store.latest, store.newest_header, store.list, lambda: commit(store, 2)):
        with pytest.raises(StoreError, match="Permission denied") as caught:
            operation()
        assert caught.value.path == str(tmp_path)
    monkeypatch.undo()
    assert newest(store) == (1, 1)


def test_a_file_that_cannot_be_read_is_listed_with_its_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One unreadable checkpoint is an error for `latest` and `commit`, because it may be the newest state."""
    secret = write(tmp_path, 2)
    write(tmp_path, 1)

    def denied(path: Path) -> bytes:
        if path == secret:
            raise PermissionError(errno.EACCES, "Permission denied")
        return read_file(path)

    monkeypatch.setattr(local, "read_file", denied)
    store = CheckpointStore(tmp_path, run_id="run")
    (row,) = store.verify()
    assert row.name == secret.name
    assert "Permission denied" in str(row.problem)
    assert store.highest_term() == 1
    with pytest.raises(StoreError, match="Permission denied"):
        store.latest()
    with pytest.raises(StoreError, match="Permission denied"):
        store.newest_header()
    with pytest.raises(StoreError, match="Permission denied"):
        commit(store, 1, 1)
    monkeypatch.undo()
    assert checkpoints(store) == [(1, 2), (1, 1)]


def test_a_read_that_fails_once_does_not_let_a_new_leader_go_backwards(tmp_path: Path) -> None:
    """After one failed read, a commit of an older position is refused, and the newest checkpoint stays."""

    class Stale(LocalStorage):
        fails = True

        def read(self, name: str) -> bytes:
            if self.fails and name.endswith(".ckpt"):
                self.fails = False
                raise StoreError(f"can't read {name}: Stale file handle", path=name) from OSError(errno.ESTALE, "Stale")
            return super().read(name)

    commit(CheckpointStore(tmp_path), 5)
    storage = Stale(tmp_path)
    follower = CheckpointStore(storage)
    with pytest.raises(StoreError, match="Stale"):
        commit(follower, 2, term=2)
    assert not storage.fails
    assert newest(follower) == (1, 5)
