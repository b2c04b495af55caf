"""The files of a run, in a storage in memory: checkpoints, backups of synalinks, the journal, event logs, and so on."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from distributed_backup.checkpoints.abandoned import find_abandoned
from distributed_backup.checkpoints.fencing import TermClaims
from distributed_backup.checkpoints.format import Snapshot, checkpoint_name, encode, is_final
from distributed_backup.checkpoints.journal import LogReader, SegmentReader, find_log, segments_among, unneeded_segments
from distributed_backup.checkpoints.journal_format import (
    Answer,
    Boundary,
    Failed,
    Header,
    Left,
    Link,
    Record,
    Unanswered,
    Unrecorded,
    Void,
    encode_record,
    segment_name,
)
from distributed_backup.checkpoints.journal_scan import SegmentScan
from distributed_backup.checkpoints.journal_tail import LogTail, TailListener, TailStart
from distributed_backup.checkpoints.reader import CheckpointReader
from distributed_backup.checkpoints.run_identity import RUN_FILE, RunIdentity
from distributed_backup.checkpoints.state_body import encode_state
from distributed_backup.checkpoints.state_digests import digests_in
from distributed_backup.checkpoints.synalinks_backup import METADATA, VARIABLES, find_synalinks_backup
from distributed_backup.cli.export import state_tree
from distributed_backup.cli.journal_report import damage_in, newest_log, read_journal, segment_row, totals
from distributed_backup.cli.status import checkpoint_rows, describe
from distributed_backup.cli.tables import checkpoint_tree, checkpoints_table
from distributed_backup.observability.events import is_event_log
from distributed_backup.position import Position
from distributed_backup.storage.base import is_probe, partial_target
from distributed_backup.storage.parts import cut, length_of, part_name, parts_of, pieces_of, whole_names
from distributed_backup.timeline.history import history_of
from distributed_backup.timeline.html_page import page
from distributed_backup.timeline.incidents import costs_of
from distributed_backup.timeline.json_report import document
from distributed_backup.timeline.labels import describe as describe_event
from distributed_backup.timeline.log_reader import read_events
from tests.fuzz.engine import Parser
from tests.support.cli_runs import body, exportable
from tests.support.clocks import FakeClock
from tests.support.journals import DictStorage

RUN: Final = "job-42"
SEPARATOR: Final = b"\n====\n"
"""Between two files of one input."""

# An empty list has 2 bytes and a comma in JSON, and takes 80 bytes of memory.
JSON_MEMORY: Final = 32.0
# A name of one letter has a byte and a newline, and takes 100 bytes of memory.
NAMES_MEMORY: Final = 64.0
_DIGESTS: Final = digests_in(body())
_AT: Final = Position(1, 3)
_NAME: Final = checkpoint_name(2, _AT)
_FINAL_NAME: Final = checkpoint_name(2, _AT, final=True)


def storage_with(**files: bytes) -> DictStorage:
    storage = DictStorage()
    storage.files = dict(files)
    return storage


def parts(data: bytes, count: int) -> list[bytes]:
    """Return the files of an input. Missing ones are empty."""
    found = data.split(SEPARATOR, count - 1)
    return found + [b""] * (count - len(found))


# -------------------------------------------------------------------- checkpoints


def checkpoint_with(content: bytes, *, final: bool = False, term: int = 2) -> bytes:
    snapshot = Snapshot(position=_AT, body=content, data="f00d", final=final)
    _, line = encode(snapshot, run_id=RUN, term=term, worker_id="w-1", created_at="2026-11-29T00:00:00Z")
    return line + content + b"\n"


def seal_checkpoint(data: bytes) -> bytes:
    """Make length and digest of a checkpoint right, and its header canonical."""
    head, _, content = data.partition(b"\n")
    content = content.removesuffix(b"\n")
    try:
        fields: Any = orjson.loads(head)
        if not isinstance(fields, dict):
            return data
        fields["length"] = len(content)
        fields.pop("digest", None)
        line = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
        fields["digest"] = hashlib.sha256(line + b"\n" + content).hexdigest()
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS) + b"\n" + content + b"\n"
    except (TypeError, ValueError):
        return data


def _read_checkpoint(data: bytes) -> None:
    """Read it as a start, as a look and as an export do."""
    reader = CheckpointReader(storage_with(**{_FINAL_NAME if b'"final":true' in data[:4096] else _NAME: data}))
    rows = reader.list()
    shown = checkpoint_rows(reader, rows)
    checkpoints_table(list(zip(shown, rows, strict=True)))
    checkpoint = reader.latest()
    assert checkpoint is not None, "a checkpoint that was refused is none"
    reader.find_run_id()
    checkpoint_tree(describe(checkpoint))
    state_tree(checkpoint)


def _read_synalinks_backup(data: bytes) -> None:
    names = (VARIABLES, METADATA, f"{VARIABLES}.bkp", f"{METADATA}.bkp")
    found = zip(names, parts(data, 4), strict=True)
    find_synalinks_backup(storage_with(**{name: content for name, content in found if content}))


def _read_run_json(data: bytes) -> None:
    identity = RunIdentity(storage_with(**{RUN_FILE: data}), RUN)
    identity.is_in_place()
    identity.adopt(identity.read() or RUN)


# -------------------------------------------------------------------- the journal


def _segment(term: int, records: tuple[Record, ...], after: Link | None = None, digests: Any = _DIGESTS) -> bytes:
    header = Header(run_id=RUN, term=term, worker_id="w", position=_AT, after=after, digests=digests)
    return b"".join(map(encode_record, [header, *records]))


_RECORDS: Final[tuple[Record, ...]] = (
    Answer(key="k0", number=0, value=b'["ModelResponse",{"id":"x"},{}]'),
    Answer(key="k0", number=1, value=b'{"text":"\xc3\xa9"}'),
    Unanswered(key="k1", number=0, error="RateLimitError", status=429),
    Answer(key="k2", number=0, value=b"1", since_failure=1),
    Unrecorded(key="k2", number=1),
    Failed(error="ValueError", unseen=1),
    Boundary(position=Position(1, 4), digests={"random": "0123456789abcdef"}),
    Answer(key="k3", number=0, value=b"0"),
    Void(),
    Left(),
)
_FIRST, _SECOND = segment_name(1, Position(0)), segment_name(2, _AT)


def seal_segment(data: bytes) -> bytes:
    """Make the checksum of each line right."""
    lines = data.split(b"\n")
    for place, line in enumerate(lines[:-1]):
        if not line.startswith(SEPARATOR.strip()):
            lines[place] = b"%08x %s" % (zlib.crc32(line[9:]), line[9:])
    return b"\n".join(lines)


def _read_segment(data: bytes) -> None:
    """Read it in both ways, which must agree, and as the commands do."""
    storage = storage_with(**{_SECOND: data})
    reader, scan = SegmentReader(storage, _SECOND), SegmentScan(storage, _SECOND)
    count = sum(1 for _ in reader)
    scanned = sum(1 for _ in scan)
    assert (count, reader.offset) == (scanned, scan.offset), "the two readers of a segment differ"
    segments = read_journal(storage)
    damage = damage_in(CheckpointReader(storage, run_id=RUN), segments)
    orjson.dumps([totals(segments), *(segment_row(segment, damage.get(segment.name)) for segment in segments)])


def _read_log(data: bytes) -> None:
    """Read two segments beside a checkpoint, as a start, a look and a follower do."""
    first, second = parts(data, 2)
    storage = storage_with(**{_NAME: checkpoint_with(body()), _FIRST: first, _SECOND: second})
    reader = CheckpointReader(storage, run_id=RUN)
    orjson.dumps(newest_log(reader))
    find_abandoned(storage, run_id=RUN, newest=None)
    log = find_log(storage, run_id=RUN, position=_AT, digests=_DIGESTS)
    stages = None if log is None else LogReader(storage, log)
    while stages is not None and stages.next_stage().end is not None:
        pass
    _follow(storage)


def _follow(storage: DictStorage) -> None:
    tail = LogTail(
        storage,
        run_id=RUN,
        start=TailStart(
            boundary=Boundary(position=_AT, digests=_DIGESTS), seen=(Answer(key="k0", number=0, value=b""),)
        ),
        clock=FakeClock(),
        listener=TailListener(deliver=lambda records: None, ended=lambda link: None, lost=lambda reason: None),
    )
    for now in (False, True):
        if tail._locate(now=now) is None:
            tail._read(finishes=now)


# -------------------------------------------------------------------- names


def _read_names(data: bytes) -> None:
    """Use names as a listing of a foreign directory gives them."""
    names = [line.decode("utf-8", "surrogateescape") for line in data.split(b"\n")]
    storage = storage_with(**dict.fromkeys(names, b""))
    reader = CheckpointReader(storage, run_id=RUN)
    for name in reader.names():
        is_final(name)
    claims = TermClaims(storage)
    claims.was_led_before(claims.highest_term())
    segments = segments_among(names)
    unneeded_segments(names, kept=[(2, _AT)], term=3)
    assert set(segments) <= set(names)
    [name for name in names if is_event_log(name) or is_probe(name) or partial_target(name)]


def _read_parts(data: bytes) -> None:
    """Put an appended file together from the names and sizes of its parts."""
    sizes: dict[str, int] = {}
    for line in data.split(b"\n"):
        name, _, size = line.decode("utf-8", "surrogateescape").rpartition(" ")
        sizes[name] = int(size) if size.isascii() and size.isdigit() and len(size) < 18 else 0
    for name in whole_names(sizes):
        pieces = pieces_of(parts_of(name, sizes))
        if pieces is not None:
            assert length_of(cut(pieces, 5, 50)) <= 45, "a piece is too long"


# -------------------------------------------------------------------- event logs

_MOST_EVENTS: Final = 100
_DRAWN_EACH: Final = 10
_LOG: Final = "events-20261129T000000Z-w-1-0a1b2c3d.jsonl"


def _events() -> bytes:
    begin = datetime(2026, 11, 29, tzinfo=UTC)
    told: list[dict[str, Any]] = [
        {"event": "joined", "run": RUN, "standby": False},
        {"event": "restored", "checkpoint": None, "epoch": 0, "batch": 0},
        {"event": "elected", "term": 3},
        {"event": "replayed", "answers": 3, "epoch": 0, "batch": 1},
        {"event": "committed", "checkpoint": "x", "term": 3, "epoch": 1, "batch": 0, "bytes": 10, "seconds": 0.1},
        {"event": "commit_failed", "reason": "the disk is full"},
        {"event": "unreachable", "reason": "no reply"},
        {"event": "reachable"},
        {"event": "lost", "term": 3, "reason": "not renewed"},
        {"event": "diverged", "reason": "r", "epoch": 1, "batch": 0},
        {"event": "voided", "answers": 3, "epoch": 1, "batch": 0},
        {"event": "progress", "epoch": 1, "batch": 2},
        {"event": "notice", "reason": "SIGTERM", "remaining": 30.0},
        {"event": "preempted", "saved": True, "checkpoint": "x", "epoch": 1, "batch": 2, "seconds": 0.4},
        {"event": "resigned", "term": 3},
        {"event": "finished", "epoch": 1, "batch": 2},
    ]
    lines = []
    for second, fields in enumerate(told):
        at = (begin + timedelta(seconds=second)).isoformat().replace("+00:00", "Z")
        lines.append(orjson.dumps({"at": at, "worker": f"w-{second % 2}-0a1b2c3d", **fields}))
    return b"\n".join(lines) + b"\n"


def _read_events(data: bytes) -> None:
    """Read a log, print it and draw it."""
    events, _ = read_events(storage_with(**{_LOG: data}), RUN)
    for event in events:
        describe_event(event)
        orjson.loads(event.line())
    if not events:
        return
    history = history_of(events[:_MOST_EVENTS], now=time.time())
    costs = costs_of(history)
    orjson.dumps(document(history, costs))
    if zlib.crc32(data) % _DRAWN_EACH == 0:  # a picture takes 20 ms, whatever is in it
        page(history, costs).encode()


# -------------------------------------------------------------------- the list

_BODIES: Final = (
    body(),
    exportable(),
    b"".join(encode_state(orjson.loads(exportable()))),
    b'{"exact":{"variables":{"trainable":[NaN]},"schema":{"trainable":[{"path":"a","schema":"0"}]}}}',
    b'{"tagged":{"$variables":{"$m":[{"float":"nan"},{"int":"18446744073709551617"},{"text":"eda080"}]}}}',
)
SEGMENT: Final = _segment(2, _RECORDS)
_TWO_SEGMENTS: Final = (
    _segment(1, _RECORDS).replace(b'"epoch":1,"batch":3', b'"epoch":0,"batch":0', 1)
    + SEPARATOR
    + _segment(2, _RECORDS, after=Link(name=_FIRST, end=300), digests=None)
)
_NAMES: Final = b"\n".join(
    [
        *(
            b"run.json",
            b"0000000001.term",
            b"0000000002-00000001-00000003.ckpt",
            b"0000000002-00000001-00000003.journal",
        ),
        *(b"0000000003-00000001-00000003.final.ckpt", b".partial-0000000002-00000001-00000003.ckpt-0a1b2c3d"),
        *(b".probe-0a1b", _LOG.encode(), "٣000000001.term".encode(), b"../0000000001.term", b"latest.variables.json"),
    ]
)
_PARTS: Final = b"\n".join(
    f"{part_name('a.journal', number, at)} {size}".encode()
    for number, at, size in ((1, 0, 30), (2, 30, 20), (3, 40, 9))
)


def parser(name: str, seeds: tuple[bytes, ...], call: Callable[[bytes], object], **options: Any) -> Parser:
    return Parser(name=name, seeds=seeds, call=call, **options)


PARSERS: Final = (
    parser(
        "checkpoint",
        (*map(checkpoint_with, _BODIES), checkpoint_with(_BODIES[0], final=True)),
        _read_checkpoint,
        seal=seal_checkpoint,
        memory=JSON_MEMORY,
    ),
    parser(
        "backup of synalinks",
        (
            b'{"trainable_variables":{"a":{"b":[1]}}}' + SEPARATOR + b'{"epoch":3,"batch":2}' + SEPARATOR + b"{}",
            SEPARATOR.join([b"{", b"{}", b'{"x":1}', b'{"epoch":1}']),
        ),
        _read_synalinks_backup,
        memory=JSON_MEMORY,
    ),
    parser("run.json", (b'{"run_id":"job-42"}\n',), _read_run_json, memory=JSON_MEMORY),
    parser(
        "journal segment",
        (SEGMENT, _segment(2, ())),
        _read_segment,
        ours=(),
        seal=seal_segment,
        memory=JSON_MEMORY,
    ),
    parser("journal log", (_TWO_SEGMENTS,), _read_log, seal=seal_segment, memory=JSON_MEMORY),
    parser("names of files", (_NAMES,), _read_names, ours=(), memory=NAMES_MEMORY),
    parser("parts of a file in a bucket", (_PARTS,), _read_parts, ours=(), memory=NAMES_MEMORY),
    parser("event log", (_events(),), _read_events, ours=(), memory=JSON_MEMORY),
)
