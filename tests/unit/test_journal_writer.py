"""The writer of the journal on a storage that fails, hangs and loses replies. No test sleeps."""

from __future__ import annotations

import threading
from typing import override

import pytest

from distributed_backup.checkpoints import journal_writer
from distributed_backup.checkpoints.journal_format import (
    Answer,
    Failed,
    Left,
    Link,
)
from distributed_backup.clock import SystemClock
from tests.support.clocks import Clocked
from tests.support.journals import (
    PATIENCE,
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
    name,
    replayed,
    state,
)


class Told(SystemClock):
    """A real clock that tells when a wait begins."""

    def __init__(self) -> None:
        self.waited = threading.Semaphore(0)

    @override
    def wait(self, event: threading.Event, timeout: float) -> bool:
        self.waited.release()
        return super().wait(event, PATIENCE if timeout >= 0.5 else timeout)


@pytest.fixture
def clock() -> Clocked:
    return Clocked()


# -------------------------------------------------------------------- order and groups


def test_records_are_on_the_storage_in_the_order_of_the_calls(bench: Bench) -> None:
    """And `done` is called for each after its append, in this order."""
    durable: list[int] = []
    bench.storage.after_append = lambda name, data: durable.append(len(bench.called))
    bench.begin()
    bench.ask(*range(50))
    bench.come_to(1)
    bench.ask(50)
    bench.settle()
    assert bench.files() == {name(1, 0): [begins(), *answers(*range(50)), boundary(1), answer(50)]}
    assert bench.called == list(range(51))
    assert (bench.writer.answers, bench.writer.bytes) == (51, len(bench.storage.files[name(1, 0)]))
    assert durable[0] == 0, "an answer was handed out before it was durable"


def test_many_records_wait_for_one_append_and_share_the_next(bench: Bench) -> None:
    """While one append runs, none of what comes is durable."""
    gate = Gate()
    bench.storage.before_append = gate
    bench.begin()
    bench.ask(0)
    assert gate.entered.wait(PATIENCE)
    bench.ask(*range(1, 100))
    assert bench.called == []
    gate.opened.set()
    bench.settle()
    assert len(bench.storage.appends) == 2
    assert bench.called == list(range(100))


def test_a_writer_that_was_given_nothing_has_no_thread(storage: DictStorage, clock: Clocked) -> None:
    """Closing it twice is no error, and what comes later is done at once."""
    bench = Bench(storage, clock)
    before = threading.active_count()
    bench.writer.write_stage()
    bench.writer.close(timeout=1.0)
    bench.writer.close(timeout=1.0)
    bench.begin()
    bench.ask(0)
    assert (bench.called, storage.files, threading.active_count()) == ([0], {}, before)


def test_the_file_is_made_by_its_first_record(bench: Bench) -> None:
    """Not by a boundary where nothing is asked after it."""
    bench.begin()
    bench.settle()
    assert bench.storage.files == {}
    bench.ask(0)
    bench.come_to(1, due=True)
    bench.settle()
    assert bench.files() == {name(1, 0): [begins(), answer(0), boundary(1)]}


def test_a_leader_that_finds_no_log_says_so_at_once(bench: Bench) -> None:
    """A former leader may end its first append now, and workers that start must not take it."""
    bench.writer.begin_at(boundary(0))
    bench.settle()
    assert bench.files() == {name(1, 0): [begins()]}


def test_a_leader_that_has_lost_the_log_begins_one_with_its_records_in_one_append(bench: Bench) -> None:
    """A kill in between would lose them, and another worker that has used them would take the log for another one."""
    done = threading.Event()
    bench.writer.begin_at(boundary(0), [answer(0), answer(1)], done=done.set)
    assert done.wait(PATIENCE)
    assert len(bench.storage.appends) == 1
    assert bench.files() == {name(1, 0): [begins(), answer(0), answer(1)]}


def test_a_due_boundary_begins_a_segment_that_continues_the_last(bench: Bench) -> None:
    """Other boundaries do not."""
    bench.begin()
    for number in range(4):
        bench.ask(number)
        bench.come_to(number + 1, due=number % 2 == 1)
    bench.ask(4)
    bench.settle()
    one = [begins(), answer(0), boundary(1), answer(1), boundary(2)]
    link = Link(name=name(1, 0), end=len(bench.storage.files[name(1, 0)]))
    two = [begins(1, 2, after=link), answer(2), boundary(3), answer(3), boundary(4)]
    last = Link(name=name(1, 2), end=len(bench.storage.files[name(1, 2)]))
    assert bench.files() == {name(1, 0): one, name(1, 2): two, name(1, 4): [begins(1, 4, after=last), answer(4)]}
    assert replayed(found(bench.storage, 0)) == [0, at(1), 1, at(2), 2, at(3), 3, at(4), 4]


# -------------------------------------------------------------------- failures


def test_a_failure_that_a_retry_can_help_is_retried(bench: Bench, clock: Clocked) -> None:
    """Nothing is doubled, lost or out of order. Training does not wait for it."""
    bench.storage.before_append = Failures(*[error("busy", retryable=True)] * 5)
    bench.begin()
    bench.ask(0, 1)
    bench.settle()
    assert clock.waits == [0.5] * 5
    bench.ask(2)
    bench.settle()
    assert bench.files() == {name(1, 0): [begins(), *answers(0, 1, 2)]}
    assert bench.called == [0, 1, 2]
    assert not bench.wants()


def test_a_lost_reply_doubles_nothing(bench: Bench) -> None:
    """The append is repeated at the same offset."""
    bench.storage.after_append = Failures(*[error("reply lost", retryable=True)] * 3)
    bench.begin()
    bench.ask(0)
    bench.settle()
    bench.storage.after_append = Failures(error("reply lost", retryable=True))
    bench.ask(1)
    bench.settle()
    assert bench.files() == {name(1, 0): [begins(), *answers(0, 1)]}
    assert bench.called == [0, 1]


@pytest.mark.parametrize("raised", [error("read-only"), RuntimeError("a bug"), MemoryError()])
def test_a_failure_for_good_gives_the_segment_up(
    bench: Bench, raised: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is written to it any more, also when the storage works again. The next due boundary begins another."""
    bench.begin()
    bench.ask(0)
    bench.settle()
    assert not bench.wants()
    bench.storage.before_append = Failures(raised)
    bench.ask(1)
    bench.settle()
    assert bench.wants()
    bench.ask(2)
    bench.come_to(1)
    bench.ask(3)
    bench.settle()
    bench.come_to(2, due=True)
    bench.ask(4)
    bench.settle()
    files = bench.files()
    assert files[name(1, 0)] == [begins(), answer(0)]
    assert files[name(1, 2)] == [begins(1, 2), answer(4)]
    assert bench.called == [0, 1, 2, 3, 4]
    assert not bench.wants()
    assert len([message for message in caplog.messages if "until the next checkpoint" in message]) == 1


def test_a_segment_that_was_removed_is_given_up(bench: Bench) -> None:
    """Another leader has pruned it."""
    bench.begin()
    bench.ask(0)
    bench.settle()
    del bench.storage.files[name(1, 0)]
    bench.ask(1)
    bench.settle()
    assert (bench.storage.files, bench.called) == ({}, [0, 1])
    assert bench.wants()


@pytest.mark.parametrize("is_due", [True, False])
def test_a_failure_at_a_change_of_term_leaves_no_record_for_a_later_segment(bench: Bench, is_due: bool) -> None:
    """The answers of one stage must not be in another."""
    bench.begin()
    bench.ask(0)
    bench.settle()
    gate = Gate()
    bench.storage.before_append = gate
    bench.ask(1)
    assert gate.entered.wait(PATIENCE)
    bench.ask(2)
    bench.term = 2
    bench.ask(3)
    bench.storage.before_append = Failures(*[error()] * 2)
    gate.opened.set()
    bench.settle()
    bench.come_to(1, due=is_due)
    bench.ask(4)
    bench.settle()
    for records in bench.files().values():
        assert answer(4) not in records or records == [begins(2, 1), answer(4)]
    assert sorted(bench.called) == [0, 1, 2, 3, 4]


def test_digests_that_fail_end_the_segment_and_not_the_thread(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Records after a boundary that is missing would count to the stage before it."""

    def fail() -> dict[str, str]:
        raise ValueError("a bug")

    bench.begin()
    bench.ask(0)
    bench.settle()
    bench.writer.boundary(at(1), fail, due=True)
    bench.ask(1)
    bench.settle()
    bench.writer.write_stage()
    bench.settle()
    assert bench.files() == {name(1, 0): [begins(), answer(0)]}
    assert bench.called == [0, 1]
    assert "a bug" in caplog.text
    bench.come_to(2, due=True)
    bench.ask(2)
    bench.settle()
    assert bench.files()[name(1, 2)] == [begins(1, 2), answer(2)]


def test_too_much_that_waits_gives_the_segment_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, clock: Clocked
) -> None:
    """A storage that is away for long is not waited for."""
    monkeypatch.setattr(journal_writer, "_MAX_WAITING", 1000)

    def fail(name: str, data: bytes) -> None:
        if len(clock.waits) == 3:
            bench.ask(*range(1, 50))
        raise error("away", retryable=True)

    bench.storage.before_append = fail
    bench.begin()
    bench.ask(0)
    bench.settle()
    assert bench.called == list(range(50))
    assert bench.storage.files == {}
    assert bench.wants()


def test_a_storage_that_hangs_costs_bounded_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records beyond the bound are left out. The segment ends before the first of them, because it has no gaps."""
    monkeypatch.setattr(journal_writer, "_MAX_WAITING", 1000)
    gate = Gate()
    bench.storage.before_append = gate
    bench.begin()
    bench.ask(0)
    assert gate.entered.wait(PATIENCE)
    bench.ask(*range(1, 1000))
    assert bench.writer._waiting < 1100
    # States of boundaries are not kept.
    for batch in range(1, 200):
        bench.come_to(batch)
    kept: list[int] = []
    bench.writer.boundary(at(200), lambda: kept.append(1) or state(200), due=False)  # type: ignore[func-returns-value]
    assert kept == [1]
    gate.opened.set()
    bench.settle()
    records = bench.files()[name(1, 0)]
    assert 2 < len(records) < 100
    assert records == [begins(), *answers(*range(len(records) - 1))]
    assert bench.called == list(range(1000))
    assert bench.wants()


def test_one_answer_above_the_bound_is_recorded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits alone."""
    monkeypatch.setattr(journal_writer, "_MAX_WAITING", 1000)
    large = Answer(key="k", number=0, value=b'"' + b"x" * 5000 + b'"')
    done = threading.Event()
    bench.begin()
    bench.writer.append(large, done.set)
    assert done.wait(PATIENCE)
    bench.settle()
    assert bench.files() == {name(1, 0): [begins(), large]}


# -------------------------------------------------------------------- the end


def test_a_close_writes_what_waits_and_that_the_writer_has_left(storage: DictStorage, clock: Clocked) -> None:
    """A record that comes later is done at once, and not written."""
    bench = Bench(storage, clock)
    gate = Gate()
    storage.before_append = gate
    bench.begin()
    bench.ask(0)
    assert gate.entered.wait(PATIENCE)
    bench.ask(1, 2)
    bench.writer.append(Failed(error="ValueError"), lambda: bench.called.append(-1))
    gate.opened.set()
    bench.writer.close(timeout=PATIENCE)
    bench.writer.close(timeout=PATIENCE)
    bench.ask(3)
    bench.come_to(1)
    assert bench.files() == {name(1, 0): [begins(), *answers(0, 1, 2), Failed(error="ValueError"), Left()]}
    assert bench.called == [0, 1, 2, -1, 3]


def test_a_writer_that_has_recorded_nothing_leaves_nothing(storage: DictStorage, clock: Clocked) -> None:
    """No file with a mark alone."""
    bench = Bench(storage, clock)
    bench.begin()
    bench.writer.close(timeout=PATIENCE)
    assert storage.files == {}


def test_a_close_retries_within_its_time(storage: DictStorage, clock: Clocked) -> None:
    """The batch of a preempted worker is worth a retry."""
    bench = Bench(storage, clock)
    bench.begin()
    bench.ask(0)
    bench.settle()
    storage.before_append = Failures(*[error("busy", retryable=True)] * 3)
    bench.ask(1)
    bench.writer.close(timeout=PATIENCE)
    assert bench.files() == {name(1, 0): [begins(), *answers(0, 1), Left()]}
    assert bench.called == [0, 1]


def test_no_append_begins_after_a_close_has_taken_its_time(storage: DictStorage, clock: Clocked) -> None:
    """The run may be deleted then. Each record is done nevertheless."""
    bench = Bench(storage, clock)
    tries: list[float] = []

    def fail(name: str, data: bytes) -> None:
        tries.append(clock.now())
        raise error("away", retryable=True)

    gate = Gate()
    storage.before_append = gate
    bench.begin()
    bench.ask(0)
    assert gate.entered.wait(PATIENCE)
    storage.before_append = fail
    began = clock.now()
    bench.ask(1)
    closer = threading.Thread(target=lambda: bench.writer.close(timeout=2.0))
    closer.start()
    with bench.writer._condition:
        assert bench.writer._condition.wait_for(lambda: bench.writer._stopped, PATIENCE)
    gate.opened.set()
    closer.join(PATIENCE)
    assert bench.writer._thread is not None
    bench.writer._thread.join(PATIENCE)
    assert tries, "nothing failed"
    assert all(each <= began + 2.0 for each in tries)
    assert bench.called == [0, 1]


def test_a_close_returns_in_time_if_the_storage_hangs(storage: DictStorage) -> None:
    """The thread ends when the storage answers, and all that waited is done then."""
    bench = Bench(storage, SystemClock())
    gate = Gate()
    storage.before_append = gate
    bench.begin()
    bench.ask(0)
    assert gate.entered.wait(PATIENCE)
    bench.ask(1)
    bench.writer.close(timeout=0.01)
    assert bench.called == []
    gate.opened.set()
    assert bench.writer._thread is not None
    bench.writer._thread.join(PATIENCE)
    assert not bench.writer._thread.is_alive()
    assert bench.called == [0, 1]


# -------------------------------------------------------------------- paces


class Slow(DictStorage):
    """A storage whose appends are expensive."""

    append_interval = 1.0


def test_appends_keep_their_distance_where_they_are_expensive(clock: Clocked) -> None:
    """Training does not wait for them."""
    bench = Bench(Slow(), clock)
    assert not bench.writer.is_waited_for
    bench.begin()
    for number in range(3):
        bench.ask(number)
        bench.settle()
    bench.writer.close(timeout=PATIENCE)
    assert bench.files() == {name(1, 0): [begins(), *answers(0, 1, 2), Left()]}
    assert len(clock.waits) >= 3
    assert set(clock.waits) == {1.0}


@pytest.mark.parametrize("how", ["write_stage", "close"])
def test_a_notice_and_a_close_end_the_pause(how: str) -> None:
    """The wait would last for the test's patience."""
    clock = Told()
    bench = Bench(Slow(), clock)
    bench.begin()
    bench.ask(0)
    assert clock.waited.acquire(timeout=PATIENCE)
    done = threading.Event()
    bench.writer.append(answer(1), done.set)
    began = clock.now()
    if how == "close":
        bench.writer.close(timeout=PATIENCE)
    else:
        bench.writer.write_stage()
    assert done.wait(PATIENCE)
    assert clock.now() - began < PATIENCE / 2
    bench.writer.close(timeout=PATIENCE)


def test_a_notice_during_a_retry_ends_the_pause_after_it() -> None:
    """It has ended the pause before the retry."""
    clock, storage = Told(), Slow()
    bench = Bench(storage, clock)
    storage.before_append = Failures(error("away", retryable=True))
    bench.begin()
    bench.ask(0)
    assert clock.waited.acquire(timeout=PATIENCE)
    done = threading.Event()
    bench.writer.append(answer(1), done.set)
    began = clock.now()
    bench.writer.write_stage()
    assert done.wait(PATIENCE)
    assert clock.now() - began < PATIENCE / 2
    bench.writer.close(timeout=PATIENCE)


def test_a_notice_ends_one_pause_between_retries_and_not_all(storage: DictStorage) -> None:
    """A server that is away is not asked in a loop."""
    clock = Told()
    bench = Bench(storage, clock)
    tries = threading.Semaphore(0)

    def fail(name: str, data: bytes) -> None:
        tries.release()
        raise error("away", retryable=True)

    storage.before_append = fail
    bench.begin()
    bench.ask(0)
    assert tries.acquire(timeout=PATIENCE)
    assert clock.waited.acquire(timeout=PATIENCE)
    bench.writer.write_stage()
    assert tries.acquire(timeout=PATIENCE)
    assert clock.waited.acquire(timeout=PATIENCE)
    assert not tries.acquire(timeout=0.1), "it was asked without a pause"
    storage.before_append = lambda name, data: None
    bench.writer.close(timeout=PATIENCE)
    assert bench.files() == {name(1, 0): [begins(), answer(0), Left()]}
