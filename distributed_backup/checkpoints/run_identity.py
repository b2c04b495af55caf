"""A directory that is a run: its id and the terms that were used.

The id is made once, exclusively, by the first worker, and kept beside the checkpoints; whoever comes with another id is
refused. A term is claimed once, exclusively, by the worker that is to lead under it: whatever a coordinator forgets, no
two workers ever write under one number. It promises no exclusion between writers: see `store` for what orders them.
"""

from __future__ import annotations

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import orjson

from distributed_backup.checks import checked_name
from distributed_backup.errors import RunMismatchError, StoreError
from distributed_backup.storage.base import Storage

RUN_FILE: Final = "run.json"
_CLAIMS_KEPT: Final = 8
_CLAIM: Final = re.compile(r"(\d{10})\.term")
_HIGHEST: Final = 9_999_999_999


class RunDirectory(ABC):
    """The directory of one run. Making one touches nothing.

    Args:
        storage: Where the files are; made at the first write.
        run_id: Id of the run; None to take the directory's, or to make a new one.

    Raises:
        ConfigError: A wrong run id.
    """

    def __init__(self, storage: Storage, *, run_id: str | None = None) -> None:
        self._storage = storage
        self._wanted_run_id = None if run_id is None else checked_name("run_id", run_id)
        self._run_id: str | None = None

    @property
    def storage(self) -> Storage:
        """Where the files are."""
        return self._storage

    @property
    def location(self) -> str:
        """Where the files are, for people; no credentials."""
        return self._storage.location

    def read_run_id(self) -> str | None:
        """The run id kept in the directory; None if there is none yet.

        Raises:
            StoreError: The file can't be read or is not as we write it.
        """
        try:
            raw = self._storage.read(RUN_FILE)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return None
            raise
        try:
            return checked_name("run_id", orjson.loads(raw)["run_id"])
        except (ValueError, KeyError, TypeError):
            path = self._storage.path_of(RUN_FILE)
            raise StoreError(
                f"{path} is damaged: remove it, and the run's id is taken from its checkpoints", path=path
            ) from None

    def forget(self) -> None:
        """Forget which run this is: since an earlier fit, another worker may have deleted it, and one begun anew."""
        self._run_id = None

    def open_run(self) -> str:
        """Make the directory and settle the run's id; the same answer for every worker of the run.

        Raises:
            RunMismatchError: The directory belongs to another run.
            NoUsableCheckpointError: The id is lost, and no checkpoint verifies that could tell it.
            StoreError: The directory can't be made or written.
        """
        if self._run_id is None:
            self._storage.prepare()
            run_id = self.read_run_id() or self._claim_run_id(
                self._run_id_of_checkpoints() or self._wanted_run_id or secrets.token_hex(8)
            )
            if self._wanted_run_id not in (None, run_id):
                raise RunMismatchError(path=self.location, expected=str(self._wanted_run_id), found=run_id)
            self._run_id = run_id
        return self._run_id

    def _claim_run_id(self, run_id: str) -> str:
        try:
            self._storage.create(RUN_FILE, orjson.dumps({"run_id": run_id}) + b"\n")
        except StoreError:
            # Another worker was first: it has committed since and tidied our partial file away, or was just writing.
            if self.read_run_id() is None:
                raise
        return self.read_run_id() or run_id

    # ---------------------------------------------------------------- terms

    def highest_term(self) -> int:
        """The highest term that was claimed or committed under; 0 if there is none. None up to it may be granted again.

        Raises:
            StoreError: The directory can't be read.
        """
        return self._highest_term(self._storage.names())

    def _highest_term(self, found: Iterable[str]) -> int:
        names = list(found)
        claimed = max((int(name[:10]) for name in filter(is_claim, names)), default=0)
        return max(claimed, self._highest_committed(names))

    def claim_term(self, term: int) -> bool:
        """Claim `term` for the one worker that is to lead under it.

        The claim is a file that is made exclusively, which is the same for all machines that share the directory. The
        newest few claims stay: a machine that sees an old listing for a while still finds the name taken.

        Returns:
            False if it was claimed before, or a newer one was, or has been written under.

        Raises:
            StoreError: The directory can't be read or written.
        """
        if term > _HIGHEST:
            raise StoreError(f"no term is left in {self.location}: remove what is named {_HIGHEST}", path=self.location)
        if term <= self.highest_term() or not self._claim(f"{term:010d}.term"):
            return False
        found = self._storage.names()
        # A newer one by now: ours may be one that was claimed and tidied away since we looked.
        if self._highest_term(found) > term:
            return False
        for name in sorted(filter(is_claim, found))[:-_CLAIMS_KEPT]:
            with suppress(StoreError):  # a file too many loses nothing
                self._storage.remove(name)
        return True

    def was_led_before(self, term: int) -> bool:
        """Whether a term below this one was claimed here.

        Raises:
            StoreError: The directory can't be read.
        """
        return any(int(name[:10]) < term for name in filter(is_claim, self._storage.names()))

    def _claim(self, name: str) -> bool:
        try:
            return self._storage.create(name)
        except StoreError as error:
            text = f"can't claim the term: {error}"
            raise StoreError(text, path=error.path, retryable=error.retryable) from error.__cause__

    @abstractmethod
    def _highest_committed(self, found: Iterable[str]) -> int:
        """The highest term that a file among `found` was committed under; 0 if there is none."""

    @abstractmethod
    def _run_id_of_checkpoints(self) -> str | None:
        """The run id that the directory's contents tell, if its file is lost."""


def is_claim(name: str) -> bool:
    """Whether this is the name of a term's claim."""
    return _CLAIM.fullmatch(name) is not None
