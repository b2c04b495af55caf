"""Read and write records: small JSON files with named fields.

A file is replaced in one step, so readers need no lock. A record that can't be read must not end the election: its
reader skips it with one warning, or catches `UnreadableRecordError`. Files and folders follow the run's directory, see
`atomic.follow`: an operator's request that root has written is readable for the workers.

The limit: nothing is fsynced.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from distributed_backup.atomic import make_directory, replace_file
from distributed_backup.checks import shown
from distributed_backup.regular_file import IrregularFileError, read_file

logger = logging.getLogger(__name__)

Shape = Mapping[str, Callable[[Any], Any]]
"""The fields of a kind of record, each with the function that checks and converts its value."""


class UnreadableRecordError(Exception):
    """A record may not be read, or has another form. `denied`: for want of permission."""

    def __init__(self, path: Path, error: Exception) -> None:
        self.path = path
        self.denied = isinstance(error, PermissionError)
        missing = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        self.reason = (error.strerror if isinstance(error, OSError) else None) or missing
        super().__init__(f"{path}: {self.reason}")


class RecordFiles:
    """The files of all records in `root`. Making one touches no disk."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # Records that can't be read and were warned of.
        self._skipped: set[Path] = set()

    def read(self, path: Path, shape: Shape) -> dict[str, Any] | None:
        """Return the fields in `shape` of a record. None if the file is missing, torn, or created and still empty.

        Only a power cut or a foreign hand leaves a torn file, and no writer of it is alive then.

        Raises:
            UnreadableRecordError: It can't be read, or has another form.
        """
        try:
            if not (data := read_file(path)):
                return None
            if isinstance(fields := orjson.loads(data), dict):
                return {name: convert(fields[name]) for name, convert in shape.items()}
            self.skip(UnreadableRecordError(path, TypeError(f"want an object, got {shown(fields)}")))
        except FileNotFoundError:
            pass
        except orjson.JSONDecodeError as error:
            self.skip(UnreadableRecordError(path, error))
        except (PermissionError, IrregularFileError, KeyError, TypeError, ValueError) as error:
            raise UnreadableRecordError(path, error) from error
        return None

    def read_or_skip(self, path: Path, shape: Shape) -> dict[str, Any] | None:
        """Return what `read` returns, and None with a warning if the record can't be read."""
        try:
            return self.read(path, shape)
        except UnreadableRecordError as error:
            self.skip(error)
            return None

    def skip(self, error: UnreadableRecordError) -> None:
        """Warn of a record that can't be read, once."""
        if error.path not in self._skipped:
            self._skipped.add(error.path)
            remedy = "give this user access to it" if error.denied else "remove it unless its writer replaces it"
            logger.warning("record skipped path=%s reason=%s: %s", error.path, error.reason, remedy)

    def replace(self, path: Path, fields: dict[str, Any]) -> None:
        """Write a record in one step. Create its folder if it is missing."""
        data = orjson.dumps(fields)
        try:
            replace_file(path, data, like=self._root.stat())
        except FileNotFoundError:
            self.make_folder(path.parent)
            replace_file(path, data, like=self._root.stat())

    def make_folder(self, folder: Path) -> None:
        """Create a folder in `root`, and `root`, if they are missing."""
        for path in (self._root, folder):
            make_directory(path)


def one_of(*kinds: type) -> Callable[[Any], Any]:
    """Return a function that accepts values of these types only."""

    def convert(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise TypeError(f"unexpected value {shown(value)}")
        return value

    return convert
