"""One worker's part in the election: campaign, renew, resign, stand down early.

Leadership here is a deadline, not a flag: `is_leader` holds until `renew_deadline` seconds after the last
successful renewal was *sent*, which is sooner than anybody else may take over. It does not promise that no other
worker leads at the same instant: a paused process can't look at its clock. The term decides then; see `store`.

Policy only. What a lease is and where it lives is the coordinator's business.
"""

from __future__ import annotations

import logging
import random
import threading
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from distributed_backup.clock import Clock
from distributed_backup.coordination.base import ClusterView, Coordinator, Heartbeat, Role
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import BackupError, ConfigError, CoordinatorError
from distributed_backup.observability.events import Report, no_report
from distributed_backup.position import Position

logger = logging.getLogger(__name__)

# Between two ticks, when a lease is about to run out: a millisecond is what coordinators count in.
_SHORTEST_PAUSE = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLoss:
    """A lease that was lost against our will; told once.

    Args:
        term: The term that was lost.
        reason: Why, in words.
    """

    term: int
    reason: str


class ElectionListener(Protocol):
    """Who wants to know how the election goes. Called from the elector's thread; must not block for long."""

    def elected(self, term: int) -> None:
        """We lead, under `term`."""

    def lost(self, loss: LeaseLoss) -> None:
        """We no longer lead."""

    def observed(self, view: ClusterView) -> None:
        """A heartbeat was answered."""


class TermRecord(Protocol):
    """Where terms are kept for good: what a coordinator may forget, this does not."""

    def highest_term(self) -> int:
        """The highest term known to be used."""

    def claim_term(self, term: int) -> bool:
        """Record `term` as used; False if it was before."""


class Elector:
    """Campaigns for one worker, renews what it wins, and stands down in time.

    Args:
        coordinator: Grants the lease.
        worker_id: Id of this incarnation.
        timings: Durations of the lease.
        clock: Where time comes from.
        listener: Told of what happens.
        terms: Told of each term before it is led under: no term is used twice even if the coordinator lost its data.
        idle_role: What the worker is while it does not lead.
        report: Told of each transition, for people.
    """

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        worker_id: str,
        timings: LeaseTimings,
        clock: Clock,
        listener: ElectionListener,
        terms: TermRecord,
        idle_role: Role = "follower",
        report: Report = no_report,
    ) -> None:
        self._coordinator = coordinator
        self._worker_id = worker_id
        self._timings = timings
        self._clock = clock
        self._listener = listener
        self._terms = terms
        self._idle_role = idle_role
        self._report = report
        self._period = min(timings.retry_period, coordinator.heartbeat_interval or timings.retry_period)
        # One tick or resignation at a time; the fields below are written under it and read without.
        self._lock = threading.Lock()
        self._term: int | None = None
        self._last_term: int | None = None
        self._highest_seen = 0
        # Whether the coordinator may name us the holder, though we may not know: the reply may have been lost.
        self._possibly_holder = False
        # The highest term of the record, when it was last asked; None to ask it again before we campaign.
        self._floor: int | None = None
        self._deposed: int | None = None
        self._deadline = 0.0
        # When the lease of the holder we know runs out unless it is renewed.
        self._lease_expires_at: float | None = None
        # Until when we don't campaign: because we were asked, and because we could not claim a term.
        self._campaign_paused_until = 0.0
        self._retry_claim_at = 0.0
        self._reachable = True
        self._resigned = False
        # A generator of our own: the global one is training state, and drawing from it would change the run.
        self._jitter = random.Random()
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self.coordinator_error: BackupError | None = None
        """Why the coordinator can't be reached; None while it can."""
        self.campaign_error: BackupError | None = None
        """Why we could not lead, though the lease was free, when we last tried."""
        self.position: Position | None = None
        """How far training has come, told to others at each tick."""

    @property
    def period(self) -> float:
        """Seconds between two ticks, before jitter."""
        return self._period

    @property
    def term(self) -> int | None:
        """The term we lead under; None if we don't lead, or can't be sure that we still do."""
        term = self._term
        return term if term is not None and self._clock.now() < self._deadline else None

    @property
    def is_leader(self) -> bool:
        """Whether we believe, within our own deadline, that we hold the lease."""
        return self.term is not None

    @property
    def lease_left(self) -> float:
        """Seconds until we stand down unless we renew; 0 while we don't lead."""
        return 0.0 if self._term is None else max(self._deadline - self._clock.now(), 0.0)

    @property
    def last_term(self) -> int | None:
        """The last term we led under, lost or not; None if we never led."""
        return self._last_term

    @property
    def term_of_last_resort(self) -> int | None:
        """The last term we led under, while the coordinator can't be reached; None if others may lead by now.

        To save before a preemption only: what is committed under it orders below every later term.
        """
        return None if self._reachable else self._last_term

    def start(self) -> None:
        """Start the thread that ticks."""
        self._thread = threading.Thread(target=self._run, name="distributed-backup-elector", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread. The lease is kept: see `resign`."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def wake(self) -> None:
        """Tick now rather than at the end of the period."""
        self._wake.set()

    def lease_released(self) -> None:
        """The lease was given back: campaign now, unless we could not lead just before."""
        if self._clock.now() >= self._retry_claim_at:
            self.wake()

    def tick(self) -> None:
        """Send one heartbeat and draw the conclusions. The thread calls this; tests may."""
        with self._lock:
            if not self._resigned:
                self._tick()

    def resign(self) -> None:
        """Stop campaigning and give the lease back, so that another takes it at its next tick.

        Raises:
            CoordinatorUnavailableError: It could not be told; the lease runs out by itself.
        """
        with self._lock:
            self._resigned = True
            term, self._term = self._term, None
            if self._possibly_holder:
                self._coordinator.resign(self._worker_id)
                self._possibly_holder = False
            if term is not None:
                self._report("resigned", term=term)

    def pause_campaign(self, seconds: float) -> None:
        """Give the lease back now, and don't campaign until another worker leads, or for `seconds`."""
        self._campaign_paused_until = self._clock.now() + seconds
        self.wake()

    def resume_campaign(self) -> None:
        """Campaign again at once, if we stood back."""
        if self._clock.now() < self._campaign_paused_until:
            self._campaign_paused_until = 0.0
            self.wake()

    def invalidate_term(self, term: int) -> None:
        """Give up `term` at the next tick, and campaign for a higher one: it does not count any more."""
        self._deposed = term
        self.wake()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self.tick()
            except Exception:
                # A bug must not end the election in silence: the next tick may do better.
                logger.exception("tick failed worker=%s", self._worker_id)
            self._clock.wait(self._wake, self._pause())
            self._wake.clear()

    def _pause(self) -> float:
        """Seconds to the next tick: a period, or until a lease that nobody renews runs out.

        Jitter keeps a herd of followers from arriving together.
        """
        pause = self._period * self._jitter.uniform(0.8, 1.2)
        if self._lease_expires_at is not None:
            left = self._lease_expires_at - self._clock.now() + self._period * self._jitter.uniform(0.0, 0.05)
            pause = max(min(pause, left), _SHORTEST_PAUSE)
        return pause

    def _tick(self) -> None:
        # From before the request was sent: the coordinator's count of the lease can't have begun earlier.
        sent = self._clock.now()
        try:
            self._give_up_if_asked(sent)
            beat = self._heartbeat(sent)
            self._possibly_holder = self._possibly_holder or beat.campaign
            view = self._coordinator.heartbeat(beat)
            if view.holder_age is not None:
                # As of now: the answer may have been long on its way, and the holder have died since.
                view = replace(view, holder_age=view.holder_age + self._clock.now() - sent)
            self._possibly_holder = view.holder == self._worker_id
            if self._possibly_holder and not self._may_lead_under(view.term):
                self._coordinator.resign(self._worker_id)
                self._possibly_holder = False
        except (CoordinatorError, ConfigError) as error:
            self._unreachable(error)
            return
        if not self._reachable:
            self._report("reachable")
        self._reachable, self.coordinator_error = True, None
        self._highest_seen = max(self._highest_seen, view.term)
        others = view.holder not in {None, self._worker_id}
        if others or view.term > (self._last_term or 0):
            # What we stood back for has happened.
            self.resume_campaign()
        self._lease_expires_at = sent + view.remaining if others and view.remaining is not None else None
        if self._possibly_holder:
            self._hold(view, sent)
        elif self._term is not None:
            self._lose(view.reason or f"term {view.term} belongs to {view.holder or 'nobody'}")
        self._listener.observed(view)

    def _give_up_if_asked(self, now: float) -> None:
        if self._term is None:
            return
        # Before the call: its reply may be long on its way, and another lead by then. Should it fail, the next tick
        # finds us holder of a term that was used, and gives it back.
        if self._term == self._deposed:
            self._lose("the store holds checkpoints of a newer term")
        elif now < self._campaign_paused_until:
            self._lose("asked to let another worker lead", "resigned")
        else:
            return
        self._coordinator.resign(self._worker_id)
        self._possibly_holder = False

    def _heartbeat(self, now: float) -> Heartbeat:
        campaign = now >= max(self._campaign_paused_until, self._retry_claim_at)
        if campaign and self._floor is None and self._term is None:
            try:
                self._floor = self._terms.highest_term()
            except BackupError as error:
                # It could win a used term only to give it back.
                self._can_not_lead(error)
                campaign = False
        return Heartbeat(
            worker_id=self._worker_id,
            campaign=campaign,
            # Also what we saw: a coordinator that lost its data should not begin below it.
            floor=max(self._highest_seen, self._floor or 0),
            duration=self._timings.duration,
            role="leader" if self._term is not None else self._idle_role,
            position=self.position,
        )

    def _may_lead_under(self, term: int) -> bool:
        """Whether we lead under `term` already, or nobody ever did. If not, we give it back, and campaign again."""
        if term == self._term:
            return True
        try:
            if term >= self._highest_seen and self._terms.claim_term(term):
                return True
        except BackupError as error:
            self._floor = None
            self._can_not_lead(error)
            # Not at once: whoever shares our disk would be told that the lease is free, and fail as we did.
            self._retry_claim_at = self._clock.now() + self._period
            return False
        self._floor = None
        logger.warning("term refused, it was used before worker=%s term=%d", self._worker_id, term)
        self.wake()
        return False

    def _can_not_lead(self, error: BackupError) -> None:
        if str(error) != str(self.campaign_error):
            logger.warning("can't lead worker=%s reason=%s", self._worker_id, error)
        self.campaign_error = error

    def _hold(self, view: ClusterView, sent: float) -> None:
        if self._term is not None and self._term != view.term:
            self._lose(f"term {view.term} was granted in its place")
        self._deadline = sent + self._timings.renew_deadline
        if self._term is None:
            self._term, self._last_term, self.campaign_error = view.term, view.term, None
            self._report("elected", term=view.term)
            self._listener.elected(view.term)

    def _unreachable(self, error: BackupError) -> None:
        if self._reachable:
            self._report("unreachable", reason=str(error))
        self._reachable, self.coordinator_error, self._lease_expires_at = False, error, None
        if self._term is not None and self._clock.now() >= self._deadline:
            self._lose(f"no renewal for {self._timings.renew_deadline:g} s: {error}")

    def _lose(self, reason: str, kind: Literal["lost", "resigned"] = "lost") -> None:
        assert self._term is not None
        loss = LeaseLoss(term=self._term, reason=reason)
        self._term = None
        self._report(kind, term=loss.term, reason=reason)
        self._listener.lost(loss)
