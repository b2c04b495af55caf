"""A standby that has trained and no longer leads: when it stops, how it waits, and what it does after the wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from distributed_backup.checkpoints.format import Checkpoint, CheckpointHeader
from distributed_backup.checkpoints.journal import SegmentReader
from distributed_backup.checkpoints.journal_format import Answer, Header, Link, Record, encode_record
from distributed_backup.coordination.base import has_another_led
from distributed_backup.observability.reporter import Reporter
from distributed_backup.position import Position
from distributed_backup.preemption.exit import Preempted
from distributed_backup.worker import standby
from distributed_backup.worker.standby import Progress
from distributed_backup.worker.start_point import StartPoint
from distributed_backup.worker.worker import Worker
from tests.support.internals import context_of, elector_of
from tests.support.journals import PATIENCE, answer
from tests.support.journals import boundary as boundary_of_journal
from tests.support.sinks import RecordingSink
from tests.support.team import Gone, Team, snapshot

# -------------------------------------------------------------------- the decisions


@pytest.mark.parametrize(
    ("holder", "term", "expected"),
    [
        ("other", 3, True),
        ("other", 4, True),
        # A coordinator that lost its data may grant a used term, under which no worker leads.
        ("other", 2, False),
        ("other", 1, False),
        # While no worker leads, no other one can train.
        (None, 2, False),
        (None, 3, False),
        ("me", 2, False),
        ("me", 3, False),
        # Another worker had term 3.
        ("me", 4, True),
    ],
)
def test_a_standby_waits_once_another_worker_has_led(holder: str | None, term: int, expected: bool) -> None:
    """It trained under term 2. Terms grow by one."""
    assert has_another_led(worker_id="me", led=2, holder=holder, term=term) is expected


def header(term: int, position: Position, worker_id: str = "other") -> CheckpointHeader:
    return CheckpointHeader(
        run_id="r",
        term=term,
        epoch=position.epoch,
        batch=position.batch,
        worker_id=worker_id,
        created_at="",
        data=None,
        length=2,
        digest="",
    )


def after_wait(newest: CheckpointHeader | None, *, finished: bool = False, **own: Any) -> str:
    start = StartPoint(checkpoint=None if newest is None else Checkpoint(header=newest, body=b"{}"), finished=finished)
    return standby.next_step(start, Progress(**{"worker_id": "me", "restored": None, "last": None, **own}))


def test_a_run_that_has_finished_ends_the_fit_wherever_it_is() -> None:
    """Its own boundary may be ahead: a callback of the other worker has stopped the training earlier."""
    assert after_wait(header(3, Position(2)), finished=True, last=Position(2, 1)) == "return"


def test_a_worker_that_no_other_has_passed_trains_on() -> None:
    """The newest checkpoint is its own, or the one that it started from, or older than its last boundary."""
    restored = header(1, Position(1))
    assert after_wait(None) == "train"
    assert after_wait(header(2, Position(1, 2), "me"), restored=restored, last=Position(1, 2)) == "train"
    assert after_wait(restored, restored=restored) == "train"
    assert after_wait(restored, restored=header(2, Position(1, 1))) == "train"
    assert after_wait(header(3, Position(1, 2)), restored=restored, last=Position(1, 3)) == "train"


def test_a_worker_that_another_has_passed_is_started_again() -> None:
    """At the same position too: the other worker has got other answers."""
    restored = header(1, Position(1))
    assert after_wait(header(3, Position(1, 3)), restored=restored, last=Position(1, 2)) == "restart"
    assert after_wait(header(3, Position(1, 2)), restored=restored, last=Position(1, 2)) == "restart"
    assert after_wait(header(3, Position(1, 1)), restored=restored) == "restart"
    assert after_wait(header(3, Position(1, 1))) == "restart"


def test_a_worker_that_has_not_used_the_answers_of_another_is_started_again() -> None:
    """Then it replays them. If it trained on, it would pay for them once more."""
    assert after_wait(None, is_passed=True) == "restart"
    assert after_wait(None, is_passed=True, finished=True) == "return"


# -------------------------------------------------------------------- taking the steps


def succeeded(
    team: Team, *, boundary: Position, record: Callable[[Worker], None] = lambda _: None, **options: Any
) -> tuple[Worker, Worker]:
    """Return a standby that trained to `boundary`, which is not saved, and its successor. `record` is called before."""
    options = {"standby": True, **options}
    first = team.started("a", **options)
    record(first)
    second = team.worker("b", **options)
    waiting = team.begin(second.await_start)
    first.boundary(snapshot(boundary.epoch, boundary.batch), due=False)
    elector_of(first).pause_campaign(30.0)
    second.training_started(team.result(waiting).position or Position(0))
    team.until(lambda: first.stands_by)
    return first, second


def begin_journal(worker: Worker) -> None:
    durable = threading.Event()
    context_of(worker).journal.begin_at(boundary_of_journal(0))
    context_of(worker).journal.append(answer(0), durable.set)
    assert durable.wait(PATIENCE)


def waiting(team: Team, worker: Worker) -> Future[Any]:
    """Begin the wait of a standby, and see that it does not end by itself."""
    wait = team.begin(worker.stand_by)
    team.steps(3.0)
    assert not wait.done()
    return wait


def test_a_standby_stops_training_when_another_worker_leads(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """Once, with one warning, although each heartbeat shows the other leader."""
    sink = RecordingSink()
    team.reporter = lambda worker_id: Reporter(worker_id, *([sink] if worker_id == "a" else []))
    succeeded(team, boundary=Position(0, 3))
    team.steps(3.0)
    assert len(team.cut_offs["a"]) == 1
    assert sink.of("stood_down") == [{"leader": "b", "term": 2}]
    [warning] = [record for record in caplog.records if "stops training" in record.message]
    assert (warning.levelno, "worker=a leader=b term=2" in warning.getMessage()) == (logging.WARNING, True)


def test_a_standby_trains_on_while_no_other_worker_leads(team: Team) -> None:
    """It gave its lease back twice, and took it again under the next term."""
    first = team.started("a", standby=True)
    for term in 2, 3:
        elector_of(first).pause_campaign(5.0)
        team.until(lambda: team.holder() is None)
        assert not first.stands_by
        team.until(lambda: elector_of(first).is_leader)
        assert elector_of(first).term == term
    team.steps(3.0)
    assert (first.stands_by, team.cut_offs["a"]) == (False, [])


def test_a_standby_trains_on_while_the_coordinator_is_away(team: Team) -> None:
    """Another worker could not be elected either."""
    coordinator = team.coordinator = Gone(team.clock)
    coordinator.gone = False
    first = team.started("a", standby=True)
    coordinator.gone = True
    team.until(lambda: not elector_of(first).is_leader)
    team.steps(3.0)
    assert (first.stands_by, team.cut_offs["a"]) == (False, [])


def test_a_replica_trains_on_beside_the_next_leader(team: Team) -> None:
    """Only a standby waits."""
    first, _ = team.started("a"), team.started("b")
    elector_of(first).pause_campaign(30.0)
    team.until(lambda: team.holder() == "b")
    team.steps(1.0)
    assert (first.stands_by, team.cut_offs["a"]) == (False, [])


def test_a_standby_trains_under_the_term_that_it_started_in(team: Team) -> None:
    """It was stopped between its start and the note of it. Another worker had term 2 meanwhile, and it has term 3."""
    worker = team.started("a", standby=True)
    steps = standby.Standby(context_of(worker), team.cut_offs["a"].append)
    elector_of(worker).last_term = 3
    steps.begin(StartPoint(term=1))
    steps.observe("a", 3)
    assert (steps.is_due, len(team.cut_offs["a"])) == (True, 1)


def test_a_term_that_was_granted_and_refused_does_not_count_as_led(team: Team) -> None:
    """Another worker has led under term 2, while a server that was cut off granted it once more."""
    worker = team.started("a", standby=True)
    steps = standby.Standby(context_of(worker), team.cut_offs["a"].append)
    steps.begin(StartPoint(term=1))
    steps.observe("a", 2)
    assert not steps.is_due
    elector_of(worker).last_term = 3
    steps.observe("a", 3)
    assert steps.is_due


def test_a_former_leader_returns_with_the_final_state(team: Team) -> None:
    """Its own boundary, which is ahead of the end of the run, is never committed."""
    first, second = succeeded(team, boundary=Position(3, 1), delete_checkpoint=False)
    wait = waiting(team, first)
    second.boundary(snapshot(3), due=True)
    team.result(team.begin(second.finish))
    final = team.result(wait)
    assert (final.finished, final.checkpoint.position) == (True, Position(3))
    team.result(team.begin(first.finish))
    assert team.positions() == [Position(3)]
    assert team.announcement.finished


def test_a_former_leader_commits_nothing_before_it_knows_that_the_run_has_finished(team: Team) -> None:
    """It leads again while a call blocks its training thread. A boundary of its own was due and is ahead of the end."""
    first, second = succeeded(team, boundary=Position(3, 1), delete_checkpoint=False)
    first.boundary(snapshot(3, 2), due=True)
    second.boundary(snapshot(3), due=True)
    team.result(team.begin(second.finish))
    team.until(lambda: team.holder() == "a")
    team.steps(3.0)
    assert team.positions() == [Position(3)]
    assert team.result(team.begin(first.stand_by)).finished
    team.steps(3.0)
    assert team.positions() == [Position(3)]


def test_a_leader_that_missed_its_successor_learns_of_it_when_it_leads_again(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped while the other worker led, trained and died."""
    first = team.started("a", standby=True)
    second = team.worker("b", standby=True)
    start = team.begin(second.await_start)
    with monkeypatch.context() as stopped:
        stopped.setattr(elector_of(first), "_tick", lambda: None)
        second.training_started(team.result(start).position or Position(0))
        second.boundary(snapshot(1), due=True)
        team.until(lambda: team.positions() == [Position(1)])
        team.kill(second)
        team.until(lambda: team.holder() is None)
    team.until(lambda: team.holder() == "a")
    team.until(lambda: first.stands_by)
    with pytest.raises(Preempted):
        team.result(team.begin(first.stand_by))


def test_a_worker_that_is_elected_after_others_have_led_stops_before_it_commits(team: Team) -> None:
    """Its election wakes the saver, which may have a boundary that is due."""
    worker = team.started("a", standby=True)
    worker.elected(3)
    assert (worker.stands_by, context_of(worker).term_to_write_under()) == (True, None)


def test_a_standby_that_returns_with_the_final_state_never_waits(team: Team) -> None:
    """The worker that announced the end still holds the lease."""
    leader = team.started("a", standby=True, delete_checkpoint=False)
    other = team.worker("b", standby=True, delete_checkpoint=False)
    start = team.begin(other.await_start)
    team.steps(1.0)
    leader.boundary(snapshot(3), due=True)
    team.begin(leader.finish)
    assert team.result(start).finished
    team.steps(3.0)
    assert (other.stands_by, team.cut_offs["b"]) == (False, [])


def test_a_former_leader_trains_on_if_its_successor_came_nowhere(team: Team) -> None:
    """A boundary that was due is committed then, under the new term, and not before."""
    first, second = succeeded(team, boundary=Position(0, 3))
    first.boundary(snapshot(1), due=True)
    wait = waiting(team, first)
    assert team.positions() == []
    team.kill(second)
    assert team.result(wait) is None
    team.until(lambda: team.positions() == [Position(1)])
    assert (first.stands_by, team.holder(), elector_of(first).term) == (False, "a", 3)


def test_a_former_leader_that_trains_on_has_its_answers_in_the_log_again(team: Team) -> None:
    """Its successor may have begun a log that leaves some of them out."""
    first, second = succeeded(team, boundary=Position(0, 3), record=begin_journal)
    wait = waiting(team, first)
    team.kill(second)
    assert team.result(wait) is None
    segment = "0000000003-00000000-00000000.journal"
    assert answer(0) in list(SegmentReader(context_of(first).store.storage, segment))


def test_a_former_leader_that_was_passed_exits_to_be_started_again(
    team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    """It commits nothing of its own, and a standby that starts again goes on from the newest checkpoint."""
    sink = RecordingSink()
    team.reporter = lambda worker_id: Reporter(worker_id, *([sink] if worker_id == "a" else []))
    first, second = succeeded(team, boundary=Position(0, 3), exit_code=75)
    wait = waiting(team, first)
    second.boundary(snapshot(1), due=True)
    team.until(lambda: team.positions() == [Position(1)])
    team.kill(second)
    with pytest.raises(Preempted) as caught:
        team.result(wait)
    assert (caught.value.code, caught.value.position, caught.value.seconds) == (75, Position(1), 0.0)
    assert "leading again at epoch 0, batch 3, but another worker has come further" in caplog.text
    team.result(team.begin(lambda: first.close(timeout=30.0, save_last=True)))
    assert team.positions() == [Position(1)]
    assert [fields["saved"] for fields in sink.of("preempted")] == [None]
    again = team.result(team.begin(team.worker("c", standby=True).await_start))
    assert again.position == Position(1)


OWN = Link(name="0000000001-00000000-00000000.journal", end=1)
OTHER = Link(name="0000000001-00000000-00000001.journal", end=1)


@pytest.mark.parametrize(
    ("batch", "after", "records", "is_passed"),
    [
        (3, None, [], False),
        (3, OWN, [], False),
        # Its log, which is older, may have got answers since this worker has read it.
        (3, OTHER, [], True),
        (3, Link(name="0000000001-00000009-00000009.journal", end=1), [], True),
        (0, None, [], True),
        (3, OWN, [Answer(key="0" * 32, number=0, value=b"1")], True),
        # It has replayed answers, and was killed before it recorded one.
        (3, OWN, [boundary_of_journal(4)], True),
    ],
)
def test_a_former_leader_uses_what_its_successor_has_used(
    team: Team, batch: int, after: Link | None, records: list[Record], is_passed: bool
) -> None:
    """The successor was killed before its first checkpoint. A worker that starts again replays its answers."""
    first, second = succeeded(team, boundary=Position(0, 3), record=begin_journal)
    wait = waiting(team, first)
    storage = context_of(second).store.storage
    other = Header(run_id="r", term=1, worker_id="c", position=Position(0, 1), after=None, digests=None)
    storage.append(other.name, encode_record(other), at=0)
    header = Header(run_id="r", term=2, worker_id="b", position=Position(0, batch), after=after, digests=None)
    storage.append(header.name, b"".join(map(encode_record, (header, *records))), at=0)
    team.kill(second)
    if is_passed:
        with pytest.raises(Preempted):
            team.result(wait)
    else:
        assert team.result(wait) is None


def test_a_former_leader_is_not_passed_by_two_that_have_used_nothing_else(team: Team) -> None:
    """The second one has continued the segment of the first."""
    first, _ = succeeded(team, boundary=Position(0, 3), record=begin_journal)
    storage, after = context_of(first).store.storage, OWN
    for term, worker_id in ((2, "b"), (3, "c")):
        header = Header(run_id="r", term=term, worker_id=worker_id, position=Position(0), after=after, digests=None)
        storage.append(header.name, encode_record(header), at=0)
        after = Link(name=header.name, end=1)
    assert not first.standby._is_passed(StartPoint(term=4))


def position_of(team: Team, worker_id: str) -> Position | None:
    """What the others know of how far a worker has come."""
    [found] = [member.position for member in team.coordinator.members() if member.worker_id == worker_id]
    return found


def test_no_standby_gives_way_to_a_former_leader_that_was_passed(team: Team) -> None:
    """It has nothing that the newest checkpoint has not, and could only exit."""
    first, second = succeeded(team, boundary=Position(0, 3))
    waiting(team, first)
    assert position_of(team, "a") == Position(0, 3)
    second.boundary(snapshot(0, 2), due=True)
    team.until(lambda: team.positions() == [Position(0, 2)])
    team.steps(1.0)
    assert position_of(team, "a") == Position(0, 3)
    second.boundary(snapshot(1), due=True)
    team.until(lambda: position_of(team, "a") is None)


def test_a_former_leader_that_trains_on_has_its_position_again(team: Team) -> None:
    """While it waited, no other had to give way to it: what it has was saved."""
    first, second = succeeded(team, boundary=Position(0, 3))
    wait = waiting(team, first)
    context_of(first).announcer.newest = header(1, Position(0, 3), "a")
    team.until(lambda: position_of(team, "a") is None)
    team.kill(second)
    assert team.result(wait) is None
    team.until(lambda: position_of(team, "a") == Position(0, 3))


def test_a_former_leader_waits_while_storage_and_coordinator_are_away(team: Team) -> None:
    """It goes on once it leads and can read how far the others have come."""
    coordinator = team.coordinator = Gone(team.clock)
    coordinator.gone = False
    first, second = succeeded(team, boundary=Position(0, 3))
    wait = waiting(team, first)
    coordinator.gone = True
    team.kill(second)
    team.steps(60.0)
    assert not wait.done()
    coordinator.gone = False
    assert team.result(wait) is None


def test_a_former_leader_may_have_to_wait_again(team: Team) -> None:
    """Each loss of the lease to another worker cancels training once."""
    first, second = succeeded(team, boundary=Position(0, 3))
    wait = waiting(team, first)
    team.kill(second)
    assert team.result(wait) is None
    third = team.worker("c", standby=True)
    elector_of(first).pause_campaign(30.0)
    team.result(team.begin(third.await_start))
    team.until(lambda: first.stands_by)
    assert len(team.cut_offs["a"]) == 2


def test_a_former_leader_that_loses_the_lead_as_its_wait_ends_waits_on(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was suspended, and the next leader may have pruned the answers by which it was passed."""
    first, second = succeeded(team, boundary=Position(0, 3))
    wait = waiting(team, first)
    elector, is_passed = elector_of(first), first.standby._is_passed
    led = context_of(first).state.led

    def lost_meanwhile(start: StartPoint) -> bool:
        found = is_passed(start)
        elector.pause_campaign(30.0)
        elector.tick()
        return found

    monkeypatch.setattr(first.standby, "_is_passed", lost_meanwhile)
    team.kill(second)
    assert team.result(wait) is None
    assert (first.stands_by, context_of(first).state.led) == (True, led)
    monkeypatch.undo()
    elector.resume_campaign()
    assert team.result(team.begin(first.stand_by)) is None
    assert (first.stands_by, elector.is_leader) == (False, True)


def test_a_former_leader_is_not_passed_by_itself(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had begun a segment, and then lost the lead again before it trained on."""
    first, second = succeeded(team, boundary=Position(0, 3), record=begin_journal)
    wait = waiting(team, first)
    elector, lead_again = elector_of(first), context_of(first).journal.lead_again

    def lost_meanwhile(*, timeout: float) -> None:
        lead_again(timeout=timeout)
        elector.pause_campaign(30.0)
        elector.tick()

    monkeypatch.setattr(context_of(first).journal, "lead_again", lost_meanwhile)
    team.kill(second)
    assert team.result(wait) is None
    assert first.stands_by
    assert SegmentReader(context_of(first).store.storage, "0000000003-00000000-00000000.journal").header() is not None
    monkeypatch.undo()
    elector.resume_campaign()
    assert team.result(team.begin(first.stand_by)) is None
    assert not first.stands_by


def preempted_while_waiting(team: Team, *, successor: int) -> Worker:
    """Preempt a former leader at batch 3 while it waits. Return its successor, at batch `successor`."""
    first, second = succeeded(team, boundary=Position(0, 3))
    wait = waiting(team, first)
    second.boundary(snapshot(0, successor), due=False)
    first.give_notice("SIGTERM")
    with pytest.raises(Preempted):
        team.result(wait, limit=5.0)
    return second


def test_a_notice_ends_the_wait_of_a_former_leader(team: Team) -> None:
    """The leader saves for the notice, as for that of any other worker, and continues to lead."""
    preempted_while_waiting(team, successor=4)
    assert (team.positions(), team.holder(), team.member_ids()) == ([Position(0, 4)], "b", ["b"])


def test_a_preempted_former_leader_saves_what_only_it_has(team: Team) -> None:
    """Its successor is behind and gives way, as to any other worker. It is started again from what was saved."""
    second = preempted_while_waiting(team, successor=1)
    assert team.positions()[0] == Position(0, 3)
    with pytest.raises(Preempted) as caught:
        team.result(team.begin(second.stand_by))
    assert caught.value.position == Position(0, 3)


def test_a_former_leader_saves_its_boundary_if_all_are_preempted_and_its_successor_dies(team: Team) -> None:
    """What only it has is not lost: it takes the lease, and commits before it leaves."""
    first, second = succeeded(team, boundary=Position(0, 3))
    wait = waiting(team, first)
    team.kill(second)
    first.give_notice("SIGTERM", 120.0)
    with pytest.raises(Preempted) as caught:
        team.result(wait)
    assert caught.value.position == Position(0, 3)
    assert team.positions() == [Position(0, 3)]
