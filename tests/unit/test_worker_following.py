"""Workers whose followers take the leader's answers: the announced start, who leads, and a follower that is lost."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from distributed_backup.coordination.base import ClusterView, Heartbeat, has_another_led
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.errors import StoreError
from distributed_backup.observability.reporter import Reporter
from distributed_backup.position import Position
from distributed_backup.preemption.exit import Preempted
from distributed_backup.worker.restore import Restore
from distributed_backup.worker.standby import Standby
from distributed_backup.worker.start_point import StartPoint
from distributed_backup.worker.worker import Worker
from tests.support.internals import context_of, elector_of, saver_of
from tests.support.sinks import RecordingSink
from tests.support.team import LONG, PATIENCE, FaultyStore, Gone, Team, snapshot


def started(team: Team, worker_id: str, **options: Any) -> Worker:
    return team.started(worker_id, follows_journal=True, **options)


# ---------------------------------------------------------------- the start


def test_a_fresh_start_is_announced_with_its_checkpoint(team: Team) -> None:
    """A follower waits for it, so that it has the leader's variables and random generators."""
    leader = started(team, "a")
    follower = team.worker("b", follows_journal=True)
    waiting = team.begin(follower.await_start)
    team.steps(3.0)
    assert (waiting.done(), team.coordinator.view().announcement) == (False, None)
    leader.boundary(snapshot(0), due=True)
    start = team.result(waiting)
    assert (start.position, start.checkpoint.body) == (Position(0), snapshot(0).body)


def test_a_fresh_start_is_announced_without_a_checkpoint_if_its_commit_fails(team: Team) -> None:
    """The run can be trained, so no worker waits for a disk."""
    store = FaultyStore(team.root, keep=10)
    leader = started(team, "a", store=store)
    store.broken = True
    follower = team.worker("b", follows_journal=True)
    waiting = team.begin(follower.await_start)
    leader.boundary(snapshot(0), due=True)
    assert team.result(waiting) == StartPoint()


def test_a_fresh_start_that_was_suspended_trains_when_its_checkpoint_is_durable(team: Team) -> None:
    """Its lease has run out, and the next heartbeat renews it."""

    class Suspended(MemoryCoordinator):
        gate = threading.Event()

        def heartbeat(self, beat: Heartbeat) -> ClusterView:
            assert self.gate.wait(PATIENCE)
            return super().heartbeat(beat)

    coordinator = Suspended(team.clock)
    coordinator.gate.set()
    leader = started(team, "a", coordinator=coordinator)
    coordinator.gate.clear()
    saver = saver_of(leader)
    drain = saver.drain

    def drain_in_doubt(timeout: float) -> bool:
        is_drained = drain(timeout)
        coordinator.gate.set()
        return is_drained

    saver.drain = drain_in_doubt  # type: ignore[method-assign]
    team.clock._now += 60.0
    leader.boundary(snapshot(0), due=True, wait=5.0)
    assert context_of(leader).store.names() != []


def test_a_start_from_a_checkpoint_is_announced_at_once(team: Team) -> None:
    newest = team.commit(1)
    started(team, "a")
    assert team.announcement.checkpoint == newest.name


def test_a_notice_before_the_first_boundary_of_a_fresh_start_ends_the_leader_now(team: Team) -> None:
    """There is nothing to save, so it must not wait for the end of its grace period."""
    leader = started(team, "a")
    begun = team.clock.now()
    team.begin(lambda: leader.give_notice("SIGTERM"))
    team.until(lambda: leader.notice_given)
    assert isinstance(team.result(team.begin(leader.preempt)), Preempted)
    assert team.clock.now() - begun < 30.0


def test_a_fresh_start_of_a_worker_that_was_deposed_is_not_announced(team: Team) -> None:
    """The new leader announces its own."""
    first = started(team, "a")
    team.kill(first)
    second = started(team, "b")
    second.boundary(snapshot(0), due=True)
    team.until(lambda: team.coordinator.view().announcement is not None)
    assert team.announcement.worker_id == "b"


# ---------------------------------------------------------------- who leads


class Changes:
    """The calls of one worker's standby, in order."""

    def __init__(self, worker: Worker) -> None:
        self.seen: list[str] = []
        worker.standby.on_elected = lambda: self.seen.append("elected")
        worker.standby.on_deposed = lambda: self.seen.append("deposed")


def gives_way(team: Team, leader: Worker) -> Worker:
    """Let another worker lead. Return it."""
    other = team.worker("b", follows_journal=True)
    elector_of(leader).pause_campaign(LONG)
    team.until(lambda: elector_of(other).is_leader)
    team.steps(3.0)
    return other


def sleeps_through_the_term_of(team: Team, leader: Worker, other: Worker) -> None:
    elector_of(leader).stop()
    team.until(lambda: elector_of(other).is_leader)
    team.kill(other)


def two(team: Team) -> tuple[Worker, Worker]:
    team.commit(1)
    return started(team, "a"), started(team, "b")


def test_a_follower_that_is_elected_and_the_leader_that_is_deposed_are_told_once_each(team: Team) -> None:
    leader, follower = two(team)
    changes = Changes(leader), Changes(follower)
    team.steps(3.0)
    assert [each.seen for each in changes] == [[], []]
    elector_of(leader).pause_campaign(30.0)
    team.until(lambda: elector_of(follower).is_leader)
    team.steps(3.0)
    assert [each.seen for each in changes] == [["deposed"], ["elected"]]
    assert (leader.stands_by, team.cut_offs) == (False, {"a": [], "b": []})
    elector_of(leader).resume_campaign()
    elector_of(follower).pause_campaign(30.0)
    team.until(lambda: elector_of(leader).is_leader)
    team.steps(3.0)
    assert [each.seen for each in changes] == [["deposed", "elected"], ["elected", "deposed"]]


def test_a_leader_that_leads_again_with_no_other_between_is_not_deposed(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its journal goes on under the new term at once."""
    team.commit(1)
    leader = started(team, "a")
    changes = Changes(leader)
    terms: list[int | None] = []
    monkeypatch.setattr(leader.journal, "lead_again", lambda: terms.append(context_of(leader).journal_term()))
    elector_of(leader).pause_campaign(2.0)
    team.until(lambda: not elector_of(leader).is_leader)
    team.until(lambda: elector_of(leader).is_leader)
    team.steps(3.0)
    assert (changes.seen, terms) == ([], [elector_of(leader).term])
    assert leader.standby.leads_since_start


def test_a_worker_trains_as_the_leader_until_another_leads(team: Team) -> None:
    """Also if its lease has run out as its fit begins: no event follows if it holds the same term again."""
    coordinator = team.coordinator = Gone(team.clock)
    coordinator.gone = False
    leader, follower = two(team)
    coordinator.gone = True
    team.until(lambda: not elector_of(leader).is_leader)
    assert (leader.trains_as_leader, follower.trains_as_leader) == (True, False)
    coordinator.gone = False
    elector_of(leader).pause_campaign(30.0)
    team.until(lambda: follower.trains_as_leader)
    team.until(lambda: not leader.trains_as_leader)


def test_a_worker_leads_since_its_start_until_another_leads(team: Team) -> None:
    """What it has restored may be older than the newest checkpoint then, also if it leads again."""
    leader, follower = two(team)
    assert (leader.standby.leads_since_start, follower.standby.leads_since_start) == (True, False)
    elector_of(leader).pause_campaign(30.0)
    team.until(lambda: follower.trains_as_leader and not leader.trains_as_leader)
    elector_of(follower).pause_campaign(30.0)
    elector_of(leader).resume_campaign()
    team.until(lambda: leader.trains_as_leader)
    assert (leader.standby.leads_since_start, follower.standby.leads_since_start) == (False, False)


def test_a_worker_whose_start_is_old_does_not_lead_for_it(team: Team) -> None:
    """It was suspended after it had read its start, and the next heartbeat is a tick away."""
    first = team.worker("a", follows_journal=True)
    team.until(lambda: elector_of(first).is_leader)
    start = team.result(team.begin(lambda: Restore(context_of(first), first._live_terms).wait(lambda: None)))
    gives_way(team, first)
    first.standby.begin(start)
    assert (first.trains_as_leader, first.standby.leads_since_start) == (False, False)


def test_a_worker_that_is_deposed_as_it_begins_does_not_lead_since_its_start(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of the election is in `observe` for the term before."""
    first = started(team, "a")
    stand, start = first.standby, first.standby.began_at
    begins = [lambda: stand.begin(start)]

    class Raced(Standby):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "leads_since_start" and value is False and begins:
                begins.pop()()

    monkeypatch.setattr(stand, "__class__", Raced)
    gives_way(team, first)
    assert (begins, first.trains_as_leader, first.standby.leads_since_start) == ([], False, False)


def test_a_worker_may_be_deposed_while_it_looks_who_leads(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two threads look at once, with views of different times."""
    first = started(team, "a")
    changes, name = Changes(first), "distributed_backup.worker.standby.has_another_led"
    term = elector_of(first).term or 0

    def late(**known: Any) -> bool:
        monkeypatch.setattr(name, has_another_led)
        first.standby.observe("b", term + 2)
        return has_another_led(**known)

    monkeypatch.setattr(name, late)
    monkeypatch.setattr(elector_of(first), "last_term", term + 1)
    first.standby.observe(None, term + 1)
    assert (changes.seen, first.trains_as_leader) == (["deposed"], False)


def test_a_leader_whose_successor_has_died_follows_what_it_has_recorded(team: Team) -> None:
    """It was suspended meanwhile, and does not campaign at the moment. No worker holds the lease."""
    leader, follower = two(team)
    changes = Changes(leader)
    sleeps_through_the_term_of(team, leader, follower)
    team.steps(60.0)
    elector_of(leader).pause_campaign(LONG)
    elector_of(leader).tick()
    assert team.holder() is None
    assert changes.seen == ["deposed"]


def test_a_leader_that_can_claim_no_term_waits_until_it_can(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk. It can't tell the terms that it gave back from those of others, and could record no answer."""
    team.commit(1)
    leader = started(team, "a")
    changes, refused = Changes(leader), []

    def claim_term(term: int) -> bool:
        refused.append(term)
        raise StoreError("No space left on device", path=str(team.root))

    with monkeypatch.context() as patch:
        patch.setattr(elector_of(leader)._terms, "claim_term", claim_term)
        elector_of(leader).pause_campaign(0.5)
        team.until(lambda: len(refused) == 3)
        assert changes.seen == ["deposed"]
    team.until(lambda: elector_of(leader).is_leader)
    team.steps(1.0)
    assert changes.seen == ["deposed", "elected"]


def test_a_leader_that_was_deposed_before_its_start_records_when_it_leads_again(team: Team) -> None:
    """It has followed no journal in between, so there is none that it must read first."""
    first = team.worker("a", follows_journal=True)
    team.until(lambda: elector_of(first).is_leader)
    second = gives_way(team, first)
    team.kill(second)
    elector_of(first).resume_campaign()
    team.until(lambda: elector_of(first).is_leader)
    team.result(team.begin(first.await_start))
    assert (first.trains_as_leader, first.journal.wants_checkpoint) == (True, True)


def test_a_leader_that_slept_through_the_term_of_another_is_deposed_and_elected(team: Team) -> None:
    """It leads at its next tick, and what the other has recorded counts."""
    leader, follower = two(team)
    changes = Changes(leader)
    sleeps_through_the_term_of(team, leader, follower)
    team.coordinator.resign("b")
    terms, steps = [], []
    leader.standby.on_deposed = lambda: terms.append(context_of(leader).journal_term())
    leader.journal.step_down = lambda: steps.append(context_of(leader).journal_term())  # type: ignore[method-assign]
    elector_of(leader).tick()
    assert (elector_of(leader).is_leader, elector_of(leader).term) == (True, 4)
    # Its journal must not continue its own segment before it has read that of the other.
    assert (steps, len(terms)) == ([None], 1)
    elector_of(leader).tick()
    assert (changes.seen, context_of(leader).journal_term()) == (["elected"], 4)


def test_a_leader_that_slept_does_not_lead_for_certain_until_it_knows(team: Team) -> None:
    """Nor does one that leads again with another in between."""
    leader, follower = two(team)
    standby = leader.standby
    assert (standby.leads_for_certain, standby.is_in_doubt) == (True, False)
    assert not follower.standby.leads_for_certain
    elector_of(leader).stop()
    team.until(lambda: elector_of(follower).is_leader)
    woken: list[bool] = []
    elector_of(leader).wake = lambda: woken.append(True)  # type: ignore[method-assign]
    assert (standby.leads_for_certain, standby.is_in_doubt, woken) == (False, True, [True])
    # If the coordinator hangs, the fit goes on. This worker does not lead for certain then.
    known_until = elector_of(leader).known_until
    standby.give_up_doubt()
    assert (standby.leads_for_certain, standby.is_in_doubt) == (False, False)
    elector_of(leader).known_until = known_until
    team.kill(follower)
    team.coordinator.resign("b")
    seen: list[tuple[bool, bool]] = []
    standby.on_deposed = lambda: seen.append((standby.leads_for_certain, standby.is_in_doubt))
    elector_of(leader).tick()
    assert (elector_of(leader).is_leader, seen, standby.is_in_doubt) == (True, [(False, True)], False)
    # Without a doubt there is nothing to give up, and the next doubt counts.
    standby.give_up_doubt()
    team.clock.advance(1000.0)
    assert standby.is_in_doubt


# ---------------------------------------------------------------- a follower that is lost


def test_a_lost_follower_stops_and_returns_with_the_final_state(team: Team) -> None:
    """It is reported once, commits nothing, and no other worker gives way to it."""
    sink = RecordingSink()
    team.reporter = lambda worker_id: Reporter(worker_id, *([sink] if worker_id == "b" else []))
    leader, follower = two(team)
    follower.boundary(snapshot(1, 1), due=True)
    follower.standby.stand_down("the state differs in trainable")
    follower.standby.stand_down("again")
    assert (follower.stands_by, len(team.cut_offs["b"]), elector_of(follower).position) == (True, 1, None)
    team.steps(3.0)
    # Otherwise all segments would be kept for it.
    assert context_of(leader).store.slowest_follower() is None
    assert sink.of("stood_down") == [{"leader": "a", "term": 2}]
    waiting = team.begin(follower.stand_by)
    team.steps(3.0)
    assert not waiting.done()
    leader.boundary(snapshot(2), due=True)
    finishing = team.begin(leader.finish)
    final = team.result(waiting)
    assert (final.finished, final.position) == (True, Position(2))
    team.begin(lambda: follower.close(timeout=0.0))
    team.until(finishing.done)


def test_no_other_worker_gives_way_to_a_lost_follower_that_comes_to_a_boundary(team: Team) -> None:
    """Its digests may be compared right before the boundary is handed over, and it trains until it is cancelled."""
    leader, follower = two(team)
    follower.standby.stand_down("the state differs in trainable")
    follower.boundary(snapshot(7), due=True)
    assert elector_of(follower).position is None
    team.steps(3.0)
    assert elector_of(leader).is_leader


def test_a_lost_follower_that_leads_exits_to_be_started_again(team: Team) -> None:
    leader, follower = two(team)
    follower.standby.stand_down("lost")
    waiting = team.begin(follower.stand_by)
    team.steps(1.0)
    leader.close(timeout=0.0)
    team.until(waiting.done)
    with pytest.raises(Preempted):
        waiting.result()


def test_a_lost_follower_that_leads_saves_nothing_of_its_own_at_a_notice(team: Team) -> None:
    """Its state is no other worker's. It exits now, because there is nothing to wait for."""
    leader, follower = two(team)
    follower.boundary(snapshot(7, 1), due=True)
    follower.standby.stand_down("lost")
    leader.close(timeout=0.0)
    team.until(lambda: elector_of(follower).is_leader)
    before, began = team.positions(), team.clock.now()
    follower.give_notice("SIGTERM")
    preempted = team.result(team.begin(follower.preempt))
    assert isinstance(preempted, Preempted)
    assert team.positions() == before
    assert Position(7, 1) not in before
    assert team.clock.now() - began < 1.0


def test_a_worker_that_is_leaving_is_not_stopped(team: Team) -> None:
    _, follower = two(team)
    context_of(follower).state.phase = "finishing"
    follower.standby.stand_down("lost")
    assert (follower.stands_by, team.cut_offs["b"]) == (False, [])
    assert not saver_of(follower).unsaved


def test_hints_get_the_time_that_the_journal_has_left_at_the_end(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs must not take the time in which the worker leaves."""
    context, given = context_of(started(team, "a")), []
    monkeypatch.setattr(context.journal, "close", lambda *, timeout: team.clock.advance(0.4 * timeout))
    monkeypatch.setattr(context.append_hints, "close", lambda *, timeout: given.append(timeout))
    context.close_journal(5.0)
    assert given == [pytest.approx(3.0)]


def test_a_leader_that_leaves_frees_its_lease_after_its_last_answer_is_recorded(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next leader reads the journal at once. Heartbeats keep the lease meanwhile, however long that takes."""
    leader = started(team, "a", grace_period=600.0)
    context, holders = context_of(leader), []

    def close(*, timeout: float) -> None:
        team.steps(context.options.timings.duration)
        holders.append(team.coordinator.view().holder)

    monkeypatch.setattr(context.journal, "close", close)
    leader.give_notice("SIGTERM")
    team.result(team.begin(leader.preempt))
    assert (holders, team.coordinator.view().holder) == (["a"], None)
