"""Test how the requests of a fit are answered: from the log, or by asking, and after cancellations and failures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import orjson
import pytest

from distributed_backup.clock import SystemClock
from distributed_backup.errors import RecordedFailureError
from distributed_backup.training.answers import Answers
from distributed_backup.training.codec import Codec
from distributed_backup.training.delivery import FIRST_LIMIT, STALL_LIMIT
from distributed_backup.training.doubt import Doubt
from distributed_backup.training.replay import Replay
from tests.support import journals
from tests.support.journals import DictStorage, Gate, boundary

JSON = Codec(orjson.dumps, orjson.loads)


class Fit:
    """One fit on a journal: a model that answers each request with the next number, and what the fit has seen."""

    def __init__(self, storage: DictStorage, *, is_resumed: bool = False, first: int = 0) -> None:
        self.bench = journals.Bench(storage, SystemClock(), term=2 if is_resumed else 1)
        self.events: list[str] = []
        doubt = Doubt(is_certain=lambda: True, exists=lambda: False, give_up=lambda: None)
        self.replay = Replay(self.bench.writer, self._report, lambda reason: self.events.append("lost"), doubt)
        self.answers = Answers(self.bench.writer, self.replay, doubt)
        self.answers.start(boundary(1))
        self.sent = 0
        self._next = first
        self.replies: list[Callable[[], Awaitable[Any]]] = []
        """What the next requests do in place of an answer."""
        log = journals.found(storage, 1) if is_resumed else None
        if log is None:
            self.bench.begin(1)
        else:
            self.replay.begin(log, boundary(1))

    def _report(self, kind: str, /, **fields: Any) -> None:
        self.events.append(kind)

    async def model(self) -> Any:
        self.sent += 1
        if self.replies:
            return await self.replies.pop(0)()
        self._next += 1
        return self._next - 1

    async def ask(self, key: str = "k") -> Any:
        return await self.answers.ask(key, self.model, JSON)

    async def stream(self, key: str = "k") -> list[Any]:
        async def chunks() -> AsyncIterator[Any]:
            number = await self.model()
            for part in "ab":
                yield f"{part}{number}"

        async def request() -> Any:
            return chunks()

        return [chunk async for chunk in await self.answers.ask_stream(key, request, JSON)]

    def close(self) -> None:
        self.bench.writer.close(timeout=journals.PATIENCE)


@pytest.fixture
def storage() -> DictStorage:
    return DictStorage()


@pytest.fixture
def fit(storage: DictStorage) -> Iterator[Callable[..., Fit]]:
    made: list[Fit] = []

    def make(**options: Any) -> Fit:
        made.append(Fit(storage, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def recorded(storage: DictStorage) -> list[Any]:
    """Return number and value of each recorded answer, in order."""
    reader = journals.found(storage, 1)
    assert reader is not None
    return [(each.number, orjson.loads(each.value)) for each in reader.next_stage().answers]


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(journals.PATIENCE):
        while not check():
            await asyncio.sleep(0.001)


async def gathered(*requests: Awaitable[Any]) -> list[Any]:
    return list(await asyncio.gather(*requests))


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_resumed_fit_gets_the_recorded_answers_and_asks_for_the_rest(fit: Callable[..., Fit]) -> None:
    """Equal requests get their answers in the order in which they were made."""

    async def run() -> None:
        first = fit()
        assert await gathered(first.ask(), first.ask(), first.ask("other")) == [0, 1, 2]
        first.close()
        second = fit(is_resumed=True, first=100)
        assert await gathered(*(second.ask(key) for key in ("other", "k", "k", "k"))) == [2, 0, 1, 100]
        assert second.sent == 1
        assert second.events == ["replayed"]

    asyncio.run(run())


def test_a_retry_takes_the_place_of_the_request_that_failed(fit: Callable[..., Fit], storage: DictStorage) -> None:
    """A replay fails as the interrupted fit did, and sends nothing."""

    async def fail() -> Any:
        raise ConnectionError

    async def run() -> None:
        first = fit()
        first.replies.append(fail)
        with pytest.raises(ConnectionError):
            await first.ask()
        assert await first.ask() == 0
        first.close()
        assert recorded(storage) == [(0, 0)]
        again = fit(is_resumed=True)
        with pytest.raises(RecordedFailureError, match="ConnectionError"):
            await again.ask()
        assert (await again.ask(), again.sent) == (0, 0)

    asyncio.run(run())


# -------------------------------------------------------------------- cancellations, which retries of synalinks catch


@pytest.mark.parametrize("method", ["ask", "stream"])
def test_the_retry_of_a_request_that_was_cancelled_with_its_answer_takes_that_answer(
    fit: Callable[..., Fit], storage: DictStorage, method: str
) -> None:
    """The answer waits to become durable, and is paid for. Another one would be of a request that no replay makes."""
    gate = Gate()
    storage.before_append = gate

    async def run() -> None:
        first = fit()
        ask = getattr(first, method)
        task = asyncio.create_task(ask())
        await until(gate.entered.is_set)
        await cancel(task)
        retry = asyncio.create_task(ask())
        await asyncio.sleep(0)
        gate.opened.set()
        wanted = 0 if method == "ask" else ["a0", "b0"]
        assert await retry == wanted
        assert first.sent == 1
        first.close()
        assert [number for number, _ in recorded(storage)] == [0]
        second = fit(is_resumed=True)
        assert await getattr(second, method)() == wanted
        assert second.sent == 0

    asyncio.run(run())


def test_the_answer_of_a_cancelled_request_is_not_handed_out_before_it_is_durable(
    fit: Callable[..., Fit], storage: DictStorage
) -> None:
    """Its retry waits as the request itself would have."""
    gate = Gate()
    storage.before_append = gate

    async def run() -> None:
        first = fit()
        task = asyncio.create_task(first.ask())
        await until(gate.entered.is_set)
        await cancel(task)
        retry = asyncio.create_task(first.ask())
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not retry.done()
        gate.opened.set()
        assert await retry == 0

    asyncio.run(run())


def test_the_retry_of_a_request_that_was_cancelled_in_a_replay_takes_the_recorded_answer(
    fit: Callable[..., Fit],
) -> None:
    """Without it, the retry would ask again, and the replay would wait for a request that is not made any more."""
    assert STALL_LIMIT > journals.PATIENCE

    async def run() -> None:
        first = fit()
        assert await gathered(first.ask("a"), first.ask("b")) == [0, 1]
        first.close()
        second = fit(is_resumed=True)
        # Its turn comes after that of "a".
        task = asyncio.create_task(second.ask("b"))
        await asyncio.sleep(0)
        await cancel(task)
        retry = asyncio.create_task(second.ask("b"))
        await asyncio.sleep(0)
        assert await second.ask("a") == 0
        assert await retry == 1
        assert second.sent == 0
        assert second.events == ["replayed"]

    asyncio.run(run())


def test_a_request_that_is_cancelled_while_the_model_works_is_asked_again(
    fit: Callable[..., Fit], storage: DictStorage
) -> None:
    """Its retry has the same number, so a replay finds the answer."""

    async def hang() -> Any:
        await asyncio.Event().wait()

    async def run() -> None:
        first = fit()
        first.replies.append(hang)
        task = asyncio.create_task(first.ask())
        await until(lambda: first.sent == 1)
        await cancel(task)
        assert await first.ask() == 0
        first.close()
        assert recorded(storage) == [(0, 0)]

    asyncio.run(run())


def test_an_answer_that_was_cancelled_is_of_its_stage_only(fit: Callable[..., Fit], storage: DictStorage) -> None:
    """An equal request after the next boundary is another one."""
    gate = Gate()
    storage.before_append = gate

    async def run() -> None:
        first = fit()
        task = asyncio.create_task(first.ask())
        await until(gate.entered.is_set)
        await cancel(task)
        gate.opened.set()
        first.answers.boundary(journals.at(2), lambda: journals.state(2), due=False)
        assert await first.ask() == 1

    asyncio.run(run())


def test_a_follower_that_was_cancelled_waits_for_the_same_answer_again(fit: Callable[..., Fit]) -> None:
    """Also if the record of the leader has come together with the cancellation."""

    async def run() -> None:
        for is_simultaneous in (False, True):
            follower = fit()
            follower.replay.follow(boundary(1))
            task = asyncio.create_task(follower.ask())
            await asyncio.sleep(0)
            if is_simultaneous:
                follower.replay.extend([journals.answer(0)])
            await cancel(task)
            retry = asyncio.create_task(follower.ask())
            await asyncio.sleep(0)
            if not is_simultaneous:
                follower.replay.extend([journals.answer(0)])
            async with asyncio.timeout(journals.PATIENCE):
                assert await retry == 0
            assert follower.sent == 0

    asyncio.run(run())


@pytest.mark.parametrize("method", ["ask", "stream"])
def test_a_failure_that_is_cancelled_before_its_turn_is_raised_by_the_retry(
    fit: Callable[..., Fit], storage: DictStorage, method: str
) -> None:
    """Also if the request is one for a stream. A failure among its chunks would not be retried."""
    gate = Gate()
    storage.before_append = gate

    async def fail() -> Any:
        raise ConnectionError

    async def run() -> None:
        first = fit()
        ask = first.answers.ask if method == "ask" else first.answers.ask_stream
        task = asyncio.create_task(ask("k", fail, JSON))
        await until(gate.entered.is_set)
        await cancel(task)
        gate.opened.set()
        with pytest.raises(ConnectionError):
            await ask("k", fail, JSON)

    asyncio.run(run())


def test_a_batch_that_is_undone_while_its_answer_is_recorded_gets_that_answer(fit: Callable[..., Fit]) -> None:
    """The batch of a standby is cancelled while it is in doubt who leads, so answers wait at that time."""

    async def run() -> None:
        first = fit()
        first.answers.boundary(journals.at(2), lambda: journals.state(2), due=True)
        gate = Gate()
        first.bench.storage.before_append = gate
        first.answers.mark()
        task = asyncio.create_task(first.ask())
        await until(gate.entered.is_set)
        await cancel(task)
        first.answers.rewind()
        gate.opened.set()
        async with asyncio.timeout(FIRST_LIMIT / 2):
            assert await first.ask() == 0
        assert first.sent == 1

    asyncio.run(run())


# -------------------------------------------------------------------- what can't be kept


def test_an_answer_of_another_version_is_asked_for_again(
    fit: Callable[..., Fit], storage: DictStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning says so. The answers after it are replayed."""

    def refuse(value: bytes) -> Any:
        if value == b"0":
            raise ValueError("another version")
        return orjson.loads(value)

    async def run() -> None:
        first = fit()
        assert await gathered(first.ask(), first.ask()) == [0, 1]
        first.close()
        second = fit(is_resumed=True, first=100)
        codec = Codec(orjson.dumps, refuse)
        asked = [second.answers.ask("k", second.model, codec) for _ in range(2)]
        with caplog.at_level(logging.WARNING):
            assert await gathered(*asked) == [100, 1]
        assert "can't be used" in caplog.text

    asyncio.run(run())
