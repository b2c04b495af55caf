"""The store: commit, latest, fencing, pruning, the run's id, and what damage and broken disks do to them."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot, checkpoint_name, encode
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import (
    ConfigError,
    CorruptCheckpointError,
    NoUsableCheckpointError,
    RunMismatchError,
    StaleTermError,
    StoreError,
)
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage


def snapshot(epoch: int, batch: int = 0, body: bytes = b'{"x":1}') -> Snapshot:
    return Snapshot(position=Position(epoch, batch), body=body)


def commit(store: CheckpointStore, epoch: int, batch: int = 0, *, term: int = 1) -> CheckpointHeader:
    return store.commit(snapshot(epoch, batch), term=term, worker_id="w")


def write(root: Path, epoch: int, *, term: int = 1, run_id: str = "run", body: bytes = b"{}") -> Path:
    """A checkpoint written directly, as a paused writer would after all its checks."""
    header, line = encode(snapshot(epoch, body=body), run_id=run_id, term=term, worker_id="w", created_at="")
    path = root / header.name
    path.write_bytes(line + body + b"\n")
    return path


def damage(path: Path) -> None:
    """Flip one bit of the body."""
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


def files(root: Path) -> list[str]:
    return sorted(os.listdir(root))


def checkpoints(store: CheckpointStore) -> list[tuple[int, int]]:
    """(term, epoch) of all checkpoints, newest first."""
    return [(row.term, row.position.epoch) for row in store.list()]


def newest(store: CheckpointStore) -> tuple[int, int] | None:
    """(term, epoch) of the newest one that verifies."""
    found = store.latest()
    return None if found is None else (found.header.term, found.position.epoch)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# -------------------------------------------------------------------- making one


def test_making_a_store_touches_no_disk(tmp_path: Path) -> None:
    """The directory comes with the first write; reading before it finds nothing."""
    store = CheckpointStore(tmp_path / "a" / "b")
    assert (store.names(), store.latest(), store.newest_header(), store.list()) == ([], None, None, [])
    assert (store.highest_term(), store.read_run_id()) == (0, None)
    store.prune(term=1)
    store.delete()
    assert files(tmp_path) == []


@pytest.mark.parametrize("keep", [0, -1, True, 1.5, "1", None])
def test_keep_is_a_whole_number_of_at_least_one(tmp_path: Path, keep: Any) -> None:
    """A store that keeps nothing would be no backup."""
    with pytest.raises(ConfigError, match="keep"):
        CheckpointStore(tmp_path, keep=keep)


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", "a\0b", ".", "..", ".hidden", "x" * 129, "a b", "ä", "a\n"])
def test_a_run_id_that_is_no_file_name_is_refused(tmp_path: Path, run_id: str) -> None:
    """Ids come from outside and become names: no traversal, nothing hidden, bounded length."""
    with pytest.raises(ConfigError, match="run_id"):
        CheckpointStore(tmp_path, run_id=run_id)


@pytest.mark.parametrize("worker_id", ["", "../x", "a/b", "a\0b", "x" * 129])
def test_a_worker_id_that_is_no_file_name_is_refused(tmp_path: Path, worker_id: str) -> None:
    """It is refused before anything is written under it."""
    store = CheckpointStore(tmp_path)
    with pytest.raises(ConfigError, match="worker_id"):
        store.commit(snapshot(1), term=1, worker_id=worker_id)
    assert files(tmp_path) == [RUN_FILE]


@pytest.mark.parametrize("root", ["", "a\0b"])
def test_a_directory_that_is_no_path_is_refused(root: str) -> None:
    """An empty path would silently mean the working directory."""
    with pytest.raises(ConfigError, match="directory"):
        CheckpointStore(root)


def test_a_change_of_the_working_directory_does_not_move_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path means what it meant when the store was made."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = CheckpointStore("backup")
    commit(store, 1)
    monkeypatch.chdir("elsewhere")
    commit(store, 2)
    assert files(tmp_path / "elsewhere") == []
    assert newest(CheckpointStore(tmp_path / "backup")) == (1, 2)


# -------------------------------------------------------------------- commit and read


def test_what_was_committed_is_read_back(tmp_path: Path) -> None:
    """Header and body come back from another instance, by `latest`, by name and in the list."""
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


class Recorded(LocalStorage):
    """Keeps the names of the system calls of a commit."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: list[str] = []

    def _write(self, descriptor: int, chunk: bytes) -> None:
        self.calls.append("write")
        super()._write(descriptor, chunk)

    def _sync(self, descriptor: int) -> None:
        self.calls.append("sync")
        super()._sync(descriptor)

    def _publish(self, partial: Path, path: Path) -> None:
        self.calls.append("publish")
        super()._publish(partial, path)

    def _sync_directory(self) -> None:
        self.calls.append("sync directory")
        super()._sync_directory()

    def _sync_parent(self, made: Path) -> None:
        self.calls.append(f"sync parent of {made.name}")
        super()._sync_parent(made)

    def _unlink(self, path: Path) -> None:
        self.calls.append(f"remove {path.name}")
        super()._unlink(path)


def test_a_commit_keeps_its_order(tmp_path: Path) -> None:
    """The bytes, their fsync, the rename, the directory's fsync, and only then the older one goes."""
    storage = Recorded(tmp_path)
    store = CheckpointStore(storage)
    older = commit(store, 1)
    storage.calls.clear()
    commit(store, 2)
    assert storage.calls == ["write", "write", "write", "sync", "publish", "sync directory", f"remove {older.name}"]


def test_a_prune_takes_the_oldest_first(tmp_path: Path) -> None:
    """A kill in between leaves no older checkpoint where a newer one has gone."""
    for epoch in (1, 2, 3):
        write(tmp_path, epoch)
    storage = Recorded(tmp_path)
    commit(CheckpointStore(storage), 4)
    removed = [call for call in storage.calls if call.startswith("remove")]
    assert removed == [f"remove {checkpoint_name(1, Position(epoch))}" for epoch in (1, 2, 3)]


def test_directories_that_were_made_are_durable_too(tmp_path: Path) -> None:
    """A checkpoint in a directory whose own name a power cut could take would not be durable."""
    storage = Recorded(tmp_path / "a" / "b")
    CheckpointStore(storage).open_run()
    assert [call for call in storage.calls if "parent" in call] == ["sync parent of b", "sync parent of a"]


def test_a_large_body_is_written_whole_by_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write(2) may take less than it was given."""
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


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o277, 0o777])
def test_files_are_for_their_owner_only_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    """Checkpoints and the run's id hold what a program learnt: 0600, no more and no less."""
    store = CheckpointStore(tmp_path)
    with umask(mask):
        commit(store, 1)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)}
    assert set(modes.values()) == {0o600}, modes
    assert len(modes) == 2


@pytest.mark.parametrize("term", [0, -1, 10**10, True, 1.5])
def test_a_commit_under_what_is_no_term_writes_nothing(tmp_path: Path, term: Any) -> None:
    """A term of more than ten digits would break the order of names."""
    store = CheckpointStore(tmp_path)
    with pytest.raises(ConfigError, match="term"):
        commit(store, 1, term=term)
    assert files(tmp_path) == []


def test_the_highest_term_there_can_be_works(tmp_path: Path) -> None:
    """Ten digits, and nothing above."""
    assert commit(CheckpointStore(tmp_path), 1, term=10**10 - 1).name.startswith("9999999999-")


@pytest.mark.parametrize(
    "name", ["", "../x", "run.json", "/etc/passwd", "a\0b", "../0000000001-00000001-00000000.ckpt", "x" * 300]
)
def test_only_names_of_checkpoints_are_loaded(tmp_path: Path, name: str) -> None:
    """A name may come from an announcement: it never leads out of the directory."""
    commit(CheckpointStore(tmp_path / "other"), 1)
    with pytest.raises(StoreError, match="not the name of a checkpoint"):
        CheckpointStore(tmp_path / "backup").load(name)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The error carries the path."""
    with pytest.raises(StoreError) as caught:
        CheckpointStore(tmp_path).load(checkpoint_name(1, Position(1)))
    assert caught.value.path == str(tmp_path / checkpoint_name(1, Position(1)))
    assert caught.value.path in str(caught.value)


def test_foreign_files_and_directories_are_passed_over(tmp_path: Path) -> None:
    """Even a directory that is named like the newest checkpoint neither counts nor stops a prune or a delete."""
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
    assert (checkpoints(store), newest(store), store.highest_term()) == ([(1, 4)], (1, 4), 1)
    store.delete()
    assert files(tmp_path) == foreign


def test_a_commit_under_a_name_that_is_a_directory_fails_cleanly(tmp_path: Path) -> None:
    """It says so, and the previous checkpoint stays."""
    store = CheckpointStore(tmp_path)
    commit(store, 1)
    blocked = tmp_path / checkpoint_name(1, Position(2))
    blocked.mkdir()
    with pytest.raises(StoreError, match="can't write") as caught:
        commit(store, 2)
    assert caught.value.path == str(blocked)
    assert newest(store) == (1, 1)
    assert not list(tmp_path.glob(".partial-*"))


# -------------------------------------------------------------------- damage


def test_a_damaged_checkpoint_is_skipped_with_a_warning_that_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The older one is used; both stay on the disk."""
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
    """For each length from empty to one byte less than whole."""
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
        (lambda raw: raw.replace(b'"format":1', b'"format":2'), "format 2 is unknown"),
        (lambda raw: raw + b"\0", "too long"),
        (lambda raw: b"\0" * len(raw), "not JSON"),
        (lambda raw: raw.replace(b'"length":2', b'"length":"2"'), "not sound"),
    ],
)
def test_when_none_is_usable_the_error_says_why_and_nothing_is_deleted(
    tmp_path: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    """Starting from the beginning unasked would throw the run away."""
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
    """A copy under a higher name says another name in its header."""
    store = CheckpointStore(tmp_path, run_id="run")
    copied = tmp_path / commit(store, 1).name
    (tmp_path / checkpoint_name(9, Position(9))).write_bytes(copied.read_bytes())
    assert newest(store) == (1, 1)


def test_a_read_that_failed_once_is_tried_again(tmp_path: Path) -> None:
    """A transient error of the disk is no verdict on the checkpoint."""
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
    """A store that is no disk: what its client calls EIO is an error that it does not know."""

    permanent_errnos = frozenset()
    broken: str | None = None

    def read(self, name: str) -> bytes:
        if name == self.broken:
            raise StoreError(f"can't read {name}: 502", path=name) from OSError(errno.EIO, "502")
        return super().read(name)


def test_what_a_server_fails_to_read_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """The one before it would be trained on, and written over it; or nothing would seem to be usable."""
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
    """It is named, and does not keep anybody from the others."""
    store = CheckpointStore(tmp_path)
    commit(store, 1)
    circle = tmp_path / checkpoint_name(9, Position(9))
    circle.symlink_to(circle)
    assert newest(store) == (1, 1)
    assert [row.name for row in store.verify()] == [circle.name]


def test_a_dangling_link_is_a_problem_like_others(tmp_path: Path) -> None:
    """It neither hides older checkpoints nor makes the reader look again for ever, nor passes for an empty run."""
    (tmp_path / checkpoint_name(2, Position(1))).symlink_to(tmp_path / "gone")
    with pytest.raises(NoUsableCheckpointError):
        CheckpointStore(tmp_path).latest()
    write(tmp_path, 1)
    store = CheckpointStore(tmp_path)
    assert newest(store) == (1, 1)
    assert [row.valid for row in store.list()] == [False, True]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_reader_that_is_overtaken_by_prunes_finds_the_newest(tmp_path: Path, keep: int) -> None:
    """What it listed is gone when it reads it: then there is a newer one, not none and not an older one."""
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
    """The upper of two that it listed goes while it looks; the lower must not be taken for the newest."""
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
    """No row for a file that is gone."""
    write(tmp_path, 1)
    gone = write(tmp_path, 2)

    class Overtaken(CheckpointStore):
        def load(self, name: str) -> Any:
            gone.unlink(missing_ok=True)
            return super().load(name)

    assert checkpoints(Overtaken(tmp_path)) == [(1, 1)]


# -------------------------------------------------------------------- broken disks


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

    def _write(self, descriptor: int, chunk: bytes) -> None:
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
    """The error names the path and the reason; once the disk works again, so does the store."""
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
    """Not even when a damaged file of its name is there."""
    damage(write(tmp_path, 1))
    (tmp_path / RUN_FILE).write_bytes(b'{"run_id":"run"}')
    store = CheckpointStore(Broken(tmp_path, "_sync", errno.EIO))
    with pytest.raises(StoreError, match="can't write"):
        commit(store, 1)
    assert store.newest_header() is None
    commit(CheckpointStore(tmp_path), 1)
    assert store.newest_header() is not None


def test_an_interrupt_while_writing_leaves_no_litter(tmp_path: Path) -> None:
    """Ctrl-C in the middle of the bytes is passed on, and the partial file goes."""

    class Interrupted(LocalStorage):
        def _sync(self, descriptor: int) -> None:
            raise KeyboardInterrupt

    CheckpointStore(tmp_path).open_run()
    with pytest.raises(KeyboardInterrupt):
        commit(CheckpointStore(Interrupted(tmp_path)), 1)
    assert files(tmp_path) == [RUN_FILE]


def test_a_full_disk_does_not_stop_a_restart(tmp_path: Path) -> None:
    """Opening a run that exists and reading its checkpoint writes nothing."""
    commit(CheckpointStore(tmp_path, run_id="run"), 1)
    storage = Broken(tmp_path, "_write", errno.ENOSPC)
    store = CheckpointStore(storage)
    assert store.open_run() == "run"
    assert newest(store) == (1, 1)
    assert storage.failed == 0


def test_a_file_that_cannot_be_removed_does_not_save_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit stands, the rest is pruned, and a warning names the file."""
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


def test_a_directory_removed_in_mid_run_is_named(tmp_path: Path) -> None:
    """The commit fails plainly; the directory is not made again behind the back of who removed it."""
    root = tmp_path / "backup"
    store = CheckpointStore(root)
    commit(store, 1)
    for name in os.listdir(root):
        (root / name).unlink()
    root.rmdir()
    with pytest.raises(StoreError) as caught:
        commit(store, 2)
    assert not isinstance(caught.value, StaleTermError)
    assert str(root) in str(caught.value)
    assert not root.exists()
    assert store.latest() is None
    root.mkdir()
    commit(store, 3)
    assert CheckpointStore(root).open_run() == store.open_run()


def test_a_directory_that_is_no_directory_is_named(tmp_path: Path) -> None:
    """Every operation says which path it could not use; none takes it for an empty run."""
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
    """Permission denied is an error of the store, with the path; root is never denied, so it is simulated."""
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
    """Permission denied on one checkpoint: it may hold the newest state, so no older one is taken for that."""
    secret = write(tmp_path, 2)
    write(tmp_path, 1)
    real = Path.read_bytes

    def denied(path: Path) -> bytes:
        if path == secret:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
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
    """A request that times out, a handle that is stale: the newest is there, and is neither passed over nor pruned."""

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


# -------------------------------------------------------------------- fencing and pruning


def test_a_commit_of_a_lower_term_is_refused(tmp_path: Path) -> None:
    """A deposed writer learns which term is the newest, and writes nothing."""
    old, new = CheckpointStore(tmp_path), CheckpointStore(tmp_path)
    commit(old, 1, term=1)
    commit(new, 2, term=2)
    before = files(tmp_path)
    with pytest.raises(StaleTermError) as caught:
        commit(old, 9, term=1)
    assert (caught.value.term, caught.value.newest, caught.value.path) == (1, 2, str(tmp_path))
    assert files(tmp_path) == before


def test_a_damaged_checkpoint_of_a_newer_term_still_fences(tmp_path: Path) -> None:
    """Its term was granted: whoever holds an older one is deposed."""
    store = CheckpointStore(tmp_path)
    commit(store, 1, term=1)
    damage(write(tmp_path, 2, term=5))
    assert store.highest_term() == 5
    with pytest.raises(StaleTermError):
        commit(store, 2, term=1)
    commit(store, 2, term=6)
    assert newest(store) == (6, 2)


def test_a_late_file_of_a_lower_term_never_becomes_the_newest(tmp_path: Path) -> None:
    """A writer paused after all its checks wakes up and renames: it lands below, whatever its position."""
    store = CheckpointStore(tmp_path, run_id="run")
    commit(store, 1, term=2)
    late = write(tmp_path, 99, term=1)
    assert newest(store) == (2, 1)
    assert store.newest_header() == store.load(checkpoint_name(2, Position(1))).header
    commit(store, 2, term=2)
    assert not late.exists()


def test_a_late_commit_leaves_newer_terms_alone(tmp_path: Path) -> None:
    """A deposed writer whose commit was under way prunes nothing of its successor, not even what a crash left."""
    new = CheckpointStore(tmp_path, run_id="run", keep=2)
    partial = tmp_path / ".partial-0000000002-00000003-00000000.ckpt-aaaa"

    class Paused(LocalStorage):
        def _publish(self, partial_: Path, path: Path) -> None:
            commit(new, 1, term=2)
            commit(new, 2, term=2)
            partial.touch()
            partial_.touch()  # the successor's prune took it for litter
            super()._publish(partial_, path)

    old = CheckpointStore(Paused(tmp_path), run_id="run")
    commit(old, 9, term=1)
    assert partial.exists()
    assert newest(new) == (2, 2)
    assert [row for row in checkpoints(new) if row[0] == 2] == [(2, 2), (2, 1)]
    old.prune(term=1)
    assert checkpoints(new) == [(2, 2), (2, 1)]
    assert partial.exists()


def test_a_writer_deposed_while_it_stages_is_told_so(tmp_path: Path) -> None:
    """Its successor took its partial file for litter: that is a stale term, not a broken disk."""
    new = CheckpointStore(tmp_path, run_id="run")

    class Paused(LocalStorage):
        def _publish(self, partial: Path, path: Path) -> None:
            commit(new, 1, term=2)
            assert not partial.exists()
            super()._publish(partial, path)

    with pytest.raises(StaleTermError) as caught:
        commit(CheckpointStore(Paused(tmp_path), run_id="run"), 9, term=1)
    assert (caught.value.term, caught.value.newest) == (1, 2)
    assert newest(new) == (2, 1)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_ones_are_kept(tmp_path: Path, keep: int) -> None:
    """As many as asked for, over the borders of terms."""
    store = CheckpointStore(tmp_path, keep=keep)
    done: list[tuple[int, int]] = []
    for epoch, term in ((1, 1), (2, 1), (2, 2), (3, 2), (1, 5)):
        commit(store, epoch, term=term)
        done.insert(0, (term, epoch))
        assert checkpoints(store) == done[:keep]
    assert len(files(tmp_path)) == keep + 1


def test_only_those_that_verify_count_as_kept(tmp_path: Path) -> None:
    """A damaged one never takes the place of one that could be restored."""
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
    """Somebody may still repair them."""
    for epoch in (1, 2):
        damage(write(tmp_path, epoch))
    before = files(tmp_path)
    CheckpointStore(tmp_path).prune(term=1)
    assert files(tmp_path) == before


def litter(root: Path) -> list[str]:
    """What crashed writers of term 1, or before the run was opened, left."""
    names = [".partial-0000000001-00000002-00000000.ckpt-aaaa", ".partial-run.json-aaaa"]
    for name in names:
        (root / name).touch()
    return names


def test_what_crashed_writers_left_goes_with_the_next_commit(tmp_path: Path) -> None:
    """That of newer terms stays, and what only looks like ours."""
    left = litter(tmp_path)
    other = [".partial-0000000009-00000002-00000000.ckpt-aaaa", ".partial-notes", ".partial-x.ckpt-aaaa"]
    for name in other:
        (tmp_path / name).touch()
    commit(CheckpointStore(tmp_path), 1)
    assert not set(left) & set(files(tmp_path))
    assert set(other) < set(files(tmp_path))


def test_nothing_is_tidied_away_before_the_commit_is_durable(tmp_path: Path) -> None:
    """A partial file of an older term may be the last save of a leader that is being preempted."""
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
    """A disk that is full of torn files is not full for ever; one that is full of other things is."""

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
    """Another's rename may not be on the disk yet when we see it: first the directory, then the removals."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    storage = Recorded(tmp_path)
    CheckpointStore(storage).prune(term=1)
    assert storage.calls == ["sync directory", f"remove {checkpoint_name(1, Position(1))}"]


def test_threads_share_an_instance(tmp_path: Path) -> None:
    """A prune from another thread waits for a running commit instead of taking its partial file away."""
    staged, blocked_or_done = threading.Event(), threading.Event()

    class Slow(LocalStorage):
        def _publish(self, partial: Path, path: Path) -> None:
            staged.set()
            assert blocked_or_done.wait(30)
            super()._publish(partial, path)

    class Told:
        """The store's lock, telling when somebody comes while a commit is staged."""

        def __init__(self, lock: threading.Lock) -> None:
            self._lock = lock

        def __enter__(self) -> None:
            if staged.is_set():
                blocked_or_done.set()
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    store = CheckpointStore(Slow(tmp_path))
    store._lock = Told(store._lock)  # type: ignore[assignment]
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


writes = st.tuples(
    st.integers(0, 2),  # which instance
    st.integers(1, 4),  # term
    st.integers(0, 5),  # epoch
    st.sampled_from(["commit", "commit", "late", "damaged", "prune", "newest"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.integers(1, 3), steps=st.lists(writes, max_size=12))
def test_the_latest_is_always_the_greatest_term_and_position_that_verifies(
    tmp_path_factory: pytest.TempPathFactory, keep: int, steps: list[tuple[int, int, int, str]]
) -> None:
    """Whatever instances commit, write late, damage and prune in whatever order."""
    root = tmp_path_factory.mktemp("property")
    stores = [CheckpointStore(root, run_id="run", keep=keep) for _ in range(3)]
    stores[0].open_run()
    valid: set[tuple[int, int]] = set()
    bad: set[tuple[int, int]] = set()
    for who, term, epoch, what in steps:
        highest = max((seen for seen, _ in valid | bad), default=0)
        if what == "commit" and term < highest:
            with pytest.raises(StaleTermError):
                commit(stores[who], epoch, term=term)
        elif what == "commit":
            commit(stores[who], epoch, term=term)
            valid.add((term, epoch))
            bad.discard((term, epoch))
        elif what == "late":
            write(root, epoch, term=term)
            valid.add((term, epoch))
            bad.discard((term, epoch))
        elif what == "damaged" and (term, epoch) not in valid:
            damage(write(root, epoch, term=term))
            bad.add((term, epoch))
        elif what == "prune":
            stores[who].prune(term=term)
        on_disk = {(row.term, row.position.epoch): row.valid for row in CheckpointStore(root).list()}
        assert set(on_disk) <= valid | bad
        assert all(on_disk[key] == (key in valid) for key in on_disk)
        greatest = max(valid, default=None)
        for store in stores:
            if greatest is None and bad:
                with pytest.raises(NoUsableCheckpointError):
                    store.latest()
            else:
                assert newest(store) == greatest
            header = store.newest_header()
            assert (header and (header.term, header.epoch)) == greatest
        # Forget what was pruned rightly: below the newest `keep` that verify.
        kept = sorted(valid, reverse=True)[:keep]
        assert set(kept) <= set(on_disk)
        valid, bad = valid & set(on_disk), bad & set(on_disk)


# -------------------------------------------------------------------- power cuts


class Disk:
    """What a power cut would leave of a directory: synced bytes, and any of the name changes not yet synced."""

    def __init__(self) -> None:
        self.bytes: dict[int, bytes] = {}
        self.names: dict[str, int] = {}
        self.pending: list[tuple[str | None, str | None, int]] = []

    def images(self) -> Iterator[dict[str, bytes]]:
        """Each directory that could be found after a power cut now."""
        for chosen in itertools.product((False, True), repeat=len(self.pending)):
            names = dict(self.names)
            for (old, new, inode), happened in zip(self.pending, chosen, strict=True):
                if happened and old is not None:
                    names.pop(old, None)
                if happened and new is not None:
                    names[new] = inode
            yield {name: self.bytes.get(inode, b"") for name, inode in names.items()}

    def sync(self) -> None:
        for old, new, inode in self.pending:
            if old is not None:
                self.names.pop(old, None)
            if new is not None:
                self.names[new] = inode
        self.pending.clear()


class Powered(LocalStorage):
    """A storage that tells a `Disk` what it does, and calls `look` around each step."""

    def __init__(self, root: Path, disk: Disk, look: Callable[[], None]) -> None:
        super().__init__(root)
        self._disk, self._look = disk, look

    def _write(self, descriptor: int, chunk: bytes) -> None:
        super()._write(descriptor, chunk)
        inode, name = os.fstat(descriptor).st_ino, Path(f"/proc/self/fd/{descriptor}").readlink().name
        if (None, name, inode) not in self._disk.pending:
            self._disk.bytes.pop(inode, None)  # the number of a removed file may be used again
            self._disk.pending.append((None, name, inode))
        self._look()

    def _sync(self, descriptor: int) -> None:
        self._look()
        super()._sync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self._disk.bytes[path.stat().st_ino] = path.read_bytes()
        self._look()

    def _publish(self, partial: Path, path: Path) -> None:
        self._look()
        inode = partial.stat().st_ino
        super()._publish(partial, path)
        self._disk.pending.append((partial.name, path.name, inode))
        self._look()

    def _sync_directory(self) -> None:
        super()._sync_directory()
        self._disk.sync()
        self._look()

    def _unlink(self, path: Path) -> None:
        self._look()
        super()._unlink(path)
        self._disk.pending.append((path.name, None, 0))
        self._look()


@pytest.mark.parametrize("keep", [1, 2])
def test_a_power_cut_at_any_step_leaves_the_last_committed_checkpoint(tmp_path: Path, keep: int) -> None:
    """For every set of name changes that may or may not have reached the disk, and files without unsynced bytes."""
    root, scratch = tmp_path / "backup", tmp_path / "after"
    CheckpointStore(root, run_id="run").open_run()
    disk, committed, looks = Disk(), [Position(0)], 0

    def look() -> None:
        nonlocal looks
        for image in disk.images():
            looks += 1
            scratch.mkdir()
            for name, raw in image.items():
                (scratch / name).write_bytes(raw)
            found = CheckpointStore(scratch, keep=keep).latest() if committed[-1] > Position(0) else None
            assert found is None or found.position >= committed[-1], (committed, image)
            assert committed[-1] == Position(0) or found is not None, (committed, image)
            for name in image:
                (scratch / name).unlink()
            scratch.rmdir()

    store = CheckpointStore(Powered(root, disk, look), run_id="run", keep=keep)
    for epoch in (1, 2, 3, 4):
        commit(store, epoch)
        committed.append(Position(epoch))
        look()
    assert looks > 80


def test_a_late_prune_does_not_rely_on_a_rename_that_is_not_durable(tmp_path: Path) -> None:
    """A deposed writer prunes while its successor's first checkpoint is visible and not yet synced: both may go."""
    disk = Disk()
    new = CheckpointStore(Powered(tmp_path, disk, lambda: None), run_id="run")

    class Late(Powered):
        def _sync_directory(self) -> None:
            super()._sync_directory()
            # The successor renames now, and the power goes before it has synced the directory.
            path = write(tmp_path, 1, term=2)
            disk.bytes[path.stat().st_ino] = path.read_bytes()
            disk.pending.append((None, path.name, path.stat().st_ino))

    new.open_run()
    commit(CheckpointStore(Late(tmp_path, disk, lambda: None), run_id="run"), 5)
    assert newest(new) == (2, 1)
    for image in disk.images():
        assert any(raw for name, raw in image.items() if name.endswith(".ckpt")), image


# -------------------------------------------------------------------- the run's id


def test_a_run_id_is_made_once_and_kept(tmp_path: Path) -> None:
    """Every later store of the directory has the same, without being told."""
    made = CheckpointStore(tmp_path / "backup").open_run()
    assert made
    assert CheckpointStore(tmp_path / "backup").open_run() == made
    assert CheckpointStore(tmp_path / "backup").read_run_id() == made
    assert files(tmp_path / "backup") == [RUN_FILE]
    assert CheckpointStore(tmp_path / "other").open_run() != made


def test_the_run_id_argument_names_a_new_run(tmp_path: Path) -> None:
    """It is kept in the directory."""
    assert CheckpointStore(tmp_path, run_id="job-42").open_run() == "job-42"
    assert CheckpointStore(tmp_path).open_run() == "job-42"


def test_a_directory_of_another_run_is_refused_naming_both(tmp_path: Path) -> None:
    """By the id that is kept in the directory."""
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
    """Reading and writing name both runs; nothing of the other is pruned or deleted, nothing of ours lost to it."""
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
    """It neither counts as kept nor is it pruned."""
    store = CheckpointStore(tmp_path, run_id="ours", keep=2)
    theirs = write(tmp_path, 1, run_id="theirs")
    for epoch in (2, 3, 4):
        write(tmp_path, epoch, run_id="ours")
    commit(store, 5)
    assert checkpoints(store) == [(1, 5), (1, 4), (1, 1)]
    assert theirs.exists()


def test_what_was_seen_before_the_run_was_opened_is_checked_after(tmp_path: Path) -> None:
    """A header that is kept in mind is not thereby one of this run."""
    CheckpointStore(tmp_path, run_id="ours").open_run()
    write(tmp_path, 1, run_id="theirs")
    store = CheckpointStore(tmp_path)
    assert store.newest_header() is not None
    with pytest.raises(RunMismatchError):
        commit(store, 2)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b'{"run_id":5}', b'{"run_id":"../x"}', b'{"run_id":null}'])
def test_a_damaged_run_file_is_a_clear_error(tmp_path: Path, raw: bytes) -> None:
    """It names the file and says what to do; nothing is overwritten."""
    store = CheckpointStore(tmp_path, run_id="run")
    (tmp_path / RUN_FILE).write_bytes(raw)
    for operation in (store.read_run_id, store.find_run_id, store.open_run):
        with pytest.raises(StoreError, match="is damaged: remove it") as caught:
            operation()
        assert caught.value.path == str(tmp_path / RUN_FILE)
    assert (tmp_path / RUN_FILE).read_bytes() == raw


def test_a_run_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A directory in its place is an error of the store."""
    (tmp_path / RUN_FILE).mkdir()
    with pytest.raises(StoreError) as caught:
        CheckpointStore(tmp_path).open_run()
    assert caught.value.path == str(tmp_path / RUN_FILE)


def test_a_lost_run_file_is_made_again_from_the_checkpoints(tmp_path: Path) -> None:
    """The newest that verifies tells the id."""
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
    """The checkpoints tell, and nothing is written."""
    write(tmp_path, 1, run_id="theirs")
    before = files(tmp_path)
    with pytest.raises(RunMismatchError) as caught:
        CheckpointStore(tmp_path, run_id="ours").open_run()
    assert (caught.value.expected, caught.value.found) == ("ours", "theirs")
    assert files(tmp_path) == before


def test_a_lost_run_file_and_no_usable_checkpoint_make_no_new_run(tmp_path: Path) -> None:
    """A new id would make strangers of checkpoints that somebody may repair."""
    damage(write(tmp_path, 1))
    before = files(tmp_path)
    with pytest.raises(NoUsableCheckpointError):
        CheckpointStore(tmp_path).open_run()
    assert files(tmp_path) == before


def test_a_worker_whose_partial_run_file_was_tidied_away_takes_the_id_that_is_there(tmp_path: Path) -> None:
    """The first worker may commit, and prune, between our writing aside and our linking into place."""
    first = CheckpointStore(tmp_path)

    class Paused(LocalStorage):
        def _sync(self, descriptor: int) -> None:
            super()._sync(descriptor)
            commit(first, 1)
            assert not list(tmp_path.glob(".partial-*"))

    assert CheckpointStore(Paused(tmp_path)).open_run() == first.open_run()


def test_a_directory_removed_while_the_run_is_opened_is_named(tmp_path: Path) -> None:
    """That is no other worker's doing to be passed over."""
    root = tmp_path / "backup"

    class Removed(LocalStorage):
        def _sync(self, descriptor: int) -> None:
            for name in os.listdir(root):
                (root / name).unlink()
            root.rmdir()

    with pytest.raises(StoreError, match="No such file"):
        CheckpointStore(Removed(root)).open_run()


def test_a_run_that_is_already_open_stays_open(tmp_path: Path) -> None:
    """Its id is kept in mind, so a lost file doesn't change the run in the middle."""
    store = CheckpointStore(tmp_path)
    run_id = store.open_run()
    (tmp_path / RUN_FILE).unlink()
    assert store.open_run() == run_id
    assert commit(store, 1).run_id == run_id


# -------------------------------------------------------------------- delete


def test_delete_removes_all_of_ours_and_the_empty_directory(tmp_path: Path) -> None:
    """Checkpoints of every term, litter, the run's id, and the directory itself."""
    root = tmp_path / "backup"
    store = CheckpointStore(root)
    commit(store, 1)
    write(root, 5, term=9, run_id=store.open_run())
    damage(write(root, 6, term=9))
    (root / ".partial-0000000009-00000002-00000000.ckpt-aaaa").touch()
    (root / ".probe-aaaa").touch()
    store.delete()
    assert files(tmp_path) == []
    assert store.open_run()
    assert store.latest() is None


def test_delete_takes_the_oldest_first_and_the_run_id_last(tmp_path: Path) -> None:
    """A crash in between leaves a run that can still be resumed from its newest checkpoint, or none."""
    storage = Recorded(tmp_path)
    store = CheckpointStore(storage, keep=3)
    names = [commit(store, epoch).name for epoch in (1, 2, 3)]
    storage.calls.clear()
    store.delete()
    assert storage.calls == [f"remove {name}" for name in (*names, RUN_FILE)]


def test_delete_leaves_what_is_not_ours(tmp_path: Path) -> None:
    """Somebody else's file stays, and its directory with it."""
    store = CheckpointStore(tmp_path)
    commit(store, 1)
    (tmp_path / "notes.txt").touch()
    store.delete()
    assert files(tmp_path) == ["notes.txt"]


def test_a_corrupt_checkpoint_is_named_when_it_is_loaded(tmp_path: Path) -> None:
    """Path and reason are attributes."""
    path = write(tmp_path, 1)
    damage(path)
    with pytest.raises(CorruptCheckpointError) as caught:
        CheckpointStore(tmp_path).load(path.name)
    assert (caught.value.path, caught.value.reason) == (str(path), "the digest does not match")


def test_a_pipe_named_like_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """To open it would wait for a writer for ever."""
    os.mkfifo(tmp_path / checkpoint_name(9, Position(9)))
    assert CheckpointStore(tmp_path).names() == []
