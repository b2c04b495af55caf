"""One worker's part in the election: campaign, renew, resign, stand down early.

Leadership is a deadline. `is_leader` holds until `renew_deadline` seconds after the last successful renewal was *sent*,
which is before any other worker may take over. The limit: a paused process can't look at its clock, so two workers may
believe to lead at one instant. The term decides then, see `checkpoints.fencing`.

This is the policy. What a lease is and where it lives is the coordinator's business.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

from distributed_backup.clock import Clock
from distributed_backup.coordination.base import ClusterView, Coordinator, Heartbeat, Role
from distributed_backup.coordination.giving_way import HoldBack
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import BackupError, ConfigError, CoordinatorError
from distributed_backup.observability.events import Report, no_report
from distributed_backup.once import OnceLogger
from distributed_backup.position import Position

logger = logging.getLogger(__name__)

# Seconds between two ticks when a lease is about to run out. Coordinators count in milliseconds.
_SHORTEST_PAUSE: Final = 0.005


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that this worker holds. It leads under `term` until `deadline`, an instant of its own clock."""

    term: int
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLoss:
    """A lease that was lost, and the reason. Reported once."""

    term: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker that stands for election. `idle_role` is its role while it does not lead."""

    worker_id: str
    timings: LeaseTimings
    idle_role: Role = "follower"


class ElectionListener(Protocol):
    """The listener of an elector. Called from the elector's thread. Must not block for a large part of a tick."""

    def elected(self, term: int) -> None:
        """This worker leads, under `term`."""

    def lost(self, loss: LeaseLoss) -> None:
        """This worker no longer leads."""

    def observed(self, view: ClusterView) -> None:
        """A heartbeat was answered."""


class TermRecord(Protocol):
    """The permanent record of terms. It keeps what a coordinator may forget."""

    def highest_term(self) -> int:
        """Return the highest term known to be used."""

    def claim_term(self, term: int) -> bool:
        """Record `term` as used. Return False if it was used before."""


class Elector:
    """Campaigns for one worker, renews what it wins, and stands down in time.

    Each term is claimed in `terms` before it is led under, so that no term is used twice even if the coordinator has
    lost its data.
    """

    def __init__(
        self,
        *,
        candidate: Candidate,
        coordinator: Coordinator,
        clock: Clock,
        listener: ElectionListener,
        terms: TermRecord,
        report: Report = no_report,
    ) -> None:
        self._coordinator, self._terms = coordinator, terms
        self._worker_id, self.idle_role = candidate.worker_id, candidate.idle_role
        self._timings, self._clock = candidate.timings, clock
        self._listener, self._report = listener, report
        self.period = min(candidate.timings.retry_period, coordinator.heartbeat_interval or math.inf)
        """Seconds between two ticks, before jitter."""
        # One tick or resignation at a time. The fields below are written under it and read without it.
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self.last_term: int | None = None
        """The last term that this worker led under, lost or not. None if it never led."""
        # Until when it is known who leads: the end of the lease, as it was when the last tick ended.
        self._highest_seen, self.known_until = 0, math.inf
        # Whether the coordinator may name this worker as holder. The reply that said so may have been lost.
        self._possibly_holder = False
        # The highest term of the record. None: read it before the next campaign.
        self._floor: int | None = None
        self._invalid_term: int | None = None
        # When the lease of the known holder runs out unless it is renewed.
        self._lease_expires_at: float | None = None
        # No campaign before these instants: an operator asked for a pause, or a term could not be claimed.
        self._campaign_paused_until = self._retry_claim_at = 0.0
        self._hold_back = HoldBack(self.period)
        self._resigned = self._stopped = False
        # A generator of our own: the global one is training state, and drawing from it would change the run.
        self._jitter = random.Random()
        self._warnings = OnceLogger(logger)
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self.coordinator_error: BackupError | None = None
        """Why the coordinator can't be reached. None while it can."""
        self.campaign_error: BackupError | None = None
        """Why this worker could not lead, though the lease was free, when it last tried."""
        self.position: Position | None = None
        """How far training has come. Sent with each heartbeat."""

    @property
    def term(self) -> int | None:
        """The term that this worker leads under. None if it does not lead, or can't be sure that it still does."""
        lease = self._lease
        return lease.term if lease is not None and self._clock.now() < lease.deadline else None

    @property
    def is_leader(self) -> bool:
        """Whether this worker believes, within its own deadline, that it holds the lease."""
        return self.term is not None

    @property
    def is_in_doubt(self) -> bool:
        """Whether the lease has run out since the last tick ended. The next tick finds out who leads."""
        return self._clock.now() >= self.known_until

    @property
    def lease_left(self) -> float:
        """Seconds until this worker stands down unless it renews. 0 while it does not lead."""
        lease = self._lease
        return 0.0 if lease is None else max(lease.deadline - self._clock.now(), 0.0)

    @property
    def term_of_last_resort(self) -> int | None:
        """The last term led under, while the coordinator can't be reached. None if another worker may lead by now.

        For the last save of a worker: before a preemption, or at its end. It sorts below every later term.
        """
        return None if self.coordinator_error is None else self.last_term

    def start(self) -> None:
        """Start the thread that ticks."""
        self._thread = threading.Thread(target=self._run, name="distributed-backup-elector", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread. The lease is kept, see `resign`."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def wake(self) -> None:
        """Tick now, before the end of the period."""
        self._wake.set()

    def lease_released(self) -> None:
        """Campaign now, because the lease was released, unless this worker does not campaign at present."""
        if self._clock.now() >= max(self._retry_claim_at, self._campaign_paused_until):
            self.wake()

    def tick(self) -> None:
        """Send one heartbeat and act on the reply. The thread calls this, and so may tests."""
        with self._lock:
            if not self._resigned:
                self._tick()
                # After the listener was called. Without a floor or in a pause, it must be seen who leads.
                is_known = self._floor is not None and self._clock.now() >= self._campaign_paused_until
                if self._lease is not None or is_known or self._lease_expires_at is not None:
                    self.known_until = math.inf if self._lease is None else self._lease.deadline

    def resign(self) -> None:
        """Stop to campaign and give the lease back. Another worker takes it at its next tick.

        Raises:
            CoordinatorUnavailableError: The coordinator can't be reached. The lease runs out by itself.
        """
        with self._lock:
            self._resigned = True
            lease, self._lease, self.known_until = self._lease, None, math.inf
            if self._possibly_holder:
                self._coordinator.resign(self._worker_id)
                self._possibly_holder = False
            if lease is not None:
                self._report("resigned", term=lease.term)

    def pause_campaign(self, seconds: float) -> None:
        """Give the lease back now. Campaign again once another worker leads, or after `seconds`."""
        self._campaign_paused_until = self._clock.now() + seconds
        self.wake()

    def resume_campaign(self) -> None:
        """Campaign again now, if the campaign was paused."""
        if self._clock.now() < self._campaign_paused_until:
            self._campaign_paused_until = 0.0
            self.wake()

    def invalidate_term(self, term: int) -> None:
        """Give up `term` at the next tick and campaign for a higher one, because it no longer counts."""
        self._invalid_term = term
        self.wake()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self.tick()
            except Exception:
                # A bug must not end the election silently. The next tick may succeed.
                logger.exception("tick failed worker=%s", self._worker_id)
            self._clock.wait(self._wake, self._pause())
            self._wake.clear()

    def _pause(self) -> float:
        """Return the seconds until the next tick, or until a lease is free. Jitter keeps followers apart."""
        pause, now = self.period * self._jitter.uniform(0.8, 1.2), self._clock.now()
        if self._lease_expires_at is None:
            # A successor asks models from its first tick on, so who has let it lead looks often.
            pause = pause / 10 if now < self._campaign_paused_until else pause
            return min(pause, self._hold_back.left(now) or pause)
        left = self._lease_expires_at - now + self.period * self._jitter.uniform(0.0, 0.05)
        return max(min(pause, left), _SHORTEST_PAUSE)

    def _tick(self) -> None:
        # Before the request is sent: the coordinator can't have begun to count the lease earlier.
        sent = self._clock.now()
        try:
            view = self._exchange(sent)
        except (CoordinatorError, ConfigError) as error:
            self._unreachable(error)
            return
        if self.coordinator_error is not None:
            self._report("reachable")
        self.coordinator_error = None
        self._highest_seen = max(self._highest_seen, view.term)
        other_holds = view.holder not in {None, self._worker_id}
        if other_holds or view.term > (self.last_term or 0):
            # The campaign was paused for this.
            self.resume_campaign()
        self._lease_expires_at = sent + view.remaining if other_holds and view.remaining is not None else None
        if self._possibly_holder:
            self._hold(view, sent)
        elif self._lease is not None:
            self._lose(view.reason or f"term {view.term} belongs to {view.holder or 'no worker'}")
        self._listener.observed(view)

    def _exchange(self, sent: float) -> ClusterView:
        """Send a heartbeat and return the reply. A granted term that may not be led under is given back."""
        # As of the last tick: a leader that resigns now is no member to give way to.
        role: Role = self.idle_role if self._lease is None else "leader"
        self._give_up_if_asked(sent)
        beat = self._heartbeat(sent, role)
        self._possibly_holder = self._possibly_holder or beat.campaign
        view = self._coordinator.heartbeat(beat)
        self._hold_back.observe(sent, campaigned=beat.campaign, is_free=view.holder is None)
        if view.holder_age is not None:
            # As of now: the reply may have been long on its way, and the holder may have died since.
            view = replace(view, holder_age=view.holder_age + self._clock.now() - sent)
        self._possibly_holder = view.holder == self._worker_id
        if self._possibly_holder and not self._may_lead_under(view.term):
            self._give_back()
        return view

    def _give_back(self) -> None:
        self._coordinator.resign(self._worker_id)
        self._possibly_holder = False

    def _give_up_if_asked(self, now: float) -> None:
        if self._lease is None:
            return
        # First, because the reply may be long on its way. If the call fails, the next tick finds a used term.
        if self._lease.term == self._invalid_term:
            self._lose("the store holds checkpoints of a newer term")
        elif now < self._campaign_paused_until:
            self.known_until = 0.0  # from now on: the successor may have read what was recorded before, and no more
            self._lose("asked to let another worker lead", "resigned")
        else:
            return
        self._give_back()

    def _heartbeat(self, now: float, role: Role) -> Heartbeat:
        campaign = now >= max(self._campaign_paused_until, self._retry_claim_at)
        if campaign and self._floor is None and self._lease is None:
            try:
                self._floor = self._terms.highest_term()
            except BackupError as error:
                # Without the highest used term, a used one might be granted, and would have to be resigned.
                self._campaign_failed(error)
                campaign = False
        return Heartbeat(
            worker_id=self._worker_id,
            campaign=campaign,
            # Include the highest term seen, so that a coordinator that lost its data grants a higher one.
            floor=max(self._highest_seen, self._floor or 0),
            duration=self._timings.duration,
            role=role,
            position=self.position,
            gives_way_to=self._hold_back.gives_way_to(now),
        )

    def _may_lead_under(self, term: int) -> bool:
        """Whether this worker leads under `term` already, or has just claimed it: no worker ever led under it."""
        if self._lease is not None and term == self._lease.term:
            return True
        try:
            if term >= self._highest_seen and self._terms.claim_term(term):
                return True
        except BackupError as error:
            self._floor = None
            self._campaign_failed(error)
            # Not at once: a worker on the same disk would see the free lease, and fail in the same way.
            self._retry_claim_at = self._clock.now() + self.period
            return False
        self._floor = None
        self._warnings.warning("term refused, it was used before worker=%s term=%d", self._worker_id, term)
        self.wake()
        return False

    def _campaign_failed(self, error: BackupError) -> None:
        self._warnings.warning("can't lead worker=%s reason=%s", self._worker_id, error)
        self.campaign_error = error

    def _hold(self, view: ClusterView, sent: float) -> None:
        if self._lease is not None and self._lease.term != view.term:
            self._lose(f"term {view.term} was granted in its place")
        is_new = self._lease is None
        self._lease = Lease(view.term, deadline=sent + self._timings.renew_deadline)
        if is_new:
            self.last_term, self.campaign_error = view.term, None
            self._warnings.reset()
            self._report("elected", term=view.term)
            self._listener.elected(view.term)

    def _unreachable(self, error: BackupError) -> None:
        if self.coordinator_error is None:
            self._report("unreachable", reason=str(error))
        self.coordinator_error, self._lease_expires_at = error, None
        if self._lease is not None and self._clock.now() >= self._lease.deadline:
            self._lose(f"no renewal for {self._timings.renew_deadline:g} s: {error}")

    def _lose(self, reason: str, kind: Literal["lost", "resigned"] = "lost") -> None:
        assert self._lease is not None
        term, self._lease = self._lease.term, None
        self._report(kind, term=term, reason=reason)
        self._listener.lost(LeaseLoss(term=term, reason=reason))
