"""Prunes and deletes: which files are removed, and in which order."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from distributed_backup.checkpoints.format import checkpoint_name
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import (
    StoreError,
)
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage
from tests.support.stores import Recorded, checkpoints, commit, damage, files, newest, write


def test_a_prune_takes_the_oldest_first(tmp_path: Path) -> None:
    """After a kill during a prune, no older checkpoint is left where a newer one was removed."""
    for epoch in (1, 2, 3):
        write(tmp_path, epoch)
    storage = Recorded(tmp_path)
    commit(CheckpointStore(storage), 4)
    removed = [call for call in storage.calls if call.startswith("remove")]
    assert removed == [f"remove {checkpoint_name(1, Position(epoch))}" for epoch in (1, 2, 3)]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_ones_are_kept(tmp_path: Path, keep: int) -> None:
    """The newest `keep` checkpoints stay, across terms."""
    store = CheckpointStore(tmp_path, keep=keep)
    done: list[tuple[int, int]] = []
    for epoch, term in ((1, 1), (2, 1), (2, 2), (3, 2), (1, 5)):
        commit(store, epoch, term=term)
        done.insert(0, (term, epoch))
        assert checkpoints(store) == done[:keep]
    assert len(files(tmp_path)) == keep + 1


def test_only_those_that_verify_count_as_kept(tmp_path: Path) -> None:
    """A damaged checkpoint is not counted, so `keep` usable ones stay."""
    store = CheckpointStore(tmp_path, run_id="run", keep=2)
    for epoch in (1, 2, 3):
        write(tmp_path, epoch)
    damage(tmp_path / checkpoint_name(1, Position(2)))
    commit(store, 4)
    assert checkpoints(store) == [(1, 4), (1, 3)]
    damage(tmp_path / checkpoint_name(1, Position(3)))
    fresh = CheckpointStore(tmp_path, run_id="run", keep=2)
    write(tmp_path, 1)
    commit(fresh, 5)
    assert newest(fresh) == (1, 5)
    assert [row.position.epoch for row in fresh.list() if row.valid] == [5, 4]


def test_when_none_verifies_nothing_is_pruned(tmp_path: Path) -> None:
    """All checkpoints stay, because a user may repair them."""
    for epoch in (1, 2):
        damage(write(tmp_path, epoch))
    before = files(tmp_path)
    CheckpointStore(tmp_path).prune(term=1)
    assert files(tmp_path) == before


def litter(root: Path) -> list[str]:
    """Create partial files as crashed writers of term 1 leave them. Return their names."""
    names = [".partial-0000000001-00000002-00000000.ckpt-aaaa", ".partial-run.json-aaaa"]
    for name in names:
        (root / name).touch()
    return names


def test_what_crashed_writers_left_goes_with_the_next_commit(tmp_path: Path) -> None:
    """Partial files of the own and older terms are removed. Those of newer terms and foreign files stay."""
    left = litter(tmp_path)
    other = [".partial-0000000009-00000002-00000000.ckpt-aaaa", ".partial-notes", ".partial-x.ckpt-aaaa"]
    for name in other:
        (tmp_path / name).touch()
    commit(CheckpointStore(tmp_path), 1)
    assert not set(left) & set(files(tmp_path))
    assert set(other) < set(files(tmp_path))


def test_a_segment_that_a_crashed_writer_began_goes_with_a_commit_of_a_later_term(tmp_path: Path) -> None:
    """One of the own term may be the one that this worker begins at this moment, in another thread."""
    old, own, newer = (f".partial-000000000{term}-00000001-00000000.journal-aaaa" for term in (1, 2, 3))
    for name in (old, own, newer):
        (tmp_path / name).touch()
    commit(CheckpointStore(tmp_path), 1, term=2)
    assert {old, own, newer} & set(files(tmp_path)) == {own, newer}


def test_nothing_is_tidied_away_before_the_commit_is_durable(tmp_path: Path) -> None:
    """A partial file of an older term stays until then: it may be the last save of a leader being preempted."""
    CheckpointStore(tmp_path).open_run()
    left = litter(tmp_path)

    class Looking(LocalStorage):
        seen: list[str] | None = None

        def _sync_directory(self) -> None:
            self.seen = files(tmp_path)
            super()._sync_directory()

    storage = Looking(tmp_path)
    commit(CheckpointStore(storage), 1, term=2)
    assert storage.seen is not None
    assert set(left) < set(storage.seen)
    assert not set(left) & set(files(tmp_path))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_what_crashed_writers_left_makes_room(tmp_path: Path, number: int) -> None:
    """Partial files are removed and the write is retried. If other files fill the disk, the commit fails."""

    class Full(LocalStorage):
        def _sync(self, descriptor: int) -> None:
            if any((tmp_path / name).exists() for name in left) or (tmp_path / "film.mp4").exists():
                raise OSError(number, os.strerror(number))
            super()._sync(descriptor)

    commit(CheckpointStore(tmp_path), 1)
    left = litter(tmp_path)
    commit(CheckpointStore(Full(tmp_path)), 2)
    assert newest(CheckpointStore(tmp_path)) == (1, 2)
    (tmp_path / "film.mp4").touch()
    litter(tmp_path)
    with pytest.raises(StoreError, match=os.strerror(number)):
        commit(CheckpointStore(Full(tmp_path)), 3)
    assert newest(CheckpointStore(tmp_path)) == (1, 2)
    assert not list(tmp_path.glob(".partial-*"))


def test_a_prune_of_its_own_makes_durable_what_it_relies_on(tmp_path: Path) -> None:
    """The directory is synced before the removals, because another worker's rename may not be durable yet."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    storage = Recorded(tmp_path)
    CheckpointStore(storage).prune(term=1)
    assert storage.calls == ["sync directory", f"remove {checkpoint_name(1, Position(1))}"]


def test_delete_removes_all_of_ours_and_the_empty_directory(tmp_path: Path) -> None:
    """Checkpoints of every term, partial files, `run.json` and the directory are removed."""
    root = tmp_path / "backup"
    store = CheckpointStore(root)
    commit(store, 1)
    write(root, 5, term=9, run_id=store.open_run())
    damage(write(root, 6, term=9))
    (root / ".partial-0000000009-00000002-00000000.ckpt-aaaa").touch()
    (root / ".partial-0000000009-00000002-00000000.journal-aaaa").touch()
    (root / ".probe-aaaa").touch()
    store.delete()
    assert files(tmp_path) == []
    assert store.open_run()
    assert store.latest() is None


def test_delete_takes_the_newest_checkpoint_after_all_others(tmp_path: Path) -> None:
    """A crash in between leaves a run that can be resumed from its newest checkpoint, or no run."""
    storage = Recorded(tmp_path)
    store = CheckpointStore(storage, keep=3)
    first, second, newest = (commit(store, epoch).name for epoch in (1, 2, 3))
    damaged = write(tmp_path, 4, run_id=store.open_run())
    damage(damaged)
    storage.calls.clear()
    store.delete()
    assert storage.calls == [f"remove {name}" for name in (first, second, damaged.name, newest, RUN_FILE)]


def test_delete_leaves_what_is_not_ours(tmp_path: Path) -> None:
    """A foreign file and its directory stay."""
    store = CheckpointStore(tmp_path)
    commit(store, 1)
    (tmp_path / "notes.txt").touch()
    store.delete()
    assert files(tmp_path) == ["notes.txt"]
