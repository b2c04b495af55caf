"""Checkpoints on a disk: immutable files whose names order them.

The newest checkpoint is the one with the greatest (term, position) that verifies. A writer that wakes up late
commits under its old term, and so below everything that newer terms have committed: the order fences, no
lock is needed. That holds for readers that go by this order, not for somebody who goes by file times.
`keep` bounds what stays on the disk; a disk that lies about fsync can still lose what it promised.

    DIRECTORY/
      run.json                               the run's id, made once, exclusively
      0000000007-00000002-00000003.ckpt      term 7, epoch 2, batch 3
      .partial-0000000007-…                  being staged, or left by a crash
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import orjson

from distributed_backup.checkpoint import (
    Checkpoint,
    CheckpointHeader,
    Position,
    Snapshot,
    decode,
    encode,
    parse_name,
)
from distributed_backup.config import checked_name
from distributed_backup.errors import (
    ConfigError,
    CorruptCheckpointError,
    NoUsableCheckpointError,
    RunMismatchError,
    StaleTermError,
    StoreError,
)

logger = logging.getLogger(__name__)

RUN_FILE: Final = "run.json"
_PARTIAL: Final = ".partial-"

# `CheckpointStore.list` hides the builtin inside the class.
Names = list[str]
Chunks = list[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """One row of `CheckpointStore.list`.

    Args:
        name: File name.
        term: Term in the name.
        position: Position in the name.
        bytes: Size of the file.
        header: The header if the checkpoint verifies, else None.
        problem: What is wrong if it doesn't, else None.
    """

    name: str
    term: int
    position: Position
    bytes: int
    header: CheckpointHeader | None
    problem: str | None

    @property
    def valid(self) -> bool:
        """Whether the checkpoint verifies."""
        return self.header is not None


Rows = list[CheckpointInfo]


class CheckpointStore:
    """The checkpoints of one run in one directory.

    Making one touches no disk. One process may share an instance between threads.

    Args:
        root: The directory; made at the first write, with its parents.
        run_id: Id of the run; None to take the directory's, or to make a new one.
        keep: How many checkpoints stay after a commit.

    Raises:
        ConfigError: A wrong run id, or `keep` < 1.

    Example:
        >>> import tempfile
        >>> store = CheckpointStore(tempfile.mkdtemp())
        >>> snapshot = Snapshot(position=Position(1), body=b'{}')
        >>> store.commit(snapshot, term=1, worker_id="w").name
        '0000000001-00000001-00000000.ckpt'
        >>> store.latest().position
        Position(epoch=1, batch=0)
    """

    def __init__(self, root: str | os.PathLike[str], *, run_id: str | None = None, keep: int = 1) -> None:
        if keep < 1:
            raise ConfigError(f"keep must be at least 1, got {keep}")
        self._root = Path(root)
        self._wanted_run_id = None if run_id is None else checked_name("run_id", run_id)
        self._keep = keep
        self._run_id: str | None = None
        self._lock = threading.Lock()
        # Checkpoints never change, so one look at each is enough to know how far the run has come.
        self._verified: dict[str, CheckpointHeader | None] = {}

    @property
    def root(self) -> Path:
        """The directory."""
        return self._root

    # ---------------------------------------------------------------- the run

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
            StoreError: The directory can't be made or written.
        """
        if self._run_id is None:
            with self._translated("create", self._root):
                self._root.mkdir(parents=True, exist_ok=True)
            found = self.read_run_id() or self._run_id_of_checkpoints()
            run_id = self._claim_run_id(found or self._wanted_run_id or secrets.token_hex(8))
            if self._wanted_run_id not in (None, run_id):
                raise RunMismatchError(path=str(self._root), expected=str(self._wanted_run_id), found=run_id)
            self._run_id = run_id
        return self._run_id

    def _claim_run_id(self, run_id: str) -> str:
        path = self._root / RUN_FILE
        partial = self._root / f"{_PARTIAL}run-{secrets.token_hex(8)}"
        with self._translated("write", path):
            try:
                self._stage(partial, [orjson.dumps({"run_id": run_id}), b"\n"])
                os.link(partial, path)
                self._sync_directory()
            except FileExistsError:
                pass
            finally:
                partial.unlink(missing_ok=True)
        return self.read_run_id() or run_id

    def _run_id_of_checkpoints(self) -> str | None:
        newest = next(self._usable(self.names(), warn=False), None)
        return None if newest is None else newest.run_id

    # ---------------------------------------------------------------- reading

    def names(self) -> Names:
        """Names of all checkpoints, newest first, verified or not; other files are passed over."""
        with self._translated("list", self._root):
            try:
                entries = os.listdir(self._root)
            except FileNotFoundError:
                return []
        return sorted((name for name in entries if parse_name(name)), reverse=True)

    def highest_term(self) -> int:
        """The highest term in any checkpoint's name; 0 if there is none. No term up to it may be granted again."""
        return max((self._term(name) for name in self.names()), default=0)

    def load(self, name: str) -> Checkpoint:
        """Read and verify one checkpoint.

        Args:
            name: As `names` gives it.

        Raises:
            CorruptCheckpointError: It does not verify.
            RunMismatchError: It verifies and belongs to another run.
            StoreError: It is not there, or can't be read.
        """
        if parse_name(name) is None:
            raise StoreError(f"{name!r} is not the name of a checkpoint", path=str(self._root))
        path = self._root / name
        with self._translated("read", path):
            raw = path.read_bytes()
        checkpoint = decode(raw, path=str(path))
        self._check_run(checkpoint.header)
        return checkpoint

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; None if there are no checkpoints at all.

        Each unusable one that is passed over is named in a warning of the log.

        Raises:
            NoUsableCheckpointError: There are checkpoints and none verifies.
            RunMismatchError: The newest one belongs to another run.
            StoreError: The directory can't be read.
        """
        problems = []
        for name in self.names():
            try:
                return self.load(name)
            except CorruptCheckpointError as error:
                logger.warning("checkpoint skipped name=%s reason=%s", name, error.reason)
                problems.append(f"{name}: {error.reason}")
            except StoreError as error:
                if isinstance(error, RunMismatchError):
                    raise
                if (self._root / name).exists():
                    problems.append(str(error))
                    logger.warning("checkpoint skipped name=%s reason=%s", name, error)
        if problems:
            raise NoUsableCheckpointError(path=str(self._root), reasons=tuple(problems))
        return None

    def newest_header(self) -> CheckpointHeader | None:
        """Header of the newest checkpoint that verified when it was first seen; cheap when asked again."""
        return next(self._usable(self.names()), None)

    def list(self) -> Rows:
        """All checkpoints, newest first, each verified now.

        Raises:
            StoreError: The directory can't be read.
        """
        rows = (self._info(name) for name in self.names())
        return [row for row in rows if row is not None]

    def verify(self) -> Rows:
        """The checkpoints that do not verify, newest first."""
        return [row for row in self.list() if not row.valid]

    def _info(self, name: str) -> CheckpointInfo | None:
        term, position = parse_name(name) or (0, Position(0))
        header, problem = None, None
        try:
            header = self.load(name).header
        except CorruptCheckpointError as error:
            problem = error.reason
        except StoreError as error:
            problem = str(error)
        try:
            size = (self._root / name).stat().st_size
        except FileNotFoundError:
            return None  # pruned while we looked
        return CheckpointInfo(name=name, term=term, position=position, bytes=size, header=header, problem=problem)

    def _usable(self, names: Names, *, warn: bool = True) -> Iterator[CheckpointHeader]:
        for name in names:
            if name not in self._verified:
                try:
                    self._verified[name] = decode((self._root / name).read_bytes(), path=str(self._root / name)).header
                except (CorruptCheckpointError, OSError) as error:
                    if warn:
                        logger.warning("checkpoint skipped name=%s reason=%s", name, error)
                    self._verified[name] = None
            header = self._verified[name]
            if header is not None:
                yield header

    def _check_run(self, header: CheckpointHeader) -> None:
        run_id = self._run_id or self._wanted_run_id
        if run_id not in (None, header.run_id):
            raise RunMismatchError(path=str(self._root), expected=str(run_id), found=header.run_id)

    # ---------------------------------------------------------------- writing

    def commit(self, snapshot: Snapshot, *, term: int, worker_id: str) -> CheckpointHeader:
        """Make `snapshot` the checkpoint of (term, position).

        Order: the bytes to a partial file, fsync; the rename; fsync of the directory; then prune. A crash
        before the rename leaves a partial file, after it a checkpoint; older checkpoints go only once the
        newer one is durable.

        Args:
            snapshot: What to keep.
            term: The writer's term, from the election.
            worker_id: The writer.

        Returns:
            The header of the checkpoint.

        Raises:
            StaleTermError: The directory holds a checkpoint of a newer term.
            RunMismatchError: The directory belongs to another run.
            StoreError: The bytes could not be made durable; earlier checkpoints are as they were.
        """
        with self._lock:
            run_id = self.open_run()
            newest = self.highest_term()
            if newest > term:
                raise StaleTermError(path=str(self._root), term=term, newest=newest)
            header, line = encode(
                snapshot,
                run_id=run_id,
                term=term,
                worker_id=worker_id,
                created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            )
            path = self._root / header.name
            partial = self._root / f"{_PARTIAL}{header.name}-{secrets.token_hex(4)}"
            with self._translated("write", path):
                try:
                    self._stage(partial, [line, snapshot.body, b"\n"])
                    self._publish(partial, path)
                    self._sync_directory()
                except BaseException:
                    with suppress(OSError):
                        partial.unlink(missing_ok=True)
                    raise
            self._verified[header.name] = header
            self._prune_quietly(term)
        return header

    def prune(self, *, term: int) -> None:
        """Remove what a writer of `term` no longer needs.

        That is all but the newest `keep` checkpoints that verify, and what crashed writers left. Nothing of a newer
        term is touched.

        Raises:
            StoreError: A file could not be removed.
        """
        names = self.names()
        kept = {header.name for header, _ in zip(self._usable(names), range(self._keep), strict=False)}
        if not kept:
            return
        oldest = min(kept)
        for name in names:
            # A corrupt one above the oldest that is kept stays too: somebody may want to look at it.
            if name < oldest and self._term(name) <= term:
                self._remove(self._root / name)
                self._verified.pop(name, None)
        for path in self._root.glob(f"{_PARTIAL}*.ckpt-*"):
            if self._term(path.name.removeprefix(_PARTIAL).rpartition("-")[0]) <= term:
                self._remove(path)

    def delete(self) -> None:
        """Remove everything of ours from the directory, and the directory itself if nothing else is in it.

        The checkpoints go oldest first and the run's id last, so that a crash in between leaves a run
        that can still be resumed, or none.

        Raises:
            StoreError: A file could not be removed.
        """
        with self._lock:
            for name in reversed(self.names()):
                self._remove(self._root / name)
            if self._root.exists():
                for path in self._root.glob(f"{_PARTIAL}*"):
                    self._remove(path)
            self._remove(self._root / RUN_FILE)
            self._verified.clear()
            self._run_id = None
            with suppress(OSError):
                self._root.rmdir()

    def _prune_quietly(self, term: int) -> None:
        try:
            self.prune(term=term)
        except StoreError as error:
            # The commit stands; an old checkpoint too many loses nothing.
            logger.warning("prune failed path=%s reason=%s", error.path, error)

    # ------------------------------------------------- one system call each, for tests that crash in between

    def _stage(self, partial: Path, chunks: Chunks) -> None:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
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
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _remove(self, path: Path) -> None:
        with self._translated("remove", path):
            path.unlink(missing_ok=True)

    @staticmethod
    def _term(name: str) -> int:
        parsed = parse_name(name)
        return 0 if parsed is None else parsed[0]

    @contextmanager
    def _translated(self, verb: str, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"can't {verb} {path}: {error.strerror or error}", path=str(path)) from error
