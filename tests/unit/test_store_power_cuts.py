"""Power cuts: each directory that a disk may contain after one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage
from tests.support.stores import commit, newest, write


class Disk:
    """The state of a directory after a power cut: synced bytes, and any subset of the unsynced name changes."""

    def __init__(self) -> None:
        self.bytes: dict[int, bytes] = {}
        self.names: dict[str, int] = {}
        self.pending: list[tuple[str | None, str | None, int]] = []

    def images(self) -> Iterator[dict[str, bytes]]:
        """Yield each directory that a power cut now could leave."""
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
    """Reports each step to a `Disk`, and calls `look` around it."""

    def __init__(self, root: Path, disk: Disk, look: Callable[[], None]) -> None:
        super().__init__(root)
        self._disk, self._look = disk, look

    def _write(self, descriptor: int, chunk: bytes | memoryview) -> None:
        super()._write(descriptor, chunk)
        inode, name = os.fstat(descriptor).st_ino, Path(f"/proc/self/fd/{descriptor}").readlink().name
        if (None, name, inode) not in self._disk.pending:
            self._disk.bytes.pop(inode, None)  # a new file may reuse the number of a removed one
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
    """Each subset of the name changes that are not yet synced may be lost, and so may bytes that are not yet synced."""
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
    """A late writer's prune leaves a durable checkpoint while the successor's rename is visible and not synced."""
    disk = Disk()
    new = CheckpointStore(Powered(tmp_path, disk, lambda: None), run_id="run")

    class Late(Powered):
        def _sync_directory(self) -> None:
            super()._sync_directory()
            # The successor renames now, and the power is cut before it syncs the directory.
            path = write(tmp_path, 1, term=2)
            disk.bytes[path.stat().st_ino] = path.read_bytes()
            disk.pending.append((None, path.name, path.stat().st_ino))

    new.open_run()
    commit(CheckpointStore(Late(tmp_path, disk, lambda: None), run_id="run"), 5)
    assert newest(new) == (2, 1)
    for image in disk.images():
        assert any(raw for name, raw in image.items() if name.endswith(".ckpt")), image
