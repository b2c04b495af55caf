"""Read segments without memory for their answers: the same records as `SegmentReader` finds, in bounded memory."""

from __future__ import annotations

import secrets
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import override

import pytest

from distributed_backup.checkpoints import journal_scan
from distributed_backup.checkpoints.journal import Log, Part, SegmentReader
from distributed_backup.checkpoints.journal_format import (
    Answer,
    Failed,
    Left,
    Record,
    Void,
    encode_record,
)
from distributed_backup.checkpoints.journal_scan import SegmentScan
from distributed_backup.cli.journal_report import count_answers
from distributed_backup.position import Position
from distributed_backup.storage.base import Storage
from distributed_backup.storage.local import LocalStorage
from distributed_backup.storage.object_store import ObjectStorage
from tests.support.segments import answer, answers, boundary, flip, write_segment

START = (1, Position(1))
LONG = answer(7, b'"%s"' % (b",\\u0022value\\u0022:" * 10_000))
RECORDS: list[Record] = [answer(1), LONG, boundary(1, 1), Failed(error="ValueError"), Void(), answer(2), Left()]


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


@pytest.fixture(params=[1, 13, 2**16, 2**22])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Read in chunks of so many bytes."""
    monkeypatch.setattr(journal_scan, "_CHUNK", request.param)
    return int(request.param)


class ShortReads(LocalStorage):
    """A storage that returns fewer bytes than it is asked for."""

    @override
    def read_from(self, name: str, offset: int, limit: int) -> bytes:
        return super().read_from(name, offset, max(1, min(limit, 4096)))


def without_long_values(records: Iterator[Record] | list[Record]) -> list[Record]:
    return [
        Answer(key=record.key, number=record.number, value=b"")
        if isinstance(record, Answer) and len(record.value) > 2**16
        else record
        for record in records
    ]


def test_a_scan_finds_the_records_that_a_reader_finds(tmp_path: Path, chunk: int) -> None:
    """In chunks of any size, which end anywhere in a line."""
    records = RECORDS if chunk > 13 else [record for record in RECORDS if record is not LONG]
    storage = ShortReads(tmp_path)
    link = write_segment(storage, START, records)
    scan = SegmentScan(storage, link.name)
    assert [scanned.record for scanned in scan] == without_long_values(SegmentReader(storage, link.name).records())
    assert (scan.offset, scan.torn, scan.problem) == (link.end, 0, None)


def test_the_place_of_each_value_is_known(storage: LocalStorage) -> None:
    """Also of a long one, which is not kept."""
    name = write_segment(storage, START, RECORDS).name
    raw = storage.read(name)
    found = [scanned.value for scanned in SegmentScan(storage, name) if isinstance(scanned.record, Answer)]
    assert [raw[place[0] : place[1]] for place in found if place] == [
        record.value for record in RECORDS if isinstance(record, Answer)
    ]


def test_each_flipped_bit_of_a_long_line_is_found(storage: LocalStorage, tmp_path: Path) -> None:
    """In the checksum, in the key, at the end of the kept part, and in the rest."""
    name = write_segment(storage, START).name
    begin = len(storage.read(name))
    line = encode_record(LONG)
    for place in (0, 8, 20, 2**16 - 1, 2**16, 2**16 + 1, len(line) - 2):
        storage.append(name, line, at=begin)
        flip(tmp_path / name, begin + place)
        scan, reader = SegmentScan(storage, name), SegmentReader(storage, name)
        assert len(list(scan)) == len(list(reader)) == 1
        assert (scan.problem, scan.offset) == (reader.problem, reader.offset), place
        assert scan.problem == "the checksum does not match"


@pytest.mark.parametrize(
    "line",
    [b'{"failed":"%s"}' % (b"x" * 2**17), b"x" * 2**17, b'{"answer":1,"number":"x","value":"%s"}' % (b"x" * 2**17)],
)
def test_a_long_line_that_is_no_answer_does_not_verify(storage: LocalStorage, line: bytes) -> None:
    """Only answers are long."""
    link = write_segment(storage, START)
    storage.append(link.name, b"%08x %s\n" % (zlib.crc32(line), line), at=link.end)
    scan = SegmentScan(storage, link.name)
    assert (len(list(scan)), scan.offset) == (1, link.end)
    assert scan.problem is not None


@pytest.mark.parametrize("left", [1, 9, 40, 2**17])
def test_a_torn_tail_is_no_problem(storage: LocalStorage, left: int) -> None:
    """It may be completed at any time."""
    link = write_segment(storage, START, answers(2))
    storage.append(link.name, encode_record(LONG)[:left], at=link.end)
    scan = SegmentScan(storage, link.name)
    assert (len(list(scan)), scan.offset, scan.torn, scan.problem) == (3, link.end, left, None)


def test_a_line_without_an_end_is_given_up(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign file may have no newline at all."""
    monkeypatch.setattr(journal_scan, "MAX_RECORD", 2**20)
    monkeypatch.setattr(journal_scan, "_CHUNK", 2**19)
    link = write_segment(storage, START)
    storage.append(link.name, bytes(2**22), at=link.end)
    scan = SegmentScan(storage, link.name)
    assert len(list(scan)) == 1
    assert scan.problem == "a record is longer than 1 MB"


def test_a_scan_ends_where_it_is_asked_to(storage: LocalStorage) -> None:
    first = write_segment(storage, START, [answer(1)])
    name = write_segment(storage, START, [answer(1), answer(2)]).name
    assert len(list(SegmentScan(storage, name, end=first.end))) == 2
    assert len(list(SegmentScan(storage, name, start=first.end))) == 1
    cut = SegmentScan(storage, name, end=first.end + 5)
    assert (len(list(cut)), cut.torn) == (2, 5)


def test_memory_does_not_grow_with_the_answers(storage: LocalStorage) -> None:
    """An answer of 50 MB and 100,000 small ones need the memory of a few chunks."""
    link = write_segment(storage, START)
    storage.append(link.name, encode_record(answer(0, b'"%s"' % bytes(b"x" * 50 * 2**20))), at=link.end)
    storage.append(link.name, b"".join(map(encode_record, answers(100_000))), at=storage.size(link.name) or 0)
    tracemalloc.start()
    count = sum(isinstance(scanned.record, Answer) for scanned in SegmentScan(storage, link.name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100_001
    assert peak < 24 * 2**20


# -------------------------------------------------------------------- counting


def counted(storage: Storage, *names: str, **last: int) -> int:
    parts = [Part(name=name, start=0, end=None) for name in names]
    if last:
        parts[0] = Part(name=names[0], start=0, end=last["end"])
    return count_answers(storage, Log(position=Position(1), parts=tuple(parts)))


def test_void_answers_do_not_count(storage: LocalStorage) -> None:
    """They are those since the last boundary. A boundary that is written twice is one."""
    records = [*answers(3), boundary(1, 1), *answers(2), boundary(1, 1), answer(9), Void(), *answers(4)]
    assert counted(storage, write_segment(storage, START, records).name) == 3 + 4


def test_answers_are_counted_over_all_parts_of_a_log(storage: LocalStorage) -> None:
    """Of each part, only the bytes that the next one continues."""
    first = write_segment(storage, START, answers(3))
    storage.append(first.name, encode_record(answer(9)), at=first.end)
    second = write_segment(storage, (2, Position(1)), answers(2), after=first, digests=None)
    assert counted(storage, first.name, second.name, end=first.end) == 5


def test_counting_ends_where_a_replay_ends(storage: LocalStorage, tmp_path: Path) -> None:
    """At a record that does not verify, or where a part is shorter than the next one assumes."""
    first = write_segment(storage, START, answers(3))
    second = write_segment(storage, (2, Position(1)), answers(2), after=first, digests=None)
    flip(tmp_path / first.name, first.end - 5)
    assert counted(storage, first.name, second.name, end=first.end) == 2
    write_segment(storage, START, answers(2))
    assert counted(storage, first.name, second.name, end=first.end) == 2


def test_a_segment_in_a_bucket_is_scanned_likewise() -> None:
    storage = ObjectStorage(f"memory://{secrets.token_hex(4)}", limit=10.0)
    link = write_segment(storage, START, RECORDS)
    storage.append(link.name, encode_record(answer(5)), at=link.end)
    assert len(list(SegmentScan(storage, link.name))) == 1 + len(RECORDS) + 1
