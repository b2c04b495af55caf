"""The segment that a writer appends to, and where the next one begins: see `journal_writer`. Nothing here does I/O."""

from __future__ import annotations

from dataclasses import dataclass

from distributed_backup.checkpoints.journal_format import Digests, Header, Link, encode_record
from distributed_backup.position import Position


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentStart:
    """Where a segment begins: the fields of its header that belong to the log. See `Header`."""

    position: Position
    after: Link | None
    digests: Digests | None

    def open(self, *, run_id: str, term: int, worker_id: str) -> OpenSegment:
        """Return the segment of a writer that begins here."""
        header = Header(
            run_id=run_id,
            term=term,
            worker_id=worker_id,
            position=self.position,
            after=self.after,
            digests=self.digests,
        )
        return OpenSegment(header=header)


@dataclass(slots=True, kw_only=True)
class OpenSegment:
    """The segment that is appended to. Its first append creates it, and begins with the header."""

    header: Header
    size: int = 0

    def data(self, lines: list[bytes]) -> bytes:
        """Return the bytes to append for these lines."""
        return b"".join(lines if self.size else [encode_record(self.header), *lines])

    def end(self, lines: list[bytes]) -> Link:
        """Return the end of the segment when these lines are appended."""
        return Link(name=self.header.name, end=self.size + len(self.data(lines)))
