"""The id of a run, in the file `run.json` beside its checkpoints.

The first worker creates the file with an exclusive create, so all workers of a run read one id. A worker that was
given another id is refused. The id says nothing about which worker may write: see `fencing`.
"""

from __future__ import annotations

import secrets
from typing import Final

import orjson

from distributed_backup.checks import checked_name
from distributed_backup.errors import RunMismatchError, StoreError
from distributed_backup.storage.base import Storage

RUN_FILE: Final = "run.json"


class RunIdentity:
    """The id of the run in one storage.

    `wanted` is the id that the user named, if any. `run_id` is the id that this process has adopted.
    """

    def __init__(self, storage: Storage, wanted: str | None) -> None:
        self._storage = storage
        self._wanted = None if wanted is None else checked_name("run_id", wanted)
        self.run_id: str | None = None

    def read(self) -> str | None:
        """Return the id in `run.json`, None if there is no such file.

        Raises:
            StoreError: The file can't be read, or is damaged.
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

    def is_in_place(self) -> bool:
        """Return whether `run.json` is there.

        A file that can't be read counts as this run's, because saving must go on.

        Raises:
            RunMismatchError: The file has the id of another run.
        """
        try:
            found = self.read()
        except StoreError:
            return True
        if found is not None:
            self.check(found)
        return found is not None

    def claim(self, run_id: str | None) -> str:
        """Create `run.json` and return the id in it: `run_id`, the wanted id, or a new one.

        If another worker creates the file first, return that worker's id.

        Raises:
            StoreError: The file can't be written or read.
        """
        run_id = run_id or self._wanted or secrets.token_hex(8)
        try:
            self._storage.create(RUN_FILE, orjson.dumps({"run_id": run_id}) + b"\n")
        except StoreError:
            # Another worker may have created the file, and its first commit removed our partial one.
            if self.read() is None:
                raise
        return self.read() or run_id

    def check(self, found: str) -> None:
        """Refuse data of another run than the adopted or the wanted one.

        Raises:
            RunMismatchError: `found` is the id of another run.
        """
        expected = self.run_id or self._wanted
        if expected not in (None, found):
            raise RunMismatchError(path=self._storage.location, expected=str(expected), found=found)

    def adopt(self, found: str) -> str:
        """Keep `found` as this process's id of the run, and return it.

        Raises:
            RunMismatchError: The user named another id.
        """
        self.check(found)
        self.run_id = found
        return found

    def forget(self) -> None:
        """Drop the adopted id: another worker may have deleted the run since, and a new one have begun."""
        self.run_id = None
