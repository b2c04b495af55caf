"""The checkpoints of a run: immutable files whose names order them.

The newest checkpoint is the one with the greatest (term, position) that verifies. A writer that wakes up late
commits under its old term, and so below everything that newer terms have committed: the order fences, no
lock is needed. That holds for readers that go by this order, not for somebody who goes by file times.
`keep` bounds what stays; what is durable is what the storage says is.

    DIRECTORY/
      run.json                               the run's id, made once, exclusively
      0000000007.term                        claimed by the leader of term 7, exclusively
      0000000007-00000002-00000003.ckpt      term 7, epoch 2, batch 3
      events-TIME-WORKER.jsonl               what a worker went through, see `event_log`
      .partial-0000000007-…                  being staged, or left by a crash; on disks only
      .probe-…                               made to see whether conditions are heeded; in buckets only
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot, checkpoint_name, encode
from distributed_backup.checkpoints.reader import CheckpointReader, checkpoints_among, term_of
from distributed_backup.checkpoints.run_identity import RUN_FILE, is_claim
from distributed_backup.errors import ConfigError, RunMismatchError, StaleTermError, StoreError
from distributed_backup.observability.events import is_event_log
from distributed_backup.storage import storage_from_url
from distributed_backup.storage.base import PARTIAL, PROBE, Chunks, Names, Storage

logger = logging.getLogger(__name__)

_PARTIAL_RUN: Final = PARTIAL + RUN_FILE


class CheckpointStore(CheckpointReader):
    """The checkpoints of one run in one place.

    Making one touches nothing. One process may share an instance between threads.

    Args:
        place: A directory, the URL of a place in an object store or on a Redis server (see `storage_from_url`), or a
            `Storage`; made at the first write.
        run_id: Id of the run; None to take the directory's, or to make a new one.
        keep: How many checkpoints stay after a commit.

    Raises:
        ConfigError: A wrong place or run id, or `keep` < 1.

    Example:
        >>> import tempfile
        >>> from distributed_backup.checkpoints.format import Position
        >>> store = CheckpointStore(tempfile.mkdtemp())
        >>> snapshot = Snapshot(position=Position(1), body=b'{}')
        >>> store.commit(snapshot, term=1, worker_id="w").name
        '0000000001-00000001-00000000.ckpt'
        >>> store.latest().position
        Position(epoch=1, batch=0)
    """

    def __init__(self, place: str | os.PathLike[str] | Storage, *, run_id: str | None = None, keep: int = 1) -> None:
        if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
            raise ConfigError(f"keep must be a whole number of at least 1, got {keep!r}")
        storage = place if isinstance(place, Storage) else storage_from_url(place, run_id=run_id)
        super().__init__(storage, run_id=run_id)
        self._keep = keep
        self._lock = threading.Lock()

    def commit(self, snapshot: Snapshot, *, term: int, worker_id: str) -> CheckpointHeader:
        """Make `snapshot` the checkpoint of (term, position).

        Order: the bytes, in one step to the eyes of readers; then prune. Older checkpoints go only once the newer one
        is durable. On a disk: a partial file, fsync; the rename; fsync of the directory. A crash before the rename
        leaves a partial file, after it a checkpoint. What crashed writers left goes last, for one of them may be alive,
        an older leader that is saving before its preemption; on a full disk it goes at once, and we try again.

        Args:
            snapshot: What to keep.
            term: The writer's term, from the election.
            worker_id: The writer.

        Returns:
            The header of the checkpoint.

        Raises:
            StaleTermError: The directory holds a checkpoint of a newer term, or another worker's of this one.
            RunMismatchError: The directory belongs to another run.
            StoreError: The bytes could not be made durable; earlier checkpoints are as they were.
        """
        checkpoint_name(term, snapshot.position)  # refuses what is no term
        with self._lock:
            run_id = self.open_run()
            # Listed before the fsync of the directory, so that all of it is durable when we prune.
            found = self._storage.names()
            self._newest(self._header, found)  # refuses a directory whose newest checkpoint is another run's
            header, line = encode(
                snapshot,
                run_id=run_id,
                term=term,
                worker_id=worker_id,
                created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            )
            litter = _partials(found, term)
            try:
                self._put(header, [line, snapshot.body, b"\n"], found)
            except StoreError as error:
                if not litter or not _is_full(error):
                    raise
                with self._quietly():
                    self._remove_all(litter)
                self._put(header, [line, snapshot.body, b"\n"], found)
            self._verified[header.name] = header
            with self._quietly():
                self._remove_all([*litter, *self._unneeded([*found, header.name], term)])
        return header

    def _put(self, header: CheckpointHeader, chunks: Chunks, found: Names) -> None:
        self._check_writer(header, found)
        newer = f"{header.term + 1:010d}"
        try:
            self._storage.put(header.name, chunks, new=header.name not in found, below=newer)
        except StoreError as error:
            if not isinstance(error.__cause__, FileExistsError | FileNotFoundError):
                raise
            # A newer writer was here since we looked; or we were, and did not hear of it.
            seen = self._storage.names()
            self._check_writer(header, seen, error)
            if header.name not in seen:
                raise
            self._storage.put(header.name, chunks, below=newer)

    def _check_writer(self, header: CheckpointHeader, found: Names, cause: StoreError | None = None) -> None:
        """Whether it is ours to write, as far as can be told from what is there.

        Committed, not claimed: until a newer leader has saved something, an older one's save is worth having.
        """
        newest = self._highest_committed(found)
        if newest > header.term:
            raise StaleTermError(path=self.location, term=header.term, newest=newest) from cause
        if header.name in found and self._is_ours(header.name):
            writer = self._header(header.name).worker_id
            if writer != header.worker_id:
                raise StaleTermError(path=self.location, term=header.term, newest=newest, writer=writer) from cause

    def prune(self, *, term: int, keep: int | None = None) -> Names:
        """Remove what is no longer needed, from beside the writer of `term`.

        That is all but the newest checkpoints that verify, and what crashed writers of earlier terms left. Nothing of a
        newer term or of another run is touched, nor what the writer of `term` may be writing just now.

        Args:
            term: The highest that is removed from.
            keep: How many checkpoints stay; None for the store's own number.

        Returns:
            The names of what was removed.

        Raises:
            StoreError: A file could not be removed.
        """
        with self._lock:
            found = self._storage.names()
            unneeded = [*_partials(found, term - 1), *self._unneeded(found, term, keep)]
            if unneeded:
                self._storage.sync()
                self._remove_all(unneeded)
        return unneeded

    def _unneeded(self, found: Iterable[str], term: int, keep: int | None = None) -> Names:
        names = checkpoints_among(found)
        kept = [*islice((name for name in names if self._is_ours(name)), keep or self._keep)]
        # A corrupt one above the oldest that is kept stays too: somebody may want to look at it. Oldest first,
        # so that nobody finds an older one where a newer one has gone.
        return [
            name
            for name in reversed(names)
            if kept and name < kept[-1] and term_of(name) <= term and self._is_ours(name) is not False
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
            found = self._storage.names()
            for name in reversed(checkpoints_among(found)):
                if self._is_ours(name) is not False:
                    self._storage.remove(name)
            litter = (PARTIAL, PROBE)
            self._remove_all(name for name in found if name.startswith(litter) or is_claim(name) or is_event_log(name))
            self._storage.remove(RUN_FILE)
            self._verified.clear()
            self._run_id = None
            self._storage.remove_if_empty()

    def _remove_all(self, names: Iterable[str]) -> None:
        """Remove each; one that can't be removed does not save the others."""
        errors = []
        for name in names:
            try:
                self._storage.remove(name)
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


def _partials(found: Iterable[str], term: int) -> Names:
    """What crashed writers of `term` and older ones left."""
    names = [name for name in found if name.startswith(PARTIAL)]
    return [
        name
        for name in names
        if name.startswith(_PARTIAL_RUN) or 0 < term_of(name.removeprefix(PARTIAL).rpartition("-")[0]) <= term
    ]


def _is_full(error: StoreError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in {errno.ENOSPC, errno.EDQUOT}
