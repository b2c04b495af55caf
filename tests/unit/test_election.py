"""The elector on a clock that stands still: a test makes each tick, and a scripted coordinator makes each fault."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

import pytest

from distributed_backup.coordination.base import ClusterView, Heartbeat
from distributed_backup.coordination.election import LeaseLoss
from distributed_backup.errors import CoordinatorUnavailableError, StoreError
from distributed_backup.position import Position
from tests.support.clocks import FakeClock
from tests.support.election import TIMINGS, Bench, Recorder, broken_claim, broken_store, in_doubt, last_resort, leads


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---------------------------------------------------------------- leading


def test_the_first_to_campaign_leads_and_is_reported_once(bench: Bench) -> None:
    """The elector reports an election once, before the view that came with it, and reports no renewals."""
    for _ in range(3):
        bench.elector.tick()
    assert leads(bench)
    assert bench.elector.term == bench.elector.last_term == 1
    assert bench.recorder.of("elected") == [1]
    assert [name for name, _ in bench.recorder.events] == ["elected", "observed", "observed", "observed"]


def test_a_follower_does_not_lead(bench: Bench) -> None:
    """A follower has no term, and observes who holds the lease."""
    bench.another("b").tick()
    bench.elector.tick()
    assert not leads(bench)
    assert bench.elector.term is None
    assert bench.elector.last_term is None
    assert bench.recorder.of("observed")[0].holder == "b"


def test_leadership_ends_at_the_deadline_without_any_tick(bench: Bench) -> None:
    """A leader that can't tick stands down at its own deadline, before another worker can take the lease."""
    bench.elector.tick()
    bench.clock.advance(TIMINGS.renew_deadline - 0.001)
    assert leads(bench)
    bench.clock.advance(0.001)
    assert not leads(bench)
    bench.another("b").tick()
    assert bench.coordinator.view().holder == "a"


def test_the_deadline_is_counted_from_before_the_request_was_sent(bench: Bench) -> None:
    """A reply that takes 4 of 10 seconds leaves 6, for an acquisition and for a renewal."""
    bench.coordinator.slow = 4.0
    for _ in range(2):
        bench.elector.tick()
        bench.clock.advance(5.999)
        assert leads(bench)
        bench.clock.advance(0.002)
        assert not leads(bench)


def test_a_reply_that_comes_after_the_deadline_does_not_make_a_leader(bench: Bench) -> None:
    """A worker that gets the lease in a reply after its deadline does not lead."""
    bench.coordinator.slow = TIMINGS.renew_deadline + 0.1
    bench.elector.tick()
    assert not leads(bench)


def test_a_renewal_moves_the_deadline(bench: Bench) -> None:
    """Each answered heartbeat gives the leader another `renew_deadline` seconds."""
    bench.elector.tick()
    for _ in range(5):
        bench.clock.advance(9.0)
        bench.elector.tick()
        assert leads(bench)
    assert bench.recorder.of("elected") == [1]
    assert bench.recorder.of("lost") == []


def test_a_heartbeat_says_what_the_worker_is(bench: Bench) -> None:
    """Each heartbeat carries the worker's role, position and lease duration."""
    bench.elector.position = Position(2, 3)
    bench.elector.tick()
    bench.elector.tick()
    first, second = bench.coordinator.beats
    assert (first.role, first.position, first.duration, first.campaign) == ("follower", Position(2, 3), 15.0, True)
    assert second.role == "leader"


# ---------------------------------------------------------------- in doubt


def test_a_leader_is_in_doubt_from_its_deadline_to_the_end_of_its_next_tick(bench: Bench) -> None:
    """The listener learns of the result before the doubt ends."""
    bench.elector.tick()
    assert not in_doubt(bench)
    bench.clock.advance(TIMINGS.duration)
    assert in_doubt(bench)
    bench.another("b").tick()
    doubts: list[bool] = []
    bench.recorder.lost = lambda loss: doubts.append(in_doubt(bench))  # type: ignore[method-assign]
    bench.recorder.observed = lambda view: doubts.append(in_doubt(bench))  # type: ignore[method-assign]
    bench.elector.tick()
    assert (doubts, in_doubt(bench)) == ([True, True], False)


@pytest.mark.parametrize("is_down", [False, True])
def test_a_doubt_ends_with_a_renewal_and_with_a_tick_that_fails(bench: Bench, is_down: bool) -> None:
    """While the coordinator can't be reached, nothing waits for it."""
    bench.elector.tick()
    bench.clock.advance(TIMINGS.renew_deadline)
    bench.coordinator.down = is_down
    assert in_doubt(bench)
    bench.elector.tick()
    assert not in_doubt(bench)
    assert leads(bench) is not is_down


def test_a_doubt_goes_on_while_the_term_of_a_leader_is_refused(bench: Bench) -> None:
    """Another worker has led since, and may have left. The next tick shows whether this one leads."""
    bench.elector.tick()
    bench.clock.advance(TIMINGS.duration)
    bench.terms.highest = 2
    bench.elector.tick()
    assert (leads(bench), in_doubt(bench)) == (False, True)
    bench.elector.tick()
    assert (leads(bench), in_doubt(bench)) == (True, False)


def test_a_leader_that_was_asked_to_resign_is_in_doubt_until_another_leads(bench: Bench) -> None:
    """The doubt begins before the lease is free. What is recorded later is not in the log that the successor reads."""
    bench.elector.tick()
    doubts: list[bool] = []
    bench.recorder.lost = lambda loss: doubts.append(in_doubt(bench))  # type: ignore[method-assign]
    bench.elector.pause_campaign(60.0)
    for _ in range(2):
        bench.elector.tick()
        doubts.append(in_doubt(bench))
    bench.another("b").tick()
    bench.elector.tick()
    assert (doubts, in_doubt(bench)) == ([True, True, True], False)


def test_a_leader_that_was_asked_to_resign_leads_again_without_a_doubt(bench: Bench) -> None:
    bench.elector.tick()
    bench.elector.pause_campaign(60.0)
    bench.elector.tick()
    bench.clock.advance(60.0)
    bench.elector.tick()
    assert (leads(bench), in_doubt(bench)) == (True, False)


def test_a_doubt_after_a_claim_that_failed_ends_when_another_worker_leads(bench: Bench) -> None:
    """The disk was away in the claim, and this worker does not campaign for a moment."""
    bench.elector.tick()
    bench.clock.advance(TIMINGS.duration)
    claim, bench.terms.claim_term = bench.terms.claim_term, broken_claim  # type: ignore[method-assign]
    bench.elector.tick()
    assert in_doubt(bench)
    bench.terms.claim_term = claim  # type: ignore[method-assign]
    other = bench.another("b")
    other.tick()
    bench.elector.tick()
    assert (other.is_leader, in_doubt(bench)) == (True, False)


def test_a_worker_that_does_not_lead_is_never_in_doubt(bench: Bench) -> None:
    """Neither before it leads, nor after it has resigned."""
    assert not in_doubt(bench)
    bench.elector.tick()
    bench.elector.resign()
    bench.clock.advance(TIMINGS.duration)
    assert not in_doubt(bench)


# ---------------------------------------------------------------- unreachable, lost


def test_an_unreachable_coordinator_is_no_loss_before_the_deadline(bench: Bench) -> None:
    """A leader that can't renew goes on leading until its own deadline."""
    bench.elector.tick()
    bench.coordinator.down = True
    for _ in range(4):
        bench.clock.advance(2.0)
        bench.elector.tick()
        assert leads(bench)
    assert bench.recorder.of("lost") == []
    bench.coordinator.down = False
    bench.elector.tick()
    bench.clock.advance(9.0)
    assert bench.elector.term == 1


def test_an_unreachable_coordinator_is_one_loss_at_the_deadline(bench: Bench) -> None:
    """At the deadline the elector reports one lost lease, with its term and cause, however long the outage lasts."""
    bench.elector.tick()
    bench.coordinator.down = True
    for _ in range(20):
        bench.clock.advance(2.0)
        bench.elector.tick()
    assert bench.recorder.of("lost") == [LeaseLoss(term=1, reason="no renewal for 10 s: connection refused")]
    assert bench.elector.last_term == 1


def test_a_lease_that_another_took_is_one_loss(bench: Bench) -> None:
    """A paused leader learns at its next tick which worker holds the lease, and reports one lost lease."""
    bench.elector.tick()
    bench.clock.advance(TIMINGS.duration)
    bench.another("b").tick()
    for _ in range(3):
        bench.elector.tick()
    assert bench.recorder.of("lost") == [LeaseLoss(term=1, reason="term 2 belongs to b")]
    assert not leads(bench)


def test_the_coordinators_reason_for_a_loss_is_passed_on(bench: Bench) -> None:
    """The elector reports the coordinator's reason for a lost lease in place of its own."""
    bench.elector.tick()
    bench.coordinator.answer = ClusterView(
        term=1, holder=None, holder_age=None, remaining=None, announcement=None, reason="the lock file was removed"
    )
    bench.elector.tick()
    assert bench.recorder.of("lost") == [LeaseLoss(term=1, reason="the lock file was removed")]


def test_a_new_term_for_the_holder_is_a_loss_and_an_election(bench: Bench) -> None:
    """A leader that is granted a new term reports a lost lease, then an election."""
    bench.elector.tick()
    bench.clock.advance(TIMINGS.duration)
    bench.elector.tick()
    assert [name for name, _ in bench.recorder.events if name != "observed"] == ["elected", "lost", "elected"]
    assert bench.recorder.of("lost") == [LeaseLoss(term=1, reason="term 2 was granted in its place")]
    assert bench.elector.term == 2


def test_a_worker_that_lost_campaigns_again(bench: Bench) -> None:
    """A worker that lost the lease leads again under a new term once the lease is free."""
    bench.elector.tick()
    bench.clock.advance(TIMINGS.duration)
    other = bench.another("b")
    other.tick()
    bench.elector.tick()
    other.resign()
    bench.elector.tick()
    assert bench.elector.term == 3
    assert bench.recorder.of("elected") == [1, 3]


def test_the_term_of_last_resort_counts_only_without_a_coordinator(bench: Bench) -> None:
    """Only a worker that can't reach the coordinator has a term of last resort: the last term it led under."""
    bench.coordinator.down = True
    bench.elector.tick()
    assert last_resort(bench) is None
    bench.coordinator.down = False
    bench.elector.tick()
    assert last_resort(bench) is None
    bench.coordinator.down = True
    bench.clock.advance(TIMINGS.renew_deadline)
    bench.elector.tick()
    assert not leads(bench)
    assert last_resort(bench) == 1
    bench.coordinator.down = False
    bench.another("b").tick()
    bench.elector.tick()
    assert last_resort(bench) is None


# ---------------------------------------------------------------- lost replies


def test_a_lost_reply_to_the_acquisition_locks_nobody_out(bench: Bench) -> None:
    """A worker whose grant was lost on the way leads under the same term at its next tick."""
    bench.coordinator.lossy = True
    bench.elector.tick()
    assert not leads(bench)
    bench.coordinator.lossy = False
    bench.elector.tick()
    assert bench.elector.term == 1
    assert bench.recorder.of("lost") == []


def test_a_lease_whose_grant_was_lost_is_given_back_on_resignation(bench: Bench) -> None:
    """A worker that never saw its grant still gives the lease back when it resigns."""
    bench.coordinator.lossy = True
    bench.elector.tick()
    bench.coordinator.lossy = False
    bench.elector.resign()
    successor = bench.another("b")
    successor.tick()
    assert successor.term == 2


def test_a_lost_reply_to_a_renewal_loses_nothing(bench: Bench) -> None:
    """A leader that misses the reply to a renewal goes on leading under the same term."""
    bench.elector.tick()
    bench.coordinator.lossy = True
    bench.clock.advance(2.0)
    bench.elector.tick()
    bench.coordinator.lossy = False
    bench.clock.advance(2.0)
    bench.elector.tick()
    assert bench.elector.term == 1
    assert bench.recorder.of("lost") == []


# ---------------------------------------------------------------- the pace


def test_a_follower_looks_again_when_the_lease_that_it_sees_runs_out(bench: Bench) -> None:
    """A follower ticks as soon as the leader's lease runs out, and waits a full period while it is renewed."""
    bench.elector.tick()
    follower = bench.another("b")
    left = follower.period / 2
    bench.clock.advance(TIMINGS.duration - left)
    follower.tick()
    assert left - 1e-6 <= follower._pause() <= left + 0.05 * follower.period
    bench.elector.tick()
    follower.tick()
    assert follower._pause() >= 0.8 * follower.period


def test_no_worker_hammers_a_coordinator_that_is_away(bench: Bench) -> None:
    """A follower asks an unreachable coordinator once in a period, even after the lease ran out."""
    bench.elector.tick()
    follower = bench.another("b")
    follower.tick()
    bench.coordinator.down = True
    bench.clock.advance(10 * TIMINGS.duration)
    follower.tick()
    assert follower._pause() >= 0.8 * follower.period


def test_the_age_of_the_holder_is_as_of_now(bench: Bench) -> None:
    """The elector adds the time that a reply took to the age of the holder's heartbeat."""
    bench.elector.tick()
    recorder = Recorder()
    follower = bench.another("b", recorder)
    bench.coordinator.slow = 1.5
    follower.tick()
    assert recorder.of("observed")[-1].holder_age == pytest.approx(1.5)


def test_an_invitation_wakes_who_could_lead(bench: Bench) -> None:
    """A released lease wakes each elector, except one that failed to claim a term within the last period."""
    bench.elector.lease_released()
    assert bench.elector._wake.is_set()
    other = bench.another("b")
    other._terms.claim_term = broken_claim  # type: ignore[method-assign]
    other.tick()
    other.lease_released()
    assert not other._wake.is_set()
    bench.clock.advance(TIMINGS.retry_period)
    other.lease_released()
    assert other._wake.is_set()


def test_what_keeps_a_worker_from_leading_is_logged_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The elector logs once why it can't lead, and keeps the error in `campaign_error` until it leads."""
    bench.terms.error = broken_store()
    for _ in range(5):
        bench.elector.tick()
        bench.clock.advance(TIMINGS.retry_period)
    assert caplog.text.count("can't lead") == 1
    assert bench.elector.campaign_error is bench.terms.error
    bench.terms.error = None
    bench.elector.tick()
    assert bench.elector.campaign_error is None


def test_a_claim_that_fails_with_a_higher_term_each_time_is_logged_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The directory is read-only, and the coordinator grants a higher term at each attempt."""

    def refused(term: int) -> bool:
        raise StoreError(f"can't write /run-42/{term:010d}.term: Read-only file system", path="/run-42")

    bench.terms.claim_term = refused  # type: ignore[method-assign]
    for _ in range(12):
        bench.elector.tick()
        bench.clock.advance(TIMINGS.retry_period)
    assert bench.coordinator.view().term > 10
    assert caplog.text.count("can't lead") == 1


# ---------------------------------------------------------------- resigning, stopping, the thread


def test_resigning_hands_over_and_ends_the_campaign(bench: Bench) -> None:
    """After a resignation another worker leads, and the resigned elector sends no heartbeat and reports no loss."""
    bench.elector.tick()
    bench.elector.resign()
    assert not leads(bench)
    sent = len(bench.coordinator.beats)
    bench.elector.tick()
    assert len(bench.coordinator.beats) == sent
    successor = bench.another("b")
    successor.tick()
    assert successor.term == 2
    assert bench.recorder.of("lost") == []


def test_resigning_without_leading_makes_no_call(bench: Bench) -> None:
    """A follower resigns without a call to the coordinator, and the leader keeps its lease."""
    bench.another("b").tick()
    bench.elector.tick()
    bench.elector.resign()
    assert bench.coordinator.resigned == []
    assert bench.coordinator.view().holder == "b"


def test_a_resignation_that_can_not_be_told_ends_leadership_all_the_same(bench: Bench) -> None:
    """A resignation that fails to reach the coordinator raises, ends leadership, and can be retried."""
    bench.elector.tick()
    bench.coordinator.down = True
    with pytest.raises(CoordinatorUnavailableError):
        bench.elector.resign()
    assert not leads(bench)
    bench.coordinator.down = False
    bench.elector.resign()
    assert bench.coordinator.view().holder is None


class Turnstile(FakeClock):
    """A clock whose `wait` blocks until the test lets one tick pass, and which records each timeout."""

    def __init__(self) -> None:
        super().__init__()
        self.periods: list[float] = []
        self.waiting = threading.Semaphore(0)
        self._open = threading.Semaphore(0)

    def wait(self, event: threading.Event, timeout: float) -> bool:
        self.periods.append(timeout)
        self.waiting.release()
        while not self._open.acquire(timeout=0.005):
            if event.is_set():
                return True
        return event.is_set()

    def let_pass(self) -> None:
        self._open.release()
        assert self.waiting.acquire(timeout=30)


@pytest.fixture
def turnstile(bench: Bench) -> Turnstile:
    bench.clock = bench.coordinator.fake = Turnstile()
    bench.coordinator._clock = bench.clock
    bench.elector = bench.another("a", bench.recorder)
    return bench.clock


def test_the_thread_ticks_at_once_and_then_each_period_with_jitter(bench: Bench, turnstile: Turnstile) -> None:
    """The thread ticks at its start and then once in a period, with a jitter of up to 20%."""
    bench.elector.start()
    assert turnstile.waiting.acquire(timeout=30)
    for _ in range(20):
        turnstile.let_pass()
    bench.elector.stop()
    assert len(bench.coordinator.beats) == 21
    assert bench.elector.period == 0.1
    assert all(0.08 <= period <= 0.12 for period in turnstile.periods)
    assert len(set(turnstile.periods)) > 10


def test_the_jitter_leaves_the_global_generator_alone(bench: Bench, turnstile: Turnstile) -> None:
    """The jitter leaves the state of `random` unchanged, because an exact resume depends on it."""
    random.seed(42)
    before = random.getstate()
    bench.elector.start()
    assert turnstile.waiting.acquire(timeout=30)
    for _ in range(3):
        turnstile.let_pass()
    bench.elector.stop()
    assert random.getstate() == before


def test_after_stop_nothing_ticks_and_the_lease_is_kept(bench: Bench, turnstile: Turnstile) -> None:
    """A stopped elector keeps its lease, ends its thread, and ignores a wake."""
    bench.elector.start()
    assert turnstile.waiting.acquire(timeout=30)
    bench.elector.stop()
    sent = len(bench.coordinator.beats)
    bench.elector.wake()
    bench.elector.stop()
    assert len(bench.coordinator.beats) == sent
    assert bench.coordinator.view().holder == "a"
    assert not any(thread.name == "distributed-backup-elector" for thread in threading.enumerate())


def test_a_poke_ticks_before_the_period_is_over(bench: Bench, turnstile: Turnstile) -> None:
    """A wake makes the elector tick before its period is over."""
    bench.elector.start()
    assert turnstile.waiting.acquire(timeout=30)
    bench.coordinator.beaten.clear()
    bench.elector.wake()
    assert bench.coordinator.beaten.wait(30)
    bench.elector.stop()


@pytest.mark.parametrize("fault", ["listener", "store"])
def test_a_bug_does_not_end_the_thread(
    bench: Bench, turnstile: Turnstile, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """The elector logs an unexpected exception, and its next tick succeeds."""
    if fault == "listener":
        bench.recorder.broken = True
    else:
        bench.terms.error = RuntimeError("a bug in the store")  # type: ignore[assignment]
    with caplog.at_level(logging.ERROR):
        bench.elector.start()
        assert turnstile.waiting.acquire(timeout=30)
    assert "a bug in the" in caplog.text
    bench.recorder.broken, bench.terms.error = False, None
    turnstile.let_pass()
    assert bench.elector.term == 1
    assert bench.recorder.of("observed")
    bench.elector.stop()


def test_a_resignation_waits_for_the_tick_that_is_running(bench: Bench) -> None:
    """A resignation waits for the running heartbeat, so that the heartbeat can't win the lease back."""
    sent, go = threading.Event(), threading.Event()
    heartbeat = bench.coordinator.heartbeat

    def slow(beat: Heartbeat) -> ClusterView:
        sent.set()
        assert go.wait(30)
        return heartbeat(beat)

    bench.coordinator.heartbeat = slow  # type: ignore[method-assign]
    threads = [threading.Thread(target=call) for call in (bench.elector.tick, bench.elector.resign)]
    threads[0].start()
    assert sent.wait(30)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(30)
    assert bench.coordinator.view().holder is None
    assert not leads(bench)


def test_stopping_from_within_the_thread_does_not_deadlock(bench: Bench, turnstile: Turnstile) -> None:
    """A listener can stop the elector that called it, and the thread ends."""
    stop: Callable[[], None] = bench.elector.stop
    bench.recorder.elected = lambda term: stop()  # type: ignore[method-assign]
    bench.elector.start()
    assert turnstile.waiting.acquire(timeout=30)
    thread = bench.elector._thread
    assert thread is not None
    thread.join(30)
    assert not thread.is_alive()
