"""The run's id: made once, kept in `run.json`, and compared with every checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_backup.checkpoints.format import checkpoint_name
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import (
    ConfigError,
    NoUsableCheckpointError,
    RunMismatchError,
    StoreError,
)
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage
from tests.support.stores import checkpoints, commit, damage, files, write


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", "a\0b", ".", "..", ".hidden", "x" * 129, "a b", "ä", "a\n"])
def test_a_run_id_that_is_no_file_name_is_refused(tmp_path: Path, run_id: str) -> None:
    """A run id with a path separator, a leading dot or more than 128 characters is refused."""
    with pytest.raises(ConfigError, match="run_id"):
        CheckpointStore(tmp_path, run_id=run_id)


def test_a_run_id_is_made_once_and_kept(tmp_path: Path) -> None:
    """Every later store of the directory reads the same id."""
    made = CheckpointStore(tmp_path / "backup").open_run()
    assert made
    assert CheckpointStore(tmp_path / "backup").open_run() == made
    assert CheckpointStore(tmp_path / "backup").read_run_id() == made
    assert files(tmp_path / "backup") == [RUN_FILE]
    assert CheckpointStore(tmp_path / "other").open_run() != made


def test_the_run_id_argument_names_a_new_run(tmp_path: Path) -> None:
    """The id is kept in the directory, so a store without the argument reads it."""
    assert CheckpointStore(tmp_path, run_id="job-42").open_run() == "job-42"
    assert CheckpointStore(tmp_path).open_run() == "job-42"


def test_a_directory_of_another_run_is_refused_naming_both(tmp_path: Path) -> None:
    """The error contains both ids and the path, and nothing is written."""
    CheckpointStore(tmp_path, run_id="theirs").open_run()
    store = CheckpointStore(tmp_path, run_id="ours")
    operations: list[Callable[[], object]] = [store.open_run, lambda: commit(store, 1)]
    for operation in operations:
        with pytest.raises(RunMismatchError) as caught:
            operation()
        assert (caught.value.expected, caught.value.found) == ("ours", "theirs")
        assert "'ours'" in str(caught.value)
        assert "'theirs'" in str(caught.value)
        assert caught.value.path == str(tmp_path)
    assert files(tmp_path) == [RUN_FILE]


def test_a_checkpoint_of_another_run_is_refused_and_never_removed(tmp_path: Path) -> None:
    """Reads and commits raise an error with both ids. Prunes and deletes leave the other run's checkpoint."""
    store = CheckpointStore(tmp_path, run_id="ours")
    commit(store, 1)
    theirs = write(tmp_path, 9, run_id="theirs")
    operations: list[Callable[[], object]] = [
        store.latest,
        store.newest_header,
        lambda: store.load(theirs.name),
        lambda: commit(store, 2),
        lambda: CheckpointStore(tmp_path, run_id="ours").latest(),
    ]
    for operation in operations:
        with pytest.raises(RunMismatchError) as caught:
            operation()
        assert (caught.value.expected, caught.value.found) == ("ours", "theirs")
    assert [row.valid for row in store.list()] == [False, True]
    store.prune(term=1)
    assert files(tmp_path) == [checkpoint_name(1, Position(1)), theirs.name, RUN_FILE]
    store.delete()
    assert files(tmp_path) == [theirs.name]


def test_a_checkpoint_of_another_run_below_ours_is_left_alone(tmp_path: Path) -> None:
    """It is not counted as kept, and it is not pruned."""
    store = CheckpointStore(tmp_path, run_id="ours", keep=2)
    theirs = write(tmp_path, 1, run_id="theirs")
    for epoch in (2, 3, 4):
        write(tmp_path, epoch, run_id="ours")
    commit(store, 5)
    assert checkpoints(store) == [(1, 5), (1, 4), (1, 1)]
    assert theirs.exists()


def test_what_was_seen_before_the_run_was_opened_is_checked_after(tmp_path: Path) -> None:
    """A header that was cached before the run was opened is compared with the run's id afterwards."""
    CheckpointStore(tmp_path, run_id="ours").open_run()
    write(tmp_path, 1, run_id="theirs")
    store = CheckpointStore(tmp_path)
    assert store.newest_header() is not None
    with pytest.raises(RunMismatchError):
        commit(store, 2)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b'{"run_id":5}', b'{"run_id":"../x"}', b'{"run_id":null}'])
def test_a_damaged_run_file_is_a_clear_error(tmp_path: Path, raw: bytes) -> None:
    """The error names the file and says what to do, and the file is not overwritten."""
    store = CheckpointStore(tmp_path, run_id="run")
    (tmp_path / RUN_FILE).write_bytes(raw)
    for operation in (store.read_run_id, store.find_run_id, store.open_run):
        with pytest.raises(StoreError, match="is damaged: remove it") as caught:
            operation()
        assert caught.value.path == str(tmp_path / RUN_FILE)
    assert (tmp_path / RUN_FILE).read_bytes() == raw


def test_a_run_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A directory in its place is a `StoreError` with the path."""
    (tmp_path / RUN_FILE).mkdir()
    with pytest.raises(StoreError) as caught:
        CheckpointStore(tmp_path).open_run()
    assert caught.value.path == str(tmp_path / RUN_FILE)


def test_a_lost_run_file_is_made_again_from_the_checkpoints(tmp_path: Path) -> None:
    """The id is taken from the newest checkpoint that verifies."""
    store = CheckpointStore(tmp_path, run_id="run", keep=2)
    commit(store, 1)
    damage(tmp_path / commit(store, 2).name)
    (tmp_path / RUN_FILE).unlink()
    assert CheckpointStore(tmp_path).open_run() == "run"
    assert CheckpointStore(tmp_path).read_run_id() == "run"


def test_the_run_id_is_found_without_writing(tmp_path: Path) -> None:
    """`find_run_id` takes it from `run.json`, else from the newest checkpoint that verifies, and creates no file."""
    assert CheckpointStore(tmp_path / "missing").find_run_id() is None
    store = CheckpointStore(tmp_path, run_id="run", keep=2)
    store.open_run()
    assert CheckpointStore(tmp_path).find_run_id() == "run"
    commit(store, 1)
    damage(tmp_path / commit(store, 2).name)
    (tmp_path / RUN_FILE).unlink()
    before = files(tmp_path)
    assert CheckpointStore(tmp_path).find_run_id() == "run"
    damage(tmp_path / checkpoint_name(1, Position(1)))
    assert CheckpointStore(tmp_path).find_run_id() is None
    assert files(tmp_path) == before


def test_a_lost_run_file_does_not_hide_that_the_run_is_another(tmp_path: Path) -> None:
    """The id in the checkpoints is compared with the argument, and nothing is written."""
    write(tmp_path, 1, run_id="theirs")
    before = files(tmp_path)
    with pytest.raises(RunMismatchError) as caught:
        CheckpointStore(tmp_path, run_id="ours").open_run()
    assert (caught.value.expected, caught.value.found) == ("ours", "theirs")
    assert files(tmp_path) == before


def test_a_lost_run_file_and_no_usable_checkpoint_make_no_new_run(tmp_path: Path) -> None:
    """With a new id, checkpoints that a user repairs later would belong to another run."""
    damage(write(tmp_path, 1))
    before = files(tmp_path)
    with pytest.raises(NoUsableCheckpointError):
        CheckpointStore(tmp_path).open_run()
    assert files(tmp_path) == before


def test_a_worker_whose_partial_run_file_was_tidied_away_takes_the_id_that_is_there(tmp_path: Path) -> None:
    """The first worker may commit and prune while the second one creates `run.json`."""
    first = CheckpointStore(tmp_path)

    class Paused(LocalStorage):
        def _sync(self, descriptor: int) -> None:
            super()._sync(descriptor)
            commit(first, 1)
            assert not list(tmp_path.glob(".partial-*"))

    assert CheckpointStore(Paused(tmp_path)).open_run() == first.open_run()


def test_a_directory_removed_while_the_run_is_opened_is_named(tmp_path: Path) -> None:
    """The error says that the directory does not exist."""
    root = tmp_path / "backup"

    class Removed(LocalStorage):
        def _sync(self, descriptor: int) -> None:
            for name in os.listdir(root):
                (root / name).unlink()
            root.rmdir()

    with pytest.raises(StoreError, match="No such file"):
        CheckpointStore(Removed(root)).open_run()


def test_a_run_that_is_already_open_stays_open(tmp_path: Path) -> None:
    """A lost `run.json` does not change the run and is written again. A damaged one does not stop the saving."""
    store = CheckpointStore(tmp_path)
    run_id = store.open_run()
    (tmp_path / RUN_FILE).unlink()
    assert store.open_run() == run_id
    assert CheckpointStore(tmp_path).read_run_id() == run_id
    (tmp_path / RUN_FILE).write_bytes(b"torn")
    assert store.open_run() == run_id
    assert commit(store, 1).run_id == run_id
