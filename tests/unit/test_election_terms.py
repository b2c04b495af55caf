"""The terms of an elector: a used term is never led under, whatever the coordinator forgets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distributed_backup.coordination.base import ClusterView, Heartbeat
from distributed_backup.coordination.election import LeaseLoss
from tests.support.election import TIMINGS, Bench, broken_claim, broken_store


@pytest.fixture
def bench() -> Bench:
    return Bench()


def leads(bench: Bench) -> bool:
    return bench.elector.is_leader


def last_resort(bench: Bench) -> int | None:
    return bench.elector.term_of_last_resort


# ---------------------------------------------------------------- the floor


def test_a_term_is_above_what_the_store_knows(bench: Bench) -> None:
    """The coordinator has lost its data, and the store has not."""
    bench.terms.highest = 7
    bench.elector.tick()
    assert bench.elector.term == 8


def test_the_store_is_not_asked_while_we_lead(bench: Bench) -> None:
    """A renewal costs no directory listing."""
    bench.elector.tick()
    asked = bench.terms.asked
    for _ in range(5):
        bench.elector.tick()
    assert bench.terms.asked == asked


def claimed_meanwhile(bench: Bench, term: int) -> Callable[[Heartbeat], ClusterView]:
    """Return a heartbeat during which another worker claims `term`."""
    heartbeat = bench.coordinator.heartbeat

    def slow(beat: Heartbeat) -> ClusterView:
        view = heartbeat(beat)
        bench.terms.highest = max(bench.terms.highest, term)
        return view

    return slow


def test_a_granted_term_that_was_used_meanwhile_is_refused(bench: Bench) -> None:
    """Another worker claimed it during the request. The elector gives it back and campaigns for a higher one."""
    bench.coordinator.heartbeat = claimed_meanwhile(bench, 5)  # type: ignore[method-assign, assignment]
    bench.elector.tick()
    assert not leads(bench)
    assert bench.coordinator.view().holder is None
    assert bench.recorder.of("elected") == []
    bench.elector.tick()
    assert bench.elector.term == 6


def test_a_refusal_that_can_not_be_delivered_is_delivered_at_the_next_tick(bench: Bench) -> None:
    """The coordinator failing between grant and refusal is one more unreachable tick, not an error."""
    heartbeat = bench.coordinator.heartbeat

    def granted_and_down(beat: Heartbeat) -> ClusterView:
        view = heartbeat(beat)
        bench.coordinator.down = True
        bench.terms.highest = 5
        return view

    bench.coordinator.heartbeat = granted_and_down  # type: ignore[method-assign]
    bench.elector.tick()
    assert bench.coordinator.resigned == ["a"]
    bench.coordinator.down = False
    bench.coordinator.heartbeat = heartbeat  # type: ignore[method-assign]
    bench.elector.tick()
    bench.elector.tick()
    assert bench.elector.term == 6


def test_a_term_is_led_under_by_one_worker_whatever_the_coordinator_forgets(bench: Bench) -> None:
    """An emptied coordinator grants term 1 again to a worker that never saw it. The record of terms refuses it."""
    bench.elector.tick()
    bench.coordinator.erase()
    newcomer = bench.another("b")
    newcomer.tick()
    assert (bench.elector.term, newcomer.term) == (1, 2)


def test_who_is_asked_to_let_another_lead_does(bench: Bench) -> None:
    """It gives the lease back at its next tick, and does not take it until another worker has led."""
    other = bench.another("b")
    bench.elector.tick()
    bench.elector.pause_campaign(30.0)
    bench.elector.tick()
    bench.elector.tick()
    assert bench.recorder.of("lost") == [LeaseLoss(term=1, reason="asked to let another worker lead")]
    assert bench.coordinator.view().holder is None
    other.tick()
    bench.elector.tick()
    assert (other.term, bench.elector.term) == (2, None)


@pytest.mark.parametrize("seen", [True, False])
def test_who_stood_back_is_a_candidate_again_when_another_has_led(bench: Bench, seen: bool) -> None:
    """Also if that one's time fell between two of our ticks: its term tells."""
    other = bench.another("b")
    bench.elector.tick()
    bench.elector.pause_campaign(30.0)
    bench.elector.tick()
    other.tick()
    if seen:
        bench.elector.tick()
    other.resign()
    bench.elector.tick()
    if not seen:
        assert not bench.elector.is_leader
        assert bench.elector._wake.is_set(), "it would wait for a whole period"
        bench.elector.tick()
    assert bench.elector.term == 3


def test_who_stood_back_in_vain_leads_again(bench: Bench) -> None:
    """The request bounds the time without a leader."""
    bench.elector.tick()
    bench.elector.pause_campaign(30.0)
    bench.elector.tick()
    bench.clock.advance(30.0)
    bench.elector.tick()
    assert bench.elector.term == 2


def test_a_worker_that_can_not_claim_its_term_lets_others_try(bench: Bench) -> None:
    """It gives the lease back and waits for a period. Two workers with one broken disk would else wake each other."""
    bench.elector.tick()
    bench.elector.resign()
    other = bench.another("b")
    other.tick()
    claim, bench.terms.claim_term = bench.terms.claim_term, broken_claim  # type: ignore[method-assign]
    other.invalidate_term(2)
    other.tick()
    assert bench.coordinator.view().holder is None
    bench.terms.claim_term = claim  # type: ignore[method-assign]
    other.tick()
    assert not other.is_leader
    bench.clock.advance(TIMINGS.retry_period)
    other.tick()
    assert other.term == 4


def test_a_worker_that_can_not_read_the_store_stays_a_member_and_does_not_campaign(bench: Bench) -> None:
    """Without the floor a used term could be granted again."""
    bench.terms.error = broken_store()
    bench.elector.tick()
    assert bench.coordinator.view().holder is None
    assert [member.worker_id for member in bench.coordinator.members()] == ["a"]
    assert [beat.campaign for beat in bench.coordinator.beats] == [False]
    assert len(bench.recorder.of("observed")) == 1
    bench.terms.error = None
    bench.elector.tick()
    assert leads(bench)


def test_a_leader_that_can_not_read_the_store_goes_on_leading(bench: Bench) -> None:
    """The floor is asked for new terms only."""
    bench.elector.tick()
    bench.terms.error = broken_store()
    bench.clock.advance(2.0)
    bench.elector.tick()
    assert bench.elector.term == 1


def test_a_lease_whose_term_can_not_be_checked_is_given_back(bench: Bench) -> None:
    """A worker whose store failed after the grant can't lead. If it held the lease, no worker would lead."""
    bench.coordinator.lossy = True
    bench.elector.tick()
    bench.coordinator.lossy = False
    bench.terms.error = broken_store()
    bench.elector.tick()
    assert not leads(bench)
    assert bench.coordinator.view().holder is None


def test_a_coordinator_that_lost_its_data_grants_no_term_we_have_seen(bench: Bench) -> None:
    """No worker committed under terms 1 to 3, so the store does not know them. A worker that saw them does."""
    for worker_id in ("x", "y", "z"):
        elector = bench.another(worker_id)
        elector.tick()
        bench.elector.tick()
        elector.resign()
    bench.coordinator.erase()
    bench.elector.tick()
    assert bench.elector.term == 4


def test_a_leader_whose_coordinator_lost_its_data_gets_a_higher_term(bench: Bench) -> None:
    """Its own term counts as seen: it must not end up leading under a lower one."""
    bench.terms.highest = 6
    bench.elector.tick()
    bench.terms.highest = 0
    bench.coordinator.erase()
    bench.elector.tick()
    assert bench.elector.term == 8
    assert bench.recorder.of("lost") == [LeaseLoss(term=7, reason="term 8 was granted in its place")]


def test_a_coordinator_that_went_back_in_time_does_not_reinstate_anybody(bench: Bench) -> None:
    """A stale replica names us holder of term 1, but term 2 has been seen: refuse, and campaign above it."""
    bench.elector.tick()
    bench.clock.advance(TIMINGS.duration)
    other = bench.another("b")
    other.tick()
    bench.elector.tick()
    bench.coordinator._term, bench.coordinator._holder = 1, "a"
    bench.elector.tick()
    assert not leads(bench)
    bench.elector.tick()
    assert bench.elector.term == 3
