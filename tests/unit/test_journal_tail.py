"""A log that is read while its writer appends: new segments, new leaders, and storages that fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed_backup.checkpoints.journal_format import (
    Answer,
    Failed,
    Outcome,
    Record,
    Unanswered,
    Unrecorded,
    Void,
    encode_record,
    segment_name,
)
from distributed_backup.checkpoints.journal_tail import LogTail
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from distributed_backup.storage.base import Names
from tests.support.answering import answer, boundary, keys
from tests.support.tails import Patient, Tail
from tests.support.team import PATIENCE, soon


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Tail]:
    tail = Tail(tmp_path / "run")
    yield tail
    tail.end()


# ---------------------------------------------------------------- growing


def test_records_come_as_they_are_appended(made: Tail) -> None:
    """A torn line comes when it is complete."""
    segment = made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.start()
    made.has("a")
    line = encode_record(answer("b", 2))
    made.storage.append(segment.name, line[:20], at=segment.size)
    made.look()
    made.storage.append(segment.name, line, at=segment.size)
    made.has("a", "b")
    assert made.reports == []


def test_a_tail_waits_for_the_first_segment(made: Tail) -> None:
    """The leader of a start writes it with the first answer, which may take minutes."""
    made.start()
    made.look(500)
    made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.has("a")


def test_a_scheduled_commit_begins_a_new_segment(made: Tail) -> None:
    """The one before is removed when it is not needed any more."""
    first = made.segment(1, state=boundary(0)).add(answer("a", 1), boundary(1))
    made.start()
    made.has("a")
    second = made.segment(1, 1, after=first.link, state=boundary(1)).add(answer("b", 2))
    made.has("a", "b")
    made.storage.remove(first.name)
    second.add(answer("c", 3))
    made.has("a", "b", "c")
    assert made.reports == []


def test_a_new_segment_is_looked_for_at_each_poll_after_a_boundary(made: Tail) -> None:
    """Otherwise a follower would be up to half a second behind the first answers after each commit."""
    segment = made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.start()
    made.has("a")
    assert made.listings_in(40) < 5
    segment.add(boundary(1))
    soon(lambda: boundary(1) in made.records)
    assert made.listings_in(40) >= 40
    segment.add(answer("b", 2))
    made.has("a", "b")
    assert made.listings_in(40) < 5


def test_more_records_than_are_handed_over_at_once(made: Tail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distributed_backup.checkpoints.journal_tail._MOST_RECORDS", 2)
    names = [f"a{number}" for number in range(7)]
    made.segment(1, state=boundary(0)).add(*(answer(name, 1) for name in names))
    made.start()
    made.has(*names)


def test_stop_ends_the_thread_without_a_report(made: Tail) -> None:
    made.segment(1, state=boundary(0))
    made.start()
    made.look()
    made.end()
    assert made.reports == []


# ---------------------------------------------------------------- another leader


def test_a_new_leader_that_has_read_everything_is_followed(made: Tail) -> None:
    """What the old one appends later does not count."""
    old = made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.start()
    made.has("a")
    made.segment(2, after=old.link, worker="v").add(answer("b", 2))
    made.has("a", "b")
    old.add(answer("late", 9))
    made.look()
    made.has("a", "b")
    assert made.reports == []


def test_a_new_leader_that_has_read_more_is_followed(made: Tail) -> None:
    old = made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.start(seen=(answer("a", 1),))
    made.look()
    old.add(answer("b", 2))
    made.segment(2, after=old.link).add(answer("c", 3))
    made.has("b", "c")


@pytest.mark.parametrize("start", [(), (answer("a", 1), answer("b", 2))])
def test_a_new_leader_that_has_read_less_loses_the_tail(made: Tail, start: tuple[Answer, ...]) -> None:
    """Whether this tail has read the answers, or its worker had them before."""
    old = made.segment(1, state=boundary(0)).add(answer("a", 1))
    link = old.link
    if not start:
        old.add(answer("b", 2))
        made.start()
        made.has("a", "b")
    made.segment(2, after=link).add(answer("c", 3))
    if start:
        made.start(seen=start)
    assert "has not recorded all answers" in made.lost()


@pytest.mark.parametrize("was_read", [False, True])
def test_what_is_appended_after_a_newer_term_was_claimed_waits_for_its_leader(made: Tail, was_read: bool) -> None:
    """A leader was suspended in the append. Its successor has read the log before, or after the append."""
    old = made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.start()
    made.has("a")
    link = old.link
    made.storage.create("0000000002.term")
    old.add(answer("late", 9))
    made.look(100)
    made.has("a")
    made.segment(2, after=old.link if was_read else link, worker="v").add(answer("b", 2))
    made.has(*("a", "late", "b") if was_read else ("a", "b"))
    assert made.reports == []


def test_a_follower_that_leads_under_the_newer_term_reads_what_waits_for_it(made: Tail) -> None:
    old = made.segment(1, state=boundary(0)).add(answer("a", 1))
    tail = made.start()
    made.has("a")
    made.storage.create("0000000002.term")
    old.add(answer("b", 2))
    made.look(100)
    made.has("a")
    tail.finish()
    made.has("a", "b")
    soon(lambda: made.reports == [("ended", old.link)])


def test_what_waits_for_the_new_leader_may_be_pruned_by_it(made: Tail) -> None:
    """Its first commit may come before the follower looks again. What it has read counts, and what came later not."""
    old = made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.start()
    made.has("a")
    made.storage.create("0000000002.term")
    old.add(answer("b", 2))
    link = old.link
    old.add(answer("late", 9))
    made.look(100)
    made.storage.listed = made.storage.names()
    made.segment(2, after=link, worker="v").add(answer("c", 3), boundary(1))
    made.storage.remove(old.name)
    made.storage.listed = None
    made.has("a", "b", "c")
    assert made.reports == []


def test_what_the_new_leader_has_read_behind_what_waits_for_it_is_read(made: Tail) -> None:
    """Also if it has pruned the segment with the last boundary, so that the log can't be found from there."""
    first = made.segment(1, state=boundary(0)).add(answer("a", 1), boundary(1))
    second = made.segment(2, 1, after=first.link, worker="v").add(answer("b", 2))
    made.start()
    made.has("a", "b")
    made.storage.create("0000000003.term")
    second.add(answer("c", 3))
    made.look(100)
    made.has("a", "b")
    second.add(answer("d", 4))
    made.look(100)
    made.storage.listed = made.storage.names()
    made.segment(3, 1, after=second.link).add(answer("e", 5))
    made.storage.remove(first.name)
    made.storage.listed = None
    made.has("a", "b", "c", "d", "e")
    assert made.reports == []


def test_a_log_is_not_read_again_while_it_waits_for_the_new_leader(
    made: Tail, caplog: pytest.LogCaptureFixture
) -> None:
    """That leader may be in a long batch. The log may be large, and each read costs in a bucket."""
    old = made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.start(seen=(answer("a", 1),), led_by="w")
    made.look()
    made.storage.create("0000000002.term")
    old.add(answer("b", 2))
    made.look(100)
    before = made.storage.reads
    made.look(3500)  # 35 s
    assert made.storage.reads == before
    made.segment(2, after=old.link, worker="v").add(answer("c", 3))
    made.has("b", "c")
    assert (made.reports, caplog.messages) == ([], [])


def test_a_worker_that_starts_while_a_new_leader_replays_reads_the_log_beside_it(made: Tail) -> None:
    """That leader writes nothing before it comes to the end of the log, which may take long."""
    old = made.segment(1, state=boundary(0)).add(answer("a", 1), boundary(1), answer("b", 2))
    made.storage.create("0000000002.term")
    made.start()
    made.has("a", "b")
    made.segment(2, 1, after=old.link, worker="v").add(answer("c", 3))
    made.has("a", "b", "c")
    assert made.reports == []


def test_a_leader_that_was_deposed_does_not_take_its_own_late_append_from_the_log(made: Tail) -> None:
    """Its successor may have read the log before. It has claimed its term before this worker follows it."""
    old = made.segment(1, state=boundary(0)).add(answer("a", 1))
    link = old.link
    old.add(answer("late", 9))
    made.storage.create("0000000002.term")
    made.start(seen=(answer("a", 1),), led_by="w")
    made.look(100)
    made.has()
    made.segment(2, after=link, worker="v").add(answer("b", 2))
    made.has("b")
    assert made.reports == []


def test_a_list_that_can_not_be_read_after_the_records_takes_none_of_them(
    made: Tail, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors, is_newest = [StoreError("busy", path="p")] * 3, LogTail._is_newest_term

    def look(tail: LogTail) -> bool:
        if errors:
            raise errors.pop()
        return is_newest(tail)

    monkeypatch.setattr(LogTail, "_is_newest_term", look)
    made.segment(1, state=boundary(0)).add(answer("a", 1), boundary(1), answer("b", 2))
    made.start()
    made.has("a", "b")
    assert errors == []


FAILURE = Unanswered(key="u", number=0, error="E")


@pytest.mark.parametrize(
    ("earlier", "seen"),
    [
        ((answer("a", 1), FAILURE, Failed(error="E"), answer("b", 2)), (answer("a", 1), answer("b", 2))),
        ((answer("a", 1), Failed(error="E"), Failed(error="E"), Void(), answer("a", 2)), (answer("a", 2),)),
        ((answer("a", 1), Void()), ()),
        ((FAILURE, answer("a", 1), Failed(error="E")), (FAILURE, answer("a", 1))),
    ],
)
def test_a_leader_that_was_started_again_in_a_stage_follows_its_successor(
    made: Tail, earlier: tuple[Record, ...], seen: tuple[Outcome, ...]
) -> None:
    """It has not used what an exception or a void mark has taken out of the log."""
    old = made.segment(1, state=boundary(0)).add(*earlier)
    made.segment(2, after=old.link).add(answer("c", 3))
    made.start(seen=seen)
    soon(lambda: made.reports or "c" in keys(made.records))
    assert (keys(made.records), made.reports) == (["c"], [])


def test_a_leader_whose_answers_are_void_can_not_follow(made: Tail) -> None:
    old = made.segment(1, state=boundary(0)).add(answer("a", 1), Void())
    made.segment(2, after=old.link).add(answer("a", 2))
    made.start(seen=(answer("a", 1),))
    assert "has not recorded all answers" in made.lost()


def test_a_leader_begins_behind_the_last_failure_that_it_has_seen(made: Tail) -> None:
    """It has seen the first attempt of the second start. Those of the first start were taken back."""
    failure = Unanswered(key="k", number=0, error="E")
    made.segment(1, state=boundary(0)).add(failure, failure, Failed(error="E"), failure, answer("a", 1))
    made.start(seen=(failure,), led_by="w")
    made.has("a")
    assert made.records == [answer("a", 1)]


def test_a_change_of_the_leader_takes_no_record_from_a_follower(made: Tail) -> None:
    """It would wait for ever for the answer that can't be recorded."""
    unrecorded = Unrecorded(key="x", number=0)
    old = made.segment(1, state=boundary(0)).add(answer("a", 1), unrecorded, FAILURE, Failed(error="E"))
    made.segment(2, after=old.link)
    made.start(seen=(answer("a", 1),))
    soon(lambda: unrecorded in made.records)


def test_many_answers_since_a_boundary_are_read_once(made: Tail) -> None:
    """A new leader begins in the middle of a long batch. Each read asks for a megabyte."""
    seen = tuple(answer("a", number, number) for number in range(500))
    old = made.segment(1, state=boundary(0)).add(*seen)
    made.segment(2, after=old.link).add(answer("b", 1))
    made.start(seen=seen)
    made.has("b")
    assert made.storage.reads < 100


def test_a_leader_that_begins_another_log_loses_the_tail(made: Tail) -> None:
    """It could not read this one, or has begun at a later checkpoint."""
    made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.start()
    made.has("a")
    made.segment(2, 1, state=boundary(1, "other"))
    assert "another log" in made.lost()


def test_a_log_whose_begin_was_removed_loses_the_tail(made: Tail) -> None:
    """Also one that has read nothing yet: it would wait for ever."""
    made.segment(3, 5, state=boundary(5)).add(answer("a", 1))
    made.start()
    assert "another log" in made.lost()


@pytest.mark.parametrize("between", [False, True])
def test_a_segment_that_was_read_to_its_end_may_be_pruned_by_the_next_leader(made: Tail, between: bool) -> None:
    """The first commit of a new leader may come between two listings of a follower in the middle of a batch."""
    first = made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.start()
    made.has("a")
    made.storage.listed = made.storage.names()
    after = first.link
    if between:
        after = made.segment(2, after=after).add(answer("b", 1)).link
    made.segment(3, after=after).add(answer("c", 1), boundary(1))
    made.storage.remove(first.name)
    made.storage.listed = None
    made.has("a", *(["b"] if between else []), "c")
    assert made.reports == []


def test_segments_that_were_removed_before_a_slow_tail_came_to_them_lose_it(made: Tail) -> None:
    """Two commits came while its worker was suspended. It would wait for ever."""
    first = made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.start()
    made.has("a")
    made.storage.listed = made.storage.names()
    first.add(answer("b", 2), boundary(1))
    second = made.segment(1, 1, after=first.link, state=boundary(1)).add(answer("c", 3), boundary(2))
    made.segment(1, 2, after=second.link, state=boundary(2)).add(answer("d", 4))
    for removed in (first, second):
        made.storage.remove(removed.name)
    made.storage.listed = None
    assert "another log" in made.lost()


def test_a_segment_that_was_removed_while_it_was_read_loses_the_tail(made: Tail) -> None:
    segment = made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.start()
    made.has("a")
    made.storage.remove(segment.name)
    assert "another log" in made.lost()


@pytest.mark.parametrize("in_header", [False, True])
def test_a_leader_in_another_state_at_the_same_boundary_loses_the_tail(made: Tail, in_header: bool) -> None:
    """A leader of a start that was deposed before its checkpoint was durable would wait for ever."""
    if in_header:
        made.segment(2, 1, state=boundary(1, "other"))
    else:
        made.segment(2, state=boundary(0)).add(answer("a", 1), boundary(1, "other"))
    made.start(boundary(1))
    assert "another state at epoch 0, batch 1" in made.lost()


def test_a_tail_ahead_of_the_leader_waits_for_it(made: Tail) -> None:
    """The worker was a leader, and the new one began at an earlier boundary."""
    segment = made.segment(2, state=boundary(0)).add(answer("a", 1))
    made.start(boundary(1))
    made.look(500)
    segment.add(boundary(1), answer("b", 2))
    made.has("b")
    assert made.reports == []


@pytest.mark.parametrize("torn", [b"", b"12345678 {"])
def test_a_leader_that_died_in_its_first_append_loses_no_tail(made: Tail, torn: bytes) -> None:
    """Its segment stays without a header until the run ends."""
    old = made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.start()
    made.has("a")
    made.storage.append(segment_name(2, Position(0)), torn, at=0)
    made.look(500)
    old.add(answer("b", 2))
    made.has("a", "b")
    made.segment(3, after=old.link).add(answer("c", 3))
    made.has("a", "b", "c")
    assert made.reports == []


# ---------------------------------------------------------------- failures


def test_a_storage_that_fails_for_a_while_is_read_again(made: Tail, caplog: pytest.LogCaptureFixture) -> None:
    """With one warning."""
    made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.storage.errors = [StoreError("busy", path="p") for _ in range(50)]
    made.start()
    made.has("a")
    assert [record.getMessage() for record in caplog.records] == ["the journal can't be read, retrying: busy"]


def test_a_storage_that_is_closed_after_stop_is_no_failure(
    made: Tail, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker closes the storage at the end of the fit, while the thread may read."""

    def close() -> Names:
        assert made.tail is not None
        made.tail.stop()
        raise StoreError("I/O operation on closed file", path="p")

    monkeypatch.setattr(made.storage, "names", close)
    made.start()
    made.end()
    assert (caplog.records, made.reports) == ([], [])


def test_records_that_were_read_before_a_failure_are_handed_over_once(made: Tail) -> None:
    """The failure comes at the begin of the next segment."""
    first = made.segment(1, state=boundary(0)).add(answer("a", 1), boundary(1))
    second = made.segment(1, 1, after=first.link, state=boundary(1)).add(answer("b", 2))
    made.storage.busy = [second.name]
    made.start()
    made.has("a", "b")
    assert made.storage.busy == []


def test_a_link_to_no_file_in_the_place_of_a_segment_holds_up_no_follower(made: Tail) -> None:
    """Its term is higher than that of the segment which continues the log."""
    old = made.segment(1, state=boundary(0)).add(answer("a", 1))
    (made.storage.root / segment_name(9, Position(0, 0))).symlink_to("gone")
    made.start()
    made.has("a")
    made.segment(2, after=old.link).add(answer("b", 2))
    made.has("a", "b")
    assert made.reports == []


def test_a_bug_loses_the_tail_and_no_follower_waits_for_ever(made: Tail) -> None:
    made.storage.errors = [ZeroDivisionError("bug")]
    made.start()
    assert "ZeroDivisionError" in made.lost()


def test_a_damaged_record_loses_the_tail_unless_its_worker_leads(made: Tail) -> None:
    """Nothing behind it can be read. A worker that leads continues the log before it."""
    segment = made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.storage.append(segment.name, b"12345678 {}\n", at=segment.size)
    made.start()
    assert "damaged: the checksum does not match" in made.lost()
    made.end()
    made.reports.clear()
    made.start(finishes=True)
    soon(lambda: made.reports)
    assert made.reports == [("ended", segment.link)]


def test_a_hint_ends_the_wait_for_the_next_poll(made: Tail) -> None:
    """Without it, the next look would come an hour later."""
    made.clock = clock = Patient()  # type: ignore[assignment]
    made.storage.poll_interval = 3600.0  # type: ignore[misc]
    segment = made.segment(1, state=boundary(0))
    reader = made.start()
    assert clock.is_waiting.wait(PATIENCE)
    segment.add(answer("a", 1))
    assert made.records == []
    reader.wake()
    made.has("a")


def test_a_follower_that_finds_no_journal_says_so_once(made: Tail, caplog: pytest.LogCaptureFixture) -> None:
    """Its leader may run with journal=False. It waits on, because the leader may be slow."""
    made.start()
    soon(lambda: caplog.records)
    made.look()
    [record] = caplog.records
    assert "has been found in 30 s" in record.getMessage()
    made.segment(1, state=boundary(0)).add(answer("a", 1))
    made.has("a")
