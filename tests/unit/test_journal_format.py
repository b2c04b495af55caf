"""Records of the journal: their lines, and every way in which a line can be wrong."""

from __future__ import annotations

import tracemalloc
import zlib
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_backup.checkpoints.journal_format import (
    Answer,
    BadRecordError,
    Boundary,
    Failed,
    Header,
    Left,
    Link,
    Record,
    Unanswered,
    Unrecorded,
    Void,
    decode_record,
    encode_record,
    is_answer,
    parse_segment_name,
    segment_name,
)
from distributed_backup.errors import ConfigError
from distributed_backup.position import Position

TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.just(',"value":') | st.just('"},"value":1}')
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
POSITIONS = st.builds(Position, st.integers(0, 10**8 - 1), st.integers(0, 10**8 - 1))
TERMS = st.integers(1, 10**10 - 1)
DIGESTS = st.dictionaries(TEXTS | st.just("value"), TEXTS, max_size=4)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers(-(2**63), 2**63) | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=8,
)
LINKS = st.builds(Link, name=st.builds(segment_name, TERMS, POSITIONS), end=st.integers(0, 2**63))
HEADERS = st.builds(
    Header,
    run_id=NAMES,
    term=TERMS,
    worker_id=NAMES,
    position=POSITIONS,
    after=st.none() | LINKS,
    digests=st.none() | DIGESTS,
)
RECORDS: st.SearchStrategy[Record] = st.one_of(
    HEADERS,
    st.builds(
        Answer,
        key=TEXTS,
        number=st.integers(0, 2**63),
        value=JSON.map(orjson.dumps),
        since_failure=st.integers(0, 2**63),
    ),
    st.builds(Boundary, position=POSITIONS, digests=DIGESTS),
    st.builds(
        Unanswered, key=TEXTS, number=st.integers(0, 2**63), error=TEXTS, status=st.none() | st.integers(0, 2**31)
    ),
    st.builds(Unrecorded, key=TEXTS, number=st.integers(0, 2**63)),
    st.builds(Failed, error=TEXTS, unseen=st.integers(0, 2**31)),
    st.just(Left()),
    st.just(Void()),
)
HEADER: dict[str, Any] = {
    "format": 1,
    "run_id": "run",
    "term": 7,
    "epoch": 2,
    "batch": 3,
    "worker_id": "w",
    "after": None,
    "digests": {},
}


def line(body: bytes) -> bytes:
    """A line whose checksum matches."""
    return b"%08x %s" % (zlib.crc32(body), body)


@given(RECORDS)
def test_a_record_comes_back_from_its_line(record: Record) -> None:
    """Whatever texts are in it. A line has one newline, at its end."""
    encoded = encode_record(record)
    assert encoded.endswith(b"\n")
    assert encoded.count(b"\n") == 1
    # Not only equal: `since_failure` does not count there.
    assert repr(decode_record(encoded[:-1])) == repr(record)
    assert is_answer(encoded) == isinstance(record, Answer)


def test_an_exception_of_an_earlier_version_is_read() -> None:
    """It counted no outcomes."""
    assert decode_record(line(b'{"failed":"E"}')) == Failed(error="E")
    with pytest.raises(BadRecordError):
        decode_record(line(b'{"failed":"E","unseen":-1}'))


def test_digests_of_a_group_called_value_come_back() -> None:
    """`,"value":` in the line of another kind is no answer's."""
    record = Boundary(position=Position(1), digests={"a": "1", "value": "2"})
    assert decode_record(encode_record(record)[:-1]) == record


@given(RECORDS, st.data())
def test_each_flipped_bit_and_each_truncation_is_found(record: Record, data: st.DataObject) -> None:
    """CRC-32 finds every single flipped bit."""
    whole = encode_record(record)[:-1]
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadRecordError):
        decode_record(bytes(flipped))
    with pytest.raises(BadRecordError):
        decode_record(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"null", b"5", b'"after"', b"[]", b"{}", b"{", b"\xff", b'{"failed":"\xff"}', b"[" * 100_000),
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        *(b'{"answer":1,"number":0,"value":1}', b'{"answer":"k","number":0}', b'{"answer":"k","value":1}'),
        *(b'{"answer":"k","number":%s,"value":1}' % wrong for wrong in (b"-1", b"1.0", b"true", b"null", b"1e999")),
        b'{"answer":"k","number":' + b"9" * 1000 + b',"value":1}',
        *(b'{"answer":{"x":1,"value":2},"number":0}', b'{"answer":', b'{"answer":,"value":1}'),
        *(b'{"boundary":%s,"digests":{}}' % wrong for wrong in (b"[1]", b"[1,2,3]", b"1", b'"ab"', b"{}")),
        *(b'{"boundary":[0,%s],"digests":{}}' % wrong for wrong in (b"NaN", b"1.5", b"-1", b"1e99", b"[]", b"true")),
        *(b'{"boundary":[0,1],"digests":%s}' % wrong for wrong in (b"1", b"null", b'[["a","b"]]', b'{"a":1}')),
        *(b'{"unanswered":"k","number":%s,"error":"e"}' % wrong for wrong in (b"-1", b"1.0", b"true", b"[]")),
        *(b'{"unanswered":1,"number":0,"error":"e"}', b'{"unanswered":"k","number":0}'),
        *(b'{"boundary":[0,1]}', b'{"failed":1}', b'{"left":1}', b'{"left":false}', b'{"void":"true"}', b'{"new":1}'),
    ],
)
def test_a_line_that_is_no_record_is_a_bad_record(body: bytes) -> None:
    """Its checksum matches, so another program or another version has written it."""
    with pytest.raises(BadRecordError) as caught:
        decode_record(line(body))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("format", value) for value in (0, 2, "1", None, "x" * 10**6, {"a": 1})),
        *(("run_id", value) for value in (None, 1, "", "a/b", "x" * 129, "é")),
        *(("worker_id", value) for value in (None, 1, "", "a b")),
        *(("term", value) for value in (None, 0, -1, 1.5, True, "7", 10**10)),
        *(("epoch", value) for value in (None, -1, 1.5, "1", "x" * 10**6, 10**8)),
        *(("batch", value) for value in (None, -1, True, 10**8)),
        *(("after", value) for value in (1, "", "ab", [], ["x"], {}, {"0": 1}, [1, 2], [None, None])),
        *(("after", [segment_name(1, Position(0)), end]) for end in (None, -1, 1.5, True, "1")),
        *(("after", [path, 1]) for path in ("../x", "a\0b", "", "x.journal", segment_name(1, Position(0)) + "\n")),
        *(("digests", value) for value in (1, "ab", [], [["a", "b"]], {"a": 1}, {"a": None})),
    ],
)
def test_a_header_with_a_wrong_field_is_a_bad_record(field: str, value: Any) -> None:
    """Above all no path of another file is taken for the name of a segment."""
    decode_record(line(orjson.dumps(HEADER)))
    with pytest.raises(BadRecordError) as caught:
        decode_record(line(orjson.dumps({**HEADER, field: value})))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("field", list(HEADER))
def test_a_header_without_a_field_is_a_bad_record(field: str) -> None:
    """Also one that has no format."""
    with pytest.raises(BadRecordError):
        decode_record(line(orjson.dumps({name: value for name, value in HEADER.items() if name != field})))


@given(st.binary())
def test_any_bytes_are_a_record_or_a_bad_record(body: bytes) -> None:
    """Nothing else is raised."""
    with pytest.raises(BadRecordError):
        decode_record(body)
    with pytest.raises(BadRecordError):
        decode_record(line(body))


@given(JSON)
def test_any_json_is_a_record_or_a_bad_record(value: Any) -> None:
    """Nothing else is raised."""
    for body in (value, {**HEADER, "after": value}, {**HEADER, "digests": value}, {"boundary": value, "digests": {}}):
        with suppress(BadRecordError):
            decode_record(line(orjson.dumps(body)))


def test_an_answer_of_50_mb_is_copied_few_times() -> None:
    """Its value is not parsed."""
    record = Answer(key="k", number=0, value=b'"' + b"x" * 50 * 2**20 + b'"')
    encoded = encode_record(record)[:-1]
    tracemalloc.start()
    try:
        assert decode_record(encoded) == record
        assert tracemalloc.get_traced_memory()[1] < 110 * 2**20
    finally:
        tracemalloc.stop()


@given(TERMS, POSITIONS)
def test_the_name_of_a_segment_has_its_term_and_position(term: int, position: Position) -> None:
    """And comes back."""
    assert parse_segment_name(segment_name(term, position)) == (term, position)


@given(st.lists(st.tuples(TERMS, POSITIONS)))
def test_names_sort_as_terms_and_positions_do(starts: list[tuple[int, Position]]) -> None:
    """The order of names decides which log is the newest."""
    assert sorted(segment_name(*start) for start in starts) == [segment_name(*start) for start in sorted(starts)]


@pytest.mark.parametrize("term", [0, -1, 10**10, 1.0, True, "1", None])
def test_a_wrong_term_has_no_name(term: Any) -> None:
    """A term is a whole number of at most 10 digits."""
    with pytest.raises(ConfigError):
        segment_name(term, Position(0))


@pytest.mark.parametrize(
    "name",
    [
        *("", "run.json", "0000000000-00000000-00000000.journal", "0000000001-00000000-00000000.ckpt"),
        *("0000000001-00000000-00000000.journal\n", " 0000000001-00000000-00000000.journal"),
        *("000000001-00000000-00000000.journal", "000000000\N{ARABIC-INDIC DIGIT ONE}-00000000-00000000.journal"),
        ".partial-0000000001-00000000-00000000.journal-ab",
    ],
)
def test_other_names_are_not_those_of_segments(name: str) -> None:
    """Not even with other digits than 0 to 9."""
    assert parse_segment_name(name) is None
