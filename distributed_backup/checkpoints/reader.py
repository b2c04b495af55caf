"""Read the checkpoints of a run: find the newest, list all, name the damaged ones.

The newest checkpoint is the greatest name that verifies and belongs to this run: see `fencing`. A damaged or removed
one is skipped. One that can't be read at the moment is an error: if it were skipped, an older one would count as the
newest, training would start from it, and its next commits would replace newer work.

Each checkpoint is verified once and its header cached, because checkpoints never change. Later damage is found on load.
Reading changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from distributed_backup.checkpoints.format import Checkpoint, CheckpointHeader, checkpoints_among, decode, parse_name
from distributed_backup.checkpoints.journal import LogReader, find_log
from distributed_backup.checkpoints.journal_format import Digests
from distributed_backup.checkpoints.run_identity import RunIdentity
from distributed_backup.errors import CorruptCheckpointError, NoUsableCheckpointError, RunMismatchError, StoreError
from distributed_backup.position import Position
from distributed_backup.regular_file import IrregularFileError
from distributed_backup.storage.base import Names, Storage

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
        problem: Why it does not verify, None if it does.
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


class CheckpointReader:
    """The checkpoints of one run in one storage, read-only."""

    def __init__(self, storage: Storage, *, run_id: str | None = None) -> None:
        self._storage = storage
        self._identity = RunIdentity(storage, run_id)
        self._verified: dict[str, CheckpointHeader] = {}

    @property
    def storage(self) -> Storage:
        """The storage that holds the files."""
        return self._storage

    @property
    def location(self) -> str:
        """The path or URL of the files, for people. It contains no credentials."""
        return self._storage.location

    @property
    def run_id(self) -> str | None:
        """The run id that this process has adopted. None before `open_run`."""
        return self._identity.run_id

    def find_log(self, position: Position, digests: Digests) -> LogReader | None:
        """Return the part of the journal that continues the state with these digests at `position`, if there is one.

        Raises:
            StoreError: The directory can't be read.
        """
        if self.run_id is None:
            return None
        log = find_log(self._storage, run_id=self.run_id, position=position, digests=digests)
        return None if log is None else LogReader(self._storage, log)

    def read_run_id(self) -> str | None:
        """Return the run id in `run.json`, None if there is no such file.

        Raises:
            StoreError: The file can't be read, or is damaged.
        """
        return self._identity.read()

    def find_run_id(self) -> str | None:
        """Return the run's id without writing anything, for looking at a run.

        The id is taken from `run.json`, or without that file from the newest checkpoint that verifies. None if neither
        has it. A worker calls `open_run` instead, which creates the file.

        Raises:
            RunMismatchError: The newest checkpoint belongs to another run than the one named.
            StoreError: The file is damaged, or the directory can't be read.
        """
        run_id = self._identity.read()
        if run_id is None and (newest := self.newest_header()) is not None:
            run_id = newest.run_id
        return run_id

    def forget(self) -> None:
        """Drop the run's id and all cached headers, for a process that starts another fit in the same place.

        Since the earlier fit, another worker may have deleted the run, and a new one have begun.
        """
        self._identity.forget()
        self._verified.clear()

    def names(self) -> Names:
        """Return the names of all checkpoints, newest first, verified or not.

        Raises:
            StoreError: The directory can't be read.
        """
        return checkpoints_among(self._storage.names())

    def load(self, name: str) -> Checkpoint:
        """Read and verify the checkpoint called `name`.

        Raises:
            CorruptCheckpointError: It does not verify.
            RunMismatchError: It belongs to another run.
            StoreError: It does not exist, or can't be read.
        """
        if parse_name(name) is None:
            raise StoreError(f"{name!r} is not the name of a checkpoint", path=self.location)
        checkpoint = decode(self._storage.read(name), path=self._storage.path_of(name))
        self._identity.check(checkpoint.header.run_id)
        return checkpoint

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that verifies, None if there are no checkpoints at all.

        Each unusable one that is skipped is named in a warning of the log.

        Raises:
            NoUsableCheckpointError: There are checkpoints, and none verifies.
            RunMismatchError: The newest one belongs to another run.
            StoreError: The directory can't be read.
        """
        checkpoint, problems = self._newest(self.load)
        if checkpoint is None and problems:
            raise NoUsableCheckpointError(path=self.location, reasons=problems)
        return checkpoint

    def newest_header(self) -> CheckpointHeader | None:
        """Return the header of the newest checkpoint that verifies, None if none does. Repeated calls are cheap.

        Raises:
            RunMismatchError: The newest one belongs to another run.
            StoreError: The directory can't be read.
        """
        return self._newest(self._header)[0]

    def _newest[T](self, read: Callable[[str], T], among: Names | None = None) -> tuple[T | None, tuple[str, ...]]:
        """Return what `read` gives for the newest checkpoint it accepts, and the problems of those above it.

        If a checkpoint was removed since the listing, a newer one has been committed: list again. If the listing is
        unchanged, a stale directory cache shows a name that can't be opened. That is a problem like others.
        """
        names = self.names() if among is None else checkpoints_among(among)
        while True:
            found, problems = self._first_readable(names, read)
            if any(isinstance(error.__cause__, FileNotFoundError) for error in problems.values()):
                before, names = names, self.names()
                if names != before:
                    continue
            for name, error in problems.items():
                logger.warning("checkpoint skipped name=%s reason=%s", name, _reason(error))
            return found, tuple(f"{name}: {_reason(error)}" for name, error in problems.items())

    def _first_readable[T](self, names: Names, read: Callable[[str], T]) -> tuple[T | None, dict[str, StoreError]]:
        problems: dict[str, StoreError] = {}
        for name in names:
            try:
                return read(name), problems
            except RunMismatchError:
                raise
            except StoreError as error:
                if not self._is_permanent(error):
                    raise
                problems[name] = error
        return None, problems

    def _is_permanent(self, error: StoreError) -> bool:
        """Whether a retry is useless: the bytes are wrong or removed, or the medium reports that they are lost."""
        cause = error.__cause__
        lost = isinstance(cause, OSError) and cause.errno in self._storage.permanent_errnos
        no_bytes = isinstance(cause, FileNotFoundError | IrregularFileError)
        return lost or no_bytes or isinstance(error, CorruptCheckpointError)

    def _header(self, name: str) -> CheckpointHeader:
        header = self._verified.get(name)
        if header is None:
            # Failures are not cached: a read that failed once may succeed the next time.
            header = self._verified[name] = self.load(name).header
        self._identity.check(header.run_id)
        return header

    def list(self) -> Rows:
        """Return a row for each checkpoint, newest first, each verified now.

        Raises:
            StoreError: The directory can't be read.
        """
        names = checkpoints_among([*self.names(), *self._storage.irregular()])
        rows = (self._info(name) for name in names)
        return [row for row in rows if row is not None]

    def verify(self) -> Rows:
        """Return the rows of the checkpoints that do not verify, newest first.

        Raises:
            StoreError: The directory can't be read.
        """
        return [row for row in self.list() if not row.valid]

    def _info(self, name: str) -> CheckpointInfo | None:
        term, position = parse_name(name) or (0, Position(0))
        header, problem = None, None
        try:
            header = self.load(name).header
        except StoreError as error:
            problem = _reason(error)
        size = self._storage.size(name)
        if size is None:
            return None  # removed since the listing
        return CheckpointInfo(name=name, term=term, position=position, bytes=size, header=header, problem=problem)


def _reason(error: StoreError) -> str:
    return error.reason if isinstance(error, CorruptCheckpointError) else str(error)
