"""Hand out the answers of models to a fit, one at a time and in one order.

What a fit does with an answer depends on the answers before it. So each answer is handed out when nothing else is about
to run: the consequences of the one before, or the start of a batch. Then the order of answers alone decides the state,
and a replay in the same order comes to the same state.

Answers of a log have places, and each is handed out at its place. New answers come after them, in the order in which
they were added. Both wait for a log answer whose request has not been made, at most `STALL_LIMIT` seconds. An answer
that is not recorded waits for `WARN_LIMIT` seconds in which nothing happens, because the log answer may depend on it.

The limit: what waits for something else than a model, such as a tool, takes part in no order.

Fact relied on (Python 3.12): the handles that an event loop is about to run are in its attribute `_ready`.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from distributed_backup.checkpoints.journal_format import Outcome, Unanswered
from distributed_backup.training.countdown import Countdown
from distributed_backup.training.doubt import Doubt

logger = logging.getLogger(__name__)

# Seconds without a request or an answer, after which a place is passed over whose request has not been made.
STALL_LIMIT: Final = 300.0
# Seconds of it after which an answer that is not recorded is handed out. A warning is logged if there is none.
WARN_LIMIT: Final = 10.0
# The same at the first place of a stage if a new answer waits and no request is under way: the first request depends on
# no answer before it.
FIRST_LIMIT: Final = 5.0
# Seconds that an answer waits for the journal.
WRITE_LIMIT: Final = 5.0
# Cycles of the event loop in which the consequences of one answer may run. A task that polls would take all of them.
_MAX_CYCLES: Final = 200


class NewAnswer:
    """A new answer in the queue, and its record if it has one. It may be handed out once it is ready."""

    def __init__(self, loop: asyncio.AbstractEventLoop, record: Outcome | None) -> None:
        self.future: asyncio.Future[None] = loop.create_future()
        self.record = record
        self.place: int | None = None
        """Behind the places of the log, while it waits. None if it is not recorded in the current stage."""
        self.is_ready = self.is_withdrawn = False
        self.timer: Countdown | None = None
        """Ends the wait for the journal."""


class Delivery:
    """The order of answers in one fit. Used in the thread of its event loop. `on_stall` is called once for each log."""

    def __init__(self, on_stall: Callable[[], None], doubt: Doubt) -> None:
        self._on_stall = on_stall
        self._doubt = doubt
        self._loop: asyncio.AbstractEventLoop | None = None
        self._count = self._next = 0
        self._is_ordered = True
        self._hold: Countdown | None = None
        # Answers that are not recorded, and that may come before those of the log.
        self._passing: list[NewAnswer] = []
        self._places: dict[int, asyncio.Future[None]] = {}
        self._new: deque[NewAnswer] = deque()
        self._is_settling = self._is_open = self._has_warned = False
        # Outcomes recorded in the stage, the places of failures, and the place up to which consequences have run.
        self._recorded = self._settled = 0
        self._failures: list[int] = []
        # The place behind the outcome whose consequences run now.
        self._seen = 0
        self._timer: Countdown | None = None
        self.under_way = 0
        """Requests that were sent and are not answered. The log may have an answer to one, see `follow` of a replay."""

    def begin(self, outcomes: Iterable[Outcome], *, is_open: bool) -> None:
        """Expect the outcomes of a log. `is_open`: new answers come after them. Else they need not wait."""
        waiting = [self._places[place] for place in sorted(self._places)]
        self._count = self._next = self._recorded = self._settled = self._seen = 0
        self._is_open, self._is_ordered, self._places, self._failures, self._passing = is_open, True, {}, [], []
        for answer in self._new:
            answer.place = None
        for outcome in outcomes:
            self._count = self._take_place(outcome) + 1
        for future in waiting:
            if not future.done():
                future.set_result(None)
        self.call_from_thread(self._hand_out)

    def pass_over(self, place: int) -> None:
        """Give up a turn: the answer at `place` can't be used."""
        self._places[place] = future = asyncio.get_running_loop().create_future()
        future.cancel()
        self._hand_out()

    def grow(self, outcome: Outcome) -> None:
        """Expect one more outcome of the log."""
        self._count = self._take_place(outcome) + 1
        self._hand_out()

    def _take_place(self, outcome: Outcome) -> int:
        if isinstance(outcome, Unanswered):
            self._failures.append(self._recorded)
        self._recorded += 1
        return self._recorded - 1

    def hold(self) -> Callable[[], None]:
        """Hand out no answer of the log before this worker, which leads now, has begun its segment.

        A leader that was suspended may begin one that lacks these answers. Once the newer one is there, the other does
        not count. The append of the segment calls what is returned. It is waited for as that of a new answer.
        """
        if self._hold is not None:
            self._hold.cancel()

        def end() -> None:
            # Another one may have begun since, or this worker may follow.
            if self._hold is hold:
                self.let_go()

        loop = asyncio.get_running_loop()
        self._hold = hold = Countdown(loop, WRITE_LIMIT, lambda: self._doubt.call_after(end))
        self.touch()
        return self._doubt.after_append(end, self.call_from_thread)

    def let_go(self) -> None:
        """End `hold`, if there is one."""
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
            self._hand_out()
            self._arm()

    def open(self) -> None:
        """Let new answers come after those of the log."""
        self._is_open = True

    @property
    def place(self) -> int:
        """The place whose turn it is."""
        return self._next

    @property
    def left(self) -> int:
        """Answers of the log that were not handed out."""
        return max(0, self._count - self._next)

    @property
    def unseen(self) -> int:
        """Answers and failures that are recorded in the stage and were not handed out."""
        return self.left + sum(answer.place is not None for answer in self._new)

    @property
    def since_failure(self) -> int:
        """Recorded outcomes since the first failure whose consequences have not run. 0: there is none."""
        first = bisect_left(self._failures, self._settled)
        return self._recorded - self._failures[first] if first < len(self._failures) else 0

    def touch(self) -> None:
        """Note that a request was made or answered."""
        self._loop = asyncio.get_running_loop()
        self._arm()

    async def turn(self, place: int) -> None:
        """Wait until it is the turn of this place."""
        if self._is_ordered and place < self._next:
            return  # it was cancelled, and passed over
        loop = asyncio.get_running_loop()
        self._places[place] = future = loop.create_future()
        self.touch()
        self._hand_out()
        try:
            await future
        except asyncio.CancelledError:
            # Its place stays, and is passed over in its turn.
            self._hand_out()
            raise

    def add(self, record: Outcome | None = None) -> NewAnswer:
        """Add a new answer to the end of the order."""
        answer = NewAnswer(asyncio.get_running_loop(), record)
        if record is not None:
            answer.place = self._take_place(record)
        self._new.append(answer)
        self.touch()
        return answer

    def renew(self, answer: NewAnswer) -> None:
        """Let an answer wait again that was cancelled. It keeps its turn if that has not come."""
        answer.future = asyncio.get_running_loop().create_future()
        if answer not in self._new:
            self._new.append(answer)
        self.touch()
        self._hand_out()

    def ready(self, answer: NewAnswer) -> None:
        """Let a new answer be handed out."""
        answer.is_ready = True
        if answer.timer is not None:
            answer.timer.cancel()
        self._hand_out()

    def withdraw(self) -> list[NewAnswer]:
        """Take out the new answers that were not handed out. Their futures end, and `is_withdrawn` says so."""
        withdrawn, self._new, self._passing = list(self._new), deque(), []
        for answer in withdrawn:
            answer.is_ready = answer.is_withdrawn = True
            answer.place = None
            if not answer.future.done():
                answer.future.set_result(None)
        return withdrawn

    def release(self) -> None:
        """Hand out everything, without order. The fit is over, or its log is not followed any more."""
        self._is_ordered = False
        self._next = self._count
        for answer in self._new:
            answer.is_ready = True
        self._hand_out()
        self._arm()

    def call_from_thread(self, call: Callable[[], object]) -> None:
        """Run `call` in the event loop. No effect if the loop is closed."""
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call)

    # ---------------------------------------------------------------- one at a time

    def _hand_out(self) -> None:
        """Hand out what is due, one at a time. Each waits until nothing else is about to run."""
        if not self._is_settling:
            loop = asyncio.get_running_loop()
            self._is_settling = True
            self._settle(loop, 0)

    def _next_future(self) -> asyncio.Future[None] | None:
        if not self._is_ordered and self._places:
            return self._places.pop(min(self._places))
        if self._next < self._count and self._next in self._places and self._hold is None:
            self._next = self._seen = self._next + 1
            return self._places.pop(self._next - 1)
        answer = self._next_new()
        if answer is not None:
            self._new.remove(answer)
            if answer.place is not None:
                # It may be added again. Its record stays where it is.
                self._seen, answer.place = answer.place + 1, None
            return answer.future
        return None

    def _next_new(self) -> NewAnswer | None:
        if self._next < self._count and self._is_open:
            return self._passing.pop(0) if self._passing else None
        self._passing = []
        return self._new[0] if self._new and self._new[0].is_ready else None

    def _settle(self, loop: Any, cycles: int) -> None:
        """Look once in each cycle of the event loop whether something else is about to run."""
        # An event loop of another library may have no such attribute. Then all cycles are run.
        is_idle = cycles > 0 and len(getattr(loop, "_ready", (None,))) == 0
        if is_idle or cycles > _MAX_CYCLES:
            cycles, self._settled = 0, self._seen
            future = self._next_future()
            if future is None:
                self._is_settling = False
                return
            if not future.done():
                future.set_result(None)
            self._arm()
        loop.call_soon(self._settle, loop, cycles + 1)

    # ---------------------------------------------------------------- the bound

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        is_waiting = bool(self._places or self._new) and self._next < self._count and self._hold is None
        if is_waiting and self._loop is not None and not self._loop.is_closed():
            is_first = self._next == 0 and self.under_way == 0
            limit = FIRST_LIMIT if self._new and is_first else STALL_LIMIT
            self._timer = Countdown(self._loop, min(limit, WARN_LIMIT), lambda: self._warn(limit - WARN_LIMIT))

    def _warn(self, left: float) -> None:
        # Answers that are not recorded have no place in the order, and those of the log may depend on them.
        self._passing = [answer for answer in self._new if answer.record is None and answer.is_ready]
        if self._passing:
            self._hand_out()
            return
        if left <= 0 or self._loop is None:
            self._stalled()
            return
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "a recorded answer has waited %g s for its request, as for a tool that is slow. In %g s the fit is "
                "taken to be another one, and asks for the answers that follow",
                WARN_LIMIT,
                left,
            )
        self._timer = Countdown(self._loop, left, self._stalled)

    def _stalled(self) -> None:
        self._timer = None
        if self._next < self._count and self._is_ordered:
            self.release()
            self._on_stall()
