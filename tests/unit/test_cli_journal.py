"""Test `journal show` and `journal verify`: what they find, what they never print, and that they change nothing."""

from __future__ import annotations

import json
import os
import secrets
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.checkpoints.journal_format import (
    Failed,
    Left,
    Link,
    Record,
    Unanswered,
    Unrecorded,
    Void,
    encode_record,
    segment_name,
)
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage
from tests.support.cli_runs import NEWEST, OLDER, assert_refused, call, call_json, commit, damage
from tests.support.segments import DIGESTS, answer, answers, boundary, flip, write_journal, write_segment

COMMANDS = (("journal", "show"), ("journal", "verify"))
FIRST = "0000000001-00000001-00000000.journal"
SECOND = "0000000002-00000001-00000003.journal"
SECRET = "secret words"


@pytest.fixture
def store(run: Path) -> CheckpointStore:
    return CheckpointStore(run, run_id="job-42", keep=9)


@pytest.fixture
def links(store: CheckpointStore) -> tuple[Link, Link]:
    """Write a journal of two segments with three and two answers."""
    return write_journal(store)


def bad(run: Path) -> list[tuple[str, int, str]]:
    """Return what `verify` finds, and check that `show` finds the same."""
    found = call_json("journal", "verify", run, code=None)["bad"]
    rows = call_json("journal", "show", run, code=int(bool(found)))["segments"]
    shown = [{"name": row["name"], **row["problem"]} for row in rows if row["problem"]]
    assert shown == found
    return [(row["name"], row["offset"], row["reason"]) for row in found]


# -------------------------------------------------------------------- show


def test_show_has_a_row_for_each_segment_newest_last(run: Path, links: tuple[Link, Link]) -> None:
    found = call_json("journal", "show", run)
    total = links[0].end + links[1].end
    first, second = found.pop("segments")
    assert found == {"answers": 5, "bytes": total, "boundaries": 1}
    last = {"epoch": 1, "batch": 3, "digests": dict(DIGESTS)}
    common = {"worker_id": "w-1", "epoch": 1, "failed": 0, "error": None, "void": 0, "left": False, "torn": 0}
    common["unanswered"] = common["unrecorded"] = 0
    assert first == {
        "name": FIRST,
        "term": 1,
        "batch": 0,
        "answers": 3,
        "bytes": links[0].end,
        "boundaries": 1,
        "after": None,
        "last_boundary": last,
        "continued_at": links[0].end,
        "problem": None,
        **common,
    }
    assert second == {
        "name": SECOND,
        "term": 2,
        "batch": 3,
        "answers": 2,
        "bytes": links[1].end,
        "boundaries": 0,
        "after": {"name": FIRST, "bytes": links[0].end},
        "last_boundary": last,
        "continued_at": None,
        "problem": None,
        **common,
    }


def test_show_for_people_has_a_line_for_each_fact(run: Path, store: CheckpointStore, links: tuple[Link, Link]) -> None:
    """Digests are shortened. A mark is shown where it is."""
    records: list[Record] = [
        answer(),
        Unanswered(key="k", number=0, error=SECRET),
        Unrecorded(key="k", number=0),
        Failed(error="ValueError"),
        Void(),
        Left(),
    ]
    third = write_segment(store.storage, (3, Position(1, 3)), records, after=Link(name=SECOND, end=200), digests=None)
    store.storage.append(third.name, b"torn", at=third.end)
    lines = call("journal", "show", run).stdout.splitlines()
    digests = ", ".join(f"{name} {DIGESTS[name][:8]}" for name in sorted(DIGESTS))
    assert lines == [
        f"{FIRST}  term 1 by w-1, from epoch 1, batch 0: 3 answers, 1 boundaries, {links[0].end} bytes",
        f"  last boundary: epoch 1, batch 3 ({digests})",
        f"{SECOND}  term 2 by w-1, from epoch 1, batch 3: 2 answers, 0 boundaries, {links[1].end} bytes",
        f"  continues {FIRST} after {links[0].end} bytes",
        f"  last boundary: epoch 1, batch 3 ({digests})",
        "  cut off: a later segment continues it after 200 bytes",
        f"{third.name}  term 3 by w-1, from epoch 1, batch 3: 1 answers, 0 boundaries, {third.end} bytes",
        f"  continues {SECOND} after 200 bytes",
        "  marks: unanswered 1, unrecorded 1, failed 1 (ValueError), void 1, left",
        "  torn: 4 bytes of an incomplete record at the end",
        f"  bad at byte 0: it continues {SECOND} at byte 200, where no record ends",
        f"3 segments, 6 answers, 1 boundaries, {(links[0].end + links[1].end + third.end) / 1000:.1f} kB",
    ]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_the_text_of_an_answer_is_not_printed(
    run: Path, links: tuple[Link, Link], command: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    """Nor is its key."""
    assert links
    result = call(*command, run, *flags)
    assert SECRET in (run / FIRST).read_text()
    assert SECRET not in result.output
    assert "key-" not in result.output


@pytest.mark.usefixtures("links")
def test_answers_are_printed_if_they_are_asked_for(run: Path) -> None:
    lines = call("journal", "show", run, "--answers").stdout.splitlines()
    assert [line for line in lines if "answer key" in line] == [
        f'  answer key-{number} 0: {{"text":"{SECRET}"}}' for number in (0, 1, 2, 0, 1)
    ]
    found = call_json("journal", "show", run, "--answers")
    plain = call_json("journal", "show", run)
    recorded = [row.pop("recorded") for row in found["segments"]]
    assert found == plain
    assert recorded[0] == [{"key": f"key-{number}", "number": 0, "value": {"text": SECRET}} for number in range(3)]
    assert [len(each) for each in recorded] == [3, 2]


def test_a_long_answer_is_printed_as_it_is(run: Path, store: CheckpointStore) -> None:
    """It is printed in parts, which may end within a letter."""
    text = "é€😀" * 2**19
    link = write_segment(store.storage, (1, Position(1)), [answer(0, json.dumps(text, ensure_ascii=False).encode())])
    (row,) = call_json("journal", "show", run, "--answers")["segments"]
    assert [each["value"] for each in row["recorded"]] == [text]
    assert f'key-0 0: "{text}"\n' in call("journal", "show", run, "--answers").stdout
    assert row["bytes"] == link.end


def test_an_answer_can_not_control_the_terminal(run: Path, store: CheckpointStore) -> None:
    """JSON may hold control characters above ASCII, and the name of an error may hold any."""
    records: list[Record] = [answer(0, '"\x9b31mred\u202e"'.encode()), Failed(error="x\x1b[2J\n")]
    write_segment(store.storage, (1, Position(1)), records)
    shown = call("journal", "show", run, "--answers").stdout
    assert '" 31mred "' in shown
    assert "failed 1 (x [2J )" in shown
    assert all(letter.isprintable() or letter == "\n" for letter in shown)


def test_what_is_behind_a_second_header_is_not_printed(run: Path, links: tuple[Link, Link]) -> None:
    """Its records verify. No writer has put them there."""
    with (run / SECOND).open("ab") as file:
        file.write((run / SECOND).read_bytes())
    (_, row) = json.loads(call("journal", "show", run, "--answers", "--json").stdout)["segments"]
    assert (len(row["recorded"]), row["problem"]["offset"]) == (2, links[1].end)


def test_what_is_behind_a_bad_record_is_not_printed(run: Path, links: tuple[Link, Link]) -> None:
    flip(run / FIRST, links[0].end // 2)
    result = call("journal", "show", run, "--answers", "--json")
    assert result.exit_code == 1
    assert [len(row["recorded"]) for row in json.loads(result.stdout)["segments"]] < [3, 2]


def test_a_run_without_a_journal_is_fine(run: Path) -> None:
    """It is switched off, or nothing was asked yet."""
    assert call("journal", "show", run).stdout == "no journal yet\n"
    assert call_json("journal", "show", run) == {"answers": 0, "bytes": 0, "boundaries": 0, "segments": []}
    assert call_json("journal", "show", run, "--answers") == call_json("journal", "show", run)
    assert call("journal", "verify", run).stdout == f"0 segments, 0 answers, 0 bad\nno log continues {NEWEST}\n"


# -------------------------------------------------------------------- verify


def test_verify_says_how_much_there_is_and_where_the_newest_log_begins(run: Path, links: tuple[Link, Link]) -> None:
    begin = len(encode_record_of_header(run / SECOND))
    expected = f"{NEWEST} is continued by {SECOND} from byte {begin} on: 2 answers\n"
    assert call("journal", "verify", run).stdout == f"2 segments, 5 answers, 0 bad\n{expected}"
    assert call_json("journal", "verify", run) == {
        "segments": 2,
        "answers": 5,
        "bad": [],
        "checkpoint": NEWEST,
        "log_problem": None,
        "log": {"name": SECOND, "offset": begin, "answers": 2},
        "abandoned": None,
    }
    assert links[1].end > begin


def encode_record_of_header(path: Path) -> bytes:
    return path.read_bytes().split(b"\n")[0] + b"\n"


def test_the_log_of_an_older_checkpoint_is_found_in_the_middle_of_a_segment(
    run: Path, store: CheckpointStore, links: tuple[Link, Link]
) -> None:
    """The commit at a notice begins no segment."""
    (run / NEWEST).unlink()
    notice = commit(store, 2, Position(1, 3))
    (run / SECOND).unlink()
    found = call_json("journal", "verify", run)
    assert found["log"] == {"name": FIRST, "offset": links[0].end, "answers": 0}
    assert found["checkpoint"] == notice


@pytest.mark.usefixtures("links")
def test_a_checkpoint_of_another_state_has_no_log(run: Path, store: CheckpointStore) -> None:
    """The digests differ, although the position is the same."""
    commit(store, 3, Position(1, 3), b'{"variables":{"trainable":[]},"python_random":[],"numpy_random":[]}')
    assert call("journal", "verify", run).stdout.endswith("\nno log continues 0000000003-00000001-00000003.ckpt\n")
    commit(store, 4, Position(1, 3), b"{}")
    assert (
        "no log can be looked for: 0000000004-00000001-00000003.ckpt verifies, but"
        in call("journal", "verify", run).stdout
    )


@pytest.mark.usefixtures("links")
def test_answers_whose_checkpoint_was_removed_are_named(run: Path) -> None:
    """An older checkpoint leads to them as well, as long as it is there."""
    (run / NEWEST).unlink()
    assert call_json("journal", "verify", run)["abandoned"] is None
    (run / OLDER).unlink()
    assert call_json("journal", "verify", run)["abandoned"] == {"name": FIRST, "answers": 5}
    last = call("journal", "verify", run).stdout.splitlines()[-1]
    assert last.startswith(f"5 recorded answers from {FIRST} on are not used")
    assert call("journal", "verify", run).stdout.splitlines()[-2] == "no checkpoint yet"


@pytest.mark.usefixtures("links")
def test_verify_without_a_usable_checkpoint_reads_the_journal_still(run: Path) -> None:
    for name in (NEWEST, OLDER):
        damage(run / name)
    found = call_json("journal", "verify", run)
    assert (found["answers"], found["checkpoint"], found["bad"]) == (5, None, [])
    assert "none of the" in found["log_problem"]


def test_a_flipped_bit_is_found_with_its_record(run: Path, links: tuple[Link, Link]) -> None:
    """The segment that continues the damaged one behind that record is bad, too."""
    whole = (run / FIRST).read_bytes()
    begin = whole.index(b"key-1") - len('00000000 {"answer":"')
    flip(run / FIRST, whole.index(b"key-1") + 20)
    assert bad(run) == [
        (FIRST, begin, "the checksum does not match"),
        (SECOND, 0, f"it continues {FIRST} at byte {links[0].end}, and only {begin} bytes of that verify"),
    ]
    lines = call("journal", "verify", run).stdout.splitlines()
    assert lines[0] == f"bad  {FIRST} at byte {begin}: the checksum does not match"
    assert lines[2] == "2 segments, 3 answers, 2 bad"


def test_a_segment_that_lost_its_end_is_found(run: Path, links: tuple[Link, Link]) -> None:
    """Its own records verify. The next segment counts bytes that are missing."""
    raw = (run / FIRST).read_bytes()
    rest = raw[: raw.rindex(b"\n", 0, -1) + 1]
    (run / FIRST).write_bytes(rest)
    reason = f"it continues {FIRST} at byte {links[0].end}, and only {len(rest)} bytes of that verify"
    assert bad(run) == [(SECOND, 0, reason)]


@pytest.mark.parametrize("left", [0, 5, 60])
def test_a_torn_tail_is_normal(run: Path, store: CheckpointStore, links: tuple[Link, Link], left: int) -> None:
    """Its writer was killed, or is about to complete it. A segment may have no complete record at all."""
    store.storage.append(SECOND, encode_record(answer())[:left], at=links[1].end)
    (run / segment_name(3, Position(2))).write_bytes(encode_record(answer())[:left])
    assert bad(run) == []
    rows = call_json("journal", "show", run)["segments"]
    assert [row["torn"] for row in rows] == [0, left, left]
    assert (rows[2]["worker_id"], rows[2]["last_boundary"], rows[2]["bytes"]) == (None, None, 0)


HEADER = b'{"format":%d,"run_id":"%s","term":3,"epoch":2,"batch":0,"worker_id":"w","after":%s,"digests":null}'
THIRD = segment_name(3, Position(2))


def sealed(body: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(body), body)


@pytest.mark.parametrize(
    ("content", "offset", "reason"),
    [
        (
            sealed(HEADER % (2, b"job-42", b"null")),
            0,
            "the record is not sound (format 2 is unknown, this version reads 1)",
        ),
        (sealed(HEADER % (1, b"job-43", b"null")), 0, "it is of the run job-43"),
        (sealed(HEADER % (1, b"job-42", b'["%s",9]' % THIRD.encode())), 0, f"it continues {THIRD}, which is not older"),
        (
            sealed((HEADER % (1, b"job-42", b"null")).replace(b'"term":3', b'"term":4')),
            0,
            "the header is that of 0000000004",
        ),
        (encode_record(answer()), 0, "the first record is not a header"),
        (sealed(HEADER % (1, b"job-42", b"null")) * 2, 113, "there is a second header"),
        (b"PK\x03\x04\n" * 9, 0, "the checksum does not match"),
        (bytes(4096) + b"\n", 0, "the checksum does not match"),
    ],
)
@pytest.mark.usefixtures("links")
def test_what_is_no_segment_of_this_run_is_bad(run: Path, content: bytes, offset: int, reason: str) -> None:
    """The rest of the run is found as without it."""
    (run / THIRD).write_bytes(content)
    ((name, at, found),) = bad(run)
    assert (name, at) == (THIRD, offset)
    assert found.startswith(reason)
    assert call_json("status", run)["checkpoint"]["answers_since"] == 2
    assert call_json("journal", "verify", run, code=1)["log"]["name"] == SECOND


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize(
    "name", ["notes.journal", "1-2-3.journal", "0000000000-00000001-00000000.journal", FIRST + "~"]
)
def test_a_foreign_file_is_left_alone(run: Path, store: CheckpointStore, name: str) -> None:
    """It counts for no command, and neither prune nor delete removes it."""
    (run / name).write_bytes(b"mine")
    assert [row["name"] for row in call_json("journal", "show", run)["segments"]] == [FIRST, SECOND]
    assert bad(run) == []
    call_json("checkpoints", "prune", run)
    store.delete()
    assert os.listdir(run) == [name]


@pytest.mark.usefixtures("links")
def test_a_segment_that_can_not_be_read_is_bad(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are read. `status` goes on without the number of answers."""
    read_from = LocalStorage.read_from

    def refuse(storage: LocalStorage, name: str, offset: int, limit: int) -> bytes:
        if name == SECOND:
            raise StoreError(f"can't read {name}: Permission denied", path=name)
        return read_from(storage, name, offset, limit)

    monkeypatch.setattr(LocalStorage, "read_from", refuse)
    assert bad(run) == [(SECOND, 0, f"can't read {SECOND}: Permission denied")]
    assert call_json("journal", "show", run, code=1)["answers"] == 3
    assert call_json("status", run)["checkpoint"]["answers_since"] is None
    assert call("status", run).exit_code == 0


def test_a_segment_that_is_pruned_meanwhile_is_left_out(
    run: Path, links: tuple[Link, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = LocalStorage.names
    monkeypatch.setattr(LocalStorage, "names", lambda storage: [*names(storage), THIRD])
    assert links
    assert [row["name"] for row in call_json("journal", "show", run)["segments"]] == [FIRST, SECOND]


# -------------------------------------------------------------------- pruning


@pytest.mark.usefixtures("links")
def test_a_link_to_a_segment_that_was_pruned_is_no_problem(run: Path) -> None:
    """`prune` names the segments that it removes, beside the checkpoints."""
    done = call_json("checkpoints", "prune", run)
    assert done == {"kept": [NEWEST], "removed": [OLDER]}
    assert bad(run) == []


def test_prune_shows_the_segments_that_it_removes(run: Path, store: CheckpointStore, links: tuple[Link, Link]) -> None:
    """A link to a segment that was pruned is no problem."""
    newest = commit(store, 2, Position(2))
    write_segment(store.storage, (2, Position(2)), answers(1), after=links[1])
    result = call("checkpoints", "prune", run)
    assert result.stdout == "2 removed, 1 kept, 1 segment(s) of the journal removed\n"
    assert bad(run) == []
    assert call_json("journal", "verify", run)["checkpoint"] == newest
    write_journal(store)
    assert call_json("checkpoints", "prune", run) == {"kept": [newest], "removed": [FIRST]}
    # Its term has no segment before it, so its boundary may be in a segment of the term before.
    last = commit(store, 3, Position(2, 5))
    assert call_json("checkpoints", "prune", run) == {"kept": [last], "removed": [newest]}
    assert bad(run) == []


@pytest.mark.usefixtures("links")
def test_a_link_to_a_segment_that_a_checkpoint_needs_is_bad(run: Path) -> None:
    """The first checkpoint is there, and the answers that follow it are not."""
    (run / FIRST).unlink()
    assert bad(run) == [(SECOND, 0, f"it continues {FIRST}, which is missing")]
    (run / OLDER).unlink()
    assert bad(run) == [(SECOND, 0, f"it continues {FIRST}, which is missing")]


# -------------------------------------------------------------------- status and list


@pytest.mark.usefixtures("links")
def test_status_and_list_count_the_answers_since_the_newest_checkpoint(run: Path) -> None:
    assert call_json("status", run)["checkpoint"]["answers_since"] == 2
    assert ", 2 answer(s) recorded since\n" in call("status", run).stdout
    assert [row["answers_since"] for row in call_json("checkpoints", "list", run)] == [2, None]
    damage(run / NEWEST)
    assert [row["answers_since"] for row in call_json("checkpoints", "list", run, code=1)] == [None, 5]
    assert "ANSWERS SINCE" in call("checkpoints", "list", run).stdout


def test_a_checkpoint_that_holds_no_state_has_an_unknown_number_of_answers(run: Path, store: CheckpointStore) -> None:
    commit(store, 3, Position(2), b"{}")
    assert call_json("status", run)["checkpoint"]["answers_since"] is None
    assert "recorded since" not in call("status", run).stdout


# -------------------------------------------------------------------- usage and limits


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_run_is_wrong_usage(tmp_path: Path, command: tuple[str, ...]) -> None:
    assert_refused(call(*command, tmp_path / "nowhere"), 2, "nowhere does not exist")
    assert_refused(call(*command, tmp_path), 2, "not the backup directory of a run")
    result = call(*command, f"redis://:open-sesame@127.0.0.1:1/0 {tmp_path}")
    assert "open-sesame" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("links")
def test_looking_leaves_no_trace(run: Path, command: tuple[str, ...]) -> None:
    def trace() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in [run, *run.rglob("*")])

    before = trace()
    assert call(*command, run).exit_code == 0
    assert trace() == before


def test_a_journal_in_a_bucket_can_be_looked_at() -> None:
    url = f"memory://{secrets.token_hex(4)}"
    store = CheckpointStore(url, run_id="job-42", keep=9)
    commit(store, 1, Position(1))
    commit(store, 2, Position(1, 3))
    write_journal(store)
    assert call_json("journal", "show", url)["answers"] == 5
    assert call_json("journal", "verify", url)["log"]["answers"] == 2


@pytest.mark.parametrize("words", [("verify",), ("show", "--answers"), ("show", "--answers", "--json")])
def test_a_large_journal_needs_no_memory_for_it(
    run: Path, store: CheckpointStore, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of 50 MB, and 10,000 small ones."""
    printed = 0

    def count(message: Any = "", *, nl: bool = True, **_: Any) -> None:
        nonlocal printed
        printed += len(message) + nl

    monkeypatch.setattr("typer.echo", count)
    link = write_segment(store.storage, (1, Position(1)))
    store.storage.append(link.name, encode_record(answer(0, b'"%s"' % bytes(b"x" * 50 * 2**20))), at=link.end)
    size = store.storage.size(link.name) or 0
    store.storage.append(link.name, b"".join(map(encode_record, [*answers(10_000), boundary(1, 3)])), at=size)
    tracemalloc.start()
    assert call("journal", *words[:1], run, *words[1:]).exit_code == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20
    assert (printed > 50 * 2**20) == ("--answers" in words)
