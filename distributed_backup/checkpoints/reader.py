"""The checkpoints of a run, read: which there are, which is the newest, and which are damaged.

A checkpoint counts if it verifies and is of this run; the newest is the one with the greatest name that counts. One
that is damaged or gone is passed over. One that can't be read just now is not: what is older would be taken for the
newest, trained on, and written over it. Looking changes nothing. What a name promises is not believed before the bytes
were read once; checkpoints never change, so once is enough, and what is damaged later shows when it is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import override

from distributed_backup.checkpoints.format import Checkpoint, CheckpointHeader, decode, parse_name
from distributed_backup.checkpoints.run_identity import RunDirectory
from distributed_backup.errors import CorruptCheckpointError, NoUsableCheckpointError, RunMismatchError, StoreError
from distributed_backup.position import Position
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


class CheckpointReader(RunDirectory):
    """The checkpoints of one run in one place, for looking at.

    Args:
        storage: Where they are.
        run_id: Id of the run; None to take the place's.
    """

    def __init__(self, storage: Storage, *, run_id: str | None = None) -> None:
        super().__init__(storage, run_id=run_id)
        self._verified: dict[str, CheckpointHeader] = {}

    @override
    def forget(self) -> None:
        super().forget()
        self._verified.clear()

    def _run_id_of_checkpoints(self) -> str | None:
        newest = self.latest()
        return None if newest is None else newest.header.run_id

    def names(self) -> Names:
        """Names of all checkpoints, newest first, verified or not; other files are passed over."""
        return checkpoints_among(self._storage.names())

    def _highest_committed(self, found: Iterable[str]) -> int:
        return max(map(term_of, found), default=0)

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
            raise StoreError(f"{name!r} is not the name of a checkpoint", path=self.location)
        checkpoint = decode(self._storage.read(name), path=self._storage.path_of(name))
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
            raise NoUsableCheckpointError(path=self.location, reasons=problems)
        return checkpoint

    def newest_header(self) -> CheckpointHeader | None:
        """Header of the newest checkpoint that verified when it was first seen; cheap when asked again.

        Raises:
            RunMismatchError: The newest one belongs to another run.
            StoreError: The directory can't be read.
        """
        return self._newest(self._header)[0]

    def _newest[T](self, read: Callable[[str], T], among: Names | None = None) -> tuple[T | None, tuple[str, ...]]:
        """What `read` makes of the newest checkpoint that it accepts, and what was wrong with those above it.

        A checkpoint that has gone since the listing was pruned, so there is a newer one: look again. A name that
        can't be opened in an unchanged listing (a dangling link, a stale directory cache) is a problem like others.
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
                if not self._is_lost(error):
                    raise
                problems[name] = error
        return None, problems

    def _is_lost(self, error: StoreError) -> bool:
        """Whether trying again is vain: the bytes are wrong, or gone, or the medium says that it has lost them."""
        cause = error.__cause__
        lost = isinstance(cause, OSError) and cause.errno in self._storage.permanent_errnos
        return lost or isinstance(error, CorruptCheckpointError) or isinstance(cause, FileNotFoundError)

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
        size = self._storage.size(name)
        if size is None:
            return None  # pruned while we looked
        return CheckpointInfo(name=name, term=term, position=position, bytes=size, header=header, problem=problem)

    def _check_run(self, header: CheckpointHeader) -> None:
        run_id = self._run_id or self._wanted_run_id
        if run_id not in (None, header.run_id):
            raise RunMismatchError(path=self.location, expected=str(run_id), found=header.run_id)


def checkpoints_among(found: Iterable[str]) -> Names:
    """The names of checkpoints among all, newest first."""
    return sorted(set(filter(parse_name, found)), reverse=True)


def term_of(name: str) -> int:
    """The term in the name of a checkpoint; 0 if it is none."""
    parsed = parse_name(name)
    return 0 if parsed is None else parsed[0]


def _reason(error: StoreError) -> str:
    return error.reason if isinstance(error, CorruptCheckpointError) else str(error)
