"""Events as values, the reporter, and what elector, saver and worker report of a run."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.clock import SystemClock
from distributed_backup.coordination.base import Announcement, ClusterView, Heartbeat, Notice
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.errors import CoordinatorUnavailableError, StoreError
from distributed_backup.observability.event_log import EventLog
from distributed_backup.observability.events import (
    KINDS,
    OPTIONAL_FIELDS,
    Event,
    event_log_name,
    is_event_log,
)
from distributed_backup.observability.reporter import Reporter
from tests.support.election import Bench
from tests.support.internals import elector_of, saver_of
from tests.support.sinks import RecordingSink
from tests.support.team import LONG, PATIENCE, FaultyStore, Team, snapshot

AT = datetime(2026, 11, 23, 10, 0, 0, 123000, tzinfo=UTC)


class Recorders(dict[str, RecordingSink]):
    """What each worker of a team reports, by worker id."""

    def __init__(self, team: Team) -> None:
        super().__init__()
        self._team = team
        team.reporter = self._reporter

    def _reporter(self, worker_id: str) -> Reporter:
        self[worker_id] = RecordingSink(at_close=lambda: worker_id in self._team.member_ids())
        return Reporter(worker_id, self[worker_id])


@pytest.fixture
def recorders(team: Team) -> Recorders:
    return Recorders(team)


# ---------------------------------------------------------------- the value


def test_an_event_is_one_line_and_back() -> None:
    """An event is one line of JSON with its time in UTC, and reading the line gives the same event."""
    event = Event(at=AT, worker="w", kind="lost", fields={"term": 3, "reason": "a\nb"})
    line = event.line()
    assert line == b'{"at":"2026-11-23T10:00:00.123Z","worker":"w","event":"lost","term":3,"reason":"a\\nb"}\n'
    assert Event.from_line(line) == event


def test_times_are_in_utc_whatever_the_zone() -> None:
    """An event with a time of another zone has the time in UTC, in its line and in the log's name."""
    event = Event(at=AT.astimezone(timezone(timedelta(hours=2))), worker="w", kind="left", fields={})
    assert b'"2026-11-23T10:00:00.123Z"' in event.line()
    assert event_log_name(event) == "events-20261123T100000Z-w.jsonl"


def test_logs_are_recognized_by_their_names() -> None:
    """The name of an event log is recognized, and that of another file or of a partial log is not."""
    assert is_event_log("events-20261123T100000Z-w.jsonl")
    assert not is_event_log("losses.jsonl")
    assert not is_event_log("0000000001-00000001-00000000.ckpt")
    assert not is_event_log(".partial-events-20261123T100000Z-w.jsonl-0011")


@pytest.mark.parametrize(
    "name",
    [
        "events-2026.jsonl",
        "events-20261123.jsonl",
        "events-20261123T100000Z.jsonl",
        "events-20261123T100000Z-.jsonl",
        "events-20261123T100000Z-a b.jsonl",
        "events-20261123T100000Z-w.jsonl.gz",
        "events-20261123T100000Z-w.jsonl\n",
        "my-events-20261123T100000Z-w.jsonl",
    ],
)
def test_a_users_file_is_not_taken_for_an_event_log(name: str) -> None:
    """Event logs are deleted with the run."""
    assert not is_event_log(name)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'{"at":"2026-11-23T10:00:00Z","worker":"w"}',
        b'{"at":"2026-11-23T10:00:00Z","worker":"w","event":"exploded"}',
        b'{"at":"2026-11-23T10:00:00Z","worker":"w","event":["left"]}',
        b'{"at":"2026-11-23T10:00:00Z","worker":1,"event":"left"}',
        b'{"at":"2026-11-23T10:00:00Z","worker":"w","event":"elected"}',
        b'{"at":"2026-11-23T10:00:00","worker":"w","event":"left"}',
        b'{"at":"yesterday","worker":"w","event":"left"}',
        b'{"at":7,"worker":"w","event":"left"}',
    ],
)
def test_what_is_no_event_is_refused(line: bytes) -> None:
    """An incomplete line, an unknown kind, a missing field or a time without a zone raises ValueError."""
    with pytest.raises(ValueError, match=r".+"):
        Event.from_line(line)


def test_a_field_that_a_later_version_added_is_kept() -> None:
    """A field that this version does not know is kept, so that an older tool can read a newer log."""
    line = b'{"at":"2026-11-23T10:00:00Z","worker":"w","event":"left","mood":"good"}'
    assert Event.from_line(line).fields == {"mood": "good"}


# ---------------------------------------------------------------- the reporter


def test_what_is_reported_is_stamped_and_goes_to_every_sink() -> None:
    """The reporter stamps an event with its wall clock and hands it to every sink."""
    one, two = RecordingSink(), RecordingSink()
    Reporter("w", one, two, wall=lambda: AT)("elected", term=2)
    assert one.events == two.events == [Event(at=AT, worker="w", kind="elected", fields={"term": 2})]


def test_the_first_final_event_counts() -> None:
    """After the first final event the reporter drops other final events, and still hands on a resignation."""
    sink = RecordingSink()
    report = Reporter("w", sink)
    report("finished", epoch=3, batch=0)
    report("preempted", saved=True, checkpoint=None, epoch=None, batch=None, seconds=1.0)
    report("resigned", term=1)
    report("left")
    assert sink.kinds == ["finished", "resigned"]


def test_a_long_text_is_cut() -> None:
    """The reporter cuts a text to 500 characters, because the log is bounded."""
    sink = RecordingSink()
    Reporter("w", sink)("commit_failed", reason="x" * 10_000)
    assert sink.of("commit_failed") == [{"reason": "x" * 500}]


def test_a_bug_in_a_sink_does_not_harm_the_reporting_thread(caplog: pytest.LogCaptureFixture) -> None:
    """The reporter logs the exception of a sink, and the thread that reports goes on."""

    class Broken(RecordingSink):
        def emit(self, event: Event) -> None:
            raise RuntimeError("a bug")

    report = Reporter("w", Broken())
    report("left")
    assert "event not reported worker=w event=left" in caplog.text
    assert "a bug" in caplog.text


def test_a_bug_in_one_sink_keeps_nothing_from_the_others() -> None:
    """When one sink raises an exception, the next sink still gets the event."""

    class Broken(RecordingSink):
        def emit(self, event: Event) -> None:
            raise RuntimeError("a bug")

    sink = RecordingSink()
    Reporter("w", Broken(), sink)("left")
    assert sink.kinds == ["left"]


def test_what_is_no_text_in_a_reason_does_not_lose_the_event() -> None:
    """The reporter replaces characters that UTF-8 can't encode, so that the event can be written as JSON."""
    sink = RecordingSink()
    Reporter("w", sink)("commit_failed", reason="can't write /\udcff/x")
    assert sink.of("commit_failed") == [{"reason": "can't write /?/x"}]
    assert b"can't write /?/x" in sink.events[0].line()


def test_closing_closes_every_sink() -> None:
    """Closing the reporter closes every sink with the given timeout."""
    sinks = RecordingSink(), RecordingSink()
    Reporter("w", *sinks).close(1.5)
    assert [sink.closed for sink in sinks] == [[(1.5, None)]] * 2


# ---------------------------------------------------------------- what a worker reports


def test_a_leaders_life(team: Team, recorders: Recorders) -> None:
    """A leader reports each transition from joining to its resignation, each event with its fields."""
    worker = team.started("a", delete_checkpoint=False)
    worker.boundary(snapshot(1), due=True)
    assert saver_of(worker).drain(PATIENCE)
    team.result(team.begin(worker.finish))
    assert recorders["a"].kinds == [
        "joined",
        "elected",
        "restored",
        "progress",
        "committed",
        "finished",
        "resigned",
    ]
    run_id = FaultyStore(team.root).read_run_id()
    assert recorders["a"].of("joined") == [{"run": run_id, "standby": False, "directory": str(team.root)}]
    assert recorders["a"].of("elected") == recorders["a"].of("resigned") == [{"term": 1}]
    assert recorders["a"].of("restored") == [{"checkpoint": None, "epoch": 0, "batch": 0}]
    assert recorders["a"].of("progress") == recorders["a"].of("finished") == [{"epoch": 1, "batch": 0}]
    assert {event.worker for event in recorders["a"].events} == {"a"}
    for event in recorders["a"].events:
        assert set(event.fields) == KINDS[event.kind] | OPTIONAL_FIELDS.get(event.kind, set()) - {"reason"}


def test_a_commit_is_reported_with_its_size_and_duration(team: Team, recorders: Recorders) -> None:
    """The event of a commit has the size of the state and the seconds until the commit was durable."""

    class Slow(FaultyStore):
        def commit(self, *arguments: Any, **keywords: Any) -> Any:
            team.clock._now += 1.5
            return super().commit(*arguments, **keywords)

    worker = team.started("a", store=Slow(team.root))
    worker.boundary(snapshot(1, 2), due=True)
    assert saver_of(worker).drain(PATIENCE)
    [made] = recorders["a"].of("committed")
    assert made == {
        "checkpoint": "0000000001-00000001-00000002.ckpt",
        "term": 1,
        "epoch": 1,
        "batch": 2,
        "bytes": len(snapshot(1, 2).body),
        "seconds": 1.5,
    }


def test_a_restored_checkpoint_is_named(team: Team, recorders: Recorders) -> None:
    """Each worker reports the name of the restored checkpoint, and the position where training goes on."""
    newest = team.commit(2, 3)
    team.started("a")
    follower = team.started("b", standby=False)
    follower.training_started(snapshot(2).position)
    expected = {"checkpoint": newest.name, "epoch": 2, "batch": 3}
    assert recorders["a"].of("restored") == [expected]
    assert recorders["b"].of("restored") == [expected, {**expected, "batch": 0}]
    assert recorders["b"].of("elected") == []


def test_a_standby_reports_that_it_is_one(team: Team, recorders: Recorders) -> None:
    """A standby reports at its joining that it is a standby."""
    team.worker("a", standby=True)
    assert recorders["a"].of("joined")[0]["standby"] is True


def test_progress_is_reported_at_each_epochs_end_and_else_every_ten_seconds(team: Team, recorders: Recorders) -> None:
    """A worker reports progress at the end of each epoch, and within an epoch every ten seconds."""
    worker = team.started("a")
    for batch in range(1, 26):
        worker.boundary(snapshot(0, batch), due=False)
        team.clock._now += 1.0
    for epoch in (1, 2):
        worker.boundary(snapshot(epoch), due=False)
    positions = [(progress["epoch"], progress["batch"]) for progress in recorders["a"].of("progress")]
    assert positions == [(0, 1), (0, 11), (0, 21), (1, 0), (2, 0)]


def test_a_preemption_of_the_leader(team: Team, recorders: Recorders) -> None:
    """A preempted leader reports notice, commit and preemption, resigns, and closes its sinks while it is a member."""
    worker = team.started("a", grace_period=60.0)
    worker.boundary(snapshot(1, 3), due=False)
    worker.give_notice("SIGTERM")
    preempted = team.result(team.begin(worker.preempt))
    assert recorders["a"].kinds[3:] in (
        ["progress", "notice", "committed", "preempted", "resigned"],
        ["progress", "committed", "notice", "preempted", "resigned"],
    )
    assert recorders["a"].of("notice") == [{"reason": "SIGTERM", "remaining": 60.0}]
    [end] = recorders["a"].of("preempted")
    assert end.pop("seconds") <= preempted.seconds + 0.001
    assert end == {"saved": True, "checkpoint": "0000000001-00000001-00000003.ckpt", "epoch": 1, "batch": 3}
    [(timeout, is_member)] = recorders["a"].closed
    assert is_member
    assert 0 < timeout <= 2.0


def test_a_notice_before_there_was_anything_to_save(team: Team, recorders: Recorders) -> None:
    """A worker that is preempted with nothing to save reports neither a save nor a failed save."""
    worker = team.worker("a", grace_period=30.0)
    worker.give_notice("SIGTERM")
    team.result(team.begin(worker.preempt))
    [end] = recorders["a"].of("preempted")
    assert (end["saved"], end["checkpoint"], end["epoch"]) == (None, None, None)


def test_a_preemption_without_a_save_is_reported_as_such(team: Team, recorders: Recorders) -> None:
    """A follower without a save reports that, and closes its sinks within half of the time for leaving."""
    leader, follower = team.started("a"), team.started("b", grace_period=100.0)
    saver_of(leader).stop()
    follower.boundary(snapshot(1), due=False)
    follower.give_notice("SIGTERM")
    team.result(team.begin(follower.preempt))
    assert recorders["b"].of("preempted")[0]["saved"] is False
    [(timeout, _)] = recorders["b"].closed
    # A tenth is the reserve, of which a quarter is left for leaving.
    assert 0 < timeout <= 100.0 / 10 / 4 / 2


def test_a_fit_that_ends_in_another_way_is_reported_as_left(team: Team, recorders: Recorders) -> None:
    """A worker that is closed before it finished reports that it left and resigned."""
    worker = team.started("a")
    worker.close(timeout=0.0)
    assert recorders["a"].kinds[-2:] == ["left", "resigned"]


def test_events_are_written_before_others_may_delete_the_run(team: Team, recorders: Recorders) -> None:
    """A worker that finishes closes its sinks while it is a member, so that the run still exists."""
    worker = team.started("a")
    team.result(team.begin(worker.finish))
    assert recorders["a"].closed[0] == (2.0, True)


def test_commits_that_fail_and_work_again(team: Team, recorders: Recorders) -> None:
    """A worker reports each failed commit with its reason, and the recovery once."""
    store = FaultyStore(team.root)
    worker = team.started("a", store=store)
    store.broken = True
    for batch in (1, 2):
        worker.boundary(snapshot(0, batch), due=True)
        assert saver_of(worker).drain(PATIENCE)
    store.broken = False
    worker.boundary(snapshot(1), due=True)
    assert saver_of(worker).drain(PATIENCE)
    failures = recorders["a"].of("commit_failed")
    assert len(failures) >= 2
    assert all("No space left on device" in failure["reason"] for failure in failures)
    assert recorders["a"].kinds.count("commit_recovered") == 1
    assert recorders["a"].kinds.index("commit_recovered") > recorders["a"].kinds.index("commit_failed")


def test_a_failure_is_logged_once_whichever_checkpoint_it_hits(
    team: Team, recorders: Recorders, caplog: pytest.LogCaptureFixture
) -> None:
    """Failures that differ only in the checkpoint's name are logged once, and each event has its whole reason."""
    worker = team.started("a")
    reasons = [f"can't write /run/0000000001-0000000{epoch}-00000000.ckpt: full" for epoch in (1, 2)]
    for reason in (*reasons, "can't list /run: gone"):
        worker.on_commit_failed(StoreError(reason, path="/run"))
    assert caplog.text.count("commit_failed worker=a reason=") == 2
    assert [failure["reason"] for failure in recorders["a"].of("commit_failed")] == [*reasons, "can't list /run: gone"]


class Partitioned(MemoryCoordinator):
    """A coordinator that can't be reached while `cut` is true."""

    cut = False

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        if self.cut:
            raise CoordinatorUnavailableError("no route to host")
        return super().heartbeat(beat)

    def announce(self, announcement: Announcement) -> bool:
        return not self.cut and super().announce(announcement)


def test_a_coordinator_that_goes_and_comes_back(team: Team, recorders: Recorders) -> None:
    """A leader reports an unreachable coordinator, the lost lease, a reachable coordinator and its next election."""
    coordinator = team.coordinator = Partitioned(team.clock)
    worker = team.started("a")
    assert 9.0 < worker.lease_left <= 10.0
    coordinator.cut = True
    team.until(lambda: not elector_of(worker).is_leader)
    team.steps(3.0)
    assert worker.lease_left == 0.0
    coordinator.cut = False
    team.until(lambda: elector_of(worker).is_leader)
    assert recorders["a"].kinds[3:] == ["unreachable", "lost", "reachable", "elected"]
    assert recorders["a"].of("unreachable") == [{"reason": "no route to host"}]
    [loss] = recorders["a"].of("lost")
    assert loss == {"term": 1, "reason": "no renewal for 10 s: no route to host"}


def test_what_is_left_of_a_lease_is_counted_as_leading_is() -> None:
    """The time left of a lease counts down from the renewal, and is 0 after the deadline and after resigning."""
    bench = Bench()
    assert bench.elector.lease_left == 0.0
    bench.elector.tick()
    assert bench.elector.lease_left == 10.0
    bench.clock.advance(4.0)
    assert bench.elector.lease_left == 6.0
    bench.clock.advance(7.0)
    assert bench.elector.lease_left == 0.0
    bench.elector.tick()
    assert bench.elector.lease_left == 10.0
    bench.elector.resign()
    assert bench.elector.lease_left == 0.0


def test_a_leader_that_was_asked_to_stand_back(team: Team, recorders: Recorders) -> None:
    """A leader that is asked to resign reports the resignation with its reason, and no lost lease."""
    worker = team.started("a")
    team.started("b")
    worker.boundary(snapshot(1), due=True)
    team.coordinator.notify(Notice(notice_id="n", worker_id="a", reason="operator", remaining=LONG, action="resign"))
    team.until(lambda: team.holder() == "b")
    assert recorders["a"].of("resigned") == [{"term": 1, "reason": "asked to let another worker lead"}]
    assert recorders["a"].of("lost") == []
    team.until(lambda: recorders["b"].of("elected"))
    assert recorders["b"].of("elected")[0]["term"] > 1


def test_a_finished_run_leaves_no_log_behind(team: Team, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When both workers have finished, the run is deleted with its event logs, without a warning."""
    storage = FaultyStore(team.root).storage

    def reporter(worker_id: str) -> Reporter:
        return Reporter(worker_id, EventLog(storage, clock=SystemClock()))

    team.reporter = reporter
    workers = team.started("a"), team.started("b")
    for worker in workers:
        worker.boundary(snapshot(1), due=True)
    with caplog.at_level(logging.WARNING):
        for worker in workers:
            team.result(team.begin(worker.finish))
    assert not team.root.exists()
    assert caplog.text == ""
