"""Requests of the leader that have no answer in its log, as its followers see them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from distributed_backup.checkpoints.journal_format import Failed, Left, Unanswered, Unrecorded
from distributed_backup.errors import RecordedFailureError
from tests.support.answering import END, Fit, answer, boundary, ended, quiet
from tests.support.journals import header


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(main())  # type: ignore[arg-type]


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
