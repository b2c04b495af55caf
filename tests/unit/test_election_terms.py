"""The terms of an elector: each term has one leader, even if the coordinator loses its data."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distributed_backup.coordination.base import ClusterView, Heartbeat
from distributed_backup.coordination.election import LeaseLoss
from tests.support.election import TIMINGS, Bench, broken_claim, broken_store, leads


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---------------------------------------------------------------- the floor


def test_a_term_is_above_what_the_store_knows(bench: Bench) -> None:
    """The elector leads under a term above the highest in the store, even if the coordinator lost its data."""
    bench.terms.highest = 7
    bench.elector.tick()
    assert bench.elector.term == 8


def test_the_store_is_not_asked_while_we_lead(bench: Bench) -> None:
    """A leader renews its lease without reading the terms in the store."""
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
    """The elector gives back a term that another worker claimed during the request, and campaigns for a higher one."""
    bench.coordinator.heartbeat = claimed_meanwhile(bench, 5)  # type: ignore[method-assign, assignment]
    bench.elector.tick()
    assert not leads(bench)
    assert bench.coordinator.view().holder is None
    assert bench.recorder.of("elected") == []
    bench.elector.tick()
    assert bench.elector.term == 6


def test_a_refusal_that_can_not_be_delivered_is_delivered_at_the_next_tick(bench: Bench) -> None:
    """An elector that can't give a used term back, because the coordinator fails, gives it back at its next tick."""
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
    """An emptied coordinator grants term 1 again, and the record of terms makes the newcomer lead under term 2."""
    bench.elector.tick()
    bench.coordinator.erase()
    newcomer = bench.another("b")
    newcomer.tick()
    assert (bench.elector.term, newcomer.term) == (1, 2)


def test_who_is_asked_to_let_another_lead_does(bench: Bench) -> None:
    """A leader with a paused campaign gives the lease back at its next tick and lets another worker lead."""
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


def test_who_lets_another_lead_learns_of_it_within_a_tenth_of_a_tick(bench: Bench) -> None:
    """Until then, both ask the models."""
    other = bench.another("b")
    bench.elector.tick()
    bench.elector.pause_campaign(30.0)
    bench.elector.tick()
    assert bench.elector._pause() <= 0.12 * bench.elector.period
    other.tick()
    bench.elector.tick()
    assert bench.elector._pause() >= 0.8 * bench.elector.period


@pytest.mark.parametrize("seen", [True, False])
def test_who_stood_back_is_a_candidate_again_when_another_has_led(bench: Bench, seen: bool) -> None:
    """A paused elector campaigns again after another worker has led, even if it sees only the higher term."""
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
    """A paused elector leads again when the pause is over and the lease is still free."""
    bench.elector.tick()
    bench.elector.pause_campaign(30.0)
    bench.elector.tick()
    bench.clock.advance(30.0)
    bench.elector.tick()
    assert bench.elector.term == 2


def test_a_worker_that_can_not_claim_its_term_lets_others_try(bench: Bench) -> None:
    """A worker that fails to claim its term gives the lease back and waits a period before it campaigns."""
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
    """A worker that can't read the store sends heartbeats without a campaign until the store is back."""
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
    """A leader renews its lease under the same term while it can't read the store."""
    bench.elector.tick()
    bench.terms.error = broken_store()
    bench.clock.advance(2.0)
    bench.elector.tick()
    assert bench.elector.term == 1


def test_a_lease_whose_term_can_not_be_checked_is_given_back(bench: Bench) -> None:
    """A worker whose store fails after the grant gives the lease back."""
    bench.coordinator.lossy = True
    bench.elector.tick()
    bench.coordinator.lossy = False
    bench.terms.error = broken_store()
    bench.elector.tick()
    assert not leads(bench)
    assert bench.coordinator.view().holder is None


def test_a_coordinator_that_lost_its_data_grants_no_term_we_have_seen(bench: Bench) -> None:
    """A coordinator that lost its data grants a term above each term that the worker has seen."""
    for worker_id in ("x", "y", "z"):
        elector = bench.another(worker_id)
        elector.tick()
        bench.elector.tick()
        elector.resign()
    bench.coordinator.erase()
    bench.elector.tick()
    assert bench.elector.term == 4


def test_a_leader_whose_coordinator_lost_its_data_gets_a_higher_term(bench: Bench) -> None:
    """A leader whose coordinator lost its data loses its lease and leads under a higher term."""
    bench.terms.highest = 6
    bench.elector.tick()
    bench.terms.highest = 0
    bench.coordinator.erase()
    bench.elector.tick()
    assert bench.elector.term == 8
    assert bench.recorder.of("lost") == [LeaseLoss(term=7, reason="term 8 was granted in its place")]


def test_a_coordinator_that_went_back_in_time_does_not_reinstate_anybody(bench: Bench) -> None:
    """The elector refuses an old term from a stale coordinator, and then leads under a term above all it has seen."""
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
