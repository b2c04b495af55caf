"""Checkpoint stores for tests: commit, write past a store's checks, damage, and list."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot, encode
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage


def snapshot(epoch: int, batch: int = 0, body: bytes = b'{"x":1}') -> Snapshot:
    return Snapshot(position=Position(epoch, batch), body=body)


def commit(store: CheckpointStore, epoch: int, batch: int = 0, *, term: int = 1) -> CheckpointHeader:
    return store.commit(snapshot(epoch, batch), term=term, worker_id="w")


def write(root: Path, epoch: int, batch: int = 0, *, term: int = 1, run_id: str = "run", body: bytes = b"{}") -> Path:
    """Write a checkpoint directly, as a paused writer would after all its checks."""
    header, line = encode(snapshot(epoch, batch, body=body), run_id=run_id, term=term, worker_id="w", created_at="")
    path = root / header.name
    path.write_bytes(line + body + b"\n")
    return path


def damage(path: Path) -> None:
    """Flip one bit of the body."""
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


def remove_at_once(directory: Path) -> None:
    """Remove a directory whose workers are alive: between two of their calls, never while its files are listed."""
    aside = directory.rename(directory.with_name(f"{directory.name}-removed"))
    shutil.rmtree(aside)


def files(root: Path) -> list[str]:
    return sorted(os.listdir(root))


def checkpoints(store: CheckpointStore) -> list[tuple[int, int]]:
    """Return (term, epoch) of all checkpoints, newest first."""
    return [(row.term, row.position.epoch) for row in store.list()]


def newest(store: CheckpointStore) -> tuple[int, int] | None:
    """Return (term, epoch) of the newest checkpoint that verifies."""
    found = store.latest()
    return None if found is None else (found.header.term, found.position.epoch)


class Recorded(LocalStorage):
    """Record the system calls of a commit in `calls`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: list[str] = []

    def _write(self, descriptor: int, chunk: bytes | memoryview) -> None:
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
