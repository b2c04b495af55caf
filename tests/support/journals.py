"""Journals for tests: a storage in memory that fails on request, records, segments, and what a log holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Self, override

from distributed_backup.checkpoints.journal import LogReader, find_log
from distributed_backup.checkpoints.journal_format import (
    Answer,
    Boundary,
    Digests,
    Header,
    Link,
    Record,
    decode_record,
    encode_record,
    segment_name,
)
from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.clock import Clock
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from distributed_backup.storage.base import Chunks, Names, Storage

RUN = "run-42"
PATIENCE = 30.0


class DictStorage(Storage):
    """Files in memory. `before_append` and `after_append` may raise or block."""

    write_interval = 0.0

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.appends: list[tuple[str, int]] = []
        self.before_append: Callable[[str, bytes], None] = lambda name, data: None
        self.after_append: Callable[[str, bytes], None] = lambda name, data: None

    @classmethod
    @override
    def from_url(cls, url: str, *, run_id: str | None, limit: float) -> Self:
        raise NotImplementedError

    @property
    @override
    def location(self) -> str:
        return "dict"

    @override
    def prepare(self) -> None: ...

    @override
    def exists(self) -> bool:
        return True

    @override
    def names(self) -> Names:
        return list(self.files)

    @override
    def read(self, name: str) -> bytes:
        return self.read_from(name, 0, 2**62)

    @override
    def size(self, name: str) -> int | None:
        return len(self.files[name]) if name in self.files else None

    @override
    def create(self, name: str, data: bytes = b"") -> bool:
        return self.files.setdefault(name, data) is data

    @override
    def put(self, name: str, chunks: Chunks, *, new: bool = False, durable: bool = True) -> None:
        self.files[name] = b"".join(chunks)

    @override
    def append(self, name: str, data: bytes, *, at: int) -> None:
        self.before_append(name, data)
        found = self.files.get(name)
        if at > len(found or b"") or (at and found is None):
            raise error(f"can't append to {name}")
        self.files[name] = (found or b"")[:at] + data
        self.appends.append((name, len(data)))
        self.after_append(name, data)

    @override
    def read_from(self, name: str, offset: int, limit: int) -> bytes:
        if name not in self.files:
            raise error(f"{name} is missing") from FileNotFoundError(name)
        return self.files[name][offset : offset + limit]

    @override
    def remove(self, name: str) -> None:
        self.files.pop(name, None)


def error(message: str = "the disk is full", *, retryable: bool = False) -> StoreError:
    return StoreError(message, path="dict", retryable=retryable)


class Failures:
    """A hook of a `DictStorage` that raises these errors in turn, and then nothing."""

    def __init__(self, *errors: Exception) -> None:
        self.left = list(errors)

    def __call__(self, name: str, data: bytes) -> None:
        if self.left:
            raise self.left.pop(0)


class Gate:
    """A hook of a `DictStorage` that blocks while it is closed."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()

    def __call__(self, name: str, data: bytes) -> None:
        self.entered.set()
        assert self.opened.wait(PATIENCE)


# -------------------------------------------------------------------- records


def at(batch: int) -> Position:
    return Position(0, batch)


def state(tag: object) -> Digests:
    return {"variables": str(tag)}


def header(
    term: int,
    batch: int,
    *,
    after: Link | None = None,
    digests: Mapping[str, str] | None = None,
    worker: str = "w",
    run_id: str = RUN,
) -> Header:
    return Header(run_id=run_id, term=term, worker_id=worker, position=at(batch), after=after, digests=digests)


def answer(number: int) -> Answer:
    return Answer(key="k", number=number, value=b"%d" % number)


def answers(*numbers: int) -> list[Record]:
    return [answer(number) for number in numbers]


def begins(term: int = 1, batch: int = 0, *, after: Link | None = None) -> Header:
    """The header of a segment that begins at a boundary."""
    return header(term, batch, after=after, digests=state(batch))


def boundary(batch: int, tag: object = "") -> Boundary:
    """A boundary. Its state is named after the batch if there is no tag."""
    return Boundary(position=at(batch), digests=state(tag or batch))


def name(term: int, batch: int) -> str:
    return segment_name(term, at(batch))


def write(storage: DictStorage, first: Header, *records: Record) -> Link:
    """Write a segment, and return the link to its end."""
    storage.files[first.name] = b"".join(map(encode_record, (first, *records)))
    return Link(name=first.name, end=len(storage.files[first.name]))


def read(storage: Storage, segment: str) -> list[Record]:
    """Return all records of a segment, each of which must verify."""
    data = storage.read(segment)
    assert data.endswith(b"\n")
    return [decode_record(line) for line in data[:-1].split(b"\n")]


def found(storage: Storage, batch: int, tag: object = "") -> LogReader | None:
    log = find_log(storage, run_id=RUN, position=at(batch), digests=state(tag or batch))
    return None if log is None else LogReader(storage, log)


def replayed(reader: LogReader | None) -> list[int | Position] | None:
    """Return the answers and boundaries of a log in order. None without a log."""
    if reader is None:
        return None
    items: list[int | Position] = []
    while True:
        stage = reader.next_stage()
        items += [int(each.value) for each in stage.answers]
        if stage.end is None:
            return items
        items.append(stage.end.position)


class Bench:
    """One writer on a storage, with a term that a test sets."""

    def __init__(self, storage: DictStorage, clock: Clock, *, worker: str = "w", term: int | None = 1) -> None:
        self.storage = storage
        self.term = term
        self.called: list[int] = []
        self.writer = JournalWriter(
            storage=storage, worker_id=worker, clock=clock, term=lambda: self.term, run_id=lambda: RUN
        )

    def ask(self, *numbers: int) -> None:
        for number in numbers:
            self.writer.append(answer(number), lambda number=number: self.called.append(number))  # type: ignore[misc]

    def come_to(self, batch: int, *, due: bool = False) -> None:
        self.writer.boundary(at(batch), lambda: state(batch), due=due)

    def begin(self, batch: int = 0) -> None:
        self.come_to(batch, due=True)

    def wants(self) -> bool:
        return self.writer.wants_checkpoint

    def settle(self) -> None:
        """Wait until the thread has done all that it was given."""
        for _ in range(2):
            done = threading.Event()
            assert self.writer._add(done.set)
            assert done.wait(PATIENCE)

    def files(self) -> dict[str, list[Record]]:
        return {segment: read(self.storage, segment) for segment in sorted(self.storage.files)}
