"""Hints that the leader has appended answers: one for many appends, and never a wait for the journal."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.coordination.base import Hint
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.errors import CoordinatorUnavailableError
from distributed_backup.worker.append_hints import AppendHints
from tests.support.clocks import FakeClock
from tests.support.journals import RUN, DictStorage, Failures, answer, boundary, error
from tests.support.team import PATIENCE, soon


class Hinting(MemoryCoordinator):
    """Hangs at each hint until `gate` is set. Fails while `is_away`."""

    has_hints = True

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.gate = threading.Event()
        self.gate.set()
        self.tried: list[Hint] = []
        self.is_away = False

    def give_hint(self, hint: Hint) -> None:
        self.tried.append(hint)
        assert self.gate.wait(PATIENCE)
        if self.is_away:
            raise CoordinatorUnavailableError("away")


@pytest.fixture
def coordinator() -> Hinting:
    return Hinting()


@pytest.fixture
def hints(coordinator: Hinting) -> Iterator[AppendHints]:
    made = AppendHints(coordinator)
    yield made
    coordinator.gate.set()
    made.close(timeout=PATIENCE)


def test_an_append_is_hinted_at(hints: AppendHints, coordinator: Hinting) -> None:
    hints.note()
    soon(lambda: coordinator.tried == ["appended"])


def test_what_is_appended_while_a_hint_is_under_way_gets_one_together(hints: AppendHints, coordinator: Hinting) -> None:
    """And a server that hangs holds nothing up: `note` returns."""
    coordinator.gate.clear()
    hints.note()
    soon(lambda: len(coordinator.tried) == 1)
    for _ in range(5):
        hints.note()
    assert len(coordinator.tried) == 1
    coordinator.gate.set()
    soon(lambda: len(coordinator.tried) == 2)
    hints.close(timeout=PATIENCE)
    assert len(coordinator.tried) == 2


def test_a_hint_that_is_due_at_the_end_is_given(hints: AppendHints, coordinator: Hinting) -> None:
    """It may be that of the last answers."""
    coordinator.gate.clear()
    hints.note()
    soon(lambda: len(coordinator.tried) == 1)
    hints.note()
    hints.close(timeout=0.0)
    coordinator.gate.set()
    hints.close(timeout=PATIENCE)
    assert len(coordinator.tried) == 2


def test_a_coordinator_that_is_away_gets_the_next_hint(hints: AppendHints, coordinator: Hinting) -> None:
    coordinator.is_away = True
    hints.note()
    soon(lambda: len(coordinator.tried) == 1)
    coordinator.is_away = False
    hints.note()
    soon(lambda: len(coordinator.tried) == 2)


def test_no_thread_outlives_the_end_and_none_begins_after_it(hints: AppendHints, coordinator: Hinting) -> None:
    hints.note()
    soon(lambda: coordinator.tried)
    hints.close(timeout=PATIENCE)
    count = len(coordinator.tried)
    hints.note()
    assert not [each for each in threading.enumerate() if each.name == "distributed-backup-append-hints"]
    assert len(coordinator.tried) == count
    other = AppendHints(coordinator)
    other.close(timeout=PATIENCE)
    other.note()
    assert not [each for each in threading.enumerate() if each.name == "distributed-backup-append-hints"]


class Silent(Hinting):
    has_hints = False


def test_a_coordinator_without_hints_needs_no_thread() -> None:
    coordinator = Silent()
    hints = AppendHints(coordinator)
    hints.note()
    hints.close(timeout=PATIENCE)
    assert coordinator.tried == []


def test_the_journal_notes_each_append_that_is_durable() -> None:
    """An append that fails is noted when a retry has succeeded."""
    storage = DictStorage()
    seen: list[int] = []
    writer = JournalWriter(
        storage=storage,
        worker_id="w",
        clock=FakeClock(),
        term=lambda: 1,
        run_id=lambda: RUN,
        on_append=lambda: seen.append(len(storage.appends)),
    )
    storage.before_append = Failures(error("busy", retryable=True))
    writer.begin_at(boundary(0))
    writer.append(answer(0), lambda: None)
    writer.close(timeout=PATIENCE)
    assert seen == [*range(1, len(storage.appends) + 1)]
