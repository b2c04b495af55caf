"""A worker that loses the lead and leads again while its requests are under way: what was recorded meanwhile counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from distributed_backup.checkpoints.journal_format import Answer
from tests.support.answering import END, JSON, Fit, answer, ended, keys, led, quiet, work


def test_its_own_answers_to_the_same_requests_come_later_and_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast one waits for the slow one before it."""
    monkeypatch.setattr("distributed_backup.training.delivery.FIRST_LIMIT", 0.0)

    async def main() -> None:
        fit = led()
        fit.ask("a")
        fit.ask("b")
        await quiet()
        lead_again(fit, answer("b", "of another leader"))
        fit.respond("a", "of this worker")
        await quiet()
        await work(100)
        assert fit.got == []
        fit.respond("b", "of this worker")
        await quiet()
        assert (fit.got, keys(fit.writer.records)) == (["of another leader", "of this worker"], ["a"])

    asyncio.run(main())


@pytest.mark.parametrize("leads_again", [False, True])
def test_a_stream_that_could_not_be_sent_gets_the_recorded_chunks(leads_again: bool) -> None:
    async def main() -> None:
        fit = led()
        chunks: list[Any] = []

        async def read() -> None:
            async for chunk in await fit.answers.ask_stream("s", lambda: fit._request("s"), JSON):
                chunks.append(chunk)

        reading = asyncio.ensure_future(read())
        await quiet()
        lead_again(fit, Answer(key="s", number=0, value=b"[1,2]"), leads_again=leads_again)
        fit.respond("s", ConnectionError())
        await quiet()
        assert (reading.done(), chunks, fit.lost, fit.writer.records) == (True, [1, 2], [], [])

    asyncio.run(main())


def test_it_records_nothing_if_its_training_has_seen_other_chunks_of_a_stream() -> None:
    """The journal would be of another training. It is started again, and takes the recorded chunks then."""

    async def main() -> None:
        fit = led()
        more: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def chunks() -> AsyncIterator[int]:
            yield 1
            yield await more

        async def request() -> AsyncIterator[int]:
            return chunks()

        stream = await fit.answers.ask_stream("s", request, JSON)
        assert await anext(stream) == 1
        lead_again(fit, Answer(key="s", number=0, value=b"[3,4]"))
        more.set_result(2)
        assert await anext(stream) == 2
        assert await anext(stream, None) is None
        assert (fit.events_seen, fit.writer.names[-1], len(fit.lost)) == (["diverged"], "give_up", 1)

    asyncio.run(main())


def lead_again(fit: Fit, recorded: Answer, *, leads_again: bool = True) -> None:
    """Follow another worker, read what it has recorded, and lead again."""
    fit.step_down()
    fit.replay.extend([recorded])
    if leads_again:
        fit.replay.end_of_log(ended(END))


@pytest.mark.parametrize("ends_by", ["rewind", "boundary"])
def test_a_stream_that_is_closed_later_does_not_give_its_number_to_two_requests(ends_by: str) -> None:
    """Of a batch that was cut off, or that did not read it to its end. It is closed when it is collected."""

    async def main() -> None:
        fit = led()
        fit.answers.mark()

        async def chunks() -> AsyncIterator[int]:
            yield 1
            yield 2

        async def request() -> AsyncIterator[int]:
            return chunks()

        stream = await fit.answers.ask_stream("s", request, JSON)
        assert await anext(stream) == 1
        if ends_by == "rewind":
            fit.answers.rewind()
        else:
            fit.boundary(2)
        first = fit.ask("s")
        await quiet()
        await stream.aclose()
        second = fit.ask("s")
        await quiet()
        fit.respond("s", "first")
        fit.respond("s", "second")
        await asyncio.wait([first, second])
        recorded = [record for record in fit.writer.records if isinstance(record, Answer)]
        assert [record.number for record in recorded] == [0, 1]

    asyncio.run(main())
