"""Segments of a journal for tests: write them as a worker does, and damage them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from distributed_backup.checkpoints.journal_format import Answer, Boundary, Digests, Header, Link, Record, encode_record
from distributed_backup.checkpoints.state_digests import digests_in
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.position import Position
from distributed_backup.storage.base import Storage
from tests.support.cli_runs import body

DIGESTS: Digests = digests_in(body())
"""Digests of the state that `cli_runs.body` encodes."""


def answer(number: int = 0, value: bytes = b'{"text":"secret words"}') -> Answer:
    return Answer(key=f"key-{number}", number=0, value=value)


def answers(count: int) -> list[Record]:
    return [answer(number) for number in range(count)]


def boundary(epoch: int, batch: int = 0, digests: Digests = DIGESTS) -> Boundary:
    return Boundary(position=Position(epoch, batch), digests=digests)


def write_segment(
    storage: Storage,
    start: tuple[int, Position],
    records: Iterable[Record] = (),
    *,
    after: Link | None = None,
    digests: Digests | None = DIGESTS,
    run_id: str = "job-42",
) -> Link:
    """Write a segment of this term and position. Return the link of a segment that continues it at its end."""
    term, position = start
    header = Header(run_id=run_id, term=term, worker_id="w-1", position=position, after=after, digests=digests)
    data = b"".join(map(encode_record, [header, *records]))
    storage.append(header.name, data, at=0)
    return Link(name=header.name, end=len(data))


def write_journal(store: CheckpointStore) -> tuple[Link, Link]:
    """Write what follows the two checkpoints of the fixture `run`: a segment for each. The second has two answers."""
    first = write_segment(store.storage, (1, Position(1)), [*answers(3), boundary(1, 3)])
    second = write_segment(store.storage, (2, Position(1, 3)), answers(2), after=first)
    return first, second


def flip(path: Path, offset: int) -> None:
    """Flip one bit."""
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)
