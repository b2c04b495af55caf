"""The segment that a writer appends to, and where the next one begins: see `journal_writer`. Nothing here does I/O."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from distributed_backup.checkpoints.journal_format import Digests, Header, Link, encode_record
from distributed_backup.position import Position


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentStart:
    """Where a segment begins: the fields of its header that belong to the log. See `Header`."""

    position: Position
    after: Link | None
    digests: Digests | None

    def open(self, *, run_id: str, term: int, worker_id: str) -> OpenSegment:
        """Return the segment of a writer that begins here. If that is the one it continues, it goes on with it."""
        header = Header(
            run_id=run_id,
            term=term,
            worker_id=worker_id,
            position=self.position,
            after=self.after,
            digests=self.digests,
        )
        link = self.after
        return OpenSegment(header=header, size=link.end if link is not None and link.name == header.name else 0)


@dataclass(slots=True, kw_only=True)
class KeptStage:
    """The lines of the records since `start`, which is the last boundary, or the place where a log is continued.

    `lines` is None if not all of them are here. `is_reachable`: a log leads to a segment that begins at `start`, or a
    checkpoint does.
    """

    start: SegmentStart | None = None
    is_reachable: bool = False
    lines: list[bytes] | None = field(default_factory=list)
    size: int = 0

    def keep(self, *lines: bytes, limit: int) -> None:
        """Add lines, unless they become more than `limit` bytes."""
        self.size += sum(map(len, lines))
        if self.size > limit:
            self.lines = None
        if self.lines is not None:
            self.lines += lines

    def cut_off(self, segment: OpenSegment) -> None:
        """Note that nothing more is appended to `segment`. No log leads to a `start` behind its end."""
        link = None if self.start is None else self.start.after
        if self.start is not None and link is not None and link.name == segment.header.name and link.end > segment.size:
            self.start, self.is_reachable = replace(self.start, after=None), False

    @property
    def is_at_boundary(self) -> bool:
        """Whether a segment that begins here names the state. Else its header counts as the start of a replay."""
        return self.start is not None and self.start.digests is not None


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
