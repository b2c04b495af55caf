"""Answer the requests of one fit: from the log where it has the answer, else by asking, and record what is new.

A recorded answer belongs to a request by its key, and by its number among the equal requests since the last boundary.
A request that fails gives its number back, so that its retry takes it. Its failure is recorded as an answer is, because
training may go on without the answer. `replay` knows the log, `delivery` the order. Training sees a new outcome after
the journal has it.

The limits: a request that outlives its batch is asked again in a replay. So is a stream that has failed while it was
read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from distributed_backup.checkpoints.journal_format import (
    MAX_RECORD,
    Answer,
    Boundary,
    Digests,
    Failed,
    Outcome,
    Unanswered,
    Unrecorded,
)
from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.checks import is_whole
from distributed_backup.errors import RecordedFailureError
from distributed_backup.once import OnceLogger
from distributed_backup.position import Position
from distributed_backup.training.codec import Codec, UnrecordableError
from distributed_backup.training.delivery import NewAnswer
from distributed_backup.training.doubt import Doubt
from distributed_backup.training.new_answers import NewAnswers
from distributed_backup.training.replay import Replay
from distributed_backup.training.seen_outcomes import SeenOutcomes
from distributed_backup.training.tickets import Ticket, Tickets
from distributed_backup.training.undisturbed import Undisturbed

logger = logging.getLogger(__name__)

_END: Final = object()
# Those of HTTP.
_STATUSES: Final = range(100, 600)
_STREAM_LOST: Final = "another worker began to lead while this one read the stream of an answer"


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a request has ended with in the place of a response."""

    error: Exception


@dataclass(slots=True, kw_only=True)
class _Mark:
    """What `Answers.rewind` goes back to: the tickets, the place in the stage, and what was recorded since."""

    tickets: Tickets
    place: int
    recorded: list[Outcome]


class Answers:
    """The answers of one fit. Used in the thread of its event loop, except `close`."""

    def __init__(self, writer: JournalWriter, replay: Replay, doubt: Doubt) -> None:
        self._writer = writer
        self._replay = replay
        self._doubt = doubt
        self._delivery = replay.delivery
        self._new = NewAnswers(writer, replay.delivery, doubt)
        self._warnings = OnceLogger(logger)
        self._tickets = Tickets()
        # Recorded outcomes whose requests were cancelled while they waited for their turn. A retry takes them.
        self._untaken: dict[Ticket, tuple[NewAnswer, Any]] = {}
        self._mark: _Mark | None = None
        # A stage that was rewound is in the current segment already.
        self._is_rewound = False
        self._last: Callable[[], Boundary] | None = None
        self._since = SeenOutcomes()
        self.is_open = True

    def start(self, boundary: Boundary) -> None:
        """Note the boundary that the fit begins at."""
        self._last = lambda: boundary

    def since_boundary(self) -> tuple[Boundary, list[Outcome]] | None:
        """Return the last boundary, and the outcomes of the log since then, in their order. None before the first."""
        return None if self._last is None else (self._last(), self._since.in_order())

    def boundary(self, position: Position, digests: Callable[[], Digests], *, due: bool) -> None:
        """Note that the fit has come to `position`. `digests` returns those of its state, from any thread.

        Raises:
            StoreError: The rest of the log can't be read.
        """
        self._tickets, self._untaken, self._is_rewound, self._mark = Tickets(), {}, False, None
        self._last, self._since = lambda: Boundary(position=position, digests=digests()), SeenOutcomes()
        # First, so that a log that ends here is continued after this boundary.
        self._writer.boundary(position, digests, due=due)
        if self._replay.is_active or self._replay.is_behind:
            self._replay.boundary(Boundary(position=position, digests=digests()))
        else:
            self._replay.set_stage((), end=None)

    # ---------------------------------------------------------------- requests

    async def ask(self, key: str | None, request: Callable[[], Awaitable[Any]], codec: Codec) -> Any:
        """Return the recorded answer for the request, or ask and record it.

        Raises:
            RecordedFailureError: The request has failed before, or it has failed for the leader.
        """
        self._delivery.touch()
        ticket = None if key is None else self._tickets.take(key)
        if ticket is not None and ticket in self._untaken:
            entry, outcome = self._untaken.pop(ticket)
            self._delivery.renew(entry)
            if await self._handed_out(ticket, entry, outcome):
                return self._seen(ticket, outcome)
        else:
            recorded = await self._in_turn(ticket, codec.decode)
            if recorded is not None:
                return self._seen(ticket, recorded[0])
            outcome = await self._outcome(ticket, request)
        while True:
            if self._replay.is_answered_elsewhere(ticket):
                recorded = await self._in_turn(ticket, codec.decode)
                if recorded is not None:
                    return self._seen(ticket, recorded[0])
            entry = self._record(ticket, outcome, lambda: codec.encode(outcome))
            if await self._handed_out(ticket, entry, outcome):
                return self._seen(ticket, outcome)

    async def ask_stream(self, key: str | None, request: Callable[[], Awaitable[Any]], codec: Codec) -> Any:
        """As `ask`, for a stream: return an async iterator of chunks. It is recorded when it is drained."""
        self._delivery.touch()
        ticket = None if key is None else self._tickets.take(key)
        if ticket is not None and ticket in self._untaken:
            entry, outcome = self._untaken.pop(ticket)
            if not isinstance(outcome, _Failure):
                return self._kept_stream(ticket, entry, outcome)
            self._delivery.renew(entry)
            if await self._handed_out(ticket, entry, outcome):
                return self._seen(ticket, outcome)
        while True:
            recorded = await self._recorded(ticket, codec.decode_stream)
            if recorded is not None:
                place, chunks = recorded
                if not isinstance(chunks, _Failure):
                    return self._replayed_stream(place, chunks)
                if await self._replayed(ticket, place):
                    return self._seen(ticket, chunks)
                continue
            stream = await self._outcome(ticket, request)
            if not isinstance(stream, _Failure):
                return self._recorded_stream(ticket, stream, codec)
            is_ours = not self._replay.is_answered_elsewhere(ticket)
            if is_ours and await self._handed_out(ticket, self._record(ticket, stream, bytes), stream):
                return self._seen(ticket, stream)

    async def _kept_stream(self, ticket: Ticket, entry: NewAnswer, chunks: Any) -> AsyncIterator[Any]:
        self._delivery.renew(entry)
        for chunk in chunks:
            yield chunk
        await self._end_of_stream(ticket, entry, chunks)

    async def _replayed_stream(self, place: int, chunks: list[Any]) -> AsyncIterator[Any]:
        for chunk in chunks:
            yield chunk
        if not await self._replayed(None, place):
            self._replay.cut_off(_STREAM_LOST, waits=True)

    async def _recorded_stream(self, ticket: Ticket | None, stream: Any, codec: Codec) -> AsyncIterator[Any]:
        chunks: list[Any] = []
        tickets = self._tickets  # the stream may be closed after they were replaced
        try:
            while (chunk := await Undisturbed(anext(stream, _END))) is not _END:
                chunks.append(chunk)
                yield chunk
        except BaseException as error:
            if ticket is not None:
                tickets.give_back(ticket)
                if isinstance(error, Exception):
                    self._unrecorded(ticket)
            raise
        # In another batch, its ticket is that of another request.
        if self._replay.is_answered_elsewhere(ticket if tickets is self._tickets else None):
            self._replay.cut_off(_STREAM_LOST, waits=True)
        entry = self._record(ticket, chunks, lambda: b"[%s]" % b",".join(map(codec.encode, chunks)))
        await self._end_of_stream(ticket, entry, chunks)

    async def _end_of_stream(self, ticket: Ticket | None, entry: NewAnswer, chunks: Any) -> None:
        if not await self._handed_out(ticket, entry, chunks):
            self._replay.cut_off(_STREAM_LOST, waits=True)

    async def _outcome(self, ticket: Ticket | None, request: Callable[[], Awaitable[Any]]) -> Any:
        """Send a request, and return the response or the failure."""
        self._delivery.under_way += 1
        try:
            return await Undisturbed(request())
        except Exception as error:  # noqa: BLE001 - raised again in its turn
            return _Failure(error)
        except BaseException:
            if ticket is not None:
                self._tickets.give_back(ticket)
            raise
        finally:
            self._delivery.under_way -= 1
            self._delivery.touch()

    def _seen(self, ticket: Ticket | None, outcome: Any) -> Any:
        """Return a response, or raise the error of a failure. A retry has the same ticket."""
        if not isinstance(outcome, _Failure):
            return outcome
        if ticket is not None:
            self._tickets.give_back(ticket)
        raise outcome.error

    async def _in_turn(self, ticket: Ticket | None, decode: Callable[[bytes], Any]) -> tuple[Any] | None:
        """Return the recorded response or failure when it is its turn. None if this worker must ask."""
        while (recorded := await self._recorded(ticket, decode)) is not None:
            place, outcome = recorded
            if await self._replayed(ticket, place):
                return (outcome,)
        return None

    async def _recorded(self, ticket: Ticket | None, decode: Callable[[bytes], Any]) -> tuple[int, Any] | None:
        """Return the place of what is recorded, and the response or failure in it. None if this worker must ask."""
        place = await self._place(ticket)
        while place is not None:
            outcome = self._replay.outcomes[place]
            if isinstance(outcome, Unanswered):
                return place, _Failure(RecordedFailureError(error=outcome.error, status_code=outcome.status))
            try:
                return place, decode(outcome.value)
            except Exception as error:  # noqa: BLE001 - another version of a library may have written it
                self._warnings.warning("a recorded answer can't be used, so its request is sent again: %r", error)
                self._delivery.pass_over(place)
                if self._replay.is_following:
                    self._replay.diverged(f"an answer of the leader can't be used: {error!r}")
                place = await self._place(ticket)
        return None

    async def _place(self, ticket: Ticket | None) -> int | None:
        try:
            while True:
                await self._doubt.end()
                place = None if ticket is None else self._replay.take(ticket)
                if place is not None or not (self._replay.is_following or self._replay.is_behind):
                    return place
                if ticket is None:
                    self._replay.diverged("a request has no key, so the leader can't record its answer")
                # None: this worker leads. Again, because the lease may have run out, or another one may lead by now.
                place = await self._replay.wait_for(ticket or ("", 0))
                if place is not None:
                    return place
        except BaseException:
            if ticket is not None:
                self._tickets.give_back(ticket)
            raise

    async def _replayed(self, ticket: Ticket | None, place: int) -> bool:
        """Wait for the turn of an outcome. Return False if it comes again in another log."""
        outcome, since = self._replay.outcomes[place], self._since
        try:
            is_handed_out = await self._replay.turn(place)
        except asyncio.CancelledError:
            if ticket is not None:
                self._replay.put_back(ticket, place)
                self._tickets.give_back(ticket)
            raise
        if is_handed_out and not self._is_rewound:
            since.replayed.append(outcome)
        return is_handed_out

    def _record(self, ticket: Ticket | None, outcome: Any, encode: Callable[[], bytes]) -> NewAnswer:
        """Record a new outcome, which then waits for its turn."""
        if not self.is_open:
            return self._new.unrecorded(is_certain=True)
        record = None if ticket is None else self._as_record(ticket, outcome, encode)
        if record is None:
            return self._new.unrecorded()
        if self._mark is not None:
            self._mark.recorded.append(record)
        self._since.recorded.append(record)
        return self._new.record(record)

    async def _handed_out(self, ticket: Ticket | None, entry: NewAnswer, outcome: Any) -> bool:
        """Wait until training may see an outcome. Return False if another worker leads, so that its own counts."""
        try:
            await entry.future
        except asyncio.CancelledError:
            # The retries of synalinks catch a cancellation, too.
            if ticket is not None:
                self._untaken[ticket] = (entry, outcome)
                self._tickets.give_back(ticket)
            raise
        return not entry.is_withdrawn

    def _as_record(self, ticket: Ticket, outcome: Any, encode: Callable[[], bytes]) -> Outcome | None:
        key, number = ticket
        if isinstance(outcome, _Failure):
            # Without its text, which may quote the request or a credential.
            status = getattr(outcome.error, "status_code", None)
            found = status if is_whole(status) and status in _STATUSES else None
            return Unanswered(key=key, number=number, error=type(outcome.error).__name__, status=found)
        value = self._encoded(encode)
        if value is None:
            self._unrecorded(ticket)
            return None
        return Answer(key=key, number=number, value=value, since_failure=self._delivery.since_failure)

    def _unrecorded(self, ticket: Ticket) -> None:
        """Let followers know that they wait in vain."""
        self._writer.append(Unrecorded(key=ticket[0], number=ticket[1]), lambda: None)

    def _encoded(self, encode: Callable[[], bytes]) -> bytes | None:
        try:
            value = encode()
        except UnrecordableError as error:
            self._warnings.warning("an answer is not recorded, and is asked for again after a restart: %s", error)
            return None
        if len(value) >= MAX_RECORD:
            self._warnings.warning(
                "an answer of %d MB is not recorded, because it has more than %d MB. It is asked for again after a "
                "restart",
                len(value) >> 20,
                MAX_RECORD >> 20,
            )
            return None
        return value

    # ---------------------------------------------------------------- a batch that is undone

    def mark(self) -> None:
        """Note this point of the fit for `rewind`."""
        self._mark = _Mark(tickets=self._tickets.copy(), place=self._delivery.place, recorded=[])

    def rewind(self) -> None:
        """Go back to `mark`: the requests since then are made again, and get the answers that they got."""
        mark = self._mark
        if mark is None:
            return
        outcomes = (*self._replay.outcomes[mark.place :], *mark.recorded)
        # What is recorded of `_untaken` is among the outcomes.
        self._tickets, self._untaken, self._is_rewound, self._mark = mark.tickets.copy(), {}, True, None
        self._replay.rewind(outcomes)

    def withdraw(self) -> None:
        """Take back the answers that training has not seen: another worker leads, and may not have read them."""
        self._since.end_recording(entry.record for entry in self._delivery.withdraw())

    # ---------------------------------------------------------------- the end

    def failed(self, error: BaseException) -> None:
        """Note that an exception has left the fit."""
        if self.is_open:
            self._writer.append(Failed(error=type(error).__name__, unseen=self._delivery.unseen), lambda: None)

    def close(self) -> None:
        """Ask without the journal from now on, from any thread. May be called again."""
        self.is_open = False
        self._replay.close()
