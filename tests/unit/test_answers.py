"""How requests of a fit are answered: tickets, new answers and the journal, streams, batches that are undone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from distributed_backup.checkpoints import journal_format
from distributed_backup.checkpoints.journal_format import Failed, Unanswered, Unrecorded
from distributed_backup.training import answers, countdown, delivery
from distributed_backup.training.tickets import Tickets
from tests.support.answering import END, JSON, Fit, answer, boundary, ended, keys, led, quiet, stage, until


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(main())  # type: ignore[arg-type]


# ---------------------------------------------------------------- tickets


def test_equal_requests_are_numbered_and_a_retry_takes_the_number_of_its_failure() -> None:
    tickets = Tickets()
    assert [tickets.take("a"), tickets.take("a"), tickets.take("b"), tickets.take("a")] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("a", 2),
    ]
    tickets.give_back(("a", 1))
    tickets.give_back(("a", 0))
    copy = tickets.copy()
    assert [tickets.take("a")[1] for _ in range(3)] == [copy.take("a")[1] for _ in range(3)] == [0, 1, 3]


def test_equal_requests_that_are_answered_in_another_order_are_recorded_with_their_numbers() -> None:
    """The file has the order of the answers, and training sees them in that order."""

    async def main() -> None:
        fit = led()
        first, second = fit.ask("a"), fit.ask("a")
        await quiet()
        sent = fit.requests["a"]
        sent[1].set_result("of the second")
        await quiet()
        sent[0].set_result("of the first")
        await quiet()
        assert (first.result(), second.result()) == ("of the first", "of the second")
        assert fit.got == ["of the second", "of the first"]
        assert fit.writer.records == [answer("a", "of the second", 1), answer("a", "of the first", 0)]

        again = Fit()
        again.begin(stage(answer("a", "of the second", 1), answer("a", "of the first", 0)))
        first, second = again.ask("a"), again.ask("a")
        await quiet()
        assert (first.result(), second.result(), again.got) == (*("of the first", "of the second"), fit.got)

    run(main)


def test_a_request_that_fails_is_noted_and_its_retry_recorded() -> None:
    async def main() -> None:
        fit = led()
        attempt = fit.ask("a")
        await quiet()
        # The text may quote a prompt or a credential, and is not written.
        fit.respond("a", ValueError("xxx"))
        await quiet()
        with pytest.raises(ValueError, match="xxx"):
            attempt.result()
        await fit.answered("a", 1)
        assert fit.writer.records == [Unanswered(key="a", number=0, error="ValueError"), answer("a", 1)]

    run(main)


def test_a_request_that_is_cancelled_is_not_noted_and_gives_its_number_back() -> None:
    async def main() -> None:
        fit = led()
        attempt = fit.ask("a")
        await quiet()
        attempt.cancel()
        await quiet()
        fit.ask("a")
        await quiet()
        fit.requests["a"][1].set_result(1)
        await quiet()
        assert fit.writer.records == [answer("a", 1)]

    run(main)


# ---------------------------------------------------------------- the journal


def test_training_sees_an_answer_after_the_journal_has_it() -> None:
    async def main() -> None:
        fit = led()
        fit.writer.is_durable = False
        await fit.answered("a", 1)
        assert (fit.got, keys(fit.writer.records)) == ([], ["a"])
        fit.writer.flush()
        await quiet()
        assert fit.got == [1]

    run(main)


def test_training_waits_for_no_journal_whose_appends_are_expensive() -> None:
    async def main() -> None:
        fit = led()
        fit.writer.is_durable = fit.writer.is_waited_for = False
        await fit.answered("a", 1)
        assert fit.got == [1]

    run(main)


def test_the_wait_of_a_durable_answer_leaves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the answers of the last seconds would stay in memory."""

    async def main() -> None:
        timers: list[asyncio.TimerHandle] = []
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def later(seconds: float, call: Callable[..., None], *arguments: Any) -> asyncio.TimerHandle:
            timers.append(call_later(seconds, call, *arguments))
            return timers[-1]

        monkeypatch.setattr(loop, "call_later", later)
        fit = led()
        fit.writer.is_durable = False
        await fit.answered("a", 1)
        assert [timer.cancelled() for timer in timers] == [False]
        fit.writer.flush()
        await quiet()
        assert ([timer.cancelled() for timer in timers], fit.got) == ([True], [1])

    run(main)


def test_training_goes_on_while_the_journal_is_slow_and_waits_again_when_it_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once an answer has waited for the limit, the next ones do not."""

    async def main() -> None:
        due: list[Callable[[], None]] = []
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def later(seconds: float, call: Callable[..., None], *arguments: Any) -> Any:
            if seconds != delivery.WRITE_LIMIT / countdown.LOOKS:
                return call_later(seconds, call, *arguments)
            due.append(lambda: call(*arguments))
            return call_later(3600.0, call)

        async def wait(looks: int) -> None:
            for _ in range(looks):
                due.pop(0)()
                await quiet()

        monkeypatch.setattr(loop, "call_later", later)
        fit = led()
        fit.writer.is_durable = False
        for key in ("a", "b"):
            await fit.answered(key, key)
            assert fit.got == []
        # A suspension uses up one look of each.
        await wait(2 * (countdown.LOOKS - 1))
        assert fit.got == []
        await wait(1)
        assert fit.got == ["a"]
        await wait(1)
        await fit.answered("c", "c")
        assert fit.got == ["a", "b", "c"]
        fit.writer.flush()
        await quiet()
        await fit.answered("d", "d")
        assert fit.got == ["a", "b", "c"]
        fit.writer.flush()
        await quiet()
        assert fit.got == ["a", "b", "c", "d"]
        for each in due:
            each()

    with caplog.at_level(logging.WARNING):
        run(main)
    assert [record.getMessage()[:19] for record in caplog.records] == ["the journal is slow"] * 2


@pytest.mark.parametrize("reason", ["class", "size", "key"])
def test_an_answer_that_can_not_be_recorded_reaches_training_in_its_turn(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """A record ends the wait of followers, unless there is no key to name it by."""

    async def main() -> None:
        fit = led()
        fit.writer.is_durable = False
        key = None if reason == "key" else "b"
        fit.ask("a")
        fit.ask(key)
        await quiet()
        response: Any = {"class": object(), "size": "x" * 100, "key": "plain"}[reason]
        monkeypatch.setattr(answers, "MAX_RECORD", 50)
        fit.respond("a", 1)
        await quiet()
        fit.respond(str(key), response)
        await quiet()
        assert fit.got == []
        fit.writer.flush()
        await quiet()
        assert (fit.got, keys(fit.writer.records)) == ([1, response], ["a"])
        assert [record.key for record in fit.writer.records if isinstance(record, Unrecorded)] == ["b"] * (
            key is not None
        )

    assert journal_format.MAX_RECORD > 50
    run(main)


def test_memory_is_flat_in_the_number_of_answers() -> None:
    """Nothing of a stage is kept after the next boundary."""

    async def main() -> None:
        fit = led()
        for batch in range(1, 4):
            await fit.answered("a", batch)
            fit.boundary(batch)
            assert (fit.answers._since.in_order(), fit.replay.outcomes, fit.replay._places) == ([], [], {})
            assert (fit.replay.delivery._places, list(fit.replay.delivery._new)) == ({}, [])

    run(main)


def test_an_exception_that_leaves_the_fit_is_noted_until_the_end() -> None:
    fit = led_without_loop()
    fit.answers.failed(KeyError("x"))
    fit.answers.close()
    fit.answers.failed(ValueError("x"))
    assert fit.writer.records == [Failed(error="KeyError")]


def led_without_loop() -> Fit:
    fit = Fit()
    fit.answers.start(boundary(0))
    return fit


# ---------------------------------------------------------------- streams


async def chunks(*items: Any) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        if isinstance(item, Exception):
            raise item
        yield item


async def drained(fit: Fit, key: str, *items: Any) -> list[Any]:
    async def request() -> Any:
        fit.asked.append(key)
        return chunks(*items)

    stream = await fit.answers.ask_stream(key, request, JSON)
    found = [chunk async for chunk in stream]
    fit.got.append(found)
    return found


def test_a_stream_is_recorded_when_it_is_drained_and_replayed_in_its_turn() -> None:
    async def main() -> None:
        fit = led()
        fit.writer.is_durable = False
        reading = asyncio.ensure_future(drained(fit, "s", 1, "two"))
        await quiet()
        assert fit.got == []
        fit.writer.flush()
        assert await reading == [1, "two"]
        assert fit.writer.records == [answer("s", [1, "two"])]

        again = Fit()
        again.begin(stage(answer("a", 0), answer("s", [1, "two"])))
        reading = asyncio.ensure_future(drained(again, "s"))
        await quiet()
        assert again.got == []
        again.ask("a")
        await reading
        assert (again.got, again.asked) == ([0, [1, "two"]], [])

    run(main)


def test_a_stream_that_breaks_is_not_recorded_and_its_retry_is() -> None:
    async def main() -> None:
        fit = led()
        with pytest.raises(OSError, match="reset"):
            await drained(fit, "s", 1, OSError("reset"))
        await drained(fit, "s", 1, 2)
        assert fit.writer.records == [
            Unrecorded(key="s", number=0),
            answer("s", [1, 2]),
        ]

    run(main)


def test_a_stream_that_is_read_while_another_worker_begins_to_lead_loses_this_one() -> None:
    """Its chunks were used, and the new leader gets others."""

    async def main() -> None:
        fit = led()
        reading = asyncio.ensure_future(drained(fit, "s", 1, 2))
        await asyncio.sleep(0)
        fit.replay.follow(boundary(0))
        await quiet()
        assert len(fit.lost) == 1
        reading.cancel()

    run(main)


# ---------------------------------------------------------------- another worker leads


def test_the_answer_of_the_new_leader_counts_for_a_request_that_was_under_way() -> None:
    async def main() -> None:
        fit = led()
        fit.ask("a")
        await quiet()
        fit.replay.follow(boundary(0))
        fit.respond("a", "of this worker")
        await quiet()
        assert (fit.got, fit.writer.records) == ([], [])
        fit.replay.extend([answer("a", "of the leader")])
        await quiet()
        assert (fit.got, fit.asked) == (["of the leader"], ["a"])

    run(main)


def test_a_worker_that_leads_again_uses_the_answer_that_it_was_waiting_with() -> None:
    """No other worker has recorded one."""

    async def main() -> None:
        fit = led()
        fit.ask("a")
        await quiet()
        fit.replay.follow(boundary(0))
        fit.respond("a", "of this worker")
        await quiet()
        fit.replay.end_of_log(ended(None))
        await quiet()
        assert (fit.got, keys(fit.writer.records)) == (["of this worker"], ["a"])

    run(main)


def test_an_answer_that_was_recorded_in_doubt_is_seen_when_the_worker_leads_still() -> None:
    """The lease has run out, and was renewed."""

    async def main() -> None:
        fit = led()
        fit.ask("a")
        await quiet()
        fit.is_certain, fit.is_in_doubt = False, True
        fit.respond("a", 1)
        await quiet()
        assert (fit.got, keys(fit.writer.records)) == ([], ["a"])
        fit.is_in_doubt = False
        await until(lambda: fit.got == [1])

    run(main)


@pytest.mark.parametrize("how", ["durable", "late", "never", "not recorded"])
def test_an_answer_that_was_recorded_in_doubt_is_not_seen_if_another_worker_leads(
    caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """The new leader has not read it. A suspension may come before the append, after it, or in a slow one."""

    async def main() -> None:
        fit = led()
        fit.writer.is_durable = how == "durable"
        response: Any = {1} if how == "not recorded" else "of this worker"
        fit.ask("a")
        await quiet()
        fit.is_certain, fit.is_in_doubt = False, True
        fit.respond("a", response)
        await quiet()
        if how == "late":
            fit.writer.flush()
        [entry] = fit.replay.delivery._new
        if how == "never":
            fit.answers._new._waited_enough(entry)
        await quiet()
        assert fit.got == []
        fit.step_down()
        fit.answers._new._waited_enough(entry)
        fit.writer.flush()
        await quiet()
        assert (fit.got, fit.since) == ([], (boundary(0), []))
        fit.replay.extend([answer("a", "of the leader")])
        await quiet()
        assert (fit.got, fit.asked, fit.since) == (["of the leader"], ["a"], (boundary(0), fit.replay.outcomes))

    run(main)
    assert "the journal is slow" not in caplog.text


def test_a_worker_that_leads_again_records_an_answer_again_that_it_took_back() -> None:
    """The log of the other worker does not have it."""

    async def main() -> None:
        fit = led()
        fit.writer.is_durable = False
        await fit.answered("a", 1)
        fit.step_down()
        await quiet()
        fit.writer.is_durable = True
        fit.replay.end_of_log(ended(END))
        await quiet()
        assert (fit.got, keys(fit.writer.records), fit.asked) == ([1], ["a", "a"], ["a"])

    run(main)


def test_a_retry_of_a_request_whose_answer_was_taken_back_follows_the_log() -> None:
    """Its first attempt was cancelled while its answer was appended."""

    async def main() -> None:
        fit = led()
        fit.writer.is_durable = False
        cancelled = await fit.answered("a", "of this worker")
        cancelled.cancel()
        await quiet()
        fit.step_down()
        fit.ask("a")
        fit.replay.extend([answer("a", "of the leader")])
        await quiet()
        assert (fit.got, fit.asked) == (["of the leader"], ["a"])

    run(main)


def test_no_request_is_sent_in_doubt() -> None:
    """It waits, and then follows the log of the new leader. One that is cancelled meanwhile gives its turn back."""

    async def main() -> None:
        fit = led()
        fit.is_certain, fit.is_in_doubt = False, True
        cancelled = fit.ask("a")
        await quiet()
        cancelled.cancel()
        await quiet()
        fit.ask("a")
        await quiet()
        fit.step_down()
        fit.replay.extend([answer("a", 1)])
        await until(lambda: fit.got == [1])
        assert fit.asked == []

    run(main)


def test_a_stream_that_was_drained_in_doubt_loses_the_worker() -> None:
    """Its chunks were used, and the new leader gets others."""

    async def main() -> None:
        fit = led()
        reading = asyncio.ensure_future(drained(fit, "s", 1, 2))
        await asyncio.sleep(0)
        fit.is_certain, fit.is_in_doubt = False, True
        await quiet()
        assert keys(fit.writer.records) == ["s"]
        fit.step_down()
        await quiet()
        assert len(fit.lost) == 1
        reading.cancel()

    run(main)


def test_a_new_answer_is_known_behind_those_of_the_log() -> None:
    """It stands there in the journal, although it came while they waited for their requests."""

    async def main() -> None:
        fit = Fit()
        fit.begin(stage(answer("a", 1), answer("b", 2)))
        await fit.ask("a")
        new = await fit.answered("c", 3)
        assert fit.since == (boundary(0), [answer("a", 1), answer("c", 3)])
        await fit.ask("b")
        assert await new == 3
        assert fit.since == (boundary(0), [answer("a", 1), answer("b", 2), answer("c", 3)])
        # Another worker leads meanwhile, and its answer comes behind them.
        fit.step_down()
        fit.replay.extend([answer("d", 4)])
        await fit.ask("d")
        assert fit.since == (boundary(0), [answer(key, number) for number, key in enumerate("abcd", 1)])

    run(main)


def test_what_was_answered_since_the_last_boundary_is_known_in_its_order() -> None:
    """A tail that begins at the boundary must find exactly these."""

    async def main() -> None:
        fit = Fit()
        assert fit.answers.since_boundary() is None
        fit.begin(stage(answer("a", 1)))
        fit.ask("a")
        await fit.answered("b", 2)
        assert fit.answers.since_boundary() == (boundary(0), [answer("a", 1), answer("b", 2)])
        fit.boundary(1)
        assert fit.answers.since_boundary() == (boundary(1), [])

    run(main)


# ---------------------------------------------------------------- a batch that is undone


def test_a_rewound_batch_gets_the_answers_that_it_got_and_none_is_asked_again() -> None:
    """It does so any number of times, and in a replay, too. The journal has each answer once."""

    async def main() -> None:
        fit = Fit()
        fit.begin(stage(answer("a", 1), answer("a", 2, 1)))
        fit.ask("a")
        await quiet()
        fit.answers.mark()
        for _ in range(3):
            fit.ask("a")
            fit.ask("b")
            await quiet()
            if fit.requests.get("b"):
                fit.respond("b", 3)
                await quiet()
            fit.answers.rewind()
            fit.answers.mark()
        fit.ask("a")
        fit.ask("b")
        await quiet()
        assert fit.got == [1, *[2, 3] * 4]
        assert (fit.asked, keys(fit.writer.records)) == (["b"], ["b"])

    run(main)


def test_a_rewind_without_a_mark_changes_nothing() -> None:
    async def main() -> None:
        fit = led()
        fit.ask("a")
        await quiet()
        fit.answers.rewind()
        fit.respond("a", 1)
        await quiet()
        assert fit.got == [1]

    run(main)


def test_the_end_may_come_after_that_of_the_loop_and_more_than_once() -> None:
    fit = Fit()

    async def main() -> None:
        fit.begin(stage(answer("a", 1)))
        await fit.ask("a")

    run(main)
    fit.answers.close()
    fit.answers.close()
    assert not fit.answers.is_open
