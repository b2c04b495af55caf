"""Answer the requests of one fit: from the log where it has the answer, else by asking, and record what is new.

A recorded answer belongs to a request by its key, and by its number among the equal requests since the last boundary.
A request that fails gives its number back, so that its retry takes it. `replay` knows the log, `delivery` the order.
Training sees a new answer after the journal has it.

The limit: a request that outlives its batch is asked again in a replay.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from distributed_backup.checkpoints.journal_format import MAX_RECORD, Answer, Boundary, Digests, Failed, Unanswered
from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.once import OnceLogger
from distributed_backup.position import Position
from distributed_backup.training.codec import Codec, UnrecordableError
from distributed_backup.training.delivery import WRITE_LIMIT, NewAnswer
from distributed_backup.training.replay import Replay, Ticket
from distributed_backup.training.undisturbed import Undisturbed

logger = logging.getLogger(__name__)

_END: Final = object()
_STREAM_LOST: Final = "another worker began to lead while this one read the stream of an answer"


class Tickets:
    """The numbers of equal requests since the last boundary."""

    def __init__(self, taken: Mapping[str, int] | None = None) -> None:
        self._taken = dict(taken or {})
        self._returned: dict[str, list[int]] = {}

    def take(self, key: str) -> Ticket:
        """Return the ticket of a request that is made now."""
        returned = self._returned.get(key)
        if returned:
            return key, heapq.heappop(returned)
        number = self._taken.get(key, 0)
        self._taken[key] = number + 1
        return key, number

    def give_back(self, ticket: Ticket) -> None:
        """Let the next equal request have this number: the request failed, so its retry takes its place."""
        heapq.heappush(self._returned.setdefault(ticket[0], []), ticket[1])

    def copy(self) -> Tickets:
        """Return the tickets as they are now."""
        made = Tickets(self._taken)
        made._returned = {key: numbers[:] for key, numbers in self._returned.items()}
        return made


@dataclass(slots=True, kw_only=True)
class _Mark:
    """What `Answers.rewind` goes back to: the tickets, the place in the stage, and what was recorded since."""

    tickets: Tickets
    place: int
    recorded: list[Answer]


class Answers:
    """The answers of one fit. Used in the thread of its event loop, except `close`."""

    def __init__(self, writer: JournalWriter, replay: Replay) -> None:
        self._writer = writer
        self._replay = replay
        self._delivery = replay.delivery
        self._warnings = OnceLogger(logger)
        self._tickets = Tickets()
        # Recorded answers whose requests were cancelled while they waited for their turn. A retry takes them.
        self._untaken: dict[Ticket, tuple[NewAnswer, Any]] = {}
        self._is_behind = False
        self._mark: _Mark | None = None
        # A stage that was rewound is in the current segment already.
        self._is_rewound = False
        self._last: Callable[[], Boundary] | None = None
        # Of the log since the last boundary.
        self._since: list[Answer] = []
        self.is_open = True

    def start(self, boundary: Boundary) -> None:
        """Note the boundary that the fit begins at."""
        self._last = lambda: boundary

    def since_boundary(self) -> tuple[Boundary, list[Answer]] | None:
        """Return the last boundary, and the answers of the log since then, in their order. None before the first."""
        return None if self._last is None else (self._last(), self._since)

    def boundary(self, position: Position, digests: Callable[[], Digests], *, due: bool) -> None:
        """Note that the fit has come to `position`. `digests` returns those of its state, from any thread.

        Raises:
            StoreError: The rest of the log can't be read.
        """
        self._tickets, self._untaken, self._is_rewound, self._mark = Tickets(), {}, False, None
        self._last, self._since = lambda: Boundary(position=position, digests=digests()), []
        # First, so that a log that ends here is continued after this boundary.
        self._writer.boundary(position, digests, due=due)
        if self._replay.is_active:
            self._replay.boundary(Boundary(position=position, digests=digests()))
        else:
            self._replay.set_stage((), end=None)

    # ---------------------------------------------------------------- requests

    async def ask(self, key: str | None, request: Callable[[], Awaitable[Any]], codec: Codec) -> Any:
        """Return the recorded answer for the request, or ask and record it."""
        self._delivery.touch()
        ticket = None if key is None else self._tickets.take(key)
        if ticket is not None and ticket in self._untaken:
            entry, response = self._untaken.pop(ticket)
            self._delivery.renew(entry)
            await self._handed_out(ticket, entry, response)
            return response
        recorded = await self._in_turn(ticket, codec.decode)
        if recorded is not None:
            return recorded[0]
        try:
            response = await Undisturbed(request())
        except BaseException as error:
            self._failed(ticket, error)
            raise
        if self._replay.is_following:
            # Another worker leads by now, and asks for this, too. Its answer is the one that counts.
            recorded = await self._in_turn(ticket, codec.decode)
            if recorded is not None:
                return recorded[0]
        entry = self._record(ticket, lambda: codec.encode(response))
        await self._handed_out(ticket, entry, response)
        return response

    async def ask_stream(self, key: str | None, request: Callable[[], Awaitable[Any]], codec: Codec) -> Any:
        """As `ask`, for a stream: return an async iterator of chunks. It is recorded when it is drained."""
        self._delivery.touch()
        ticket = None if key is None else self._tickets.take(key)
        if ticket is not None and ticket in self._untaken:
            return self._kept_stream(ticket, *self._untaken.pop(ticket))
        recorded = await self._recorded(
            ticket, lambda value: [codec.decode(orjson.dumps(chunk)) for chunk in orjson.loads(value)]
        )
        if recorded is not None:
            return self._replayed_stream(*recorded)
        try:
            stream = await Undisturbed(request())
        except BaseException as error:
            self._failed(ticket, error)
            raise
        return self._recorded_stream(ticket, stream, codec)

    async def _kept_stream(self, ticket: Ticket, entry: NewAnswer, chunks: list[Any]) -> AsyncIterator[Any]:
        self._delivery.renew(entry)
        for chunk in chunks:
            yield chunk
        await self._handed_out(ticket, entry, chunks)

    async def _replayed_stream(self, place: int, chunks: list[Any]) -> AsyncIterator[Any]:
        for chunk in chunks:
            yield chunk
        if not await self._replayed(None, place):
            self._replay.diverged(_STREAM_LOST)

    async def _recorded_stream(self, ticket: Ticket | None, stream: Any, codec: Codec) -> AsyncIterator[Any]:
        chunks: list[Any] = []
        try:
            while True:
                chunk = await Undisturbed(anext(stream, _END))
                if chunk is _END:
                    break
                chunks.append(chunk)
                yield chunk
        except BaseException as error:
            self._failed(ticket, error)
            raise
        if self._replay.is_following:
            self._replay.diverged(_STREAM_LOST)
        entry = self._record(ticket, lambda: b"[%s]" % b",".join(map(codec.encode, chunks)))
        await self._handed_out(ticket, entry, chunks)

    def _failed(self, ticket: Ticket | None, error: BaseException) -> None:
        """Give the ticket of a failed request back. Followers that wait for its answer must not wait for ever."""
        self._delivery.touch()
        if ticket is not None:
            self._tickets.give_back(ticket)
            if isinstance(error, Exception):
                # Without its text, which may quote the request or a credential.
                self._unanswered(ticket, type(error).__name__)

    def _unanswered(self, ticket: Ticket, error: str) -> None:
        self._writer.append(Unanswered(key=ticket[0], number=ticket[1], error=error), _nothing)

    async def _in_turn(self, ticket: Ticket | None, decode: Callable[[bytes], Any]) -> tuple[Any] | None:
        """Return the recorded response when it is its turn. None if this worker must ask.

        Raises:
            LeaderRequestError: This worker follows, and the request of the leader has failed.
        """
        while (recorded := await self._recorded(ticket, decode)) is not None:
            place, response = recorded
            if await self._replayed(ticket, place):
                return (response,)
        return None

    async def _recorded(self, ticket: Ticket | None, decode: Callable[[bytes], Any]) -> tuple[int, Any] | None:
        """Return the place of the recorded answer and the response in it. None if this worker must ask.

        Raises:
            LeaderRequestError: This worker follows, and the request of the leader has failed.
        """
        place = await self._place(ticket)
        while place is not None:
            try:
                return place, decode(self._replay.answers[place].value)
            except Exception as error:  # noqa: BLE001 - another version of a library may have written it
                self._warnings.warning("a recorded answer can't be used, so its request is sent again: %r", error)
                self._delivery.pass_over(place)
                if self._replay.is_following:
                    self._replay.diverged(f"an answer of the leader can't be used: {error!r}")
                place = await self._place(ticket)
        return None

    async def _place(self, ticket: Ticket | None) -> int | None:
        try:
            place = None if ticket is None else self._replay.take(ticket)
            if place is None and self._replay.is_following:
                if ticket is None:
                    self._replay.diverged("a request has no key, so the leader can't record its answer")
                place = await self._replay.wait_for(ticket or ("", 0))
        except BaseException:
            # That of the leader has failed, or this one was cancelled. The retry takes its place.
            if ticket is not None:
                self._tickets.give_back(ticket)
            raise
        return place

    async def _replayed(self, ticket: Ticket | None, place: int) -> bool:
        """Wait for the turn of an answer. Return False if it comes again in another log."""
        answer = self._replay.answers[place]
        try:
            is_handed_out = await self._replay.turn(place)
        except asyncio.CancelledError:
            if ticket is not None:
                self._replay.put_back(ticket, place)
                self._tickets.give_back(ticket)
            raise
        if is_handed_out and not self._is_rewound:
            self._since.append(answer)
        return is_handed_out

    def _record(self, ticket: Ticket | None, encode: Callable[[], bytes]) -> NewAnswer:
        """Record a new answer, which then waits for its turn."""
        value = self._encoded(ticket, encode) if self.is_open else None
        entry = self._delivery.add()
        if not self.is_open:
            self._delivery.ready(entry)
            return entry
        if ticket is None or value is None:
            if ticket is not None:
                self._unanswered(ticket, "the response can't be recorded")
            self._delivery.ready(entry)
        else:
            answer = Answer(key=ticket[0], number=ticket[1], value=value)
            if self._mark is not None:
                self._mark.recorded.append(answer)
            self._since.append(answer)
            self._writer.append(answer, lambda: self._delivery.call_from_thread(lambda: self._durable(entry)))
            if self._is_behind or not self._writer.is_waited_for:
                self._delivery.ready(entry)
            else:
                entry.future.get_loop().call_later(WRITE_LIMIT, self._waited_enough, entry)
        return entry

    async def _handed_out(self, ticket: Ticket | None, entry: NewAnswer, response: Any) -> None:
        try:
            await entry.future
        except asyncio.CancelledError:
            # The retries of synalinks catch a cancellation, too.
            if ticket is not None:
                self._untaken[ticket] = (entry, response)
                self._tickets.give_back(ticket)
            raise

    def _encoded(self, ticket: Ticket | None, encode: Callable[[], bytes]) -> bytes | None:
        if ticket is None:
            return None
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

    def _durable(self, entry: NewAnswer) -> None:
        self._is_behind = False
        self._delivery.ready(entry)

    def _waited_enough(self, entry: NewAnswer) -> None:
        if not entry.is_ready:
            self._is_behind = True
            logger.warning("the journal is slow: an answer waited %g s for it, and training goes on", WRITE_LIMIT)
            self._delivery.ready(entry)

    # ---------------------------------------------------------------- a batch that is undone

    def mark(self) -> None:
        """Note this point of the fit for `rewind`."""
        self._mark = _Mark(tickets=self._tickets.copy(), place=self._delivery.place, recorded=[])

    def rewind(self) -> None:
        """Go back to `mark`: the requests since then are made again, and get the answers that they got."""
        mark = self._mark
        if mark is None:
            return
        answers = (*self._replay.answers[mark.place :], *mark.recorded)
        self._tickets, self._is_rewound = mark.tickets.copy(), True
        self._mark = None
        self._replay.rewind(answers)

    # ---------------------------------------------------------------- the end

    def failed(self, error: BaseException) -> None:
        """Note that an exception has left the fit."""
        if self.is_open:
            self._writer.append(Failed(error=type(error).__name__), _nothing)

    def close(self) -> None:
        """Ask without the journal from now on, from any thread. May be called again."""
        self.is_open = False
        self._replay.close()


def _nothing() -> None:
    """Ignore that a record is durable."""
