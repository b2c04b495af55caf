"""A new leader takes over: what it has read of the log, and where it must not go on."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from distributed_backup.training import delivery
from tests.support.answering import END, JSON, Fit, answer, boundary, ended, led, quiet, stage


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(main())  # type: ignore[arg-type]


# ---------------------------------------------------------------- before its segment is there


def test_answers_of_a_former_leader_wait_for_the_segment_of_the_new_one() -> None:
    """That leader may be suspended while it begins a segment without them."""

    async def main() -> None:
        fit = Fit()
        fit.writer.is_durable = False
        fit.begin(stage(answer("a", 1), answer("b", 2)))
        fit.ask("a")
        fit.ask("b")
        await quiet()
        assert fit.got == []
        fit.writer.flush()
        await quiet()
        assert (fit.got, fit.asked) == ([1, 2], [])

    run(main)


def test_answers_of_a_former_leader_wait_while_it_is_in_doubt_who_leads() -> None:
    """The new leader was suspended while it began its segment, so another one may lead by now."""

    async def main() -> None:
        fit = Fit()
        fit.writer.is_durable = False
        fit.begin(stage(answer("a", 1)))
        fit.ask("a")
        await quiet()
        fit.is_certain, fit.is_in_doubt = False, True
        fit.writer.flush()
        await quiet()
        assert (fit.got, fit.replay.delivery.left) == ([], 1)

    run(main)


def test_answers_of_a_former_leader_wait_no_longer_for_a_storage_that_hangs_than_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "WRITE_LIMIT", 0.0)

    async def main() -> None:
        fit = Fit()
        fit.writer.is_durable = False
        fit.begin(stage(answer("a", 1)))
        fit.ask("a")
        await quiet()
        assert fit.got == [1]

    run(main)


@pytest.mark.parametrize("limit", ["FIRST_LIMIT", "WARN_LIMIT"])
def test_what_is_held_back_does_not_stall(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: str
) -> None:
    """Journal and coordinator hang together, and a new answer waits behind the recorded one."""
    monkeypatch.setattr(delivery, limit, 0.0)

    async def main() -> None:
        fit = Fit()
        fit.writer.is_durable = False
        fit.begin(stage(answer("a", 1)))
        fit.ask("a")
        fit.ask("b")
        await quiet()
        fit.respond("b", "new")
        await quiet()
        assert (fit.got, fit.events, fit.asked, fit.replay.is_active) == ([], [], ["b"], True)

    run(main)
    assert caplog.records == []


# ---------------------------------------------------------------- behind the newest checkpoint


def test_a_leader_behind_the_newest_checkpoint_asks_nothing() -> None:
    """Another worker has come there with answers of its own, and has left no journal: it was preempted."""

    async def main() -> None:
        fit = Fit()
        fit.follow(answer("a", 1))
        fit.replay.end_of_log(ended(END, newest=1))
        fit.ask("a")
        await quiet()
        assert (fit.got, fit.lost) == ([1], [])
        fit.ask("b")
        await quiet()
        assert (fit.asked, fit.got, len(fit.lost)) == ([], [1], 1)
        assert "another worker has come further" in fit.lost[0]

    run(main)


def test_a_request_that_waits_when_its_worker_leads_behind_the_newest_checkpoint_is_not_sent() -> None:
    async def main() -> None:
        fit = Fit()
        fit.follow()
        fit.ask("a")
        await quiet()
        fit.replay.end_of_log(ended(END, newest=1))
        await quiet()
        assert (fit.asked, len(fit.lost)) == ([], 1)

    run(main)


def test_an_answer_that_was_under_way_behind_the_newest_checkpoint_is_not_used() -> None:
    """Its request was sent when this worker led before. The checkpoint has the answer of another worker."""

    async def main() -> None:
        fit = led()
        fit.ask("a")
        await quiet()
        fit.follow()
        fit.replay.end_of_log(ended(END, newest=1))
        fit.respond("a", "own")
        await quiet()
        assert (fit.got, fit.writer.records, len(fit.lost)) == ([], [], 1)

    run(main)


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_leader_that_comes_to_the_newest_checkpoint_without_a_request_goes_on(is_ahead: bool) -> None:
    """Its writer died between the checkpoint and the boundary in the journal."""

    async def main() -> None:
        fit = Fit()
        fit.follow(answer("a", 1))
        await fit.ask("a")
        if is_ahead:
            fit.boundary(1)
        fit.replay.end_of_log(ended(END, newest=1))
        if not is_ahead:
            fit.boundary(1)
        fit.ask("b")
        await quiet()
        assert (fit.got, fit.asked, fit.lost) == ([1], ["b"], [])

    run(main)


# ---------------------------------------------------------------- deposed meanwhile


def test_an_outcome_that_a_request_has_waited_for_comes_again_if_another_worker_leads() -> None:
    """Both changes come in one cycle of the loop, as after a suspension."""

    async def main() -> None:
        fit = Fit()
        fit.follow()
        fit.ask("a")
        await quiet()
        fit.replay.extend([answer("a", 1)])
        fit.step_down()
        await quiet()
        assert fit.got == []
        fit.replay.extend([answer("b", 2), answer("a", 3)])
        fit.ask("b")
        await quiet()
        assert fit.got == [2, 3]

    run(main)


@pytest.mark.parametrize("is_deposed", [False, True])
def test_a_request_that_has_waited_is_not_sent_before_it_is_certain_who_leads(is_deposed: bool) -> None:
    """The lease may have run out before the loop learned of it, or another worker may lead by now."""

    async def main() -> None:
        fit = Fit()
        fit.follow()
        fit.ask("a")
        await quiet()
        fit.is_certain, fit.is_in_doubt = is_deposed, not is_deposed
        fit.replay.end_of_log(ended(END))
        if is_deposed:
            fit.step_down()
        await quiet()
        assert fit.asked == []

    run(main)


def test_a_worker_that_was_deposed_before_it_came_to_the_end_of_the_log_follows_at_once() -> None:
    """It holds no answer back for a segment that it does not begin."""

    async def main() -> None:
        fit = Fit()
        fit.follow()
        fit.replay.delivery.hold()
        fit.step_down()
        fit.replay.extend([answer("a", 1)])
        fit.ask("a")
        await quiet()
        assert fit.got == [1]

    run(main)


def test_a_second_hold_lets_go_of_nothing() -> None:
    """The election holds answers back, and so does the end of the log, which is read later."""

    async def main() -> None:
        fit = Fit()
        fit.follow()
        fit.replay.delivery.hold()
        fit.replay.extend([answer("a", 1)])
        fit.ask("a")
        await quiet()
        appended = fit.replay.delivery.hold()
        await quiet()
        assert fit.got == []
        appended()
        await quiet()
        assert fit.got == [1]

    run(main)


@pytest.mark.parametrize("is_behind", [False, True])
def test_what_is_under_way_at_the_end_of_a_fit_returns(is_behind: bool) -> None:
    async def main() -> None:
        fit = led()
        fit.ask("a")
        await quiet()
        fit.step_down()
        if is_behind:
            fit.replay.end_of_log(ended(END, newest=1))
        fit.answers.close()
        await quiet()
        fit.respond("a", "own")
        await quiet()
        assert (fit.got, fit.lost) == (["own"], [])

    run(main)


def reads(fit: Fit) -> tuple[asyncio.Queue[int | None], asyncio.Task[None]]:
    """Read a stream of the chunks in a queue. None ends it."""
    chunks: asyncio.Queue[int | None] = asyncio.Queue()

    async def stream() -> AsyncIterator[int]:
        while (chunk := await chunks.get()) is not None:
            yield chunk

    async def request() -> Any:
        return stream()

    async def read() -> None:
        async for _ in await fit.answers.ask_stream("s", request, JSON):
            pass

    return chunks, asyncio.ensure_future(read())


def test_who_read_a_stream_while_another_worker_led_asks_for_nothing_when_it_leads_again() -> None:
    """Its chunks were used, and the log has others. It is started again, and then finds those of the log."""

    async def main() -> None:
        fit = led()
        chunks, reading = reads(fit)
        chunks.put_nowait(1)
        await quiet()
        fit.step_down()
        fit.replay.extend([answer("s", [7])])
        fit.replay.end_of_log(ended(END))
        chunks.put_nowait(None)
        await quiet()
        other = fit.ask("other")
        await quiet()
        assert (len(fit.lost), fit.asked, reading.done(), other.done()) == (1, [], False, False)
        assert "give_up" in fit.writer.names
        for task in (reading, other):
            task.cancel()

    run(main)


# ---------------------------------------------------------------- at the end of a stage


def test_the_outcome_of_a_request_that_outlives_its_batch_counts_in_that_batch() -> None:
    """It waited for another answer, whose request was not made."""

    async def main() -> None:
        fit = Fit()
        fit.begin(stage(answer("x", 0), answer("a", 1), end=boundary(1)), stage(answer("b", 2)))
        late = fit.ask("a")
        await quiet()
        fit.boundary(1)
        assert (await late, await fit.ask("b")) == (1, 2)
        assert fit.since == (boundary(1), [answer("b", 2)])

    run(main)


def test_a_new_leader_keeps_no_answer_of_a_stage_that_has_ended() -> None:
    async def main() -> int:
        fit = Fit()
        fit.follow(answer("a", "a" * 5_000_000))
        await fit.ask("a")
        fit.got.clear()
        fit.replay.end_of_log(ended(END))
        fit.boundary(1)
        await quiet()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        assert run(main) < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_stream_that_outlives_its_batch_is_not_taken_for_one_of_another_worker() -> None:
    """It has the ticket of a request in the next stage."""

    async def main() -> None:
        fit = Fit()
        fit.begin(stage(answer("x", 0), end=boundary(1)), stage(answer("s", [1]), answer("y", 2)))
        chunks, reading = reads(fit)
        await quiet()
        assert await fit.ask("x") == 0
        fit.boundary(1)
        chunks.put_nowait(1)
        chunks.put_nowait(None)
        await quiet()
        assert fit.lost == []
        reading.cancel()

    run(main)
