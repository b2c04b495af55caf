"""Write the checkpoints of a run: commit, prune, delete.

Checkpoints are immutable files whose names order them. The order decides which one counts: see `fencing`. A committed
checkpoint is as durable as its storage promises.

    DIRECTORY/
      run.json                               the run's id, see `run_identity`
      0000000007.term                        the claim of term 7, see `fencing`
      0000000007-00000002-00000003.ckpt      the checkpoint of term 7, epoch 2, batch 3
      0000000007-00000003-00000000.final.ckpt  the final state of the run, after epoch 3
      0000000007-00000002-00000003.journal   answers of models since then, see `journal`
      events-TIME-WORKER.jsonl               a worker's events, see `observability/event_log.py`
      .partial-0000000007-…                  being written, or left by a crash (on disks only)
      .probe-…                               a test for conditional writes (in buckets only)
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice

from distributed_backup.checkpoints.fencing import TermClaims, check_final, check_writer, highest_term_among, is_claim
from distributed_backup.checkpoints.format import (
    CheckpointHeader,
    Snapshot,
    checkpoint_name,
    checkpoints_among,
    encode,
    parse_name,
    term_of,
)
from distributed_backup.checkpoints.journal import (
    is_of_another_run,
    segments_among,
    term_of_segment,
    unneeded_segments,
)
from distributed_backup.checkpoints.reader import CheckpointReader
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.errors import ConfigError, RunMismatchError, StoreError
from distributed_backup.observability.events import is_event_log
from distributed_backup.position import Position
from distributed_backup.storage import storage_from_url
from distributed_backup.storage.base import Chunks, Names, Storage, is_probe, partial_target

logger = logging.getLogger(__name__)


class CheckpointStore(CheckpointReader):
    """The checkpoints of one run in one place.

    The constructor does no I/O. Threads may share an instance.

    Args:
        place: A directory, a URL in an object store or on a Redis server (see `storage_from_url`), or a `Storage`. The
            first write creates it.
        run_id: Id of the run, None to take the directory's or to create one.
        keep: Number of checkpoints that stay after a commit.

    Attributes:
        terms: The claims of the run's terms.
        slowest_follower: Returns the position of the slowest worker that reads the journal. A commit keeps the
            segments that it needs.

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
        self.terms = TermClaims(storage)
        self.slowest_follower: Callable[[], Position | None] = lambda: None
        self._keep = keep
        self._lock = threading.Lock()

    def open_run(self) -> str:
        """Create the directory and return the run's id. All workers of a run get the same id.

        May be called again: a directory that was removed during the run is made again, with the same id.

        Raises:
            RunMismatchError: The directory belongs to another run.
            NoUsableCheckpointError: `run.json` is lost, and no checkpoint verifies that contains the id.
            StoreError: The directory can't be created or written.
        """
        mine = self._identity.run_id
        if mine is not None:
            return mine if self.check_run() else self._make_again(mine)
        self._storage.prepare()
        self._warn_of_irregular()
        run_id = self._identity.read()
        if run_id is None:
            newest = self.latest()
            run_id = self._identity.claim(None if newest is None else newest.header.run_id)
        return self._identity.adopt(run_id)

    def _warn_of_irregular(self) -> None:
        for name in self._storage.irregular():
            if parse_name(name) is not None or term_of_segment(name):
                path = self._storage.path_of(name)
                logger.warning("%s is no regular file, so nothing in it is used: move it away", path)

    def check_run(self) -> bool:
        """Return whether `run.json` is there. What is cached about checkpoints is forgotten if it is missing.

        Raises:
            RunMismatchError: The directory belongs to another run: it was removed, and that run has begun there.
        """
        is_there = self._identity.is_in_place()
        if not is_there:
            self._verified.clear()
        return is_there

    def _make_again(self, run_id: str) -> str:
        logger.warning(
            "the run's directory or run.json was removed, making it again path=%s run=%s", self.location, run_id
        )
        self._storage.prepare()
        self.newest_header()  # refuses the checkpoints of another run
        return self._identity.adopt(self._identity.claim(run_id))

    def highest_term(self) -> int:
        """Return the highest term that was claimed or committed under, 0 if there is none.

        Raises:
            StoreError: The directory can't be read.
        """
        return self.terms.highest_term()

    def claim_term(self, term: int) -> bool:
        """Claim `term`: see `TermClaims.claim_term`."""
        return self.terms.claim_term(term)

    def was_led_before(self, term: int) -> bool:
        """Whether a term below `term` was claimed: see `TermClaims.was_led_before`."""
        return self.terms.was_led_before(term)

    def commit(self, snapshot: Snapshot, *, term: int, worker_id: str) -> CheckpointHeader:
        """Make `snapshot` the checkpoint of (term, position).

        Order: make the new checkpoint durable, then prune older ones. On a disk: a partial file, fsync, the rename,
        fsync of the directory. A crash before the rename leaves a partial file, after it a checkpoint.

        Other writers' partial files are deleted last, because one of those writers may still be running. If the disk is
        full, they are deleted first and the write is retried.

        Args:
            snapshot: The state to keep.
            term: The writer's term, from the election.
            worker_id: The writer.

        Returns:
            The header of the checkpoint.

        Raises:
            StaleTermError: The directory contains a checkpoint of a newer term, or another worker's of this one. Or a
                newer term was claimed before a final state was durable.
            RunMismatchError: The directory belongs to another run.
            StoreError: The bytes could not be made durable. Earlier checkpoints are intact.
        """
        checkpoint_name(term, snapshot.position)  # refuses a wrong term before anything is written
        with self._lock:
            # List before the fsync of the directory: what the prune relies on is durable then.
            found = self._storage.names()
            run_id = self.open_run()
            self._newest(self._header, found)  # refuses a directory whose newest checkpoint is another run's
            header, line = encode(
                snapshot,
                run_id=run_id,
                term=term,
                worker_id=worker_id,
                created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            )
            chunks = [line, *snapshot.chunks, b"\n"]
            litter = _partials(found, term)
            try:
                self._put(header, chunks, found)
            except StoreError as error:
                if not litter or not _is_full(error):
                    raise
                with self._quietly():
                    self._remove_all(litter)
                self._put(header, chunks, found)
            self._verified[header.name] = header
            self.check_final(header)
            with self._quietly():
                self._remove_all([*litter, *self._unneeded([*found, header.name], term)])
        return header

    def check_final(self, header: CheckpointHeader) -> None:
        """Check that the leader of a newer term has seen this checkpoint, which is durable, if it is a final state.

        Raises:
            StaleTermError: A newer term has been claimed.
            StoreError: The directory can't be read.
        """
        if header.final:
            check_final(header, self._storage.names(), location=self.location)

    def _put(self, header: CheckpointHeader, chunks: Chunks, found: Names) -> None:
        self._check_writer(header, found)
        try:
            self._storage.put(header.name, chunks, new=header.name not in found)
        except StoreError as error:
            if not isinstance(error.__cause__, FileExistsError | FileNotFoundError):
                raise
            # A newer writer has committed since the listing, or our own write succeeded and its reply was lost.
            seen = self._storage.names()
            self._check_writer(header, seen)
            if header.name not in seen:
                raise
            self._storage.put(header.name, chunks)

    def _check_writer(self, header: CheckpointHeader, found: Names) -> None:
        present = self._header(header.name) if header.name in found and self._is_ours(header.name) else None
        check_writer(header, found, present=present, location=self.location)

    def prune(self, *, term: int, keep: int | None = None) -> Names:
        """Delete old checkpoints and leftovers. Safe while the writer of `term` is running.

        Old checkpoints are all but the newest `keep` that verify. Leftovers are partial files of earlier terms. Files
        of newer terms and of other runs stay.

        Args:
            term: The highest term whose checkpoints may be deleted.
            keep: Number of checkpoints that stay, None for the store's own number.

        Returns:
            The names of the deleted files.

        Raises:
            StoreError: A file could not be deleted.
        """
        with self._lock:
            found = self._storage.names()
            unneeded = [*_partials(found, term - 1), *self._unneeded(found, term, keep)]
            if unneeded:
                self._storage.sync()
                self._remove_all(unneeded)
        return unneeded

    def _unneeded(self, found: Iterable[str], term: int, keep: int | None = None) -> Names:
        """Return the checkpoints that may be deleted, oldest first, and then the segments of the journal before them.

        In this order, a reader never finds an older checkpoint where a newer one was deleted. A damaged one above the
        oldest kept one stays, for inspection.
        """
        names = checkpoints_among(found)
        kept = [*islice((name for name in names if self._is_ours(name)), keep or self._keep)]
        if not kept:
            return []
        older = [name for name in reversed(names) if name < kept[-1] and term_of(name) <= term]
        starts = [parse_name(name) or (0, Position(0)) for name in kept]
        segments = unneeded_segments(found, kept=starts, term=term)
        if segments and (slowest := self.slowest_follower()) is not None:
            starts = [(own_term, min(position, slowest)) for own_term, position in starts]
            segments = unneeded_segments(found, kept=starts, term=term)
        return [
            *(name for name in older if self._is_ours(name) is not False),
            *self._our_segments(segments),
        ]

    def _our_segments(self, names: Names) -> Iterator[str]:
        return (name for name in names if not is_of_another_run(self._storage, name, self.run_id))

    def _is_ours(self, name: str) -> bool | None:
        """Whether the checkpoint verifies and is of this run. False if it is another run's, None if it is damaged."""
        try:
            self._header(name)
        except RunMismatchError:
            return False
        except StoreError:
            return None
        return True

    def delete(self) -> None:
        """Delete all files of the run, and the directory if nothing else is in it. Files with other names stay.

        The newest checkpoint comes after all but its journal and `run.json`. A crash before that leaves a run that can
        be resumed from it, with its journal.

        Raises:
            RunMismatchError: The directory belongs to another run. Nothing is deleted.
            StoreError: A file could not be deleted.
        """
        with self._lock:
            self.check_run()
            found = self._storage.names()
            ours = {name: self._is_ours(name) for name in reversed(checkpoints_among(found))}
            newest = max((name for name, is_sound in ours.items() if is_sound), default="")
            start, term = parse_name(newest), highest_term_among(found)
            older = [] if start is None else unneeded_segments(found, kept=[start], term=term)
            self._remove_all(name for name, is_ours in ours.items() if is_ours is not False and name != newest)
            self._remove_all(self._our_segments(older))
            self._remove_all(name for name in found if is_claim(name) or is_event_log(name) or _is_leftover(name))
            if newest:
                self._storage.remove(newest)
            self._remove_all(self._our_segments([name for name in segments_among(found)[::-1] if name not in older]))
            self._storage.remove(RUN_FILE)
            self.forget()
            self._storage.remove_if_empty()

    def _remove_all(self, names: Iterable[str]) -> None:
        """Remove each file, also after one could not be removed. Then raise the first error."""
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
            # The commit stands. A file that was not removed does no harm.
            logger.warning("prune failed path=%s reason=%s", error.path, error)


def _partials(found: Iterable[str], term: int) -> Names:
    """Return the partial files that writers of `term` and earlier terms left.

    A segment of `term` itself may be one that its writer begins at this moment, in the thread of its journal.
    """
    targets = {name: partial_target(name) for name in found}
    return [
        name
        for name, target in targets.items()
        if target is not None
        and (target == RUN_FILE or 0 < term_of(target) <= term or 0 < term_of_segment(target) < term)
    ]


def _is_leftover(name: str) -> bool:
    """Whether a killed writer left this file: a part of another file, or a test for conditional writes."""
    target = partial_target(name)
    if target is None:
        return is_probe(name)
    is_ours = parse_name(target) is not None or term_of_segment(target) > 0
    return is_ours or target == RUN_FILE or is_claim(target) or is_event_log(target)


def _is_full(error: StoreError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in {errno.ENOSPC, errno.EDQUOT}
