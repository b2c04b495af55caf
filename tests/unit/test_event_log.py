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
    """A clock that stands still, and whose waits with a timeout end when `passes` is released or the event is set."""

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

    def tell(self, kind: Kind, **fields: Any) -> None:
        self._seconds += 1
        at = START + timedelta(seconds=self._seconds - 1)
        self.log.emit(Event(at=at, worker="w", kind=kind, fields=fields))

    def join(self) -> None:
        self.tell("joined", run="r", standby=False)

    def written(self) -> None:
        """Wait for one write to end."""
        assert self.storage.left.acquire(timeout=PATIENCE)

    def pass_time(self) -> None:
        """Let the pause that is, or is to come, be over."""
        assert self.clock.waiting.acquire(timeout=PATIENCE)
        self.clock.passes.release()

    def close(self) -> None:
        self.log.close(PATIENCE)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    @property
    def events(self) -> list[Event]:
        """What is written."""
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
    """Only then the run's directory exists. A notice that came earlier is not forgotten."""
    bench.tell("notice", reason="SIGTERM", remaining=30.0)
    assert bench.log._thread is None
    bench.join()
    bench.close()
    assert bench.kinds == ["notice", "joined"]
    # By when it joined: the names of the logs sort by age.
    assert [path.name for path in tmp_path.iterdir()] == ["events-20261123T100001Z-w.jsonl"]


def test_a_worker_that_never_joined_leaves_no_trace(bench: Bench, tmp_path: Path) -> None:
    """The directory of another run is refused, so the worker writes nothing into it."""
    bench.tell("left")
    bench.close()
    assert list(tmp_path.iterdir()) == []


def test_the_first_event_is_written_at_once_and_the_rest_together(bench: Bench) -> None:
    """All events within the storage's `write_interval` share one write. Each write is the whole log."""
    bench.join()
    bench.written()
    bench.tell("elected", term=1)
    assert bench.clock.waiting.acquire(timeout=PATIENCE)
    for epoch in range(5):
        bench.tell("progress", epoch=epoch, batch=0)
    assert len(bench.storage.puts) == 1
    bench.clock.passes.release()
    bench.written()
    assert bench.kinds == ["joined", "elected", *["progress"] * 5]
    assert len(bench.storage.puts) == 2
    assert bench.clock.timeouts == [0.5]


def test_what_happens_during_a_write_is_in_the_next(bench: Bench) -> None:
    """A slow bucket loses nothing."""
    bench.storage.gate.clear()
    bench.join()
    assert bench.storage.entered.acquire(timeout=PATIENCE)
    bench.tell("elected", term=1)
    bench.storage.gate.set()
    bench.written()
    bench.pass_time()
    bench.written()
    assert bench.kinds == ["joined", "elected"]


def test_an_event_does_not_wait_for_the_disk(bench: Bench) -> None:
    """The reporting thread goes on, though a write hangs."""
    bench.storage.gate.clear()
    bench.join()
    assert bench.storage.entered.acquire(timeout=PATIENCE)
    bench.tell("elected", term=1)  # returns
    assert len(bench.storage.puts) == 1


def test_no_write_is_waited_for_to_be_durable(bench: Bench) -> None:
    """An fsync would delay that of a save. The write replaces what is there."""
    bench.join()
    bench.close()
    assert {tuple(keywords.items()) for _, _, keywords in bench.storage.puts} == {(("durable", False),)}


def test_a_farewell_is_written_without_a_pause(bench: Bench) -> None:
    """The process may be gone in a moment."""
    bench.join()
    bench.written()
    bench.tell("left")
    bench.written()
    assert bench.kinds == ["joined", "left"]


# ---------------------------------------------------------------- the end


def test_closing_writes_what_is_left_at_once(bench: Bench) -> None:
    """And what comes after is not taken: the run may be deleted by then."""
    bench.join()
    bench.written()
    bench.tell("elected", term=1)
    bench.close()
    bench.tell("resigned", term=1)
    bench.close()
    assert bench.kinds == ["joined", "elected"]
    assert len(bench.storage.puts) == 2


def test_a_log_that_is_closed_does_not_begin(bench: Bench) -> None:
    """However late it hears of the joining."""
    bench.close()
    bench.join()
    assert bench.log._thread is None


def test_closing_without_news_writes_nothing(bench: Bench) -> None:
    """A last write for nothing would be in the way."""
    bench.join()
    bench.written()
    bench.close()
    assert len(bench.storage.puts) == 1


def test_closing_does_not_wait_longer_than_it_may(bench: Bench) -> None:
    """A write that hangs is left alone, and no other follows it."""
    bench.storage.gate.clear()
    bench.join()
    assert bench.storage.entered.acquire(timeout=PATIENCE)
    bench.tell("left")
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
def test_a_failure_is_said_once_and_harms_nobody(
    bench: Bench, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """The next write has everything."""
    bench.storage.broken = error
    bench.join()
    bench.written()
    bench.tell("elected", term=1)
    bench.pass_time()
    bench.written()
    bench.storage.broken = None
    bench.close()
    assert bench.kinds == ["joined", "elected"]
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage() == f"event log not written, training goes on name={NAME} reason={error}"


def test_a_failed_commit_is_told_once_per_reason(bench: Bench) -> None:
    """It is tried at each boundary, and five times a second before a kill."""
    bench.join()
    for reason in ("full", "full", "gone", "gone"):
        bench.tell("commit_failed", reason=reason)
    bench.tell("commit_recovered")
    bench.tell("commit_failed", reason="gone")
    bench.close()
    assert bench.kinds == ["joined", "commit_failed", "commit_failed", "commit_recovered", "commit_failed"]


@pytest.mark.parametrize("told_apart", [False, True])
def test_a_disk_that_refuses_for_long_does_not_push_out_who_led(bench: Bench, told_apart: bool) -> None:
    """The reason holds the name of the checkpoint, which differs at each boundary. A bucket's reason may hold more."""
    bench.join()
    bench.tell("elected", term=1)
    for epoch in range(1000):
        number = epoch if told_apart else 0
        reason = f"can't write /run/.partial-0000000001-{epoch:08d}-00000000.ckpt-0011: full {number}" + "x" * 300
        bench.tell("commit_failed", reason=reason)
        if told_apart:
            bench.tell("commit_recovered")
    bench.tell("lost", term=1, reason="x")
    bench.close()
    assert (bench.storage.root / NAME).stat().st_size <= 64 * 1024
    assert bench.kinds[:3] == ["joined", "elected", "commit_failed"]
    assert bench.kinds[-1] == "lost"
    failures = bench.kinds.count("commit_failed")
    assert failures >= 8 if told_apart else failures == 1


# ---------------------------------------------------------------- bounds


def test_a_long_life_stays_in_a_bounded_log(bench: Bench) -> None:
    """Progress is thinned out evenly. Transitions, commits and both ends stay."""
    bench.join()
    bench.tell("elected", term=1)
    for epoch in range(2500):
        bench.tell("progress", epoch=epoch, batch=0)
        if epoch % 50 == 0:
            bench.tell("committed", checkpoint="c", term=1, epoch=epoch, batch=0, bytes=10, seconds=0.1)
    bench.tell("lost", term=1, reason="x")
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
    """A commit after each batch fills a log too."""
    bench.join()
    for epoch in range(1500):
        bench.tell("committed", checkpoint="c" * 33, term=1, epoch=epoch, batch=0, bytes=10, seconds=0.1)
    bench.tell("left")
    bench.close()
    assert (bench.storage.root / NAME).stat().st_size <= 64 * 1024
    epochs = [event.fields["epoch"] for event in bench.events if event.kind == "committed"]
    assert len(epochs) > 100
    assert epochs[0] == 0
    assert epochs[-1] == 1499
    assert bench.kinds[0] == "joined"
    assert bench.kinds[-1] == "left"


def test_of_more_transitions_than_fit_the_oldest_go(bench: Bench) -> None:
    """But the first line stays: it tells whose log it is."""
    bench.join()
    for term in range(2000):
        bench.tell("elected", term=term)
    bench.close()
    assert (bench.storage.root / NAME).stat().st_size <= 64 * 1024
    assert bench.kinds[0] == "joined"
    terms = [event.fields["term"] for event in bench.events[1:]]
    assert terms == list(range(terms[0], 2000))
    assert 300 < len(terms) < 1500


def test_what_killed_writers_left_goes_with_their_logs(bench: Bench, tmp_path: Path) -> None:
    """An incomplete log counts as one. The partial files of the newest log stay: its writer may be running."""
    logs = [f"events-20260101T{number:06d}Z-w.jsonl" for number in range(300)]
    for name in logs[:-1]:
        (tmp_path / name).touch()
    for name in (logs[0], logs[-2], logs[-1]):
        (tmp_path / f".partial-{name}-0a0b0c0d").touch()
    (tmp_path / ".partial-0000000001-00000001-00000000.ckpt-0a0b0c0d").touch()
    # A user's own.
    (tmp_path / f"{logs[0]}-saved").touch()
    bench.join()
    bench.tell("elected", term=1)
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
    """Each start of a worker makes one log. No other file is touched."""
    for minute in range(300):
        (tmp_path / f"events-20260101T{minute // 60:02d}{minute % 60:02d}00Z-old.jsonl").touch()
    for name in ("run.json", "events.jsonl", "0000000001-00000001-00000000.ckpt"):
        (tmp_path / name).touch()
    bench.join()
    if leads:
        bench.tell("elected", term=1)
    bench.close()
    logs = sorted(filter(is_event_log, bench.storage.names()))
    assert len(logs) == left
    assert logs[-2:] == ["events-20260101T045900Z-old.jsonl", NAME]
    assert len(bench.storage.names()) == left + 3
