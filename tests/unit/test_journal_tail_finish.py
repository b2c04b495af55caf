"""The end of a log, which a follower comes to when it begins to lead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed_backup.checkpoints.journal_format import Boundary, Link, encode_record
from distributed_backup.position import Position
from tests.support.answering import answer, boundary, keys
from tests.support.stores import write
from tests.support.tails import Tail
from tests.support.team import PATIENCE, soon


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Tail]:
    tail = Tail(tmp_path / "run")
    yield tail
    tail.end()


def test_finish_reads_what_is_there_and_reports_the_end(made: Tail) -> None:
    segment = made.segment(1, state=boundary(0)).add(answer("a", 1), boundary(1), answer("b", 2))
    made.start().finish()
    soon(lambda: made.reports)
    assert made.reports == [("ended", segment.link)]
    assert keys(made.records) == ["a", "b"]


@pytest.mark.parametrize("before", [True, False])
def test_finish_as_a_look_begins_does_not_wait_for_the_next_one(made: Tail, before: bool) -> None:
    """Before or after the look forgets what had woken it. Over NFS, the next look comes seconds later."""

    class Wake(threading.Event):
        looks = 0

        def clear(self) -> None:
            self.looks += 1
            if before and self.looks == 2:
                tail.finish()
            super().clear()
            if not before and self.looks == 2:
                tail.finish()

    made.clock.wait = lambda event, timeout: event.wait(2 * PATIENCE)  # type: ignore[method-assign]
    tail = made.made()
    tail._wake = Wake()
    tail.start()
    tail.wake()
    soon(lambda: made.reports)
    assert made.reports == [("ended", None)]


def test_finish_without_a_log_reports_none(made: Tail) -> None:
    made.start().finish()
    soon(lambda: made.reports)
    assert made.reports == [("ended", None)]


def test_finish_while_the_tail_is_behind_sees_a_segment_that_it_has_not_listed(made: Tail) -> None:
    """The last leader has begun it within the period between two listings."""
    first = made.segment(1, state=boundary(0)).add(answer("a", 1))
    tail = made.start()
    made.has("a")
    made.clock.wait = lambda event, timeout: event.wait(PATIENCE)  # type: ignore[method-assign]
    second = made.segment(2, after=first.link).add(answer("b", 2))
    tail.finish()
    soon(lambda: made.reports)
    assert (made.reports, keys(made.records)) == ([("ended", second.link)], ["a", "b"])


def test_finish_after_the_run_was_deleted_loses_the_tail(made: Tail) -> None:
    """The worker was suspended while the others finished. It leads alone, and would wait for ever."""
    segment = made.segment(1, state=boundary(0)).add(answer("a", 1))
    tail = made.start()
    made.has("a")
    made.clock.wait = lambda event, timeout: event.wait(PATIENCE)  # type: ignore[method-assign]
    made.storage.remove(segment.name)
    tail.finish()
    soon(lambda: made.reports)
    assert made.reports == [("lost", "its journal was removed")]


@pytest.mark.parametrize("has_read", [False, True])
def test_finish_behind_a_log_that_others_have_brought_further_loses_the_tail(made: Tail, has_read: bool) -> None:
    """A worker that was suspended, and leads. It would ask for all that the others have asked for."""
    first = made.segment(1, state=boundary(0)).add(answer("a", 1))
    if has_read:
        tail = made.start()
        made.has("a")
    made.clock.wait = lambda event, timeout: event.wait(PATIENCE)  # type: ignore[method-assign]
    made.storage.remove(first.name)
    # Its end has the boundary, which the worker has not read.
    end = Link(name=first.name, end=first.size + len(encode_record(boundary(1))))
    made.segment(2, 1, after=end, state=boundary(1)).add(answer("b", 2))
    if not has_read:
        tail = made.start()
    tail.finish()
    assert "another log" in made.lost()


def test_finish_ahead_of_another_leader_goes_on(made: Tail) -> None:
    """That one had begun at an earlier boundary, and died."""
    made.segment(2, state=boundary(0)).add(answer("a", 1))
    made.start(boundary(1)).finish()
    soon(lambda: made.reports)
    assert made.reports == [("ended", None)]


@pytest.mark.parametrize("state", [None, boundary(0)])
def test_finish_in_a_state_that_the_successor_has_not_come_to_loses_the_tail(
    made: Tail, state: Boundary | None
) -> None:
    """A worker was suspended while it led, and leads again. What the other one has asked for since must count."""
    own = made.segment(1, state=boundary(0), worker="a").add(answer("a", 1))
    cut = own.link
    own.add(boundary(1))
    if state is None:
        # All of it was pruned since.
        made.storage.remove(own.name)
        made.segment(2, 1, after=cut, worker="b").add(answer("b", 2))
    else:
        made.segment(2, after=cut, worker="b").add(answer("b", 2))
    # A worker that has followed all the time is no better off if the log was pruned.
    made.start(boundary(1), led_by="a" if state is not None else None).finish()
    assert "another log" in made.lost()


def test_finish_behind_a_segment_of_its_own_goes_on(made: Tail) -> None:
    """The worker has given its journal up before the boundary, and no other has written one."""
    made.segment(1, state=boundary(0), worker="a").add(answer("a", 1))
    made.start(boundary(1), led_by="a").finish()
    soon(lambda: made.reports)
    assert made.reports == [("ended", None)]


@pytest.mark.parametrize("batch", [None, 0, 2])
def test_finish_reports_the_position_of_the_newest_checkpoint(made: Tail, tmp_path: Path, batch: int | None) -> None:
    """It may be ahead of the log: its writer may have died between the two, or may have left no journal."""
    segment = made.segment(1, state=boundary(0)).add(answer("a", 1), boundary(1), answer("b", 2))
    if batch is not None:
        write(tmp_path / "run", 0, batch=batch)
    made.start().finish()
    soon(lambda: made.reports)
    assert (made.reports, made.newest) == ([("ended", segment.link)], Position(0, batch or 0))
