"""A directory that is a run: its id, the terms that were used, and the system calls that keep files in it.

The id is made once, exclusively, by the first worker, and kept beside the checkpoints; whoever comes with another id is
refused. A term is claimed once, exclusively, by the worker that is to lead under it: whatever a coordinator forgets, no
two workers ever write under one number. Each system call that a commit rests on is one method, so that tests can crash
in between. It promises no exclusion between writers: see `store` for what orders them.
"""

from __future__ import annotations

import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import orjson

from distributed_backup.config import checked_name
from distributed_backup.errors import ConfigError, RunMismatchError, StoreError

RUN_FILE: Final = "run.json"
PARTIAL: Final = ".partial-"
PARTIAL_RUN: Final = ".partial-run-"
_CLAIMS_KEPT: Final = 8
_CLAIM: Final = re.compile(r"(\d{10})\.term")

# `CheckpointStore.list` hides the builtin inside that class.
Names = list[str]
Chunks = list[bytes]


class RunDirectory(ABC):
    """The directory of one run. Making one touches no disk.

    Args:
        root: The directory; made at the first write, with its parents.
        run_id: Id of the run; None to take the directory's, or to make a new one.

    Raises:
        ConfigError: A wrong directory or run id.
    """

    def __init__(self, root: str | os.PathLike[str], *, run_id: str | None = None) -> None:
        if not os.fspath(root) or "\0" in os.fspath(root):
            raise ConfigError(f"the backup directory must be a path, got {os.fspath(root)!r}")
        # Absolute, so that a training script that changes its working directory does not move the run.
        self._root = Path(root).absolute()
        self._wanted_run_id = None if run_id is None else checked_name("run_id", run_id)
        self._run_id: str | None = None

    @property
    def root(self) -> Path:
        """The directory."""
        return self._root

    def read_run_id(self) -> str | None:
        """The run id kept in the directory; None if there is none yet.

        Raises:
            StoreError: The file can't be read or is not as we write it.
        """
        path = self._root / RUN_FILE
        with self._translated("read", path):
            try:
                raw = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
        try:
            return checked_name("run_id", orjson.loads(raw)["run_id"])
        except (ValueError, KeyError, TypeError):
            raise StoreError(
                f"{path} is damaged: remove it, and the run's id is taken from its checkpoints",
                path=str(path),
            ) from None

    def open_run(self) -> str:
        """Make the directory and settle the run's id; the same answer for every worker of the run.

        The id is written aside and linked into place, which only the first worker can do (link(2) fails if
        the name exists), so that no worker ever reads half an id.

        Raises:
            RunMismatchError: The directory belongs to another run.
            NoUsableCheckpointError: The id is lost, and no checkpoint verifies that could tell it.
            StoreError: The directory can't be made or written.
        """
        if self._run_id is None:
            with self._translated("create", self._root):
                self._make_root()
            run_id = self.read_run_id() or self._claim_run_id(
                self._run_id_of_checkpoints() or self._wanted_run_id or secrets.token_hex(8)
            )
            if self._wanted_run_id not in (None, run_id):
                raise RunMismatchError(path=str(self._root), expected=str(self._wanted_run_id), found=run_id)
            self._run_id = run_id
        return self._run_id

    def _make_root(self) -> None:
        missing = [path for path in (self._root, *self._root.parents) if not path.exists()]
        self._root.mkdir(parents=True, exist_ok=True)
        for path in missing:
            self._sync_parent(path)

    def _claim_run_id(self, run_id: str) -> str:
        path = self._root / RUN_FILE
        partial = self._root / f"{PARTIAL_RUN}{secrets.token_hex(8)}"
        with self._translated("write", path):
            try:
                self._stage(partial, [orjson.dumps({"run_id": run_id}), b"\n"])
                os.link(partial, path)
                self._sync_directory()
            except FileExistsError:
                pass
            except FileNotFoundError:
                # Another worker was first, has committed since and tidied our partial file away.
                if self.read_run_id() is None:
                    raise
            finally:
                partial.unlink(missing_ok=True)
        return self.read_run_id() or run_id

    # ---------------------------------------------------------------- terms

    def highest_term(self) -> int:
        """The highest term that was claimed or committed under; 0 if there is none. None up to it may be granted again.

        Raises:
            StoreError: The directory can't be read.
        """
        return self._highest_term(self._entries())

    def _highest_term(self, found: Iterable[str]) -> int:
        names = list(found)
        claimed = max((int(name[:10]) for name in filter(is_claim, names)), default=0)
        return max(claimed, self._highest_committed(names))

    def claim_term(self, term: int) -> bool:
        """Claim `term` for the one worker that is to lead under it.

        The file is made exclusively (open(2), O_EXCL), which is the same for all machines that share the directory. The
        newest few claims stay: a machine that sees an old listing for a while still finds the name taken.

        Returns:
            False if it was claimed before, or a newer one was, or has been written under.

        Raises:
            StoreError: The directory can't be read or written.
        """
        path = self._root / f"{term:010d}.term"
        if term <= self.highest_term():
            return False
        with self._translated("claim the term", path):
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            except FileExistsError:
                return False
        found = self._entries()
        # A newer one by now: ours may be one that was claimed and tidied away since we looked.
        if self._highest_term(found) > term:
            return False
        for name in sorted(filter(is_claim, found))[:-_CLAIMS_KEPT]:
            with suppress(StoreError):  # a file too many loses nothing
                self._remove(self._root / name)
        return True

    @abstractmethod
    def _highest_committed(self, found: Iterable[str]) -> int:
        """The highest term that a file among `found` was committed under; 0 if there is none."""

    @abstractmethod
    def _run_id_of_checkpoints(self) -> str | None:
        """The run id that the directory's contents tell, if its file is lost."""

    def _entries(self) -> Names:
        with self._translated("list", self._root):
            try:
                with os.scandir(self._root) as entries:
                    return [entry.name for entry in entries if _is_file_or_was(entry)]
            except FileNotFoundError:
                return []

    # ------------------------------------------------- one system call each, for tests that crash in between

    def _stage(self, partial: Path, chunks: Chunks) -> None:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            with suppress(OSError):  # whatever the umask; a file system without modes has nothing to set
                os.fchmod(descriptor, 0o600)
            for chunk in chunks:
                self._write(file.fileno(), chunk)
            self._sync(file.fileno())

    def _write(self, descriptor: int, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            view = view[os.write(descriptor, view) :]

    def _sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def _publish(self, partial: Path, path: Path) -> None:
        partial.rename(path)

    def _sync_directory(self) -> None:
        _sync_names(self._root)

    def _sync_parent(self, made: Path) -> None:
        with suppress(PermissionError):  # a parent that may be written and not read
            _sync_names(made.parent)

    def _remove(self, path: Path) -> None:
        with self._translated("remove", path):
            path.unlink(missing_ok=True)

    @contextmanager
    def _translated(self, verb: str, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"can't {verb} {path}: {error.strerror or error}", path=str(path)) from error


def is_claim(name: str) -> bool:
    """Whether this is the name of a term's claim."""
    return _CLAIM.fullmatch(name) is not None


def _is_file_or_was(entry: os.DirEntry[str]) -> bool:
    """Regular files, and links to nothing, which are reported as damage; to open a pipe would hang."""
    return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110 - a DirEntry


def _sync_names(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
