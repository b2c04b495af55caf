"""Represent an appended file as numbered parts, for stores whose files can't grow. Nothing here does I/O.

Each append is one stored file, a part. Its name has the number of the append and the offset of its first byte:

    NAME.part-00000007-000000000000001024

The content of NAME follows from the names and sizes of its parts alone. The parts apply in the order of their numbers.
Each part cuts the content at its offset and adds its bytes. A part whose offset is behind the end does not count. So an
upload that timed out and arrives later changes nothing: a later append has a higher number, and an offset that is not
behind it. A file exists if it has a part with offset 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

# Python converts no more than 4300 digits, and no file has more than 30.
_PART_NAME: Final = re.compile(r"(?s)(.+)\.part-([0-9]{8,30})-([0-9]{18,30})")


class Part(NamedTuple):
    """One append, as it was stored. Parts sort in the order in which they apply."""

    number: int
    at: int
    size: int
    stored: str
    """Name of the stored file."""


class Piece(NamedTuple):
    """The bytes `start` to `end` of a stored file, `end` excluded."""

    stored: str
    start: int
    end: int

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return self.end - self.start


def part_name(name: str, number: int, at: int) -> str:
    """Return the name under which append `number` to a file is stored.

    Example:
        >>> part_name("a.journal", 7, 1024)
        'a.journal.part-00000007-000000000000001024'
    """
    return f"{name}.part-{number:08d}-{at:018d}"


def whole_names(stored: Iterable[str]) -> list[str]:
    """Return the names of stored files, with each file's parts folded into one name.

    Example:
        >>> whole_names(["run.json", part_name("a", 1, 0), part_name("a", 2, 9)])
        ['run.json', 'a']
    """
    found = ((name, _PART_NAME.fullmatch(name)) for name in stored)
    return list(dict.fromkeys(name if match is None else match[1] for name, match in found))


def parts_of(name: str, sizes: Mapping[str, int]) -> list[Part]:
    """Return the parts of a file among stored files and their sizes, in the order in which they apply."""
    found = ((_PART_NAME.fullmatch(stored), stored, size) for stored, size in sizes.items())
    return sorted(
        Part(int(match[2]), int(match[3]), size, stored)
        for match, stored, size in found
        if match is not None and match[1] == name
    )


def pieces_of(parts: Iterable[Part]) -> list[Piece] | None:
    """Return the pieces that the content of a file consists of, in order. None if the file is missing.

    `parts` are in the order in which they apply.

    Example:
        >>> parts = [Part(1, 0, 10, "first"), Part(2, 10, 30, "failed"), Part(3, 10, 5, "repeated")]
        >>> [tuple(piece) for piece in pieces_of(parts)]
        [('first', 0, 10), ('repeated', 0, 5)]
    """
    pieces: list[Piece] = []
    length, exists = 0, False
    for part in parts:
        if part.at > length:
            continue
        while pieces and length - pieces[-1].size >= part.at:
            length -= pieces.pop().size
        if length > part.at:
            last = pieces.pop()
            pieces.append(last._replace(end=last.end - (length - part.at)))
        pieces.append(Piece(part.stored, 0, part.size))
        length, exists = part.at + part.size, True
    return pieces if exists else None


def cut(pieces: Iterable[Piece], start: int, end: int) -> list[Piece]:
    """Return the pieces that the bytes from `start` to `end` of a content consist of, `end` excluded.

    Example:
        >>> [tuple(piece) for piece in cut([Piece("a", 0, 10), Piece("b", 0, 5)], 8, 12)]
        [('a', 8, 10), ('b', 0, 2)]
    """
    chosen, at = [], 0
    for piece in pieces:
        first, last = max(start - at, 0), min(end - at, piece.size)
        if first < last:
            chosen.append(Piece(piece.stored, piece.start + first, piece.start + last))
        at += piece.size
    return chosen


def length_of(pieces: Iterable[Piece]) -> int:
    """Return the number of bytes in pieces."""
    return sum(piece.size for piece in pieces)
