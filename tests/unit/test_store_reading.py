"""Reads: damaged, removed and unreadable checkpoints, and readers beside a writer."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.checkpoints.format import checkpoint_name
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import (
    CorruptCheckpointError,
    NoUsableCheckpointError,
    StoreError,
)
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage
from tests.support.stores import checkpoints, commit, damage, files, newest, write


@pytest.mark.parametrize(
    "name", ["", "../x", "run.json", "/etc/passwd", "a\0b", "../0000000001-00000001-00000000.ckpt", "x" * 300]
)
def test_only_names_of_checkpoints_are_loaded(tmp_path: Path, name: str) -> None:
    """`load` refuses any other name, so a name in an announcement can't lead out of the directory."""
    commit(CheckpointStore(tmp_path / "other"), 1)
    with pytest.raises(StoreError, match="not the name of a checkpoint"):
        CheckpointStore(tmp_path / "backup").load(name)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The error and its message contain the path."""
    with pytest.raises(StoreError) as caught:
        CheckpointStore(tmp_path).load(checkpoint_name(1, Position(1)))
    assert caught.value.path == str(tmp_path / checkpoint_name(1, Position(1)))
    assert caught.value.path in str(caught.value)


def test_foreign_files_and_directories_are_passed_over(tmp_path: Path) -> None:
    """Other files, and directories named like checkpoints, are ignored by reads, prunes and deletes.

    `verify` names such directories.
    """
    ours = checkpoint_name(9, Position(1))
    other_digits = ours.translate({ord(digit): 0x660 + int(digit) for digit in "0123456789"})
    for name in ("notes.txt", ".hidden", ours + "~", other_digits):
        (tmp_path / name).write_text("mine")
    (tmp_path / checkpoint_name(9, Position(1))).mkdir()
    (tmp_path / checkpoint_name(1, Position(2))).mkdir()
    (tmp_path / ".partial-directory").mkdir()
    foreign = files(tmp_path)
    store = CheckpointStore(tmp_path)
    for epoch in (1, 3, 4):
        commit(store, epoch)
    assert (store.names(), newest(store), store.highest_term()) == ([checkpoint_name(1, Position(4))], (1, 4), 1)
    assert [row.name for row in store.verify()] == [checkpoint_name(9, Position(1)), checkpoint_name(1, Position(2))]
    store.delete()
    assert files(tmp_path) == foreign


def test_a_pipe_named_like_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """A pipe is not listed, because opening it would block."""
    os.mkfifo(tmp_path / checkpoint_name(9, Position(9)))
    assert CheckpointStore(tmp_path).names() == []


def test_a_corrupt_checkpoint_is_named_when_it_is_loaded(tmp_path: Path) -> None:
    """The error has the path and the reason as attributes."""
    path = write(tmp_path, 1)
    damage(path)
    with pytest.raises(CorruptCheckpointError) as caught:
        CheckpointStore(tmp_path).load(path.name)
    assert (caught.value.path, caught.value.reason) == (str(path), "the digest does not match")


def test_a_damaged_checkpoint_is_skipped_with_a_warning_that_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The older checkpoint is used. Both stay on the disk, and `verify` gives the reason."""
    store = CheckpointStore(tmp_path, keep=2)
    commit(store, 1)
    bad = tmp_path / commit(store, 2).name
    damage(bad)
    with caplog.at_level(logging.WARNING):
        assert newest(CheckpointStore(tmp_path)) == (1, 1)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert bad.name in record.getMessage()
    assert "digest" in record.getMessage()
    assert bad.exists()
    (row,) = store.verify()
    assert (row.name, row.valid, row.problem) == (bad.name, False, "the digest does not match")


def test_a_checkpoint_cut_off_at_any_byte_gives_the_older_one(tmp_path: Path) -> None:
    """The older checkpoint is used for each length from 0 to one byte less than the whole."""
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    raw = newer.read_bytes()
    for length in range(len(raw)):
        newer.write_bytes(raw[:length])
        assert newest(CheckpointStore(tmp_path)) == (1, 1), length
    newer.write_bytes(raw)
    assert newest(CheckpointStore(tmp_path)) == (1, 2)
    assert older.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _: b"", "empty"),
        (lambda raw: raw.replace(b'"format":2', b'"format":3'), "format 3 is unknown"),
        (lambda raw: raw + b"\0", "too long"),
        (lambda raw: b"\0" * len(raw), "not JSON"),
        (lambda raw: raw.replace(b'"length":2', b'"length":"2"'), "not sound"),
    ],
)
def test_when_none_is_usable_the_error_says_why_and_nothing_is_deleted(
    tmp_path: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    """The error names each checkpoint and its reason. A silent start from the beginning would lose the run."""
    for epoch in (1, 2):
        path = write(tmp_path, epoch)
        raw = path.read_bytes()
        path.write_bytes(change(raw))
        assert path.read_bytes() != raw
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with pytest.raises(NoUsableCheckpointError, match=reason) as caught:
        CheckpointStore(tmp_path).latest()
    assert caught.value.path == str(tmp_path)
    assert len(caught.value.reasons) == 2
    for name in before:
        assert name in str(caught.value)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_a_renamed_checkpoint_never_becomes_the_newest(tmp_path: Path) -> None:
    """A copy under a higher name is not used, because its header contains the old name."""
    store = CheckpointStore(tmp_path, run_id="run")
    copied = tmp_path / commit(store, 1).name
    (tmp_path / checkpoint_name(9, Position(9))).write_bytes(copied.read_bytes())
    assert newest(store) == (1, 1)


def test_a_read_that_failed_once_is_tried_again(tmp_path: Path) -> None:
    """A failed read is not cached: the next call reads the checkpoint again."""
    commit(CheckpointStore(tmp_path), 1)

    class Flaky(CheckpointStore):
        failing = True

        def load(self, name: str) -> Any:
            if self.failing:
                raise StoreError("i/o error", path=name) from OSError(errno.EIO, "i/o error")
            return super().load(name)

    store = Flaky(tmp_path)
    assert store.newest_header() is None
    store.failing = False
    header = store.newest_header()
    assert header is not None
    assert header.position == Position(1)


class Remote(LocalStorage):
    """A store on a server: an EIO from its client is an error that may pass."""

    permanent_errnos = frozenset()
    broken: str | None = None

    def read(self, name: str) -> bytes:
        if name == self.broken:
            raise StoreError(f"can't read {name}: 502", path=name) from OSError(errno.EIO, "502")
        return super().read(name)


def test_what_a_server_fails_to_read_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """A temporary error is raised, instead of skipping the newest checkpoint and training from an older one."""
    writer = CheckpointStore(tmp_path, keep=2)
    names = [commit(writer, epoch).name for epoch in (1, 2)]
    storage = Remote(tmp_path)
    storage.broken = names[1]
    store = CheckpointStore(storage)
    for look in (store.latest, store.newest_header):
        with pytest.raises(StoreError, match="502") as caught:
            look()
        assert not isinstance(caught.value, NoUsableCheckpointError)
    storage.broken = None
    assert newest(store) == (1, 2)


def test_a_link_that_leads_in_a_circle_is_a_problem_like_others(tmp_path: Path) -> None:
    """The link is listed as a problem, and the older checkpoint is used."""
    store = CheckpointStore(tmp_path)
    commit(store, 1)
    circle = tmp_path / checkpoint_name(9, Position(9))
    circle.symlink_to(circle)
    assert newest(store) == (1, 1)
    assert [row.name for row in store.verify()] == [circle.name]


def test_a_dangling_link_is_a_problem_like_others(tmp_path: Path) -> None:
    """A link without a target is skipped like a damaged checkpoint. Alone, it is an error instead of an empty run."""
    (tmp_path / checkpoint_name(2, Position(1))).symlink_to(tmp_path / "gone")
    with pytest.raises(NoUsableCheckpointError):
        CheckpointStore(tmp_path).latest()
    write(tmp_path, 1)
    store = CheckpointStore(tmp_path)
    assert newest(store) == (1, 1)
    assert [row.valid for row in store.list()] == [False, True]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_reader_that_is_overtaken_by_prunes_finds_the_newest(tmp_path: Path, keep: int) -> None:
    """If a listed checkpoint was pruned before it is read, the reader lists again and finds the newer one."""
    writer = CheckpointStore(tmp_path, keep=keep)
    for epoch in (1, 2):
        commit(writer, epoch)

    class Overtaken(CheckpointStore):
        times = 2

        def load(self, name: str) -> Any:
            if self.times:
                self.times -= 1
                reached = writer.newest_header()
                assert reached is not None
                for epoch in (1, 2):
                    commit(writer, reached.epoch + epoch)
            return super().load(name)

    reader = Overtaken(tmp_path)
    assert newest(reader) == (1, 6)
    assert reader.times == 0
    reader = Overtaken(tmp_path)
    header = reader.newest_header()
    assert header is not None
    assert header.position == Position(10)
    (tmp_path / RUN_FILE).unlink()
    assert Overtaken(tmp_path).open_run() == writer.open_run()


def test_a_reader_does_not_fall_back_where_a_newer_one_was_pruned(tmp_path: Path) -> None:
    """If the upper of two listed checkpoints is pruned, the reader lists again before it considers the lower one."""
    writer = CheckpointStore(tmp_path, run_id="run", keep=1)
    writer.open_run()
    write(tmp_path, 1)
    upper = write(tmp_path, 2)

    class Overtaken(CheckpointStore):
        def load(self, name: str) -> Any:
            if upper.exists():
                write(tmp_path, 3)
                upper.unlink()
            return super().load(name)

    assert newest(Overtaken(tmp_path)) == (1, 3)


def test_the_list_leaves_out_what_was_pruned_meanwhile(tmp_path: Path) -> None:
    """A checkpoint that is removed during `list` has no row."""
    write(tmp_path, 1)
    gone = write(tmp_path, 2)

    class Overtaken(CheckpointStore):
        def load(self, name: str) -> Any:
            gone.unlink(missing_ok=True)
            return super().load(name)

    assert checkpoints(Overtaken(tmp_path)) == [(1, 1)]
