"""The journal of a fit without a storage and without synalinks: a writer that keeps its steps, and a client of models.

The appends of the writer are durable when a test says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

import orjson

from distributed_backup.checkpoints.journal import LogReader, Stage
from distributed_backup.checkpoints.journal_format import Answer, Boundary, Link, LogEnd, Outcome, Record
from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.observability.events import Kind
from distributed_backup.position import Position
from distributed_backup.training.answers import Answers
from distributed_backup.training.codec import Codec, UnrecordableError
from distributed_backup.training.doubt import Doubt
from distributed_backup.training.replay import Replay

END = Link(name="0000000001-00000000-00000000.journal", end=99)


def encode(response: Any) -> bytes:
    try:
        return orjson.dumps(response)
    except TypeError as error:
        raise UnrecordableError(str(error)) from None


JSON = Codec(encode, orjson.loads)


def boundary(batch: int, tag: object = "same", **digests: str) -> Boundary:
    return Boundary(position=Position(0, batch), digests={"trainable": str(tag), **digests})


def ended(link: Link | None, newest: int = 0) -> LogEnd:
    return LogEnd(link=link, newest=Position(0, newest))


def answer(key: str, response: Any, number: int = 0) -> Answer:
    return Answer(key=key, number=number, value=orjson.dumps(response))


class Writer:
    """Keeps what it is asked for. `is_durable`: appends are durable now, else at `flush`."""

    def __init__(self) -> None:
        self.is_durable = self.is_waited_for = True
        self.steps: list[Any] = []
        self.records: list[Record] = []
        self._done: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def step(*arguments: Any, done: Callable[[], None] | None = None, **named: Any) -> None:
            self.steps.append((name, *arguments, *named.values()))
            if done is not None:
                self._until_durable(done)

        return step

    def append(self, record: Record, done: Callable[[], None]) -> None:
        self.records.append(record)
        self._until_durable(done)

    def _until_durable(self, done: Callable[[], None]) -> None:
        self._done.append(done)
        if self.is_durable:
            self.flush()

    def flush(self) -> None:
        done, self._done = self._done, []
        for each in done:
            each()

    @property
    def waiting(self) -> int:
        """How many appends are not durable yet."""
        return len(self._done)

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.steps]


class Log:
    """A log that has ended, as `LogReader` shows it. An exception in place of a stage is raised."""

    end = END

    def __init__(self, *stages: Stage | Exception) -> None:
        self._stages = list(stages)

    def next_stage(self) -> Stage:
        found = self._stages.pop(0) if self._stages else Stage(outcomes=(), end=None)
        if isinstance(found, Exception):
            raise found
        return found


class Fit:
    """The requests of one fit. `ask` starts one. `got` lists the responses in the order in which training saw them."""

    def __init__(self) -> None:
        self.writer = Writer()
        self.lost: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.is_certain, self.is_in_doubt = True, False
        doubt = Doubt(is_certain=lambda: self.is_certain, exists=lambda: self.is_in_doubt, give_up=self._give_up_doubt)
        self.replay = Replay(cast("JournalWriter", self.writer), self._report, self.lost.append, doubt)
        self.answers = Answers(cast("JournalWriter", self.writer), self.replay, doubt)
        self.got: list[Any] = []
        self.asked: list[str] = []
        self.requests: dict[str, list[asyncio.Future[Any]]] = {}

    def _give_up_doubt(self) -> None:
        self.is_in_doubt = False

    def _report(self, kind: Kind, /, **fields: Any) -> None:
        self.events.append((kind, fields))

    @property
    def events_seen(self) -> list[str]:
        return [kind for kind, _ in self.events]

    def begin(self, *stages: Stage | Exception, start: Boundary | None = None) -> None:
        self.answers.start(start or boundary(0))
        self.replay.begin(cast("LogReader", Log(*stages)), start or boundary(0))

    def follow(self, *records: Record) -> None:
        self.replay.delivery.touch()
        self.answers.start(boundary(0))
        self.replay.follow(boundary(0))
        self.replay.extend(records)

    def ask(self, key: str | None) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self.response_to(key))

    async def answered(self, key: str, response: Any) -> asyncio.Task[Any]:
        """Send a request, answer it, or let it fail, and let the fit go on as far as it can."""
        request = self.ask(key)
        await quiet()
        self.respond(key, response)
        await quiet()
        return request

    async def response_to(self, key: str | None) -> Any:
        """Ask in the task that calls this. So it need not wait for another one to start."""
        response = await self.answers.ask(key, lambda: self._request(str(key)), JSON)
        self.got.append(response)
        return response

    def _request(self, key: str) -> Awaitable[Any]:
        self.asked.append(key)
        sent: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.requests.setdefault(key, []).append(sent)
        return sent

    def respond(self, key: str, response: Any) -> None:
        """Answer the oldest request with this key, or let it fail."""
        sent = self.requests[key].pop(0)
        if isinstance(response, Exception):
            sent.set_exception(response)
        else:
            sent.set_result(response)

    def step_down(self) -> None:
        """Follow another worker, as `FitJournal` does. There is no doubt any more."""
        self.is_in_doubt = False
        self.answers.withdraw()
        last, seen = self.answers.since_boundary() or (boundary(0), [])
        self.replay.follow(last, used=seen)

    @property
    def since(self) -> tuple[Boundary, list[Outcome]] | None:
        return self.answers.since_boundary()

    def boundary(self, batch: int, tag: object = "same", **digests: str) -> None:
        own = boundary(batch, tag, **digests)
        self.answers.boundary(own.position, lambda: own.digests, due=False)


async def quiet() -> None:
    """Let everything run that does not wait for something: until the loop would wait for a timer or a thread."""
    loop: Any = asyncio.get_running_loop()
    idle, select = loop.create_future(), loop._selector.select

    def look(timeout: float | None = None) -> Any:
        if timeout == 0:
            return select(timeout)
        loop._selector.select = select
        idle.set_result(None)
        return select(0)

    loop._selector.select = look
    await idle


async def until(condition: Callable[[], bool]) -> None:
    """Let everything run until a timer has made this true."""
    while not condition():
        await asyncio.sleep(0)


async def work(cycles: int) -> None:
    """Be at work in so many cycles of the event loop."""
    for _ in range(cycles):
        await asyncio.sleep(0)


def led() -> Fit:
    """A fit that leads, at its first boundary."""
    fit = Fit()
    fit.answers.start(boundary(0))
    fit.boundary(0)
    fit.replay.delivery.touch()
    return fit


def stage(*outcomes: Outcome, end: Boundary | None = None, failures: int = 0, deaths: int = 0) -> Stage:
    return Stage(outcomes=outcomes, end=end, failures=failures, deaths=deaths)


def keys(records: Iterable[Record]) -> list[str]:
    return [record.key for record in records if isinstance(record, Answer)]
