"""The event log on a storage that blocks and fails on request, and a clock that a test moves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.errors import StoreError
from distributed_backup.observability.event_log import EventLog
from distributed_backup.observability.events import Event, Kind, is_event_log
from distributed_backup.storage.base import Chunks
from distributed_backup.storage.local import LocalStorage

PATIENCE = 30.0
START = datetime(2026, 11, 23, 10, tzinfo=UTC)
NAME = "events-20261123T100000Z-w.jsonl"


class Held:
    """A clock that stands still. A wait with a timeout ends when `passes` is released or the event is set."""

    def __init__(self) -> None:
        self.passes = threading.Semaphore(0)
        self.timeouts: list[float] = []
        self.waiting = threading.Semaphore(0)

    def now(self) -> float:
        return 0.0

    def wait(self, event: threading.Event, timeout: float) -> bool:
        if timeout <= 0:
            return event.is_set()
        self.timeouts.append(timeout)
        self.waiting.release()
        while not event.wait(0.001) and not self.passes.acquire(blocking=False):
            pass
        return event.is_set()


class Watched(LocalStorage):
    """Records each write. A write waits while `gate` is closed, and fails while `broken`."""

    write_interval = 0.5

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.left = threading.Semaphore(0)
        self.broken: Exception | None = None
        self.puts: list[tuple[str, bytes, dict[str, Any]]] = []

    def put(self, name: str, chunks: Chunks, **keywords: Any) -> None:
        self.puts.append((name, b"".join(chunks), keywords))
        self.entered.release()
        assert self.gate.wait(PATIENCE)
        try:
            if self.broken is not None:
                raise self.broken
            super().put(name, chunks, **keywords)
        finally:
            self.left.release()


class Bench:
    """A log of worker "w" in a directory."""

    def __init__(self, root: Path) -> None:
        self.storage = Watched(root)
        self.clock = Held()
        self.log = EventLog(self.storage, clock=self.clock)
        self._seconds = 0

    def emit(self, kind: Kind, **fields: Any) -> None:
        self._seconds += 1
        at = START + timedelta(seconds=self._seconds - 1)
        self.log.emit(Event(at=at, worker="w", kind=kind, fields=fields))

    def join(self) -> None:
        self.emit("joined", run="r", standby=False)

    def written(self) -> None:
        """Wait for one write to end."""
        assert self.storage.left.acquire(timeout=PATIENCE)

    def pass_time(self) -> None:
        """End the current pause, or else the next one."""
        assert self.clock.waiting.acquire(timeout=PATIENCE)
        self.clock.passes.release()

    def close(self) -> None:
        self.log.close(PATIENCE)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    @property
    def events(self) -> list[Event]:
        """The events in the written logs."""
        names = filter(is_event_log, self.storage.names())
        return [Event.from_line(line) for name in names for line in self.storage.read(name).splitlines()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.storage.gate.set()
    made.close()


# ---------------------------------------------------------------- when it is written


def test_nothing_is_written_before_the_worker_has_joined(bench: Bench, tmp_path: Path) -> None:
    """The log is first written when the worker joins, has the events before it, and is named by the time of joining."""
    bench.emit("notice", reason="SIGTERM", remaining=30.0)
    assert bench.log._thread is None
    bench.join()
    bench.close()
    assert bench.kinds == ["notice", "joined"]
    # The name has the time of joining, so that logs sort by age.
    assert [path.name for path in tmp_path.iterdir()] == ["events-20261123T100001Z-w.jsonl"]


def test_a_worker_that_never_joined_leaves_no_trace(bench: Bench, tmp_path: Path) -> None:
    """A worker that never joined writes no file, because the directory may be that of another run."""
    bench.emit("left")
    bench.close()
    assert list(tmp_path.iterdir()) == []


def test_the_first_event_is_written_at_once_and_the_rest_together(bench: Bench) -> None:
    """The first event is written at once, and all events within one `write_interval` share the next write."""
    bench.join()
    bench.written()
    bench.emit("elected", term=1)
    assert bench.clock.waiting.acquire(timeout=PATIENCE)
    for epoch in range(5):
        bench.emit("progress", epoch=epoch, batch=0)
    assert len(bench.storage.puts) == 1
    bench.clock.passes.release()
    bench.written()
    assert bench.kinds == ["joined", "elected", *["progress"] * 5]
    assert len(bench.storage.puts) == 2
    assert bench.clock.timeouts == [0.5]


def test_what_happens_during_a_write_is_in_the_next(bench: Bench) -> None:
    """An event that is reported during a write is in the next write."""
    bench.storage.gate.clear()
    bench.join()
    assert bench.storage.entered.acquire(timeout=PATIENCE)
    bench.emit("elected", term=1)
    bench.storage.gate.set()
    bench.written()
    bench.pass_time()
    bench.written()
    assert bench.kinds == ["joined", "elected"]


def test_an_event_does_not_wait_for_the_disk(bench: Bench) -> None:
    """Reporting an event returns at once while a write hangs."""
    bench.storage.gate.clear()
    bench.join()
    assert bench.storage.entered.acquire(timeout=PATIENCE)
    bench.emit("elected", term=1)  # returns
    assert len(bench.storage.puts) == 1


def test_no_write_is_waited_for_to_be_durable(bench: Bench) -> None:
    """The log is written without an fsync, because an fsync would delay that of a save."""
    bench.join()
    bench.close()
    assert {tuple(keywords.items()) for _, _, keywords in bench.storage.puts} == {(("durable", False),)}


def test_a_final_event_is_written_without_a_pause(bench: Bench) -> None:
    """A final event is written without a pause, because the process may exit in a moment."""
    bench.join()
    bench.written()
    bench.emit("left")
    bench.written()
    assert bench.kinds == ["joined", "left"]


# ---------------------------------------------------------------- the end


def test_closing_writes_what_is_left_at_once(bench: Bench) -> None:
    """Closing writes the remaining events at once, and later events are dropped."""
    bench.join()
    bench.written()
    bench.emit("elected", term=1)
    bench.close()
    bench.emit("resigned", term=1)
    bench.close()
    assert bench.kinds == ["joined", "elected"]
    assert len(bench.storage.puts) == 2


def test_a_log_that_is_closed_does_not_begin(bench: Bench) -> None:
    """A log that is closed before the worker joins starts no thread."""
    bench.close()
    bench.join()
    assert bench.log._thread is None


def test_closing_without_new_events_writes_nothing(bench: Bench) -> None:
    """Closing a log without new events makes no further write."""
    bench.join()
    bench.written()
    bench.close()
    assert len(bench.storage.puts) == 1


def test_closing_does_not_wait_longer_than_it_may(bench: Bench) -> None:
    """Closing returns at its timeout while a write hangs, and no further write follows."""
    bench.storage.gate.clear()
    bench.join()
    assert bench.storage.entered.acquire(timeout=PATIENCE)
    bench.emit("left")
    bench.log.close(0.0)
    bench.storage.gate.set()
    thread = bench.log._thread
    assert thread is not None
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert len(bench.storage.puts) == 1
    assert thread.daemon


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("error", [StoreError("can't write /x: full", path="/x"), RuntimeError("a bug\nof ours")])
def test_a_failed_write_is_logged_once_and_loses_no_event(
    bench: Bench, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """A failed write is logged once, and the next successful write has all events."""
    bench.storage.broken = error
    bench.join()
    bench.written()
    bench.emit("elected", term=1)
    bench.pass_time()
    bench.written()
    bench.storage.broken = None
    bench.close()
    assert bench.kinds == ["joined", "elected"]
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage() == f"event log not written, training goes on name={NAME} reason={error}"


def test_a_failed_commit_is_recorded_once_per_reason(bench: Bench) -> None:
    """A failed commit is recorded when its reason is new or when commits had recovered."""
    bench.join()
    for reason in ("full", "full", "gone", "gone"):
        bench.emit("commit_failed", reason=reason)
    bench.emit("commit_recovered")
    bench.emit("commit_failed", reason="gone")
    bench.close()
    assert bench.kinds == ["joined", "commit_failed", "commit_failed", "commit_recovered", "commit_failed"]


@pytest.mark.parametrize("reasons_differ", [False, True])
def test_a_disk_that_refuses_for_long_does_not_push_out_who_led(bench: Bench, reasons_differ: bool) -> None:
    """After a thousand failed commits the bounded log still has the election and the lost lease."""
    bench.join()
    bench.emit("elected", term=1)
    for epoch in range(1000):
        number = epoch if reasons_differ else 0
        reason = f"can't write /run/.partial-0000000001-{epoch:08d}-00000000.ckpt-0011: full {number}" + "x" * 300
        bench.emit("commit_failed", reason=reason)
        if reasons_differ:
            bench.emit("commit_recovered")
    bench.emit("lost", term=1, reason="x")
    bench.close()
    assert (bench.storage.root / NAME).stat().st_size <= 64 * 1024
    assert bench.kinds[:3] == ["joined", "elected", "commit_failed"]
    assert bench.kinds[-1] == "lost"
    failures = bench.kinds.count("commit_failed")
    assert failures >= 8 if reasons_differ else failures == 1


# ---------------------------------------------------------------- bounds


def test_a_long_life_stays_in_a_bounded_log(bench: Bench) -> None:
    """A full log drops progress evenly in time, and keeps transitions, commits and both ends."""
    bench.join()
    bench.emit("elected", term=1)
    for epoch in range(2500):
        bench.emit("progress", epoch=epoch, batch=0)
        if epoch % 50 == 0:
            bench.emit("committed", checkpoint="c", term=1, epoch=epoch, batch=0, bytes=10, seconds=0.1)
    bench.emit("lost", term=1, reason="x")
    bench.close()
    assert 0 < (bench.storage.root / NAME).stat().st_size <= 64 * 1024
    epochs = [event.fields["epoch"] for event in bench.events if event.kind == "progress"]
    assert len(epochs) > 100
    assert epochs[-1] == 2499
    assert epochs[0] == 0
    gaps = [later - earlier for earlier, later in pairwise(epochs)]
    assert max(gaps) <= 2 * 2500 / len(epochs)
    assert bench.kinds[:2] == ["joined", "elected"]
    assert bench.kinds[-1] == "lost"
    assert bench.kinds.count("committed") == 50


def test_commits_are_thinned_out_when_there_is_no_progress_left_to(bench: Bench) -> None:
    """A log that is full of commits drops some of them, and keeps the first and the last."""
    bench.join()
    for epoch in range(1500):
        bench.emit("committed", checkpoint="c" * 33, term=1, epoch=epoch, batch=0, bytes=10, seconds=0.1)
    bench.emit("left")
    bench.close()
    assert (bench.storage.root / NAME).stat().st_size <= 64 * 1024
    epochs = [event.fields["epoch"] for event in bench.events if event.kind == "committed"]
    assert len(epochs) > 100
    assert epochs[0] == 0
    assert epochs[-1] == 1499
    assert bench.kinds[0] == "joined"
    assert bench.kinds[-1] == "left"


def test_of_more_transitions_than_fit_the_oldest_go(bench: Bench) -> None:
    """A log that is full of elections drops the oldest, and keeps the first line, which names the run."""
    bench.join()
    for term in range(2000):
        bench.emit("elected", term=term)
    bench.close()
    assert (bench.storage.root / NAME).stat().st_size <= 64 * 1024
    assert bench.kinds[0] == "joined"
    terms = [event.fields["term"] for event in bench.events[1:]]
    assert terms == list(range(terms[0], 2000))
    assert 300 < len(terms) < 1500


def test_what_killed_writers_left_goes_with_their_logs(bench: Bench, tmp_path: Path) -> None:
    """A new leader removes the oldest logs with their partial files, and an incomplete log counts as one."""
    logs = [f"events-20260101T{number:06d}Z-w.jsonl" for number in range(300)]
    for name in logs[:-1]:
        (tmp_path / name).touch()
    for name in (logs[0], logs[-2], logs[-1]):
        (tmp_path / f".partial-{name}-0a0b0c0d").touch()
    (tmp_path / ".partial-0000000001-00000001-00000000.ckpt-0a0b0c0d").touch()
    # This file is the user's.
    (tmp_path / f"{logs[0]}-saved").touch()
    bench.join()
    bench.emit("elected", term=1)
    bench.close()
    left = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".partial-"))
    assert left == [
        ".partial-0000000001-00000001-00000000.ckpt-0a0b0c0d",
        f".partial-{logs[-2]}-0a0b0c0d",
        f".partial-{logs[-1]}-0a0b0c0d",
    ]
    assert len([path for path in tmp_path.iterdir() if is_event_log(path.name)]) == 255
    assert (tmp_path / f"{logs[0]}-saved").exists()


@pytest.mark.parametrize(("leads", "left"), [(True, 256), (False, 301)])
def test_a_new_leader_removes_the_oldest_logs(bench: Bench, tmp_path: Path, leads: bool, left: int) -> None:
    """A new leader keeps the newest 256 logs, a follower removes none, and all other files stay."""
    for minute in range(300):
        (tmp_path / f"events-20260101T{minute // 60:02d}{minute % 60:02d}00Z-old.jsonl").touch()
    for name in ("run.json", "events.jsonl", "0000000001-00000001-00000000.ckpt"):
        (tmp_path / name).touch()
    bench.join()
    if leads:
        bench.emit("elected", term=1)
    bench.close()
    logs = sorted(filter(is_event_log, bench.storage.names()))
    assert len(logs) == left
    assert logs[-2:] == ["events-20260101T045900Z-old.jsonl", NAME]
    assert len(bench.storage.names()) == left + 3
