"""What the segments of a writer hold over changes of its term, takeovers, notices and failures. No test sleeps."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from distributed_backup.checkpoints import journal_writer
from distributed_backup.checkpoints.journal_format import (
    Answer,
    Boundary,
    Header,
    Left,
    Link,
    Record,
    Void,
    encode_record,
)
from distributed_backup.clock import SystemClock
from distributed_backup.storage.local import LocalStorage
from tests.support.clocks import FakeClock
from tests.support.journals import (
    PATIENCE,
    RUN,
    Bench,
    DictStorage,
    Failures,
    Gate,
    answer,
    answers,
    at,
    begins,
    boundary,
    error,
    found,
    header,
    name,
    read,
    replayed,
    state,
    write,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


# -------------------------------------------------------------------- terms


def test_a_new_term_begins_a_segment_that_needs_no_other(bench: Bench) -> None:
    """It has the whole stage, because the next leader may have pruned the last segment meanwhile."""
    bench.begin()
    bench.ask(0)
    bench.come_to(1)
    bench.ask(1, 2)
    bench.settle()
    bench.term = 2
    bench.ask(3)
    bench.settle()
    files = bench.files()
    assert files[name(1, 0)] == [begins(), answer(0), boundary(1), *answers(1, 2)]
    link = Link(name=name(1, 0), end=len(bench.storage.files[name(1, 0)]) - 2 * len(encode_record(answer(1))))
    assert files[name(2, 1)] == [begins(2, 1, after=link), *answers(1, 2, 3)]
    assert replayed(found(bench.storage, 0)) == [0, at(1), 1, 2, 3]
    del bench.storage.files[name(1, 0)]
    assert replayed(found(bench.storage, 1)) == [1, 2, 3]
    assert bench.called == [0, 1, 2, 3]


def test_a_new_term_before_the_first_record_loses_nothing(bench: Bench) -> None:
    """The segment of the old term was not written, so nothing may continue it."""
    bench.begin()
    bench.settle()
    bench.term = 2
    bench.ask(0)
    bench.settle()
    assert bench.files() == {name(2, 0): [begins(2, 0), answer(0)]}
    bench.come_to(1, due=True)
    bench.settle()
    bench.term = 3
    bench.ask(1)
    bench.settle()
    assert replayed(found(bench.storage, 0)) == [0, at(1), 1]
    assert replayed(found(bench.storage, 1)) == [1]


@pytest.mark.parametrize("due", [True, False])
def test_a_new_term_at_a_boundary_keeps_the_chain(bench: Bench, due: bool) -> None:
    """No segment is written twice, or continues itself."""
    bench.begin()
    bench.ask(0)
    bench.settle()
    bench.term = 2
    bench.come_to(1, due=due)
    bench.ask(1)
    bench.settle()
    assert replayed(found(bench.storage, 0)) == [0, at(1), 1]
    assert replayed(found(bench.storage, 1)) == [1]


def test_a_lost_term_lets_an_open_segment_go_on(bench: Bench) -> None:
    """All in it is true. Under the next term there is another one."""
    bench.begin()
    bench.ask(0)
    bench.settle()
    bench.term = None
    assert not bench.wants()
    bench.ask(1)
    bench.come_to(1, due=True)
    bench.ask(2)
    bench.settle()
    assert bench.files() == {name(1, 0): [begins(), *answers(0, 1), boundary(1), answer(2)]}
    bench.term = 3
    bench.ask(3)
    bench.settle()
    assert replayed(found(bench.storage, 0)) == [0, 1, at(1), 2, 3]
    assert replayed(found(bench.storage, 1)) == [2, 3]


def test_a_worker_without_a_term_writes_nothing_and_then_wants_a_checkpoint(bench: Bench) -> None:
    """A follower that becomes leader."""
    bench.term = None
    bench.begin()
    bench.ask(0)
    bench.come_to(1, due=True)
    bench.ask(1)
    bench.settle()
    assert (bench.storage.files, bench.called, bench.wants()) == ({}, [0, 1], False)
    bench.term = 2
    assert bench.wants()
    bench.ask(2)
    bench.come_to(2, due=True)
    bench.ask(3)
    bench.settle()
    assert bench.files() == {name(2, 2): [begins(2, 2), answer(3)]}


# -------------------------------------------------------------------- a log that is continued


@pytest.fixture
def link(storage: DictStorage) -> Link:
    """The end of another worker's log."""
    return write(storage, header(1, 3, digests=state(3), worker="v"), answer(0), answer(1))


def test_a_log_is_continued_with_a_header_at_once(bench: Bench, link: Link) -> None:
    """It counts the starts that die. Nothing is written before, whatever boundaries are passed."""
    bench.term = 2
    bench.writer.replay_begins()
    bench.come_to(2, due=True)
    bench.ask(9)
    bench.writer.write_stage()
    bench.settle()
    bench.come_to(3)
    bench.settle()
    assert list(bench.storage.files) == [link.name]
    assert not bench.wants()
    bench.writer.continue_log(link, boundary(3), mark=None)
    bench.settle()
    assert read(bench.storage, name(2, 3)) == [header(2, 3, after=link)]
    bench.ask(2)
    bench.come_to(4, due=True)
    bench.ask(3)
    bench.settle()
    assert replayed(found(bench.storage, 3)) == [0, 1, 2, at(4), 3]
    assert bench.called == [9, 2, 3]


@pytest.mark.parametrize("mark", [None, Void()])
@pytest.mark.parametrize("cause", ["no term", "failure"])
def test_a_stage_that_continues_a_log_hides_nothing_of_it(
    bench: Bench, link: Link, cause: str, mark: Record | None
) -> None:
    """Also where the header could not be written at first, and a notice comes in the middle of the replay."""
    bench.term = None if cause == "no term" else 2
    bench.storage.before_append = Failures(*[error()] * (cause == "failure"))
    bench.writer.replay_begins()
    bench.writer.continue_log(link, boundary(3), mark=mark)
    bench.ask(2)
    bench.settle()
    assert list(bench.storage.files) == [link.name]
    bench.term = 2
    bench.writer.write_stage()
    bench.ask(3)
    bench.settle()
    assert replayed(found(bench.storage, 3)) == ([0, 1] if mark is None else []) + [2, 3]


def test_a_worker_that_leads_again_has_its_stage_in_the_log_before_it_trains_on(bench: Bench) -> None:
    """The leader between has read a part of it only, so the rest of the old segment is in no replay."""
    bench.begin()
    bench.ask(0)
    bench.settle()
    read_by_other = Link(name=name(1, 0), end=len(bench.storage.files[name(1, 0)]))
    bench.ask(1)
    bench.settle()
    write(bench.storage, header(2, 0, after=read_by_other))
    assert replayed(found(bench.storage, 0)) == [0]
    bench.term = 3
    bench.writer.lead_again(timeout=PATIENCE)
    assert replayed(found(bench.storage, 0)) == [0, 1]


def test_a_worker_that_leads_again_begins_a_segment_before_it_uses_what_it_has_replayed(
    bench: Bench, link: Link
) -> None:
    """A leader that was suspended in its first append would otherwise have the newest segment."""
    bench.term = 2
    bench.writer.replay_begins()
    bench.writer.continue_log(link, boundary(3), mark=None)
    bench.settle()
    bench.term = 3
    bench.writer.lead_again(timeout=PATIENCE)
    assert read(bench.storage, name(3, 3)) == [header(3, 3, after=link)]


def test_a_worker_that_leads_again_begins_the_segment_that_it_could_not_begin_before(bench: Bench, link: Link) -> None:
    """Without it, nothing would be recorded before the next checkpoint."""
    bench.term = None
    bench.writer.replay_begins()
    bench.writer.continue_log(link, boundary(3), mark=None)
    bench.ask(2)
    bench.settle()
    assert name(2, 3) not in bench.storage.files
    bench.term = 2
    bench.writer.lead_again()
    bench.ask(3)
    bench.settle()
    assert read(bench.storage, name(2, 3)) == [header(2, 3, after=link), *answers(2, 3)]


def test_a_worker_that_leads_again_begins_no_segment_that_nothing_leads_to(bench: Bench) -> None:
    """Its boundary has no checkpoint, so the next one gets one."""
    bench.term = None
    bench.come_to(0)
    bench.ask(0)
    bench.settle()
    bench.term = 1
    bench.writer.lead_again(timeout=PATIENCE)
    assert (bench.storage.files, bench.wants()) == ({}, True)


def test_a_worker_that_leads_again_begins_no_segment_behind_the_end_of_the_last_one(bench: Bench) -> None:
    """The disk was full, so the boundary that it would continue is not there."""
    bench.begin()
    bench.ask(0)
    bench.settle()
    bench.storage.before_append = Failures(error())
    bench.come_to(1)
    bench.ask(1)
    bench.settle()
    bench.term = 2
    bench.writer.lead_again(timeout=PATIENCE)
    assert ([*bench.storage.files], bench.wants()) == ([name(1, 0)], True)


def test_no_segment_of_a_new_term_begins_behind_the_end_of_one_that_can_not_be_written(bench: Bench) -> None:
    bench.begin()
    bench.ask(0)
    bench.settle()
    gate = bench.storage.before_append = Gate()
    bench.ask(1)
    assert gate.entered.wait(PATIENCE)
    bench.come_to(1)
    bench.term = 2
    bench.ask(2)
    bench.storage.before_append = Failures(error())
    gate.opened.set()
    bench.settle()
    bench.settle()
    assert (bench.files(), bench.wants()) == ({name(1, 0): [begins(), *answers(0, 1)]}, True)


def test_a_segment_does_not_continue_itself(bench: Bench, link: Link) -> None:
    """Its worker was deposed and led again before it had begun it, and then took it for another one's."""
    bench.term = 3
    bench.writer.continue_log(link, boundary(0), mark=None)
    bench.ask(1)
    bench.settle()
    bench.writer.step_down()
    bench.writer.replay_begins()
    end = Link(name=name(3, 0), end=len(bench.storage.files[name(3, 0)]))
    bench.writer.continue_log(end, boundary(0), mark=None)
    bench.ask(2)
    bench.settle()
    assert read(bench.storage, name(3, 0)) == [header(3, 0, after=link), *answers(1, 2)]


def test_a_new_term_continues_the_log_that_the_last_one_continued(bench: Bench, link: Link) -> None:
    """With the mark, and what was recorded since."""
    bench.term = 2
    bench.writer.replay_begins()
    bench.writer.continue_log(link, boundary(3), mark=Void())
    bench.ask(2)
    bench.settle()
    bench.term = 3
    bench.ask(3)
    bench.settle()
    assert read(bench.storage, name(3, 3)) == [header(3, 3, after=link), Void(), *answers(2, 3)]


# -------------------------------------------------------------------- a notice, and giving up


def test_a_stage_is_written_at_a_notice_if_nothing_was_due(bench: Bench) -> None:
    """With `save_freq=False`: what was recorded since the last boundary, and what comes then."""
    bench.term = None
    bench.come_to(0)
    bench.ask(0)
    bench.come_to(1)
    bench.ask(1, 2)
    bench.settle()
    bench.term = 1
    assert bench.storage.files == {}
    bench.writer.write_stage()
    bench.ask(3)
    bench.writer.write_stage()
    bench.settle()
    assert bench.files() == {name(1, 1): [begins(1, 1), *answers(1, 2, 3)]}
    assert replayed(found(bench.storage, 1)) == [1, 2, 3]


def test_a_stage_is_written_after_the_segment_was_given_up(bench: Bench) -> None:
    """The bytes of the segment that is written again stay as they were, for a reader that has read them."""
    bench.begin()
    bench.ask(0)
    bench.come_to(1, due=True)
    bench.ask(1)
    bench.settle()
    before = bench.storage.files[name(1, 1)]
    bench.storage.before_append = Failures(error())
    bench.ask(2)
    bench.settle()
    assert bench.wants()
    bench.writer.write_stage()
    bench.settle()
    assert bench.storage.files[name(1, 1)].startswith(before)
    assert replayed(found(bench.storage, 0)) == [0, at(1), 1, 2]
    assert replayed(found(bench.storage, 1)) == [1, 2]


def test_no_stage_is_written_that_is_not_whole(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was too large to keep, or the fit does not follow the log any more."""
    monkeypatch.setattr(journal_writer, "_MAX_WAITING", 500)
    bench.term = None
    bench.come_to(0)
    for number in range(20):
        bench.ask(number)
        bench.settle()
    bench.term = 1
    bench.writer.write_stage()
    bench.settle()
    assert bench.storage.files == {}
    bench.come_to(1)
    bench.ask(1)
    bench.writer.give_up()
    bench.writer.write_stage()
    bench.settle()
    assert bench.storage.files == {}
    bench.come_to(2)
    bench.ask(2)
    bench.writer.write_stage()
    bench.settle()
    assert bench.files() == {name(1, 2): [begins(1, 2), answer(2)]}


def test_what_came_before_giving_up_is_written(bench: Bench) -> None:
    """Nothing after it is, before the next checkpoint."""
    bench.begin()
    bench.ask(0)
    bench.writer.give_up()
    bench.ask(1)
    bench.settle()
    assert bench.files() == {name(1, 0): [begins(), answer(0)]}
    assert bench.called == [0, 1]
    assert bench.wants()


# -------------------------------------------------------------------- at random


@pytest.mark.parametrize("seed", range(150))
def test_each_segment_is_a_beginning_of_what_its_writer_did(seed: int) -> None:
    """Whatever fails, and however terms change. What follows a boundary in a log is what the fit did there."""
    chance = random.Random(seed)
    storage = DictStorage()

    def fail(name: str, data: bytes) -> None:
        if chance.random() < 0.3:
            raise error(retryable=chance.random() < 0.7)

    storage.before_append = storage.after_append = fail
    bench = Bench(storage, FakeClock())
    bench.begin()
    did: list[int | Record] = [boundary(0)]
    numbers = batch = terms = 0
    terms = 1
    for _ in range(60):
        choice = chance.random()
        if choice < 0.55:
            bench.ask(numbers)
            did.append(numbers)
            numbers += 1
        elif choice < 0.75:
            batch += 1
            bench.come_to(batch, due=chance.random() < 0.4 or bench.wants())
            did.append(boundary(batch))
        elif choice < 0.8:
            bench.writer.write_stage()
        elif choice < 0.9:
            terms += 1
            bench.term = chance.choice([None, terms])
        else:
            bench.settle()
    storage.before_append = storage.after_append = lambda name, data: None
    bench.writer.close(timeout=PATIENCE)
    assert sorted(bench.called) == list(range(numbers))
    for records in bench.files().values():
        first, *rest = records
        assert isinstance(first, Header)
        begin = did.index(Boundary(position=first.position, digests=state(first.position.batch))) + 1
        wrote = [int(each.value) if isinstance(each, Answer) else each for each in rest if not isinstance(each, Left)]
        assert did[begin : begin + len(wrote)] == wrote
    for number in range(batch + 1):
        items = replayed(found(storage, number))
        following = [
            each.position if isinstance(each, Boundary) else each for each in did[did.index(boundary(number)) + 1 :]
        ]
        assert items is None or following[: len(items)] == items


def test_two_leaders_in_overlap_on_real_files(tmp_path: Path) -> None:
    """One is paused, another takes over, and the first one wakes. The log is that of the second one."""
    storage = LocalStorage(tmp_path)
    term = {"old": 1, "new": 2}
    made = {
        worker: journal_writer.JournalWriter(
            storage=storage,
            worker_id=worker,
            clock=SystemClock(),
            term=lambda worker=worker: term[worker],  # type: ignore[misc]
            run_id=lambda: RUN,
        )
        for worker in term
    }

    def ask(worker: str, number: int) -> None:
        done = threading.Event()
        made[worker].append(answer(number), done.set)
        assert done.wait(PATIENCE)

    def come_to(worker: str, batch: int) -> None:
        made[worker].boundary(at(batch), lambda: state(f"{worker} {batch}"), due=True)

    made["old"].begin_at(boundary(0))
    ask("old", 0)
    log = found(storage, 0)
    assert log is not None
    made["new"].replay_begins()
    assert [each.value for each in log.next_stage().answers] == [b"0"]
    ask("old", 100)
    made["new"].continue_log(log.end, boundary(0), mark=None)
    ask("new", 1)
    for batch in range(1, 4):
        come_to("old", batch)
        ask("old", 100 + batch)
        come_to("new", batch)
        ask("new", 1 + batch)
    for writer in made.values():
        writer.close(timeout=PATIENCE)
    assert replayed(found(storage, 0)) == [0, 1, at(1), 2, at(2), 3, at(3), 4]
    assert replayed(found(storage, 2, "new 2")) == [3, at(3), 4]
    assert replayed(found(storage, 2, "old 2")) == [102, at(3), 103]


# -------------------------------------------------------------------- followers


def test_a_follower_writes_nothing_although_it_was_deposed_before_it_had_begun(bench: Bench) -> None:
    """It was to continue a log, and the storage was slow."""
    gate = Gate()
    bench.writer._add(lambda: gate("", b""))
    bench.writer.continue_log(Link(name=name(1, 0), end=9), boundary(0), mark=None)
    bench.term = None
    bench.writer.step_down()
    gate.opened.set()
    bench.settle()
    bench.term = 3
    assert not bench.wants()
    bench.come_to(1, due=True)
    bench.settle()
    bench.ask(0)
    bench.settle()
    assert bench.files() == {}


@pytest.mark.parametrize("recorded", [[], [7]])
def test_a_leader_whose_lease_was_away_when_its_log_was_to_begin_begins_it_when_it_leads_again(
    bench: Bench, recorded: list[int]
) -> None:
    """The checkpoint is there. A kill before the next boundary would lose the answers since then."""
    bench.writer.replay_begins()
    bench.term = None
    bench.writer.begin_at(boundary(0), map(answer, recorded))
    bench.ask(0)
    bench.settle()
    assert bench.files() == {}
    bench.term = 2
    bench.writer.lead_again(timeout=PATIENCE)
    bench.ask(1)
    bench.settle()
    assert replayed(found(bench.storage, 0)) == [*recorded, 0, 1]


def test_a_follower_that_begins_to_lead_without_a_log_writes_as_any_leader(bench: Bench) -> None:
    bench.writer.replay_begins()
    bench.writer.begin_at(boundary(0))
    bench.ask(0)
    bench.come_to(1, due=True)
    bench.ask(1)
    bench.settle()
    bench.term = 3
    bench.ask(2)
    bench.settle()
    assert [*bench.files()] == [name(1, 0), name(1, 1), name(3, 1)]
