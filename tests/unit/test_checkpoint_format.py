"""Positions, and names and bytes of checkpoints: each damage is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_backup.checkpoints.format import (
    Checkpoint,
    CheckpointHeader,
    Snapshot,
    checkpoint_name,
    decode,
    encode,
    parse_name,
)
from distributed_backup.errors import ConfigError, CorruptCheckpointError
from distributed_backup.position import Position

MAX_TERM = 10**10 - 1
MAX_COUNT = 10**8 - 1

counts = st.integers(0, MAX_COUNT)
positions = st.builds(Position, counts, counts)
terms = st.integers(1, MAX_TERM)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
snapshots = st.builds(
    Snapshot,
    position=positions,
    body=st.binary(max_size=200) | st.lists(st.binary(max_size=50), max_size=4),
    data=st.none() | st.text(max_size=20),
    final=st.booleans(),
)


def raw_of(snapshot: Snapshot, *, run_id: str = "run", term: int = 3, worker_id: str = "w") -> tuple[str, bytes]:
    """Return path and bytes of the checkpoint of `snapshot`."""
    header, line = encode(snapshot, run_id=run_id, term=term, worker_id=worker_id, created_at="2026-01-01T00:00:00Z")
    return f"/backup/{header.name}", line + b"".join(snapshot.chunks) + b"\n"


SMALL = Snapshot(position=Position(2, 3), body=b'{"a":1}', data="d")
PATH, RAW = raw_of(SMALL)
HEAD = RAW.index(b"\n")


def with_header(**changes: Any) -> bytes:
    """Return the small checkpoint with changed header fields, written in our form."""
    fields = {**orjson.loads(RAW[:HEAD]), **changes}
    return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS) + RAW[HEAD:]


def refused(raw: bytes, path: str = PATH) -> CorruptCheckpointError:
    """Return the error that `decode` raises."""
    with pytest.raises(CorruptCheckpointError) as caught:
        decode(raw, path=path)
    assert caught.value.path == path
    assert path in str(caught.value)
    return caught.value


# -------------------------------------------------------------------- positions and names


@pytest.mark.parametrize("value", [-1, MAX_COUNT + 1, True, 1.0, "1", None])
def test_a_position_refuses_what_is_no_count(value: Any) -> None:
    """Both parts are checked, and the message shows the value."""
    with pytest.raises(ConfigError, match="epoch, batch"):
        Position(value)
    with pytest.raises(ConfigError) as caught:
        Position(0, value)
    assert repr(value) in str(caught.value)


def test_a_position_reads_as_people_say_it() -> None:
    """`str` gives epoch and batch, for messages and logs."""
    assert str(Position(2, 3)) == "epoch 2, batch 3"


@pytest.mark.parametrize("term", [0, -1, MAX_TERM + 1, True, 1.5, "7", None])
def test_a_name_refuses_what_is_no_term(term: Any) -> None:
    """A term outside 1 to 9,999,999,999 would break the order of names."""
    with pytest.raises(ConfigError, match="term"):
        checkpoint_name(term, Position(0))


# Two of each, so that equal terms and equal positions are common.
marks = st.tuples(
    st.sampled_from([7, 8]) | terms, st.sampled_from([Position(2), Position(2, 1)]) | positions, st.booleans()
)


@given(marks, marks)
def test_the_lexical_order_of_names_is_the_order_of_term_position_and_end(
    one: tuple[int, Position, bool], other: tuple[int, Position, bool]
) -> None:
    """Sorting names sorts checkpoints by term first. The final state comes after the boundary at its position."""
    names = [checkpoint_name(term, position, final=final) for term, position, final in (one, other)]
    assert (names[0] < names[1]) == (one < other)


@given(terms, positions, st.booleans())
def test_a_name_tells_its_term_and_position(term: int, position: Position, final: bool) -> None:
    """`parse_name` undoes `checkpoint_name`."""
    assert parse_name(checkpoint_name(term, position, final=final)) == (term, position)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "run.json",
        "0000000000-00000001-00000000.ckpt",  # terms begin at 1
        "000000001-00000001-00000000.ckpt",
        "00000000001-00000001-00000000.ckpt",
        "0000000001-00000001-00000000.ckpt\n",
        "0000000001-00000001-00000000.ckpt~",
        "0000000001-00000001-00000000ckpt",
        ".partial-0000000001-00000001-00000000.ckpt-aa",
        "../0000000001-00000001-00000000.ckpt",
        "-000000001-00000001-00000000.ckpt",
        "٠٠٠٠٠٠٠٠٠١-٠٠٠٠٠٠٠١-٠٠٠٠٠٠٠٠.ckpt",  # noqa: RUF001 - `int` reads these digits, and they sort above ASCII
    ],
)
def test_other_names_are_not_names_of_checkpoints(name: str) -> None:
    """A name in any other form is refused."""
    assert parse_name(name) is None


# -------------------------------------------------------------------- headers


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "../x"},
        {"run_id": ""},
        {"run_id": None},
        {"worker_id": "a/b"},
        {"worker_id": "a\0"},
        {"worker_id": "w" * 129},
        {"term": 0},
        {"term": MAX_TERM + 1},
        {"term": "1"},
        {"epoch": -1},
        {"batch": 1.0},
        {"length": -1},
        {"length": "1"},
        {"length": True},
        {"length": None},
        {"final": 1},
        {"final": None},
    ],
)
def test_a_header_refuses_wrong_values(change: dict[str, Any]) -> None:
    """Ids and numbers are checked when the header is made."""
    sound: dict[str, Any] = {
        "run_id": "run",
        "term": 1,
        "epoch": 0,
        "batch": 0,
        "worker_id": "w",
        "created_at": "",
        "data": None,
        "length": 0,
        "digest": "",
    }
    CheckpointHeader(**sound)
    with pytest.raises(ConfigError):
        CheckpointHeader(**{**sound, **change})


@given(snapshots, names, terms, names)
def test_what_was_encoded_is_decoded(snapshot: Snapshot, run_id: str, term: int, worker_id: str) -> None:
    """Each field and byte comes back, also with newlines in the body."""
    path, raw = raw_of(snapshot, run_id=run_id, term=term, worker_id=worker_id)
    checkpoint = decode(raw, path=path)
    header = checkpoint.header
    body = b"".join(snapshot.chunks)
    assert (checkpoint.body, header.data, header.position) == (body, snapshot.data, snapshot.position)
    assert (header.run_id, header.term, header.worker_id) == (run_id, term, worker_id)
    assert checkpoint.name == checkpoint_name(term, snapshot.position, final=snapshot.final)
    assert header.final is snapshot.final
    assert checkpoint == Checkpoint(header=header, body=body)
    assert checkpoint.position == snapshot.position


def test_the_first_line_is_json() -> None:
    """Other tools can read the header. The body follows it, and a newline."""
    head, body, rest = RAW.split(b"\n")
    assert orjson.loads(head)["epoch"] == 2
    assert body == SMALL.body
    assert rest == b""


def test_a_checkpoint_of_version_0_3_is_read() -> None:
    """Its format is 1. This version writes 2, so that version 0.3 says that it does not read the body."""
    line = (
        b'{"batch":3,"created_at":"2026-01-01T00:00:00Z","data":"d",'
        b'"digest":"636ef7c038f328a6e01848cae24d33265170ac62bb0229fef2f9c7df9e752df2",'
        b'"epoch":2,"format":1,"length":7,"run_id":"run","term":3,"worker_id":"w"}'
    )
    assert decode(line + RAW[HEAD:], path=PATH).header.format == 1
    assert orjson.loads(RAW[:HEAD])["format"] == 2


def test_only_the_header_of_a_final_state_says_so() -> None:
    """The other headers have no field for it, as those of version 0.3."""
    assert "final" not in orjson.loads(RAW[:HEAD])
    path, raw = raw_of(replace(SMALL, final=True))
    assert orjson.loads(raw.split(b"\n")[0])["final"] is True
    assert "committed as" in refused(raw).reason
    assert decode(raw, path=path).header.final


# -------------------------------------------------------------------- damage


def test_a_checkpoint_cut_off_anywhere_is_refused() -> None:
    """It is refused at each length: empty, inside the header, at its newline, and inside the body."""
    assert refused(b"").reason == "it is empty"
    for length in range(1, HEAD):
        assert refused(RAW[:length]).reason == "the header is not JSON", length
    for length in range(HEAD, len(RAW)):
        assert "cut off" in refused(RAW[:length]).reason, length


def test_every_flipped_bit_is_found() -> None:
    """Each bit of header, newlines and body is flipped in turn."""
    for number in range(8 * len(RAW)):
        changed = bytearray(RAW)
        changed[number // 8] ^= 1 << number % 8
        refused(bytes(changed))


@pytest.mark.parametrize("extra", [b"\n", b"x", b"\0" * 512, RAW])
def test_bytes_after_the_end_are_refused(extra: bytes) -> None:
    """The file must be as long as its header says."""
    assert "too long" in refused(RAW + extra).reason


@pytest.mark.parametrize("extra", [b"\n", b" ", b"\0"])
def test_bytes_before_the_beginning_are_refused(extra: bytes) -> None:
    """White space counts, too."""
    refused(extra + RAW)


@given(st.binary(max_size=300))
def test_no_bytes_at_all_raise_anything_but_corrupt(raw: bytes) -> None:
    """Any bytes give `CorruptCheckpointError`, which makes the reader try the next file."""
    refused(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@given(st.sampled_from(sorted(orjson.loads(RAW[:HEAD]))), json_values)
def test_no_value_in_the_header_raises_anything_but_corrupt(field: str, value: Any) -> None:
    """A header value of a wrong type gives `CorruptCheckpointError`."""
    if value == orjson.loads(RAW[:HEAD])[field]:
        return
    refused(with_header(**{field: value}))


@pytest.mark.parametrize("unknown", [0, 3, 99, "1", True, 1.0, None])
def test_an_unknown_format_is_named(unknown: Any) -> None:
    """The message contains the file's format and the formats that this version reads."""
    reason = f"format {unknown!r} is unknown, this version reads 1 and 2"
    assert refused(with_header(format=unknown)).reason == reason


def test_a_header_with_one_field_more_or_less_is_refused() -> None:
    """The header must have exactly the fields of this format."""
    assert "not sound" in refused(with_header(extra=1)).reason
    fields = orjson.loads(RAW[:HEAD])
    del fields["data"]
    assert "not sound" in refused(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS) + RAW[HEAD:]).reason


def test_a_header_written_another_way_is_refused() -> None:
    """The same fields in another order or spacing are other bytes."""
    fields = orjson.loads(RAW[:HEAD])
    assert refused(RAW[: HEAD - 1] + b" }" + RAW[HEAD:]).reason == "the header is not as it was written"
    swapped = orjson.dumps(dict(reversed(fields.items())))
    assert refused(swapped + RAW[HEAD:]).reason == "the header is not as it was written"


@pytest.mark.parametrize("head", [b"[]", b"1", b"null", b'"x"'])
def test_a_header_that_is_no_object_is_refused(head: bytes) -> None:
    """Valid JSON of another type is refused."""
    assert refused(head + RAW[HEAD:]).reason == "the header is not an object"


def test_a_body_of_another_checkpoint_is_refused() -> None:
    """The digest covers the body, so one of the same length is refused."""
    assert refused(RAW.replace(b'{"a":1}', b'{"a":2}')).reason == "the digest does not match"


def test_a_changed_header_field_is_refused_though_the_body_is_whole() -> None:
    """The digest covers the header, so a checkpoint can't be moved to another run or worker."""
    for field, value in {"run_id": "other", "worker_id": "v", "data": None, "created_at": "x"}.items():
        assert refused(with_header(**{field: value})).reason == "the digest does not match"


def test_a_renamed_checkpoint_is_refused() -> None:
    """The header contains the name, so a copy under a higher name is refused."""
    name = checkpoint_name(9, Position(9))
    assert refused(RAW, path=f"/backup/{name}").reason == f"it was committed as {checkpoint_name(3, Position(2, 3))}"
