"""The requests of a follower that wait for the records of its leader."""

from __future__ import annotations

import asyncio
import tracemalloc

from distributed_backup.training.waiting_requests import WaitingRequests
from tests.support.answering import quiet


def test_equal_requests_get_their_places_in_their_order_and_cancelled_ones_none() -> None:
    async def main() -> None:
        waiting = WaitingRequests()
        first, cancelled, last = (waiting.add(("a", 0)) for _ in range(3))
        cancelled.cancel()
        assert [waiting.answer(("a", 0), place) for place in range(3)] == [True, True, False]
        assert (first.result(), last.result(), bool(waiting)) == (0, 1, False)
        assert not waiting.answer(("b", 0), 0)

    asyncio.run(main())


def test_what_is_sent_waits_no_more() -> None:
    async def main() -> None:
        waiting = WaitingRequests()
        future = waiting.add(("a", 0))
        assert waiting
        waiting.send_all()
        assert (future.result(), bool(waiting), waiting.answer(("a", 0), 0)) == (None, False, False)

    asyncio.run(main())


def test_requests_that_were_answered_take_no_memory() -> None:
    """A run has millions of them."""

    async def main() -> int:
        waiting = WaitingRequests()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(2000):
            waiting.add((f"{number:064}", 0))
            waiting.answer((f"{number:064}", 0), number)
            await quiet()
        after, _ = tracemalloc.get_traced_memory()
        return after - before

    tracemalloc.start()
    try:
        assert asyncio.run(main()) < 100_000
    finally:
        tracemalloc.stop()
