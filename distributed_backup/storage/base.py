"""Where the files of a run are: small named byte strings in one flat place, by one contract.

Policy is above, in `run_directory` and `store`: what the names mean, which file counts, what may be removed. A storage
promises that a file is there whole or not at all, that `create` succeeds for one of many who try, and that what was
written stays unless it is replaced or removed. It can't promise more than its medium: see each module for what that is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Final, Self

PARTIAL: Final = ".partial-"
"""How names of files begin that are being written, or were left by a crash: `.partial-NAME-xxxxxxxx`."""

PROBE: Final = ".probe-"
"""How names of files begin that were made to see what a store does, and should be gone."""

Names = list[str]
Chunks = list[bytes]


class Storage(ABC):
    """A flat place for the files of one run. Making one touches nothing; threads may share one.

    All methods raise `StoreError` in one line when the place can't be read or written. Its cause is a
    `FileNotFoundError` where a file, or the place, is not there, and a `FileExistsError` where a write was refused
    because of what is there.
    """

    write_interval: ClassVar[float]
    """Seconds that may lie between two writes of what need not be there at once: what each of them costs."""

    permanent_errnos: ClassVar[frozenset[int]] = frozenset()
    """The errno of a read that says that the bytes are gone for good; all else may be read later."""

    @classmethod
    @abstractmethod
    def from_url(cls, url: str, *, run_id: str | None, limit: float) -> Self:
        """Return the storage that a URL names. Its scheme is in lower case.

        Args:
            url: The URL. `storage.SCHEMES` leads its scheme here.
            run_id: Id of the run, for a storage that many runs share.
            limit: Seconds that one request to a server may take.

        Raises:
            ConfigError: The URL can't be used.
        """

    @property
    @abstractmethod
    def location(self) -> str:
        """Where it is, for people; no credentials."""

    def path_of(self, name: str) -> str:
        """Where a file is, for people; the part after the last slash is its name."""
        return f"{self.location}/{name}"

    @abstractmethod
    def prepare(self) -> None:
        """Make the place, as far as it has to be made before it is written to."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether the place is there, or is not the kind of place that can be missing."""

    @abstractmethod
    def names(self) -> Names:
        """The names of all files, in any order; none if the place is not there."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """How many bytes a file takes; None if it is not there."""

    @abstractmethod
    def create(self, name: str, data: bytes = b"") -> bool:
        """Make a file that is not there yet.

        Of many who try at once, one succeeds. A file with data is durable; one without is but a name, and may be
        forgotten in a power cut.

        Returns:
            False if it is there. That may be our own doing, if the reply to an earlier try was lost.
        """

    @abstractmethod
    def put(self, name: str, chunks: Chunks, *, new: bool = False, durable: bool = True) -> None:
        """Make a file or replace it, in one step: whoever reads finds the old bytes or the new ones.

        Args:
            name: Of the file.
            chunks: Its bytes.
            new: Refuse if it is there, where the medium can tell in the same step.
            durable: Whether the bytes must outlive a power cut when this returns.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""

    def sync(self) -> None:  # noqa: B027 - as below: most have nothing to do
        """Make durable what `names` has shown; where that is not so anyway."""

    def remove_if_empty(self) -> None:  # noqa: B027
        """Remove the place itself if nothing is in it; whether that succeeds does not matter."""

    def close(self) -> None:  # noqa: B027
        """Close connections; the next use opens new ones."""
