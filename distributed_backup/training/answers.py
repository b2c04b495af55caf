"""The journal of one fit: deliver recorded answers instead of asking, and record new ones before the fit sees them.

A recorded answer belongs to a request by its key, and by its number among the equal requests since the last boundary.
A request that fails gives its number back, so that its retry takes it. `delivery` keeps the order.

At each boundary of the log the digests of the state are compared. If they differ, or if a recorded request is not made
any more, the log is not followed further: the fit asks again, and an error in the log names the position and the group.

An answer can be the cause of a crash. So the answers since the last boundary are void after two exceptions that left
the fit there, or after `_MAX_DEATHS` starts in a row that died while they replayed them. Void answers are asked again.

The limit: a request that outlives its batch is asked again in a replay.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from distributed_backup.checkpoints.journal import LogReader, Stage
from distributed_backup.checkpoints.journal_format import MAX_RECORD, Answer, Boundary, Digests, Failed, Void
from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.observability.events import Report
from distributed_backup.once import OnceLogger
from distributed_backup.position import Position
from distributed_backup.training.delivery import WRITE_LIMIT, Delivery
from distributed_backup.training.responses import Codec, UnrecordableError
from distributed_backup.training.undisturbed import Undisturbed

logger = logging.getLogger(__name__)

_MAX_FAILURES: Final = 2
_MAX_DEATHS: Final = 3
_END: Final = object()

type Ticket = tuple[str, int]
"""The key of a request, and its number among the equal ones."""


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

    def __init__(self, writer: JournalWriter, report: Report) -> None:
        self._writer = writer
        self._report = report
        self._delivery = Delivery(self._on_stall)
        self._warnings = OnceLogger(logger)
        self._tickets = Tickets()
        self._log: LogReader | None = None
        self._stage = Stage(answers=(), end=None)
        self._places: dict[Ticket, int] = {}
        self._position = Position(0)
        self._is_behind = False
        self._mark: _Mark | None = None
        # A stage that was rewound is in the current segment already.
        self._is_rewound = False
        self.is_open = True
        self.replayed = 0
        """Answers that were delivered from the log."""

    # ---------------------------------------------------------------- the log

    def replay(self, log: LogReader, start: Boundary) -> None:
        """Deliver the answers of `log`, which continues the state at `start`.

        Raises:
            StoreError: The log can't be read.
        """
        self._log = log
        self._writer.replay_begins()
        self._enter(log.next_stage(), start)

    def boundary(self, position: Position, digests: Callable[[], Digests], *, due: bool) -> None:
        """Note that the fit has come to `position`. `digests` returns those of its state, from any thread.

        Raises:
            StoreError: The rest of the log can't be read.
        """
        self._tickets, self._is_rewound = Tickets(), False
        # First, so that a log that ends here is continued after this boundary.
        self._writer.boundary(position, digests, due=due)
        log, end = self._log, self._stage.end
        if log is not None and end is not None:
            self._compare(log, end, position, digests)
            return
        self._end_replay()
        self._stage = Stage(answers=(), end=None)
        self._begin_stage()
        self._position = position

    def _compare(self, log: LogReader, end: Boundary, position: Position, digests: Callable[[], Digests]) -> None:
        if end.position != position:
            self._diverged(f"the log goes on to {end.position}")
            return
        own = digests()
        differing = sorted(name for name in own.keys() | end.digests.keys() if own.get(name) != end.digests.get(name))
        if differing:
            self._position = position
            self._diverged(f"the state differs in {', '.join(differing)}")
            return
        self._position = position
        self._enter(log.next_stage(), end)

    def _enter(self, stage: Stage, start: Boundary) -> None:
        assert self._log is not None
        self._position = start.position
        answers = stage.answers
        if stage.end is None:
            is_void = bool(answers) and (stage.failures >= _MAX_FAILURES or stage.deaths >= _MAX_DEATHS)
            if is_void:
                self._void(stage, start.position)
                answers = ()
            self._writer.continue_log(self._log.end, start, mark=Void() if is_void else None)
        self._stage = Stage(answers=answers, end=stage.end)
        self._begin_stage()
        if stage.end is None and not answers:
            self._end_replay()

    def _begin_stage(self) -> None:
        answers = self._stage.answers
        self._places = {(answer.key, answer.number): place for place, answer in enumerate(answers)}
        self._delivery.begin(len(answers), is_open=self._stage.end is None)

    def _void(self, stage: Stage, position: Position) -> None:
        cause = f"{stage.failures} exceptions" if stage.failures >= _MAX_FAILURES else f"{stage.deaths} dead starts"
        logger.warning(
            "%d answers after %s are void and asked for again: %s in a row came before the next boundary",
            len(stage.answers),
            position,
            cause,
        )
        self._report("voided", answers=len(stage.answers), epoch=position.epoch, batch=position.batch)

    def _end_replay(self) -> None:
        was_replaying, self._log = self._log is not None, None
        if was_replaying and self.replayed:
            self._report("replayed", answers=self.replayed, epoch=self._position.epoch, batch=self._position.batch)

    def _diverged(self, reason: str) -> None:
        position = self._position
        logger.error(
            "the replay has come to another state than the interrupted run after %s: %s. The fit goes on, and asks for "
            "the answers that follow. A tool, a reward or data that gives another result each time is a usual cause",
            position,
            reason,
        )
        self._report("diverged", reason=reason, epoch=position.epoch, batch=position.batch)
        self._writer.give_up()
        self._end_replay()
        self._stage = Stage(answers=(), end=None)
        self._begin_stage()

    def stop_replay(self) -> None:
        """Ask for all answers from now on."""
        if self._log is not None:
            self._diverged("the rest of the journal can't be read")

    def _on_stall(self) -> None:
        if self._log is not None:
            self._diverged("an answer is recorded, but its request is not made any more")

    # ---------------------------------------------------------------- requests

    async def ask(self, key: str | None, request: Callable[[], Awaitable[Any]], codec: Codec) -> Any:
        """Return the recorded answer for the request, or ask and record it."""
        self._delivery.touch()
        ticket = None if key is None else self._tickets.take(key)
        recorded = self._recorded(ticket, codec.decode)
        if recorded is not None:
            place, response = recorded
            await self._replayed(place)
            return response
        try:
            response = await Undisturbed(request())
        except BaseException:
            self._give_back(ticket)
            raise
        await self._record(ticket, lambda: codec.encode(response))
        return response

    async def ask_stream(self, key: str | None, request: Callable[[], Awaitable[Any]], codec: Codec) -> Any:
        """As `ask`, for a stream: return an async iterator of chunks. It is recorded when it is drained."""
        self._delivery.touch()
        ticket = None if key is None else self._tickets.take(key)
        recorded = self._recorded(
            ticket, lambda value: [codec.decode(orjson.dumps(chunk)) for chunk in orjson.loads(value)]
        )
        if recorded is not None:
            return self._replayed_stream(*recorded)
        try:
            stream = await Undisturbed(request())
        except BaseException:
            self._give_back(ticket)
            raise
        return self._recorded_stream(ticket, stream, codec)

    async def _replayed_stream(self, place: int, chunks: list[Any]) -> AsyncIterator[Any]:
        for chunk in chunks:
            yield chunk
        await self._replayed(place)

    async def _recorded_stream(self, ticket: Ticket | None, stream: Any, codec: Codec) -> AsyncIterator[Any]:
        chunks: list[Any] = []
        try:
            while True:
                chunk = await Undisturbed(anext(stream, _END))
                if chunk is _END:
                    break
                chunks.append(chunk)
                yield chunk
        except BaseException:
            self._give_back(ticket)
            raise
        await self._record(ticket, lambda: b"[%s]" % b",".join(map(codec.encode, chunks)))

    def _give_back(self, ticket: Ticket | None) -> None:
        self._delivery.touch()
        if ticket is not None:
            self._tickets.give_back(ticket)

    def _recorded(self, ticket: Ticket | None, decode: Callable[[bytes], Any]) -> tuple[int, Any] | None:
        """Return the place of the recorded answer and the response in it. None if there is none."""
        place = None if ticket is None else self._places.pop(ticket, None)
        if place is None:
            return None
        try:
            return place, decode(self._stage.answers[place].value)
        except Exception as error:  # noqa: BLE001 - another version of a library may have written it
            self._warnings.warning("a recorded answer can't be used, so its request is sent again: %r", error)
            return None

    async def _replayed(self, place: int) -> None:
        answer = self._stage.answers[place]
        await self._delivery.turn(place)
        self.replayed += 1
        if self._stage.end is None and not self._is_rewound:
            self._writer.note_replayed(answer)
        if self._stage.end is None and self._log is not None and self._delivery.left == 0:
            self._end_replay()

    async def _record(self, ticket: Ticket | None, encode: Callable[[], bytes]) -> None:
        """Record a new answer, and wait until it is its turn."""
        value = self._encoded(ticket, encode)
        entry = self._delivery.add()
        if ticket is None or value is None:
            self._delivery.ready(entry)
        else:
            answer = Answer(key=ticket[0], number=ticket[1], value=value)
            if self._mark is not None:
                self._mark.recorded.append(answer)
            self._writer.append(answer, lambda: self._delivery.call_from_thread(lambda: self._durable(entry)))
            if self._is_behind or not self._writer.is_waited_for:
                self._delivery.ready(entry)
            else:
                entry.future.get_loop().call_later(WRITE_LIMIT, self._waited_enough, entry)
        await entry.future

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

    def _durable(self, entry: Any) -> None:
        self._is_behind = False
        self._delivery.ready(entry)

    def _waited_enough(self, entry: Any) -> None:
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
        answers = (*self._stage.answers[mark.place :], *mark.recorded)
        self._stage = Stage(answers=answers, end=self._stage.end)
        self._tickets, self._is_rewound = mark.tickets.copy(), True
        self._mark = None
        self._begin_stage()

    # ---------------------------------------------------------------- the end

    def failed(self, error: BaseException) -> None:
        """Note that an exception has left the fit."""
        if self.is_open:
            self._writer.append(Failed(error=type(error).__name__), _nothing)

    def close(self) -> None:
        """Ask without the journal from now on, from any thread. May be called again."""
        self.is_open = False
        self._delivery.close()


def _nothing() -> None:
    """Ignore that a record is durable."""
