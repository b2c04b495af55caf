"""The event logs of a run, read from its storage."""

from __future__ import annotations

from typing import Any, override

import pytest

from distributed_backup.errors import StoreError
from distributed_backup.storage.base import Storage
from distributed_backup.storage.local import LocalStorage
from distributed_backup.timeline.log_reader import parse_events, read_events
from tests.support.stories import A, B, Story


def test_lines_that_are_no_event_are_skipped_and_counted() -> None:
    """Examples: a torn line, a kind of a newer version, a line of another program, a year that can't be shown."""
    story = Story()
    story.start(0, A)
    good = [event.line() for event in story.events]
    bad = [
        good[0][:40],
        b'{"at":"2026-11-23T10:00:00Z","worker":"w","event":"teleported"}\n',
        b'{"at":"2026-11-23T10:00:00","worker":"w","event":"left"}\n',
        b'{"at":"9999-12-31T23:59:59Z","worker":"w","event":"left"}\n',
        b'{"at":"2026-11-23T10:00:00Z","worker":7,"event":"left"}\n',
        b"\xff\x00 ELF",
        b"",
        b"[" * 100_000,
    ]
    events, skipped = parse_events([good[0], *bad, good[1]])
    assert events == story.events
    assert skipped == len(bad)


def test_events_are_merged_by_time_and_stay_in_the_order_of_each_worker() -> None:
    """A clock that is set back does not reorder the events of one worker."""
    story = Story()
    story.tell(5, A, "joined")
    story.tell(2, A, "elected", term=1)
    story.tell(9, A, "left")
    story.tell(3, B, "joined")
    story.tell(7, B, "left")
    events, _ = parse_events(event.line() for event in story.events)
    assert [(event.worker, event.kind) for event in events] == [
        (B, "joined"),
        (A, "joined"),
        (A, "elected"),
        (B, "left"),
        (A, "left"),
    ]


class Disappearing(LocalStorage):
    """Lists a log that can't be read. `reason` is the cause."""

    reason: type[OSError] = FileNotFoundError

    @override
    def names(self) -> list[str]:
        return [*super().names(), "events-20260101T000000Z-gone.jsonl"]

    @override
    def read(self, name: str) -> bytes:
        try:
            return super().read(name)
        except StoreError as error:
            raise StoreError("can't be read", path=name) from self.reason(error)


@pytest.fixture
def storage(tmp_path: Any) -> Storage:
    story = Story()
    story.tell(0, A, "joined")
    (tmp_path / "events-20260102T000000Z-a.jsonl").write_bytes(story.events[0].line())
    (tmp_path / "other.jsonl").write_bytes(b"?")
    return Disappearing(tmp_path)


def test_only_event_logs_are_read_and_one_that_vanishes_is_skipped(storage: Storage) -> None:
    events, skipped = read_events(storage)
    assert ([event.kind for event in events], skipped) == (["joined"], 0)


def test_a_storage_that_can_not_be_read_is_an_error(storage: Disappearing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a run would look undisturbed."""
    monkeypatch.setattr(Disappearing, "reason", PermissionError)
    with pytest.raises(StoreError, match="can't be read"):
        read_events(storage)


def test_logs_of_another_run_are_skipped(tmp_path: Any) -> None:
    """A log that is written while its run is deleted may reach a bucket later."""
    for worker, run in ((A, "one"), (B, "two")):
        story = Story()
        story.tell(0, worker, "joined", run=run)
        story.tell(1, worker, "left")
        (tmp_path / f"events-20260102T000000Z-{worker}.jsonl").write_bytes(
            b"".join(event.line() for event in story.events)
        )
    (tmp_path / "events-20260102T000000Z-torn.jsonl").write_bytes(b"{")
    events, skipped = read_events(LocalStorage(tmp_path), "two")
    assert [(event.worker, event.kind) for event in events] == [(B, "joined"), (B, "left")]
    assert skipped == 1
    assert len(read_events(LocalStorage(tmp_path))[0]) == 4
