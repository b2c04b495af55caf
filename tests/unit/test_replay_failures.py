"""Requests of the leader that have no answer in its log, as its followers see them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_backup.checkpoints.journal_format import (
    Answer,
    Failed,
    Left,
    Outcome,
    Record,
    Unanswered,
    Unrecorded,
    Void,
    apply,
)
from distributed_backup.errors import RecordedFailureError
from tests.support.answering import END, Fit, answer, boundary, ended, led, quiet, stage, work
from tests.support.journals import header


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(main())  # type: ignore[arg-type]


class APIError(Exception):
    status_code = 503


def failed(key: str, number: int = 0) -> Unanswered:
    return Unanswered(key=key, number=number, error="APIError", status=503)


@pytest.mark.parametrize("is_late", [False, True])
def test_a_request_of_the_leader_that_failed_fails_here_too_and_its_retry_is_answered(is_late: bool) -> None:
    """The follower comes to the request before or after the leader's failure is read."""

    async def main() -> None:
        fit = Fit()
        fit.follow()
        records = (failed("a"), failed("a"), answer("a", 1))
        if is_late:
            fit.replay.extend(records)
        attempt = fit.ask("a")
        await quiet()
        for record in () if is_late else records:
            fit.replay.extend([record])
        for _ in range(2):
            with pytest.raises(RecordedFailureError, match="APIError and HTTP status 503"):
                await attempt
            attempt = fit.ask("a")
        assert (await attempt, fit.asked, fit.lost) == (1, [], [])

    run(main)


@pytest.mark.parametrize("goes_on", [False, True])
def test_what_may_end_the_fit_of_the_leader_does_not_end_that_of_a_follower(goes_on: bool) -> None:
    """The network of the leader may be broken. A restarted leader sends the request again, and so does a successor."""

    async def main() -> None:
        fit = Fit()
        fit.follow(answer("b", 0))
        request = fit.ask("a")
        await fit.ask("b")
        fit.replay.extend([failed("a"), failed("a")])
        await quiet()
        assert not request.done()
        fit.replay.extend([Failed(error="APIError"), Left()])
        if goes_on:
            fit.replay.extend([header(2, 0), answer("a", 1)])
        else:
            fit.replay.end_of_log(ended(END))
            await quiet()
            fit.respond("a", 1)
        assert (await request, fit.asked) == (1, [] if goes_on else ["a"])

    run(main)


async def recorded_with(when: str, *, is_replayed: bool) -> list[Record]:
    """Return what a leader records whose request `a` fails, and ends its fit unless the answer of `b` comes `later`."""
    leader = Fit() if is_replayed else led()
    if is_replayed:
        leader.begin(stage(answer("x", 0), end=boundary(1)), stage(failed("a")))
        await leader.ask("x")
        await quiet()
        leader.boundary(1)

    async def train() -> None:
        try:
            await leader.ask("a")
        except (APIError, RecordedFailureError) as error:
            if when == "as training acts on the failure":
                leader.respond("b", 1)
                await work(5)
            if when == "later":
                await goes_on.wait()
            leader.answers.failed(error)

    goes_on, parallel = asyncio.Event(), leader.ask("b")
    await quiet()
    if when == "before training sees the failure" and is_replayed:
        leader.respond("b", 1)
        await quiet()
    trains = asyncio.ensure_future(train())
    await quiet()
    if not is_replayed:
        leader.requests["a"].pop().set_exception(APIError())
    if when == "before training sees the failure" and not is_replayed:
        leader.respond("b", 1)
    await quiet()
    if when == "later":
        leader.respond("b", 1)
        await quiet()
        goes_on.set()
    await trains
    assert await parallel == 1
    return [failed("a"), *leader.writer.records] if is_replayed else leader.writer.records


@pytest.mark.parametrize("is_replayed", [False, True])
@pytest.mark.parametrize("when", ["before training sees the failure", "as training acts on the failure", "later"])
def test_an_answer_shows_that_the_leader_has_gone_on_only_if_its_training_had_seen_the_failure(
    when: str, is_replayed: bool
) -> None:
    """So what ends the fit of the leader ends no other. The answer that came meanwhile is used."""

    async def main() -> None:
        records = await recorded_with(when, is_replayed=is_replayed)
        assert [type(record) for record in records] == [Unanswered, Answer, Failed]
        fit = Fit()
        fit.follow()
        a, b = fit.ask("a"), fit.ask("b")
        await quiet()
        fit.replay.extend(records)
        await quiet()
        assert a.done() == (when == "later")
        if when == "later":
            with pytest.raises(RecordedFailureError):
                await a
            return
        fit.replay.extend([Left(), header(2, 0), answer("a", 2)])
        assert (await a, await b, fit.got, fit.asked) == (2, 1, [1, 2], [])

    run(main)


def test_a_follower_that_has_seen_the_failure_itself_waits_for_nothing() -> None:
    """It had led, and its training has gone on."""

    async def main() -> None:
        fit = led()
        request = await fit.answered("a", APIError())
        with pytest.raises(APIError):
            await request
        fit.step_down()
        fit.replay.extend([replace(answer("b", 1), since_failure=1)])
        assert await fit.ask("b") == 1

    run(main)


@given(
    st.lists(
        st.one_of(
            st.builds(Unanswered, key=st.uuids().map(str), number=st.just(0), error=st.just("E")),
            st.builds(
                Answer, key=st.uuids().map(str), number=st.just(0), value=st.just(b"1"), since_failure=st.integers(0, 4)
            ),
            st.builds(Failed, error=st.just("E"), unseen=st.integers(0, 4)),
        )
    )
)
def test_a_follower_finds_what_a_restart_finds(records: list[Record]) -> None:
    """After each record, and in the same order. What may still be taken back is held."""

    async def main() -> None:
        fit, outcomes = Fit(), list[Outcome]()
        fit.follow()
        for record in records:
            apply(record, outcomes)
            fit.replay.extend([record])
            assert outcomes[: len(fit.replay.outcomes)] == fit.replay.outcomes
        fit.replay.extend([boundary(1)])
        assert (fit.replay.outcomes, fit.lost) == (outcomes, [])

    run(main)


@pytest.mark.parametrize("is_ahead", [False, True])
@pytest.mark.parametrize("record", [failed("a"), answer("a", 1)], ids=["a failure", "an answer"])
def test_who_has_used_what_is_taken_back_does_not_lead(record: Outcome, is_ahead: bool) -> None:
    """A restart asks again. What this worker would record behind it belongs to another course."""

    async def main() -> None:
        fit = led()
        request = await fit.answered("a", APIError() if isinstance(record, Unanswered) else 1)
        await asyncio.gather(request, return_exceptions=True)
        fit.step_down()
        if is_ahead:
            fit.boundary(1)
        taken_back = [Failed(error="E")] if isinstance(record, Unanswered) else [Failed(error="E")] * 2 + [Void()]
        fit.replay.extend(taken_back)
        assert fit.lost == ["the leader asks again for what this worker has used"]
        fit.replay.end_of_log(ended(END))
        assert "continue_log" not in fit.writer.names

    run(main)


def test_a_follower_that_is_ahead_and_has_used_void_answers_does_not_lead() -> None:
    async def main() -> None:
        fit = Fit()
        fit.follow(answer("a", 1))
        await fit.ask("a")
        fit.boundary(1)
        fit.replay.extend([Failed(error="E"), Failed(error="E"), Void(), answer("a", 2)])
        assert fit.lost == ["the leader asks again for what this worker has used"]

    run(main)


def test_a_follower_that_is_ahead_gets_no_answer_of_the_stage_that_it_has_left() -> None:
    async def main() -> None:
        fit = Fit()
        fit.follow()
        fit.boundary(1)
        waits = fit.ask("a")
        await quiet()
        fit.replay.extend([answer("a", "of another stage")])
        await quiet()
        assert not waits.done()
        fit.replay.extend([boundary(1), answer("a", 2)])
        assert (await waits, fit.lost) == (2, [])

    run(main)


def test_an_answer_that_the_leader_can_not_record_loses_the_follower() -> None:
    async def main() -> None:
        fit = Fit()
        fit.follow()
        waits = fit.ask("a")
        await quiet()
        fit.replay.extend([Unrecorded(key="a", number=0)])
        await quiet()
        assert (waits.done(), fit.asked, fit.lost) == (False, [], ["an answer of the leader can't be recorded"])
        waits.cancel()

    run(main)


@pytest.mark.parametrize("leads", [False, True])
def test_a_request_that_outlives_its_batch_is_not_lost_by_an_equal_one(leads: bool) -> None:
    """The follower is ahead of its leader. Both requests wait, and the first answer is that of the first one."""

    async def main() -> None:
        fit = Fit()
        fit.follow()
        first = fit.ask("a")
        await quiet()
        fit.boundary(1)
        second = fit.ask("a")
        await quiet()
        if leads:
            fit.replay.end_of_log(ended(END))
            await quiet()
            assert fit.asked == ["a", "a"]
            for response in (1, 2):
                fit.respond("a", response)
        else:
            fit.replay.extend([boundary(1), answer("a", 1), answer("a", 2)])
        assert (await asyncio.wait_for(first, 5.0), await asyncio.wait_for(second, 5.0)) == (1, 2)

    run(main)


def test_a_new_leader_goes_on_behind_the_failures_of_the_old_one() -> None:
    """They come in their turn, and only the retry is sent."""

    async def main() -> None:
        fit = Fit()
        fit.follow(failed("a"))
        fit.replay.end_of_log(ended(END))
        with pytest.raises(RecordedFailureError):
            await fit.ask("a")
        fit.ask("a")
        await quiet()
        assert fit.asked == ["a"]

    run(main)


def test_a_failure_of_the_leader_is_not_that_of_a_later_stage() -> None:
    async def main() -> None:
        for is_seen in (False, True):
            fit = Fit()
            fit.follow(failed("a"), boundary(1), answer("a", 1))
            if is_seen:
                with pytest.raises(RecordedFailureError):
                    await fit.ask("a")
            fit.boundary(1)
            assert (await fit.ask("a"), fit.lost) == (1, [])

    run(main)
