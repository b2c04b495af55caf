"""What the log says about the stage that a fit is in: how its requests ended, and the boundary at its end.

A leader replays a log that has ended, stage by stage, and then continues it. A follower takes the records of the leader
as they come, and waits for the ones that its requests need. When it becomes the leader, its log has ended, too.
Failures of the leader come when it has gone on since, because an exception may end its fit before: see `FollowedStage`.

At each boundary of the log the digests of the state are compared. If they differ, or if a recorded request is not made
any more, the log is not followed further. An error in the log names the position and the group of variables.

An answer can be the cause of a crash. So the answers since the last boundary are void after `_MAX_FAILURES` exceptions
that left the fit there, or after `_MAX_DEATHS` starts in a row that died while they replayed them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from distributed_backup.checkpoints.journal import LogReader, Stage
from distributed_backup.checkpoints.journal_format import (
    Answer,
    Boundary,
    Failed,
    Link,
    LogEnd,
    Outcome,
    Record,
    Unanswered,
    Unrecorded,
    Void,
)
from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.observability.events import Report
from distributed_backup.position import Position
from distributed_backup.training.delivery import Delivery
from distributed_backup.training.doubt import Doubt
from distributed_backup.training.followed_stage import FollowedStage
from distributed_backup.training.tickets import Ticket
from distributed_backup.training.waiting_requests import WaitingRequests
from distributed_backup.worker.context import position_fields

logger = logging.getLogger(__name__)

_MAX_FAILURES: Final = 2
_MAX_DEATHS: Final = 3
_USUAL_CAUSE: Final = "A tool, a reward or data that gives another result each time is a usual cause"


class Replay:
    """The log of one fit, in the thread of its event loop. `lost`: a follower can't follow, and asks nothing more."""

    def __init__(self, writer: JournalWriter, report: Report, lost: Callable[[str], None], doubt: Doubt) -> None:
        self._writer = writer
        self._report = report
        self._lost = lost
        self.delivery = Delivery(self._on_stall, doubt)
        self._log: LogReader | None = None
        self._records: deque[Record | LogEnd] = deque()
        self.outcomes: list[Outcome] = []
        """How the recorded requests of the current stage have ended, in the order in which training has seen it."""
        # Requests that have failed have several: their retries have the same ticket.
        self._places: dict[Ticket, deque[int]] = {}
        self._end: Boundary | None = None
        self._followed = FollowedStage()
        # The last boundary of the log that the fit has passed, and those that it has passed before the log.
        self._last: Boundary | None = None
        self._ahead: deque[Boundary] = deque()
        self._waiting = WaitingRequests()
        # The newest checkpoint when this worker began to lead.
        self._newest = Position(0)
        self._follows, self.is_following = 0, False
        self.is_lost = False
        """Whether this worker can't follow its leader any more."""
        self.replayed = 0
        """Answers that were delivered from the log."""

    @property
    def is_active(self) -> bool:
        """Whether the fit follows a log."""
        return self._log is not None or self.is_following

    # ---------------------------------------------------------------- a log that has ended

    def begin(self, log: LogReader, start: Boundary) -> None:
        """Replay `log`, which continues the state at `start`, and continue it.

        Raises:
            StoreError: The log can't be read.
        """
        # First, because it may raise.
        stage = log.next_stage()
        self._log = log
        self._writer.replay_begins()
        self._enter(log, start, stage)

    def _enter(self, log: LogReader, start: Boundary, stage: Stage) -> None:
        self._last = start
        outcomes = stage.outcomes
        if stage.end is None:
            is_void = bool(outcomes) and (stage.failures >= _MAX_FAILURES or stage.deaths >= _MAX_DEATHS)
            if is_void:
                self._void(stage, start)
                outcomes = ()
            self._writer.continue_log(log.end, start, mark=Void() if is_void else None, done=self.delivery.hold())
        self.set_stage(outcomes, end=stage.end)
        if stage.end is None and not outcomes:
            self.end()

    def _void(self, stage: Stage, start: Boundary) -> None:
        answers = len(stage.answers)
        cause = f"{stage.failures} exceptions" if stage.failures >= _MAX_FAILURES else f"{stage.deaths} dead starts"
        logger.warning(
            "%d answers after %s are void and asked for again: %s in a row came before the next boundary",
            answers,
            start.position,
            cause,
        )
        self._report("voided", answers=answers, **position_fields(start.position))

    def set_stage(self, outcomes: Iterable[Outcome], *, end: Boundary | None) -> None:
        """Expect these outcomes, up to the boundary `end`. None if the stage has none yet."""
        self.outcomes, self._end, self._places = list(outcomes), end, {}
        self.delivery.begin(self.outcomes, is_open=end is None and not self.is_following)
        for place, outcome in enumerate(self.outcomes):
            self._put((outcome.key, outcome.number), place)

    def _put(self, ticket: Ticket, place: int) -> None:
        """Let a request find its outcome. The last answer with its ticket counts: the others could not be used."""
        places = self._places.setdefault(ticket, deque())
        if isinstance(self.outcomes[place], Answer):
            for unusable in [earlier for earlier in places if isinstance(self.outcomes[earlier], Answer)]:
                places.remove(unusable)
                self.delivery.pass_over(unusable)
        places.append(place)

    def rewind(self, outcomes: Iterable[Outcome]) -> None:
        """Expect these outcomes of the current stage again."""
        self.set_stage(outcomes, end=self._end)

    def end(self) -> None:
        """Note that all of the log has been replayed."""
        was_active, self._log = self.is_active, None
        self.is_following = False
        if was_active and self.replayed and self._last is not None:
            self._report("replayed", answers=self.replayed, **position_fields(self._last.position))

    # ---------------------------------------------------------------- a log that grows

    def follow(self, start: Boundary, *, used: Iterable[Outcome] = ()) -> None:
        """Take the records of another worker from `extend`: those after `start`, and after what was `used` since then.

        What was not handed out of another log comes again in this one. Requests wait for it.
        """
        self._follows += 1
        self._records.clear()
        self._ahead.clear()
        self._log, self._last, self._newest, self.is_following = None, start, Position(0), True
        self._writer.replay_begins()
        self.delivery.let_go()
        self.set_stage((), end=None)
        self._followed = FollowedStage(used)

    def extend(self, records: Iterable[Record]) -> None:
        """Take records that the leader has appended."""
        self._records.extend(records)
        self._advance()

    def end_of_log(self, end: LogEnd) -> None:
        """Continue the log behind its end when the fit has come there: this worker leads now."""
        self._records.append(end)
        self._advance()

    def _advance(self) -> None:
        while self.is_following and not self.is_lost and self._records and self._end is None:
            self._follow_record(self._records.popleft())
        if self._end is not None and self._waiting:
            self.diverged("this worker asks for what the leader has not asked for")

    def _follow_record(self, record: Record | LogEnd) -> None:
        match record:
            case Answer() | Unanswered():
                self._offer(self._followed.add(record))
            case Void() if sum(map(len, self._places.values())) == self._followed.usable:
                # No request has taken any.
                self._followed = FollowedStage()
                self.set_stage((), end=None)
            case Failed() | Void():
                if not self._followed.take_back(record):
                    self.diverged("the leader asks again for what this worker has used")
            case Unrecorded() if not self._ahead:
                self.diverged("an answer of the leader can't be recorded")
            case Boundary() if self._last is None or record.position != self._last.position:
                self._offer(self._followed.rest())
                self._followed = FollowedStage()
                if self._ahead:
                    self._compare(record, self._ahead.popleft())
                else:
                    self._end = record
            case LogEnd(link=link, newest=newest):
                self._offer(self._followed.rest())
                self._newest = newest
                self._lead(link)

    def _offer(self, outcomes: Iterable[Outcome]) -> None:
        """Let requests take these outcomes. A fit that is ahead has gone on without them."""
        for outcome in () if self._ahead else outcomes:
            place, ticket = len(self.outcomes), (outcome.key, outcome.number)
            self.outcomes.append(outcome)
            self.delivery.grow(outcome)
            if not self._waiting.answer(ticket, place):
                self._put(ticket, place)

    def _lead(self, link: Link | None) -> None:
        last = self._last
        assert last is not None
        self._last = self._ahead[-1] if self._ahead else last
        if link is None:
            # A restart finds nothing before this segment. So it holds what training has used, or will, since its start.
            self._writer.begin_at(
                self._last, () if self._ahead else tuple(self._followed.outcomes), done=self.delivery.hold()
            )
        else:
            self._writer.continue_log(link, last, mark=None, done=self.delivery.hold())
            for boundary in self._ahead:
                self._writer.boundary(boundary.position, lambda boundary=boundary: boundary.digests, due=False)  # type: ignore[misc]
        self._ahead.clear()
        self._followed = FollowedStage()
        self.end()
        self.delivery.open()
        self._leave_if_behind()
        if not self.is_lost:
            self._waiting.send_all()

    @property
    def is_behind(self) -> bool:
        """Whether another worker has come further than this one, which leads and has all of the log."""
        return self._last is not None and self._last.position < self._newest

    def _leave_if_behind(self) -> None:
        # Without a request it can come as far: the log had all answers when the checkpoint was made, if it is its own.
        if self.is_behind and self._waiting:
            self.cut_off("another worker has come further, and its journal is not there")

    # ---------------------------------------------------------------- requests

    def take(self, ticket: Ticket) -> int | None:
        """Return the first place with this ticket, and take it out. None if there is none yet."""
        places = self._places.get(ticket)
        return places.popleft() if places else None

    def is_answered_elsewhere(self, ticket: Ticket | None) -> bool:
        """Whether another worker has led since a request was sent, and asks for it or has recorded how it ended."""
        return self.is_following or self.is_behind or bool(ticket and self._places.get(ticket))

    def put_back(self, ticket: Ticket, place: int) -> None:
        """Let a retry take an outcome whose request was cancelled."""
        self._places.setdefault(ticket, deque()).appendleft(place)

    async def wait_for(self, ticket: Ticket) -> int | None:
        """Return the place of an outcome that the leader has not recorded yet. None if this worker must ask now."""
        if self._end is not None and not self.is_lost:
            self.diverged("this worker asks for what the leader has not asked for")
        follows, future = self._follows, self._waiting.add(ticket)
        self._leave_if_behind()
        try:
            place = await future
        except asyncio.CancelledError:
            place = future.result() if future.done() and not future.cancelled() else None
            if place is not None and self._follows == follows:
                self.put_back(ticket, place)
            raise
        # Since then, the outcome has got another place: it comes again, see `follow`.
        return place if self._follows == follows else None

    async def turn(self, place: int) -> bool:
        """Wait until it is the turn of the outcome at `place`. Return False if it comes again, see `follow`."""
        follows, is_answer = self._follows, isinstance(self.outcomes[place], Answer)
        await self.delivery.turn(place)
        if self._follows != follows:
            return False
        self.replayed += is_answer
        if self._log is not None and self._end is None and self.delivery.left == 0:
            self.end()
        return True

    def close(self) -> None:
        """Let all requests go on, from any thread: the fit is over."""
        self.delivery.call_from_thread(self._release)

    def _release(self) -> None:
        self.is_following, self._newest = False, Position(0)
        self._waiting.send_all()
        self.delivery.release()

    # ---------------------------------------------------------------- boundaries

    def boundary(self, own: Boundary) -> None:
        """Compare a boundary that the fit has come to with that of the log.

        Raises:
            StoreError: The rest of the log can't be read.
        """
        if self.is_lost:
            return
        end, log = self._end, self._log
        if end is not None:
            if self._compare(end, own):
                if log is not None:
                    self._enter(log, end, log.next_stage())
                else:
                    self.set_stage((), end=None)
                    self._advance()
            return
        if self.is_following:
            self._ahead.append(own)
        else:
            self.end()
            self._last = own
        self.set_stage((), end=None)
        self._advance()

    def _compare(self, recorded: Boundary, own: Boundary) -> bool:
        """Return whether two boundaries are equal. If not, end the replay."""
        if recorded.position != own.position:
            self.diverged(f"this worker is at {own.position}, and the log at {recorded.position}")
            return False
        names = own.digests.keys() | recorded.digests.keys()
        differing = sorted(name for name in names if own.digests.get(name) != recorded.digests.get(name))
        self._last = recorded
        if differing:
            self.diverged(f"the state differs in {', '.join(differing)}")
        return not differing

    def diverged(self, reason: str) -> None:
        """Follow the log no further, because this fit is in another state."""
        self._leave("the fit is in another state than the one that recorded the journal", reason, _USUAL_CAUSE)

    def cut_off(self, reason: str, *, waits: bool = False) -> None:
        """Follow the log no further, because the rest of it is missing here. `waits`: ask nothing either."""
        self._leave("the fit can't follow the journal any further", reason, waits=waits)

    def _leave(self, what: str, *reasons: str, waits: bool = False) -> None:
        if self.is_lost:
            return
        position = self._last.position if self._last is not None else None
        waits = waits or self.is_following or self.is_behind
        asks = "asks for nothing any more" if waits else "goes on, and asks for the answers that follow"
        reason, *causes = reasons
        logger.error("%s, after %s: %s", what, position, ". ".join([reason, f"It {asks}", *causes]))
        self._report("diverged", reason=reason, **position_fields(position))
        self._writer.give_up()
        if waits:
            # Requests wait as those of a follower, until the fit is cancelled: see `Standby.stand_down`.
            self.is_following = self.is_lost = True
            self._lost(reason)
            return
        self.end()
        self.set_stage((), end=None)

    def _on_stall(self) -> None:
        self.diverged("an answer is recorded, but its request is not made any more")
