"""The contract of a storage: the files of one run, as named byte strings in one flat folder.

A storage promises three things. A reader finds a file complete or not at all. `create` succeeds for one of several
concurrent callers. A written file stays until it is replaced or removed. Each module says what its medium can't keep of
that. The meaning of names, and which files may be removed, is policy of the room `checkpoints`.

A file that `append` makes grows, so it is complete at no time. One writer appends to it. Readers find the bytes of all
appends that returned, and maybe a part of one that did not.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final, Self

PARTIAL: Final = ".partial-"
"""Prefix of files that are being written, or were left by a crash: `.partial-NAME-` and hex digits."""

PROBE: Final = ".probe-"
"""Prefix of files that were written to test a store: `.probe-` and hex digits. They are removed after the test."""

Names = list[str]
Chunks = Sequence[bytes | memoryview]

_PARTIAL_NAME: Final = re.compile(re.escape(PARTIAL) + r"(.+)-[0-9a-f]+")
_PROBE_NAME: Final = re.compile(re.escape(PROBE) + r"[0-9a-f]+")


def partial_target(name: str) -> str | None:
    """Return the name of the file that a partial file was to become. None if `name` is not that of a partial file."""
    found = _PARTIAL_NAME.fullmatch(name)
    return None if found is None else found[1]


def is_probe(name: str) -> bool:
    """Whether `name` is that of a test of a store."""
    return _PROBE_NAME.fullmatch(name) is not None


class Storage(ABC):
    """The files of one run. Thread-safe. Making one touches nothing.

    All methods raise `StoreError` with a one-line message where the storage can't be read or written. Its cause is a
    `FileNotFoundError` if the file or the storage is missing, and a `FileExistsError` if a write was refused because
    the file exists. It is an `IrregularFileError` if the name is that of a directory, a pipe or the like.
    """

    write_interval: ClassVar[float]
    """Minimum seconds between two writes of the event log. Larger where a write is expensive."""

    append_interval: ClassVar[float] = 0.0
    """Minimum seconds between two appends. 0 where an append is cheap enough to wait for. The caller keeps it."""

    poll_interval: ClassVar[float] = 0.05
    """Seconds between two looks at a file that grows. Smaller where a look is cheap."""

    permanent_errnos: ClassVar[frozenset[int]] = frozenset()
    """Codes of a failed read after which a retry can't help, because the bytes are lost."""

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
        """Return the path or URL for messages, without credentials."""

    def path_of(self, name: str) -> str:
        """Return the path or URL of a file for messages. It ends with a slash and the name."""
        return f"{self.location}/{name}"

    @abstractmethod
    def prepare(self) -> None:
        """Create the directory, if this storage needs one."""

    @abstractmethod
    def exists(self) -> bool:
        """Return whether the directory exists. True where there is none."""

    @abstractmethod
    def names(self) -> Names:
        """Return the names of all files, in any order. Empty if the directory is missing."""

    def irregular(self) -> Names:
        """Return the names that `names` leaves out, because they are no files but directories, pipes or the like."""
        return []

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the stored size of a file in bytes, None if it is missing. The stored bytes may be compressed.

        For a file that `append` made, it is the number of bytes that `read` returns.
        """

    def written_at(self, name: str) -> float | None:  # noqa: ARG002 - for those that tell
        """Return when a file was last written, in seconds since 1970 by the storage's own clock. None if unknown."""
        return None

    @abstractmethod
    def create(self, name: str, data: bytes = b"") -> bool:
        """Create a file unless it exists. One of several concurrent callers succeeds.

        A file with data is durable. An empty file is a mere name, and a power cut may lose it.

        Returns:
            False if the file exists. The caller may have made it itself, if an earlier reply was lost.
        """

    @abstractmethod
    def put(self, name: str, chunks: Chunks, *, new: bool = False, durable: bool = True) -> None:
        """Create or replace a file in one step: a reader finds the old bytes or the new ones.

        Args:
            name: Name of the file.
            chunks: The bytes.
            new: Refuse if the file exists, where the medium can check that in the same step.
            durable: Whether the bytes must survive a power cut when this returns.
        """

    @abstractmethod
    def append(self, name: str, data: bytes, *, at: int) -> None:
        """Write bytes behind the first `at` bytes of a file, durable when this returns.

        `at=0` creates the file in one step, as `put` does.

        Bytes that stand behind `at` are the rest of a failed attempt, and are replaced. So a call may be repeated after
        an error: the file is the same as after one call. A reader may see a part of a failed attempt. It always sees
        the first `at` bytes unchanged.

        A file has one writer at a time, and its name is used with `append` or with `put` and `create`, not with both.

        Args:
            name: Name of the file.
            data: The bytes.
            at: Number of bytes that stay, at most the length after the last append that returned.

        Raises:
            StoreError: The file is missing or has fewer than `at` bytes. Nothing is written then.
        """

    @abstractmethod
    def read_from(self, name: str, offset: int, limit: int) -> bytes:
        """Return up to `limit` bytes of a file from `offset` on, fewer only at its end, none behind it."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    def sync(self) -> None:  # noqa: B027 - as below: most have nothing to do
        """Make the result of `names` durable (fsync). No effect where it already is."""

    def remove_if_empty(self) -> None:  # noqa: B027
        """Remove the directory if it is empty. Errors are ignored."""

    def close(self) -> None:  # noqa: B027
        """Close connections. The next use opens new ones."""
