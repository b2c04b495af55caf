"""Checkpoints on a disk: immutable files whose names order them.

The newest checkpoint is the one with the greatest (term, position) that verifies. A writer that wakes up late
commits under its old term, and so below everything that newer terms have committed: the order fences, no
lock is needed. That holds for readers that go by this order, not for somebody who goes by file times.
`keep` bounds what stays on the disk; a disk that lies about fsync can still lose what it promised.

    DIRECTORY/
      run.json                               the run's id, made once, exclusively
      0000000007.term                        claimed by the leader of term 7, exclusively
      0000000007-00000002-00000003.ckpt      term 7, epoch 2, batch 3
      .partial-0000000007-…                  being staged, or left by a crash
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from distributed_backup.checkpoint import (
    Checkpoint,
    CheckpointHeader,
    Position,
    Snapshot,
    checkpoint_name,
    decode,
    encode,
    parse_name,
)
from distributed_backup.errors import (
    ConfigError,
    CorruptCheckpointError,
    NoUsableCheckpointError,
    RunMismatchError,
    StaleTermError,
    StoreError,
)
from distributed_backup.run_directory import PARTIAL, PARTIAL_RUN, RUN_FILE, Chunks, Names, RunDirectory, is_claim

logger = logging.getLogger(__name__)


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


class CheckpointStore(RunDirectory):
    """The checkpoints of one run in one directory.

    Making one touches no disk. One process may share an instance between threads.

    Args:
        root: The directory; made at the first write, with its parents.
        run_id: Id of the run; None to take the directory's, or to make a new one.
        keep: How many checkpoints stay after a commit.

    Raises:
        ConfigError: A wrong directory or run id, or `keep` < 1.

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
        if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
            raise ConfigError(f"keep must be a whole number of at least 1, got {keep!r}")
        super().__init__(root, run_id=run_id)
        self._keep = keep
        self._lock = threading.Lock()
        # Checkpoints never change, so one look at each is enough to know how far the run has come.
        self._verified: dict[str, CheckpointHeader] = {}

    # ---------------------------------------------------------------- reading

    def _run_id_of_checkpoints(self) -> str | None:
        newest = self.latest()
        return None if newest is None else newest.header.run_id

    def names(self) -> Names:
        """Names of all checkpoints, newest first, verified or not; other files are passed over."""
        return sorted(filter(parse_name, self._entries()), reverse=True)

    def _highest_committed(self, found: Iterable[str]) -> int:
        return max(map(_term, found), default=0)

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
        checkpoint, problems = self._newest(self.load)
        if checkpoint is None and problems:
            raise NoUsableCheckpointError(path=str(self._root), reasons=problems)
        return checkpoint

    def newest_header(self) -> CheckpointHeader | None:
        """Header of the newest checkpoint that verified when it was first seen; cheap when asked again.

        Raises:
            RunMismatchError: The newest one belongs to another run.
            StoreError: The directory can't be read.
        """
        return self._newest(self._header)[0]

    def _newest[T](self, read: Callable[[str], T]) -> tuple[T | None, tuple[str, ...]]:
        """What `read` makes of the newest checkpoint that it accepts, and what was wrong with those above it.

        A checkpoint that has gone since the listing was pruned, so there is a newer one: look again. A name that
        can't be opened in an unchanged listing (a dangling link, a stale directory cache) is a problem like others.
        """
        names = self.names()
        while True:
            found, problems = self._first_readable(names, read)
            if any(isinstance(error.__cause__, FileNotFoundError) for error in problems.values()):
                before, names = names, self.names()
                if names != before:
                    continue
            for name, error in problems.items():
                logger.warning("checkpoint skipped name=%s reason=%s", name, _reason(error))
            return found, tuple(f"{name}: {_reason(error)}" for name, error in problems.items())

    @staticmethod
    def _first_readable[T](names: Names, read: Callable[[str], T]) -> tuple[T | None, dict[str, StoreError]]:
        problems: dict[str, StoreError] = {}
        for name in names:
            try:
                return read(name), problems
            except RunMismatchError:
                raise
            except StoreError as error:
                problems[name] = error
        return None, problems

    def _header(self, name: str) -> CheckpointHeader:
        header = self._verified.get(name)
        if header is None:
            # Only what verified is kept in mind: a read that failed once may succeed the next time.
            header = self._verified[name] = self.load(name).header
        self._check_run(header)
        return header

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
        except StoreError as error:
            problem = _reason(error)
        path = self._root / name
        with self._translated("read", path):
            try:
                size = path.lstat().st_size
            except FileNotFoundError:
                return None  # pruned while we looked
        return CheckpointInfo(name=name, term=term, position=position, bytes=size, header=header, problem=problem)

    def _check_run(self, header: CheckpointHeader) -> None:
        run_id = self._run_id or self._wanted_run_id
        if run_id not in (None, header.run_id):
            raise RunMismatchError(path=str(self._root), expected=str(run_id), found=header.run_id)

    # ---------------------------------------------------------------- writing

    def commit(self, snapshot: Snapshot, *, term: int, worker_id: str) -> CheckpointHeader:
        """Make `snapshot` the checkpoint of (term, position).

        Order: the bytes to a partial file, fsync; the rename; fsync of the directory; then prune. A crash
        before the rename leaves a partial file, after it a checkpoint; older checkpoints go only once the
        newer one is durable. What crashed writers left goes then too, because one of them may be alive, an older
        leader that is saving before its preemption; on a full disk it goes at once, and we try again.

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
            checkpoint_name(term, snapshot.position)  # refuses what is no term
            run_id = self.open_run()
            self.newest_header()  # refuses a directory whose newest checkpoint is another run's
            # Listed before the fsync of the directory, so that all of it is durable when we prune.
            found = self._entries()
            # Committed, not claimed: until a newer leader has saved something, an older one's save is worth having.
            if (newest := self._highest_committed(found)) > term:
                raise StaleTermError(path=str(self._root), term=term, newest=newest)
            header, line = encode(
                snapshot,
                run_id=run_id,
                term=term,
                worker_id=worker_id,
                created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            )
            litter = _partials(found, term)
            try:
                self._make_durable([line, snapshot.body, b"\n"], header)
            except StoreError as error:
                if not litter or not _is_full(error):
                    raise
                with self._quietly():
                    self._remove_all(litter)
                self._make_durable([line, snapshot.body, b"\n"], header)
            self._verified[header.name] = header
            with self._quietly():
                self._remove_all([*litter, *self._unneeded([*found, header.name], term)])
        return header

    def _make_durable(self, chunks: Chunks, header: CheckpointHeader) -> None:
        path = self._root / header.name
        partial = self._root / f"{PARTIAL}{header.name}-{secrets.token_hex(4)}"
        with self._translated("write", path):
            try:
                self._stage(partial, chunks)
                self._publish(partial, path)
                self._sync_directory()
            except BaseException as error:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
                if (
                    isinstance(error, FileNotFoundError)
                    and (newest := self._highest_committed(self._entries())) > header.term
                ):
                    # A newer writer has tidied our partial file away.
                    raise StaleTermError(path=str(self._root), term=header.term, newest=newest) from error
                raise

    def prune(self, *, term: int) -> None:
        """Remove what a writer of `term` no longer needs.

        That is all but the newest `keep` checkpoints that verify, and what crashed writers left. Nothing of a newer
        term or of another run is touched.

        Raises:
            StoreError: A file could not be removed.
        """
        with self._lock:
            found = self._entries()
            if found:
                with self._translated("sync", self._root):
                    self._sync_directory()
                self._remove_all([*_partials(found, term), *self._unneeded(found, term)])

    def _unneeded(self, found: Iterable[str], term: int) -> Names:
        names = sorted(set(filter(parse_name, found)), reverse=True)
        kept = [*islice((name for name in names if self._is_ours(name)), self._keep)]
        # A corrupt one above the oldest that is kept stays too: somebody may want to look at it. Oldest first,
        # so that nobody finds an older one where a newer one has gone.
        return [
            name
            for name in reversed(names)
            if kept and name < kept[-1] and _term(name) <= term and self._is_ours(name) is not False
        ]

    def _is_ours(self, name: str) -> bool | None:
        """Whether it verifies and is of this run; False: it is of another; None: it does not verify."""
        try:
            self._header(name)
        except RunMismatchError:
            return False
        except StoreError:
            return None
        return True

    def delete(self) -> None:
        """Remove everything of ours from the directory, and the directory itself if nothing else is in it.

        The checkpoints go oldest first and the run's id last, so that a crash in between leaves a run
        that can still be resumed, or none.

        Raises:
            StoreError: A file could not be removed.
        """
        with self._lock:
            found = self._entries()
            for name in sorted(filter(parse_name, found)):
                if self._is_ours(name) is not False:
                    self._remove(self._root / name)
            self._remove_all(name for name in found if name.startswith(PARTIAL) or is_claim(name))
            self._remove(self._root / RUN_FILE)
            self._verified.clear()
            self._run_id = None
            self.remove_root()

    def remove_root(self) -> None:
        """Remove the directory if nothing is in it."""
        with suppress(OSError):
            self._root.rmdir()

    def _remove_all(self, names: Iterable[str]) -> None:
        """Remove each; one that can't be removed does not save the others."""
        errors = []
        for name in names:
            try:
                self._remove(self._root / name)
            except StoreError as error:
                errors.append(error)
            self._verified.pop(name, None)
        if errors:
            raise errors[0]

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            # The commit stands; a file too many loses nothing.
            logger.warning("prune failed path=%s reason=%s", error.path, error)


def _term(name: str) -> int:
    parsed = parse_name(name)
    return 0 if parsed is None else parsed[0]


def _partials(found: Iterable[str], term: int) -> Names:
    """What crashed writers of `term` and older ones left."""
    names = [name for name in found if name.startswith(PARTIAL)]
    return [
        name
        for name in names
        if name.startswith(PARTIAL_RUN) or 0 < _term(name.removeprefix(PARTIAL).rpartition("-")[0]) <= term
    ]


def _is_full(error: StoreError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in {errno.ENOSPC, errno.EDQUOT}


def _reason(error: StoreError) -> str:
    return error.reason if isinstance(error, CorruptCheckpointError) else str(error)
