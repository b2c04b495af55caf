"""Warnings that are logged once."""

from __future__ import annotations

import logging
from typing import override

import pytest

from distributed_backup.coordination.base import Announcement, Notice
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.errors import CoordinatorUnavailableError
from distributed_backup.once import OnceLogger
from distributed_backup.worker.notices import NoticePublisher, Notices
from tests.support.internals import elector_of
from tests.support.team import Team, snapshot


def test_a_warning_is_logged_again_after_another_or_a_reset(caplog: pytest.LogCaptureFixture) -> None:
    """One that repeats the last is not, and the record names the caller's line."""
    warnings = OnceLogger(logging.getLogger("distributed_backup.example"))
    said = [
        warnings.warning("no %s", "a"),
        warnings.warning("no %s", "a"),
        warnings.warning("no %s", "b"),
        warnings.warning("no %s", "a"),
        warnings.reset(),
        warnings.reset(),
        warnings.warning("no %s", "a"),
    ]
    assert said == [True, False, True, True, True, False, True]
    assert [record.getMessage() for record in caplog.records] == ["no a", "no b", "no a", "no a"]
    assert {record.filename for record in caplog.records} == {"test_once.py"}


def test_a_warning_that_differs_in_a_number_only_is_a_repetition(caplog: pytest.LogCaptureFixture) -> None:
    """A term that grows at each attempt made a line of its own six times a second."""
    warnings = OnceLogger(logging.getLogger("distributed_backup.example"))
    logged = [
        warnings.warning("can't write %s: %s", f"/run-42/{term:010d}.term", reason)
        for term, reason in ((9, "Read-only file system"), (10, "Read-only file system"), (11, "Permission denied"))
    ]
    assert logged == [True, False, True]
    assert caplog.messages[0] == "can't write /run-42/0000000009.term: Read-only file system"


class ReadOnly(MemoryCoordinator):
    """Refuses announcements and notices while `attempts` is a number, which the text shows. Takes heartbeats."""

    attempts: int | None = None

    @override
    def announce(self, announcement: Announcement) -> bool:
        self._refuse()
        return super().announce(announcement)

    @override
    def notify(self, notice: Notice) -> None:
        self._refuse()
        super().notify(notice)

    def _refuse(self) -> None:
        if self.attempts is not None:
            self.attempts += 1
            raise CoordinatorUnavailableError(f"attempt {self.attempts}: Permission denied")


def test_a_write_that_is_refused_at_each_tick_is_logged_once(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """The leader retries its announcement at each tick. After a success, the next refusal is logged again."""
    coordinator = ReadOnly(team.clock)
    worker = team.started("a", coordinator=coordinator)
    coordinator.attempts = 0
    worker.boundary(snapshot(1), due=True)
    team.until(lambda: (coordinator.attempts or 0) > 10)
    assert caplog.text.count("announcing failed: attempt 1: Permission denied") == 1
    assert caplog.text.count("announcing failed") == 1
    coordinator.attempts = None
    team.until(lambda: (seen := coordinator.view().announcement) is not None and seen.checkpoint is not None)
    team.steps(5.0)
    coordinator.attempts = 0
    worker.boundary(snapshot(2), due=True)
    team.until(lambda: (coordinator.attempts or 0) > 10)
    assert caplog.text.count("announcing failed") == 2


def test_a_notice_that_is_refused_at_each_tick_is_logged_once(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """The publisher retries at each tick until the coordinator takes it."""
    coordinator = ReadOnly(team.clock)
    coordinator.attempts = 0
    notices = Notices(lambda: 1)
    elector = elector_of(team.unjoined("a"))
    publisher = NoticePublisher(coordinator, notices, elector=elector, worker_id="a", clock=team.clock)
    assert notices.give("SIGTERM", now=team.clock.now(), remaining=30.0) is not None
    publisher.publish(None, None)
    for _ in range(5):
        publisher.republish(coordinator.view(), None)
    assert coordinator.attempts == 6
    assert caplog.text.count("publishing the notice failed worker=a") == 1
