"""Copies of a journal: what arrives, what an interrupted or repeated copy does, and what is refused."""

from __future__ import annotations

import secrets
import tracemalloc
from pathlib import Path
from typing import override

import pytest

from distributed_backup.checkpoints import journal_scan
from distributed_backup.checkpoints.format import parse_name
from distributed_backup.checkpoints.journal import LogReader
from distributed_backup.checkpoints.journal_format import Answer, Link, encode_record, parse_segment_name
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.cli import copy_journal
from distributed_backup.cli.copy_run import copy_run
from distributed_backup.cli.journal_report import answers_since, damage_in, log_of, read_journal
from distributed_backup.errors import ConfigError, StoreError
from distributed_backup.position import Position
from distributed_backup.storage.base import Chunks, Storage
from distributed_backup.storage.local import LocalStorage
from tests.support.cli_runs import NEWEST, OLDER, call, commit
from tests.support.segments import answer, answers, boundary, flip, write_journal, write_segment

FIRST = "0000000001-00000001-00000000.journal"
SECOND = "0000000002-00000001-00000003.journal"


@pytest.fixture
def source(run: Path) -> CheckpointStore:
    return CheckpointStore(run, run_id="job-42", keep=9)


@pytest.fixture
def links(source: CheckpointStore) -> tuple[Link, Link]:
    """Write a journal of two segments with three and two answers."""
    return write_journal(source)


@pytest.fixture(params=["a directory", "elsewhere"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    place = tmp_path / "to" / "run" if request.param == "a directory" else f"memory://{secrets.token_hex(4)}/run"
    return CheckpointStore(place, run_id="job-42", keep=9)


@pytest.fixture(params=[7, 2**24])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy in chunks of so many bytes."""
    monkeypatch.setattr(copy_journal, "_CHUNK", request.param)


def same(source: CheckpointStore, target: CheckpointStore, *names: str) -> bool:
    return all(target.storage.read(name) == source.storage.read(name) for name in names)


def segments(store: CheckpointStore) -> list[str]:
    return sorted(filter(parse_segment_name, store.storage.names()))


@pytest.mark.usefixtures("chunk", "links")
def test_the_journal_is_copied_with_the_checkpoints(source: CheckpointStore, target: CheckpointStore) -> None:
    """The log of each checkpoint is found at the target."""
    done = copy_run(source, target)
    assert (done.segments, done.skipped) == ((SECOND, FIRST), ())
    assert same(source, target, FIRST, SECOND)
    assert (answers_since(target, NEWEST), answers_since(target, OLDER)) == (2, 5)
    assert damage_in(target, read_journal(target.storage)) == {}
    assert copy_run(source, target).segments == ()


@pytest.mark.usefixtures("links")
def test_copy_says_how_many_segments_it_has_copied(run: Path, tmp_path: Path) -> None:
    result = call("checkpoints", "copy", run, tmp_path / "to")
    assert result.stdout == f"2 copied, 0 already present: {tmp_path}/to\n2 segment(s) of the journal copied\n"
    assert call("checkpoints", "copy", run, tmp_path / "to").stdout.count("\n") == 1


@pytest.mark.usefixtures("chunk")
def test_a_repeated_copy_copies_what_was_appended_since(
    source: CheckpointStore, target: CheckpointStore, links: tuple[Link, Link]
) -> None:
    copy_run(source, target)
    source.storage.append(SECOND, encode_record(answer(5)), at=links[1].end)
    assert copy_run(source, target).segments == (SECOND,)
    assert same(source, target, FIRST, SECOND)


def test_segments_that_no_checkpoint_needs_stay_behind(
    source: CheckpointStore, target: CheckpointStore, links: tuple[Link, Link]
) -> None:
    commit(CheckpointStore(source.storage, keep=1), 3, Position(2))
    write_segment(source.storage, (3, Position(1, 9)), [boundary(2), *answers(1)], after=links[1])
    write_journal(source)
    assert copy_run(source, target).segments == ("0000000003-00000001-00000009.journal",)
    assert answers_since(target, target.names()[0]) == 1


# -------------------------------------------------------------------- interruptions


class StopError(BaseException):
    """The process is killed."""


class Killed(LocalStorage):
    """A storage whose process is killed before a write, or after half of it."""

    writes = 0
    last = 10**9

    @override
    def put(self, name: str, chunks: Chunks, *, new: bool = False, durable: bool = True) -> None:
        self._count()
        super().put(name, chunks, new=new, durable=durable)

    @override
    def append(self, name: str, data: bytes, *, at: int) -> None:
        try:
            self._count()
        except StopError:
            super().append(name, data[: len(data) // 2], at=at)
            raise
        super().append(name, data, at=at)

    def _count(self) -> None:
        self.writes += 1
        if self.writes > self.last:
            raise StopError


def test_a_run_at_the_target_of_an_interrupted_copy_has_all_answers_since_its_checkpoint(
    source: CheckpointStore, links: tuple[Link, Link], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each write. What is there of the journal is its beginning. A repeated copy completes it."""
    assert links
    monkeypatch.setattr(copy_journal, "_CHUNK", 100)
    steps, is_done = 0, False
    while not is_done:
        storage = Killed(tmp_path / f"to-{steps}")
        storage.last = steps
        target = CheckpointStore(storage, run_id="job-42")
        try:
            copy_run(source, target)
            is_done = True
        except StopError:
            pass
        for name in target.names():
            assert answers_since(target, name) == answers_since(source, name)
        assert damage_in(target, read_journal(storage)) == {} or not target.names()
        for name in segments(target):
            raw = storage.read(name)
            assert source.storage.read(name).startswith(raw)
        if SECOND in segments(target):
            assert same(source, target, FIRST)
        storage.last = 10**9
        copy_run(source, target)
        assert same(source, target, FIRST, SECOND, NEWEST, OLDER)
        steps += 1
    assert steps > 10


def test_each_checkpoint_comes_after_all_segments(
    source: CheckpointStore, links: tuple[Link, Link], tmp_path: Path
) -> None:
    order: list[str] = []

    class Noted(LocalStorage):
        @override
        def put(self, name: str, chunks: Chunks, *, new: bool = False, durable: bool = True) -> None:
            order.append(name)
            super().put(name, chunks, new=new, durable=durable)

    assert links
    copy_run(source, CheckpointStore(Noted(tmp_path / "to"), run_id="job-42"))
    assert [name for name in order if parse_segment_name(name) or parse_name(name)] == [FIRST, SECOND, OLDER, NEWEST]


# -------------------------------------------------------------------- damage


@pytest.mark.usefixtures("chunk")
def test_what_is_damaged_at_the_target_is_copied_again(
    source: CheckpointStore, links: tuple[Link, Link], tmp_path: Path
) -> None:
    """From the first bad record on."""
    target = CheckpointStore(tmp_path / "to", run_id="job-42")
    copy_run(source, target)
    flip(tmp_path / "to" / FIRST, links[0].end // 2)
    assert copy_run(source, target).segments == (FIRST,)
    assert same(source, target, FIRST, SECOND)


def test_a_torn_tail_is_not_copied(source: CheckpointStore, target: CheckpointStore, links: tuple[Link, Link]) -> None:
    source.storage.append(SECOND, b"torn", at=links[1].end)
    assert copy_run(source, target).skipped == ()
    assert target.storage.read(SECOND) == source.storage.read(SECOND)[: links[1].end]


def test_no_segment_is_copied_behind_a_bad_record(
    run: Path, source: CheckpointStore, target: CheckpointStore, links: tuple[Link, Link]
) -> None:
    """At the source, a replay ends there. At the target it must not leap over the answers that are missing."""
    third = write_segment(source.storage, (3, Position(1, 3)), answers(1), after=links[1], digests=None)
    flip(run / FIRST, links[0].end - 5)
    done = copy_run(source, target)
    assert (done.segments, done.skipped) == ((FIRST,), (third.name, SECOND, FIRST))
    assert segments(target) == [FIRST]
    assert answers_since(target, OLDER) == answers_since(source, OLDER) == 3
    result = call("checkpoints", "copy", run, run.parent / "other")
    assert result.stderr.splitlines()[-1] == (
        f"not copied as a whole, it or the segment before it does not verify: {FIRST}"
    )


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("content", [b"not a segment\n", b"", bytes(5000)])
def test_foreign_bytes_are_not_copied(
    run: Path, source: CheckpointStore, target: CheckpointStore, content: bytes
) -> None:
    """Nor are segments of another run, nor files with other names."""
    (run / "0000000003-00000001-00000003.journal").write_bytes(content)
    (run / "notes.journal").write_bytes(content)
    write_segment(source.storage, (4, Position(1, 3)), answers(1), run_id="job-43")
    done = copy_run(source, target)
    assert done.segments == (SECOND, FIRST)
    assert set(done.skipped) >= {"0000000004-00000001-00000003.journal"}
    assert segments(target) == [FIRST, SECOND]
    assert "notes.journal" not in target.storage.names()


@pytest.mark.parametrize("lie", [encode_record(answer(8))[:-9] + b"x" * 8 + b"\n", encode_record(answer(8))])
def test_a_target_that_lies_about_what_was_appended_is_found_out(
    source: CheckpointStore, links: tuple[Link, Link], tmp_path: Path, lie: bytes
) -> None:
    """Each copied segment is read back and compared, also with records that verify. No checkpoint follows it."""

    class Liar(LocalStorage):
        @override
        def append(self, name: str, data: bytes, *, at: int) -> None:
            super().append(name, data[: -len(lie)] + lie if name == SECOND else data, at=at)

    assert links
    target = CheckpointStore(Liar(tmp_path / "to"), run_id="job-42")
    with pytest.raises(StoreError, match=f"to/{SECOND} differs from the bytes that were written to it: "):
        copy_run(source, target)
    assert target.names() == []


def test_a_segment_that_changes_once_it_was_read_is_verified(
    source: CheckpointStore, target: CheckpointStore, links: tuple[Link, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that are copied may differ from the bytes that were verified."""
    assert links
    read_from = LocalStorage.read_from

    def change(storage: LocalStorage, name: str, offset: int, limit: int) -> bytes:
        data = read_from(storage, name, offset, limit)
        is_copied = storage.location == source.location and name == SECOND and limit < 2**20
        return data[:-5] + b"?" + data[-4:] if is_copied else data

    monkeypatch.setattr(LocalStorage, "read_from", change)
    with pytest.raises(StoreError, match=f"{SECOND} differs from the bytes that were written to it"):
        copy_run(source, target)
    assert target.names() == []


def test_a_segment_that_is_pruned_meanwhile_ends_the_copy(
    source: CheckpointStore, target: CheckpointStore, links: tuple[Link, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of it at the target would cut off the segment that continues it."""
    assert links
    monkeypatch.setattr(copy_journal, "_CHUNK", 100)
    read_from, reads = LocalStorage.read_from, 0

    def prune(storage: LocalStorage, name: str, offset: int, limit: int) -> bytes:
        nonlocal reads
        reads += name == FIRST and limit == 100
        if reads > 2 and storage.location == source.location:
            storage.remove(FIRST)
        return read_from(storage, name, offset, limit)

    monkeypatch.setattr(LocalStorage, "read_from", prune)
    with pytest.raises(StoreError, match=FIRST):
        copy_run(source, target)
    assert target.names() == []


# -------------------------------------------------------------------- targets that went on


@pytest.mark.usefixtures("links")
def test_a_target_that_recorded_answers_of_its_own_is_refused(source: CheckpointStore, target: CheckpointStore) -> None:
    """Its run continued there, under a higher term, and has committed nothing yet."""
    copy_run(source, target)
    name = write_segment(target.storage, (3, Position(1, 3)), answers(1)).name
    before = sorted(target.storage.names())
    commit(source, 2, Position(1, 9))
    with pytest.raises(ConfigError) as caught:
        copy_run(source, target)
    assert str(caught.value) == f"{target.location} is ahead of {source.location}: it holds {name}"
    assert sorted(target.storage.names()) == before


def test_a_target_with_a_journal_is_refused_also_by_a_source_without_one(
    source: CheckpointStore, target: CheckpointStore
) -> None:
    copy_run(source, target)
    name = write_segment(target.storage, (3, Position(1, 3)), answers(1)).name
    with pytest.raises(ConfigError, match=f"it holds {name}"):
        copy_run(source, target)


@pytest.mark.usefixtures("links")
def test_a_target_that_went_on_under_a_term_that_the_source_has_too_is_refused(
    source: CheckpointStore, target: CheckpointStore
) -> None:
    """Each of the two leaders was elected by its own coordinator."""
    copy_run(source, target)
    name = write_segment(target.storage, (3, Position(1, 5)), answers(1)).name
    write_segment(source.storage, (3, Position(1, 4)), answers(1))
    assert source.claim_term(3)
    with pytest.raises(ConfigError, match=f"it holds {name}"):
        copy_run(source, target)


@pytest.mark.usefixtures("links")
def test_a_target_that_holds_other_answers_under_the_same_name_is_refused(
    source: CheckpointStore, target: CheckpointStore
) -> None:
    """The run continued at both places, under the same term."""
    copy_run(source, target)
    name = write_segment(target.storage, (3, Position(1, 3)), answers(1)).name
    write_segment(source.storage, (3, Position(1, 3)), [answer(9)])
    before = target.storage.read(name)
    with pytest.raises(ConfigError, match=f"holds a different {name}: the run continued at both places"):
        copy_run(source, target)
    assert target.storage.read(name) == before


def test_segments_that_the_source_has_pruned_do_no_harm(
    source: CheckpointStore, target: CheckpointStore, links: tuple[Link, Link]
) -> None:
    """An earlier copy has brought them to the target."""
    copy_run(source, target)
    commit(source, 3, Position(2))
    write_segment(source.storage, (3, Position(2)), answers(1), after=links[1])
    CheckpointStore(source.storage, run_id="job-42").prune(term=3, keep=1)
    assert copy_run(source, target).segments == ("0000000003-00000002-00000000.journal",)


# -------------------------------------------------------------------- large ones


def test_a_large_journal_is_copied_in_little_memory(
    source: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory depends on the chunks. Here they are smaller than usual, so that the journal may be."""
    monkeypatch.setattr(copy_journal, "_CHUNK", 2**20)
    monkeypatch.setattr(journal_scan, "_CHUNK", 2**20)
    link = write_segment(source.storage, (1, Position(1)))
    source.storage.append(link.name, encode_record(answer(0, b'"%s"' % (b"x" * 40 * 2**20))), at=link.end)
    target = CheckpointStore(tmp_path / "to", run_id="job-42")
    tracemalloc.start()
    copy_run(source, target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20
    assert same(source, target, link.name)


def test_the_copied_log_replays_the_same_answers(
    source: CheckpointStore, target: CheckpointStore, links: tuple[Link, Link]
) -> None:
    """Over both segments, with what was appended behind the link left out."""
    source.storage.append(FIRST, encode_record(answer(9)), at=links[0].end)
    copy_run(source, target)
    assert replayed(source.storage, source) == replayed(target.storage, target)
    assert len(replayed(target.storage, target)) == 5


def replayed(storage: Storage, store: CheckpointStore) -> list[Answer]:
    log = log_of(store, store.load(OLDER))
    assert log is not None
    reader, found = LogReader(storage, log), list[Answer]()
    while True:
        stage = reader.next_stage()
        found += stage.answers
        if stage.end is None:
            return found
