"""The writer of the journal while it is in doubt whether its worker leads. No test sleeps."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from distributed_backup.checkpoints import journal_writer
from distributed_backup.checkpoints.journal_format import Left, Link
from tests.support.clocks import Clocked
from tests.support.journals import (
    PATIENCE,
    Bench,
    Gate,
    answer,
    answers,
    begins,
    boundary,
    name,
)


@pytest.fixture
def clock() -> Clocked:
    return Clocked()


class Doubts:
    """A doubt that lasts for some looks, and what happens at its end."""

    def __init__(self, looks: int, end: Callable[[], None] = lambda: None) -> None:
        self.left, self._end = looks, end

    def __call__(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self._end()
        return self.left > 0


def test_an_append_waits_while_it_is_in_doubt_who_leads(bench: Bench, clock: Clocked) -> None:
    """The lease has run out, and was renewed."""
    bench.begin()
    bench.writer.is_in_doubt = Doubts(4)
    bench.ask(0)
    bench.settle()
    assert (bench.files(), bench.called) == ({name(1, 0): [begins(), answer(0)]}, [0])
    assert clock.waits == [journal_writer.DOUBT_PERIOD] * 3


def test_a_boundary_in_doubt_wants_its_checkpoint(bench: Bench) -> None:
    """A start that was suspended after its election may lead still."""
    bench.term = None
    assert not bench.wants()
    bench.writer.is_in_doubt = lambda: True
    assert bench.wants()


@pytest.mark.parametrize("continues", [False, True])
def test_a_segment_that_begins_in_doubt_begins_at_its_end(bench: Bench, continues: bool) -> None:
    """The leader has no term at that time. Its answers were paid for, and the next checkpoint may be far."""
    bench.term = None
    bench.writer.is_in_doubt = Doubts(4, lambda: setattr(bench, "term", 2))
    link = Link(name=name(1, 0), end=9) if continues else None
    if link is None:
        bench.begin()
    else:
        bench.writer.continue_log(link, boundary(0), mark=None)
    bench.ask(0)
    bench.settle()
    bench.settle()
    [records] = bench.files().values()
    assert (records[1:], bench.called) == ([answer(0)], [0])


@pytest.mark.parametrize("is_known", [False, True])
def test_nothing_is_appended_if_another_worker_leads(bench: Bench, is_known: bool) -> None:
    """A follower might read it, and the new leader has not. Training does not wait for ever."""
    bench.begin()
    bench.ask(0)
    bench.settle()
    if is_known:
        gate = Gate()
        bench.writer._add(lambda: gate("", b""))
        bench.ask(1, 2)
        bench.writer.step_down()
        gate.opened.set()
    else:
        bench.writer.is_in_doubt = Doubts(3, bench.writer.step_down)
        bench.ask(1, 2)
    bench.settle()
    assert (bench.files(), bench.called) == ({name(1, 0): [begins(), answer(0)]}, [0, 1, 2])
    bench.writer.is_in_doubt, bench.term = lambda: False, 3
    bench.writer.continue_log(Link(name=name(2, 0), end=9), boundary(0), mark=None)
    bench.ask(3)
    bench.settle()
    bench.settle()
    bench.writer.is_in_doubt = Doubts(3)
    bench.ask(4)
    bench.settle()
    assert bench.files()[name(3, 0)][1:] == answers(3, 4)


@pytest.mark.parametrize("is_at_boundary", [False, True])
def test_a_new_term_of_the_same_worker_begins_a_segment_at_once(bench: Bench, is_at_boundary: bool) -> None:
    """Followers use no more of the older one, and its fit may ask for nothing for long."""

    def lead_again() -> None:
        bench.term = 2
        bench.writer.write_stage()

    bench.begin()
    bench.ask(0)
    bench.settle()
    bench.writer.is_in_doubt = Doubts(4, lead_again)
    bench.ask(1)
    if is_at_boundary:
        bench.come_to(1)
    bench.settle()
    bench.settle()
    files = bench.files()
    assert files[name(1, 0)][1:3] == answers(0, 1)
    [began] = [records for each, records in files.items() if each != name(1, 0)]
    assert began[1:] == ([] if is_at_boundary else answers(0, 1))


def test_a_new_term_begins_no_segment_of_its_own_for_a_log_that_is_replayed(bench: Bench) -> None:
    """The header that continues it counts a start that dies in the replay. There was no other start."""
    bench.term = 2
    bench.writer.continue_log(Link(name=name(1, 0), end=9), boundary(0), mark=None)
    bench.settle()
    bench.term = 3
    bench.writer.write_stage()
    bench.settle()
    assert list(bench.files()) == [name(2, 0)]


def test_a_coordinator_that_hangs_does_not_hold_up_the_journal_for_ever(bench: Bench, clock: Clocked) -> None:
    bench.begin()
    bench.writer.is_in_doubt = lambda: True
    bench.ask(0)
    bench.settle()
    assert bench.called == [0]
    assert 4.9 < sum(clock.waits) < 5.1


def test_a_suspension_does_not_count_as_a_wait_for_the_end_of_a_doubt(bench: Bench, clock: Clocked) -> None:
    """Another worker may lead by then."""
    bench.begin()

    def exists() -> bool:
        clock.advance(60.0)
        return len(clock.waits) < 3

    bench.writer.is_in_doubt = exists
    bench.ask(0)
    bench.settle()
    assert len(clock.waits) == 3


def test_a_doubt_ends_with_the_time_of_a_close(bench: Bench, clock: Clocked) -> None:
    """The elector has stopped by then, so no heartbeat would end the doubt. The answer is paid for."""
    closing = threading.Event()

    def exists() -> bool:
        assert closing.wait(PATIENCE)
        return True

    bench.begin()
    bench.writer.is_in_doubt = exists
    bench.ask(0)
    bench.writer.close(timeout=0.0)
    bench.writer._deadline = clock.now() + 1.0
    closing.set()
    assert bench.writer._thread is not None
    bench.writer._thread.join(PATIENCE)
    assert sum(clock.waits) < 1.1
    assert bench.files()[name(1, 0)][1:] == [answer(0), Left()]
