"""Backups of synalinks' own callback: two files, each written in place, with or without the previous pair."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from distributed_backup.checkpoints.synalinks_backup import (
    METADATA,
    VARIABLES,
    find_synalinks_backup,
    remove_synalinks_backup,
)
from distributed_backup.errors import NoUsableCheckpointError, StoreError
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage

PREVIOUS = ".bkp"


def leave(root: Path, epoch: int, suffix: str = "") -> dict[str, Any]:
    """Write the files that synalinks' callback writes at the end of an epoch. Return the state."""
    tree = {"trainable_variables": {"generator": {"examples": [epoch]}}, "optimizer": {"step": epoch}}
    (root / (VARIABLES + suffix)).write_bytes(orjson.dumps(tree, option=orjson.OPT_INDENT_2))
    (root / (METADATA + suffix)).write_bytes(orjson.dumps({"epoch": epoch, "batch": 3}))
    return tree


class Broken(LocalStorage):
    """A disk that fails at one file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent)
        self._broken = path

    def read(self, name: str) -> bytes:
        with self._translated("read", self._broken):
            self._fail(self.root / name)
        return super().read(name)

    def _unlink(self, path: Path) -> None:
        self._fail(path)
        super()._unlink(path)

    def _fail(self, path: Path) -> None:
        if path == self._broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_without_a_backup_there_is_none(tmp_path: Path) -> None:
    """An empty directory, a missing one, and metadata alone give None."""
    assert find_synalinks_backup(LocalStorage(tmp_path)) is None
    assert find_synalinks_backup(LocalStorage(tmp_path / "missing")) is None
    (tmp_path / METADATA).write_bytes(b'{"epoch":1}')
    assert find_synalinks_backup(LocalStorage(tmp_path)) is None


def test_a_backup_is_read(tmp_path: Path) -> None:
    """State, epoch and digest are returned. The batch is not used."""
    tree = leave(tmp_path, 2)
    found = find_synalinks_backup(LocalStorage(tmp_path))
    assert found is not None
    assert (found.state_tree, found.position, found.name) == (tree, Position(2), VARIABLES)
    raw = (tmp_path / VARIABLES).read_bytes()
    assert found.digest == hashlib.blake2b(raw, digest_size=32).hexdigest()


def test_the_newest_pair_comes_before_the_previous_one(tmp_path: Path) -> None:
    """With `double_checkpoint` there are two pairs, and the newest is read."""
    leave(tmp_path, 1, PREVIOUS)
    leave(tmp_path, 2)
    found = find_synalinks_backup(LocalStorage(tmp_path))
    assert found is not None
    assert found.position == Position(2)


def test_a_backup_without_metadata_starts_at_the_first_epoch(tmp_path: Path) -> None:
    """As in synalinks: a kill between its two writes leaves the variables alone."""
    leave(tmp_path, 1)
    (tmp_path / METADATA).unlink()
    found = find_synalinks_backup(LocalStorage(tmp_path))
    assert found is not None
    assert found.position == Position(0)


@pytest.mark.parametrize("name", [VARIABLES, METADATA])
@pytest.mark.parametrize("raw", [b"", b'{"epoch":', b"[]", b"\0\0\0\0", b"\xff"])
def test_a_torn_pair_gives_the_previous_one_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, raw: bytes
) -> None:
    """If either file is torn, the previous pair is read, and the warning names the newest one."""
    previous = leave(tmp_path, 1, PREVIOUS)
    leave(tmp_path, 2)
    (tmp_path / name).write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        found = find_synalinks_backup(LocalStorage(tmp_path))
    assert found is not None
    assert (found.state_tree, found.position, found.name) == (previous, Position(1), VARIABLES + PREVIOUS)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert VARIABLES in record.getMessage()


def test_variables_torn_at_any_byte_are_never_restored(tmp_path: Path) -> None:
    """Each cut gives the previous pair."""
    leave(tmp_path, 1, PREVIOUS)
    leave(tmp_path, 2)
    raw = (tmp_path / VARIABLES).read_bytes()
    for length in range(len(raw)):
        (tmp_path / VARIABLES).write_bytes(raw[:length])
        found = find_synalinks_backup(LocalStorage(tmp_path))
        assert found is not None
        assert found.position == Position(1), length


@pytest.mark.parametrize("epoch", [-1, "2", 1.5, True, None])
def test_an_epoch_that_is_none_is_damage(tmp_path: Path, epoch: Any) -> None:
    """An epoch that is no whole number from 0 makes the pair unusable."""
    leave(tmp_path, 1)
    (tmp_path / METADATA).write_bytes(orjson.dumps({"epoch": epoch}))
    with pytest.raises(NoUsableCheckpointError):
        find_synalinks_backup(LocalStorage(tmp_path))


def test_the_previous_pair_alone_is_read(tmp_path: Path) -> None:
    """The newest pair may have been removed."""
    leave(tmp_path, 1, PREVIOUS)
    found = find_synalinks_backup(LocalStorage(tmp_path))
    assert found is not None
    assert found.position == Position(1)


def test_when_both_pairs_are_torn_the_error_says_why_and_nothing_is_deleted(tmp_path: Path) -> None:
    """The error names both files. A silent start from the beginning would lose the run."""
    for suffix in ("", PREVIOUS):
        leave(tmp_path, 1, suffix)
        (tmp_path / (VARIABLES + suffix)).write_bytes(b"{")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(NoUsableCheckpointError) as caught:
        find_synalinks_backup(LocalStorage(tmp_path))
    assert caught.value.path == str(tmp_path)
    assert len(caught.value.reasons) == 2
    assert VARIABLES + PREVIOUS in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_torn_newest_pair_without_a_previous_one_is_an_error(tmp_path: Path) -> None:
    """It does not count as a fresh start."""
    leave(tmp_path, 1)
    (tmp_path / VARIABLES).write_bytes(b"")
    with pytest.raises(NoUsableCheckpointError):
        find_synalinks_backup(LocalStorage(tmp_path))


@pytest.mark.parametrize("name", [VARIABLES, METADATA])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    """An I/O error is a `StoreError` with the path of the file."""
    leave(tmp_path, 1)
    with pytest.raises(StoreError, match="can't read") as caught:
        find_synalinks_backup(Broken(tmp_path / name))
    assert not isinstance(caught.value, NoUsableCheckpointError)
    assert caught.value.path == str(tmp_path / name)


@pytest.mark.parametrize("name", [VARIABLES, METADATA])
def test_a_file_that_cannot_be_read_gives_the_previous_pair(tmp_path: Path, name: str) -> None:
    """An I/O error on either file gives the previous pair, as synalinks documents `double_checkpoint`."""
    leave(tmp_path, 1, PREVIOUS)
    leave(tmp_path, 2)
    found = find_synalinks_backup(Broken(tmp_path / name))
    assert found is not None
    assert found.position == Position(1)


def test_only_its_four_files_are_removed(tmp_path: Path) -> None:
    """Other files and the directory stay, and a second removal succeeds."""
    others = ["latest.variables.json.bkp2", "notes.txt", "run.json"]
    for name in others:
        (tmp_path / name).touch()
    leave(tmp_path, 1)
    leave(tmp_path, 2, PREVIOUS)
    assert len(os.listdir(tmp_path)) == 7
    remove_synalinks_backup(LocalStorage(tmp_path))
    assert sorted(os.listdir(tmp_path)) == others
    remove_synalinks_backup(LocalStorage(tmp_path))
    remove_synalinks_backup(LocalStorage(tmp_path / "missing"))
    assert sorted(os.listdir(tmp_path)) == others


def test_a_file_that_cannot_be_removed_is_named(tmp_path: Path) -> None:
    """The error contains the path."""
    leave(tmp_path, 1)
    with pytest.raises(StoreError, match="can't remove") as caught:
        remove_synalinks_backup(Broken(tmp_path / METADATA))
    assert caught.value.path == str(tmp_path / METADATA)
