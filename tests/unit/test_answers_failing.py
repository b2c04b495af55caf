"""Requests that fail: their failures have a turn, are recorded, and fail again in a replay without being sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from distributed_backup.checkpoints.journal_format import Answer, Failed, Outcome, Record, Unanswered, apply
from distributed_backup.errors import RecordedFailureError
from distributed_backup.training import delivery
from tests.support.answering import END, JSON, Fit, answer, boundary, ended, led, quiet, stage
from tests.support.journals import DictStorage, found, header, state, write


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(main())  # type: ignore[arg-type]


def outcomes(fit: Fit) -> list[Outcome]:
    """Return what the fit has recorded of requests."""
    return [record for record in fit.writer.records if isinstance(record, Answer | Unanswered)]


class BusyError(Exception):
    status_code = 429


def test_a_failure_has_its_turn_as_an_answer_has() -> None:
    """Training may go on without the answer, so what it does then depends on the answers before the failure."""

    async def main() -> None:
        fit = led()
        fit.writer.is_durable = False
        first, attempt = fit.ask("a"), fit.ask("b")
        await quiet()
        fit.respond("a", 1)
        await quiet()
        fit.respond("b", BusyError())
        await quiet()
        assert not attempt.done()
        fit.writer.flush()
        await quiet()
        assert (first.result(), type(attempt.exception())) == (1, BusyError)
        failure = Unanswered(key="b", number=0, error="BusyError", status=429)
        assert fit.writer.records == [answer("a", 1), failure]

        again = Fit()
        again.begin(stage(*outcomes(fit), end=boundary(1)))
        attempt = again.ask("b")
        await quiet()
        assert not attempt.done()
        again.ask("a")
        await quiet()
        error = attempt.exception()
        assert isinstance(error, RecordedFailureError)
        assert (error.error, error.status_code, again.asked) == ("BusyError", 429, [])
        again.boundary(1)
        assert again.events == [("replayed", {"answers": 1, "epoch": 0, "batch": 1})]

    run(main)


@pytest.mark.parametrize("status", [None, "429", True, 7, 10**40, 4.5])
def test_a_status_that_is_none_of_http_is_not_recorded(status: object) -> None:
    async def main() -> None:
        error = RuntimeError()
        error.status_code = status  # type: ignore[attr-defined]
        fit = led()
        fit.ask("a").add_done_callback(lambda task: task.exception())
        await quiet()
        fit.respond("a", error)
        await quiet()
        assert fit.writer.records == [Unanswered(key="a", number=0, error="RuntimeError", status=None)]

    run(main)


def test_all_failures_of_a_request_are_replayed_before_its_answer() -> None:
    async def main() -> None:
        failures = [Unanswered(key="a", number=0, error=f"E{number}") for number in range(2)]
        fit = Fit()
        fit.begin(stage(*failures, answer("b", 2), answer("a", 1)))
        fit.ask("b")
        for number in range(2):
            with pytest.raises(RecordedFailureError, match=f"E{number}"):
                await fit.ask("a")
        assert (await fit.ask("a"), fit.got, fit.asked) == (1, [2, 1], [])

    run(main)


def test_a_request_whose_failure_was_replayed_to_the_end_of_the_log_is_sent_again() -> None:
    async def main() -> None:
        fit = Fit()
        fit.begin(stage(Unanswered(key="a", number=0, error="E")))
        with pytest.raises(RecordedFailureError):
            await fit.ask("a")
        await fit.answered("a", 1)
        assert (fit.got, fit.writer.records) == ([1], [answer("a", 1)])

    run(main)


def test_a_failure_that_is_cancelled_before_its_turn_is_that_of_the_retry() -> None:
    """It is recorded, so a replay has it, too."""

    async def main() -> None:
        fit = led()
        fit.writer.is_durable = False
        attempt = await fit.answered("a", BusyError())
        attempt.cancel()
        await quiet()
        retry = fit.ask("a")
        await quiet()
        fit.writer.flush()
        await quiet()
        assert (type(retry.exception()), fit.asked) == (BusyError, ["a"])
        fit.ask("a")
        await quiet()
        assert fit.asked == ["a", "a"]

    run(main)


def test_a_failure_without_a_key_or_without_a_journal_is_raised_and_not_recorded() -> None:
    async def main() -> None:
        fit = led()
        for key in (None, "a"):
            attempt = fit.ask(key)
            await quiet()
            if key is not None:
                fit.answers.close()
            fit.respond(str(key), BusyError())
            await quiet()
            assert type(attempt.exception()) is BusyError
        assert fit.writer.records == []

    run(main)


def test_a_batch_that_is_undone_fails_again_where_it_failed() -> None:
    async def main() -> None:
        fit = led()
        fit.answers.mark()
        attempt = await fit.answered("a", BusyError())
        assert type(attempt.exception()) is BusyError
        fit.answers.rewind()
        with pytest.raises(RecordedFailureError, match="BusyError"):
            await fit.ask("a")
        assert (fit.asked, len(fit.writer.records)) == (["a"], 1)

    run(main)


@pytest.mark.parametrize("is_seen", [False, True])
def test_an_exception_is_recorded_with_the_outcomes_that_training_had_not_seen(is_seen: bool) -> None:
    """The answer of a parallel request is written while the failure leaves the fit."""

    async def main() -> None:
        fit = led()
        fit.writer.is_durable = False

        async def train() -> None:
            try:
                await fit.ask("a")
            except BusyError as error:
                if is_seen:
                    await fit.ask("b")
                fit.answers.failed(error)

        trains, parallel = asyncio.ensure_future(train()), fit.ask("b")
        await quiet()
        fit.respond("a", BusyError())
        await quiet()
        fit.respond("b", 1)
        await quiet()
        fit.writer.flush()
        await quiet()
        if is_seen:
            await fit.answered("b", 2)
            fit.writer.flush()
        await trains
        assert await parallel == 1
        assert fit.writer.records[-1] == Failed(error="BusyError", unseen=0 if is_seen else 1)

    run(main)


@pytest.mark.parametrize("how", ["replayed", "elected", "elected without a log"])
def test_an_answer_of_the_log_that_was_not_seen_is_not_the_cause_of_an_exception(how: str) -> None:
    """The worker that recorded it was killed before its fit ended. The failure is the cause: it is sent again."""

    async def main() -> None:
        fit = Fit()
        early = replace(answer("b", 1), since_failure=1)
        recorded: list[Outcome] = [Unanswered(key="a", number=0, error="APIError"), early]
        if how == "replayed":
            fit.begin(stage(*recorded))
        else:
            fit.follow(*recorded)
            fit.replay.end_of_log(ended(None if how == "elected without a log" else END))
        with pytest.raises(RecordedFailureError) as raised:
            await asyncio.gather(fit.ask("a"), fit.ask("b"))
        fit.answers.failed(raised.value)
        found = fit.writer.records[-1]
        assert found == Failed(error="RecordedFailureError", unseen=1)
        apply(found, recorded)
        assert recorded == [answer("b", 1)]

    run(main)


@pytest.mark.parametrize("is_seen", [False, True])
def test_a_failure_that_an_earlier_fit_went_on_after_is_not_sent_again(is_seen: bool) -> None:
    """A replay ends by another exception, before or right after it. The answers behind it fit no other one."""

    async def main() -> None:
        fit = Fit()
        recorded: list[Outcome] = [answer("x", 0), Unanswered(key="a", number=0, error="APIError"), answer("b", 1)]
        before = list(recorded)
        fit.begin(stage(*recorded))

        async def train() -> None:
            await fit.ask("x")
            with suppress(RecordedFailureError):
                if is_seen:
                    await fit.ask("a")
            fit.answers.failed(ValueError())

        await train()
        found = fit.writer.records[-1]
        assert found == Failed(error="ValueError", unseen=1 if is_seen else 2)
        assert not found.causes(recorded)
        apply(found, recorded)
        assert recorded == before

    run(main)


@pytest.mark.parametrize("follows", [False, True])
def test_of_two_failures_only_the_one_that_ends_the_fit_is_sent_again(follows: bool) -> None:
    """Training has asked for a fallback after the first one. Its answer belongs to no other course."""

    async def train(fit: Fit) -> Any:
        async def with_fallback() -> Any:
            try:
                return await fit.ask("a")
            except (BusyError, RecordedFailureError):
                return await fit.ask("fallback")

        try:
            return await asyncio.gather(with_fallback(), fit.ask("c"))
        except BusyError as error:
            fit.answers.failed(error)

    async def main() -> None:
        fit = led()
        trains = asyncio.ensure_future(train(fit))
        await quiet()
        fit.respond("a", BusyError())
        await quiet()
        fit.writer.is_durable = False
        for key, outcome in (("c", BusyError()), ("fallback", 5)):
            fit.respond(key, outcome)
            await quiet()
        fit.writer.flush()
        await trains
        again, records = Fit(), list(fit.writer.records)
        assert [type(record) for record in records] == [Unanswered, Unanswered, Answer, Failed]
        if follows:
            again.follow(*records)
        else:
            kept: list[Outcome] = []
            for record in records:
                apply(record, kept)
            again.begin(stage(*kept))
        trains = asyncio.ensure_future(train(again))
        await quiet()
        if follows:
            again.replay.extend([answer("c", 2)])
        else:
            again.respond("c", 2)
        assert await asyncio.wait_for(trains, 5.0) == [5, 2]
        assert (again.asked, again.lost) == ([] if follows else ["c"], [])

    run(main)


def test_an_outcome_of_an_undone_batch_counts_once_among_the_unseen() -> None:
    """It is in the journal, and its request is made again. The cancelled one still waits for the append."""

    async def main() -> None:
        fit = led()
        fit.writer.is_durable = False
        fit.answers.mark()
        request = await fit.answered("a", 1)
        request.cancel()
        await quiet()
        fit.answers.rewind()
        fit.answers.failed(ValueError())
        assert fit.writer.records == [answer("a", 1), Failed(error="ValueError", unseen=1)]

    run(main)


def test_a_retry_of_what_was_cancelled_does_not_count_as_unseen() -> None:
    """The request of an answer is cancelled, and made again after its turn. Its record is before the failure."""

    async def main() -> None:
        fit = led()
        fit.writer.is_durable = False
        (await fit.answered("x", 1)).cancel()
        await quiet()
        fit.writer.flush()
        await quiet()

        async def train() -> None:
            try:
                await fit.ask("a")
            except BusyError as error:
                fit.answers.failed(error)

        trains = asyncio.ensure_future(train())
        await quiet()
        fit.respond("a", BusyError())
        await quiet()
        retry = fit.ask("x")
        await quiet()
        fit.writer.flush()
        await asyncio.gather(trains, retry)
        assert fit.writer.records[-1] == Failed(error="BusyError", unseen=0)

    run(main)


def test_a_retry_of_what_was_withdrawn_leaves_the_count_of_a_new_leader_alone() -> None:
    """The place of the withdrawn answer is one of another log."""

    async def main() -> None:
        fit = led()
        for key in "cde":
            await fit.answered(key, 1)
        fit.writer.is_durable = False
        (await fit.answered("x", 1)).cancel()
        await quiet()
        fit.step_down()
        retry = fit.ask("x")
        await quiet()
        fit.replay.end_of_log(ended(END))
        fit.writer.flush()  # the segment. The answer is recorded again, and waits
        requests = [retry, fit.ask("a"), fit.ask("b")]
        for key, response in (("a", BusyError()), ("b", 2)):
            await quiet()
            fit.respond(key, response)
        fit.writer.flush()
        await asyncio.gather(*requests, return_exceptions=True)
        found = fit.writer.records[-1]
        assert isinstance(found, Answer)
        assert found.since_failure == 1

    run(main)


@pytest.mark.parametrize("key", [None, "x"])
def test_an_answer_that_is_not_recorded_makes_a_replay_ask_for_no_other(
    monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """The request of the recorded answer behind it depends on it."""
    monkeypatch.setattr(delivery, "WARN_LIMIT", 0.0)

    async def train(fit: Fit) -> None:
        for each in ("w", key, "y"):
            await fit.ask(each)

    async def main() -> None:
        fit = led()
        trains = asyncio.ensure_future(train(fit))
        for each, response in (("w", 0), (str(key), {1}), ("y", 2)):
            await quiet()
            fit.respond(each, response)
        await trains
        again = Fit()
        again.begin(stage(*outcomes(fit)))
        trains = asyncio.ensure_future(train(again))
        await quiet()
        again.respond(str(key), {1})
        await asyncio.wait_for(trains, 5.0)
        assert (trains.done(), again.asked, again.events_seen) == (True, [str(key)], ["replayed"])

    run(main)


async def drained(fit: Fit, *chunks: int) -> list[Any]:
    async def stream() -> AsyncIterator[int]:
        for chunk in chunks:
            yield chunk

    async def request() -> Any:
        fit.asked.append("s")
        return stream()

    return [chunk async for chunk in await fit.answers.ask_stream("s", request, JSON)]


def test_a_stream_whose_request_fails_is_replayed_as_a_failure() -> None:
    async def main() -> None:
        fit = led()

        async def refuse() -> Any:
            raise BusyError

        with pytest.raises(BusyError):
            await fit.answers.ask_stream("s", refuse, JSON)
        await drained(fit, 1, 2)
        failure = Unanswered(key="s", number=0, error="BusyError", status=429)
        assert fit.writer.records == [failure, answer("s", [1, 2])]

        again = Fit()
        again.begin(stage(*outcomes(fit)))
        with pytest.raises(RecordedFailureError, match="BusyError"):
            await drained(again)
        assert (await drained(again), again.asked) == ([1, 2], [])

    run(main)


def test_a_failure_that_ends_each_start_voids_no_answer() -> None:
    """The log has an answer behind it that training never comes to. Only the failure is sent again, at each start."""
    early = replace(answer("b", 1), since_failure=1)
    journal: list[Record] = [Unanswered(key="a", number=0, error="APIError"), early]

    async def start() -> list[str]:
        storage, fit = DictStorage(), Fit()
        write(storage, header(1, 0, digests=state(0)), *journal)
        log = found(storage, 0)
        assert log is not None
        fit.begin(log.next_stage())
        fit.replay.delivery.touch()

        async def train() -> None:
            try:
                await asyncio.gather(fit.ask("a"), fit.ask("b"))
            except (BusyError, RecordedFailureError) as error:
                fit.answers.failed(error)

        trains = asyncio.ensure_future(train())
        await quiet()
        if fit.requests:
            fit.respond("a", BusyError())
        await trains
        mark = fit.writer.steps[-1][3] if fit.writer.names[-1] == "continue_log" else None
        journal.extend([*([mark] if mark else []), *fit.writer.records])
        return fit.asked

    assert [asyncio.run(start()) for _ in range(4)] == [[], ["a"], ["a"], ["a"]]
