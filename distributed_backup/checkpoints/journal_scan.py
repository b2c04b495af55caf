"""Read a segment of the journal record by record, for counting and copying, without memory for its answers.

Every byte is read and every checksum is compared, with the same result as `SegmentReader` has. Of a long line only the
beginning is kept, so an answer of 50 MB costs no more memory than a small one.

The limit: values of answers are not parsed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from distributed_backup.checkpoints.journal_format import (
    MAX_HEAD,
    MAX_RECORD,
    Answer,
    BadRecordError,
    Record,
    decode_record,
)
from distributed_backup.storage.base import Storage

# Bytes that one read asks for. In a bucket, each read is a listing and a download.
_CHUNK: Final = 4 * 2**20
# The checksum and a space.
_PREFIX: Final = 9
_VALUE: Final = b',"value":'


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """A record, and the offset behind it. The value of an answer is empty if it is long. See `value`.

    `value` is the start and the end of an answer's value in the segment. None for other records.
    """

    record: Record
    end: int
    value: tuple[int, int] | None


class SegmentScan:
    """The records of one segment, from `start` to `end` or to the last one that is complete.

    `offset` is the end of the last record that was read. `torn` counts the bytes of an incomplete one at the end: its
    writer may go on. `problem` says why a record does not verify, and nothing behind it is read.
    """

    def __init__(self, storage: Storage, name: str, *, start: int = 0, end: int | None = None) -> None:
        self._storage = storage
        self._name = name
        self._end = end
        self.offset = start
        self.torn = 0
        self.problem: str | None = None

    def __iter__(self) -> Iterator[Scanned]:
        """Yield the records.

        Raises:
            StoreError: The segment can't be read.
        """
        line = _Line()
        while chunk := self._next_chunk(self.offset + line.size):
            *ends, rest = chunk.split(b"\n")
            for part in ends:
                line.add(part)
                scanned = self._decoded(line)
                if scanned is None:
                    return
                self.offset = scanned.end
                line = _Line()
                yield scanned
            line.add(rest)
            if line.size > MAX_RECORD:
                self.problem = f"a record is longer than {MAX_RECORD >> 20} MB"
                return
        self.torn = line.size

    def _next_chunk(self, at: int) -> bytes:
        limit = _CHUNK if self._end is None else min(_CHUNK, self._end - at)
        return self._storage.read_from(self._name, at, limit) if limit > 0 else b""

    def _decoded(self, line: _Line) -> Scanned | None:
        try:
            record = line.record()
        except BadRecordError as error:
            self.problem = str(error)
            return None
        value = None
        if isinstance(record, Answer):
            # Between the marker and the brace that closes the record.
            start = self.offset + bytes(line.head).index(_VALUE) + len(_VALUE)
            value = start, self.offset + line.size - 1
        return Scanned(record=record, end=self.offset + line.size + 1, value=value)


class _Line:
    """A line that is read in parts: its beginning, its size and its checksum."""

    def __init__(self) -> None:
        self.head = bytearray()
        self.size = 0
        self._crc = 0

    def add(self, part: bytes) -> None:
        self.head += part[: max(0, MAX_HEAD - len(self.head))]
        self._crc = zlib.crc32(part[max(0, _PREFIX - self.size) :], self._crc)
        self.size += len(part)

    def record(self) -> Record:
        """Return the record, without its value if the line is long.

        Raises:
            BadRecordError: The line is not one that `encode_record` has made.
        """
        head = bytes(self.head)
        if self.size == len(head):
            return decode_record(head)
        if head[:_PREFIX] != b"%08x " % self._crc:
            raise BadRecordError("the checksum does not match")
        body, marker, _ = head[_PREFIX:].partition(_VALUE)
        if not marker:
            raise BadRecordError(f"the record has {self.size} bytes and is not an answer")
        # The rest of the line was verified above, so its place is taken by a short value.
        short = body + marker + b"0}"
        record = decode_record(b"%08x %s" % (zlib.crc32(short), short))
        return replace(record, value=b"") if isinstance(record, Answer) else record
