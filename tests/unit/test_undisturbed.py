"""A request draws from `random` without an effect on the training."""

from __future__ import annotations

import asyncio
import random

import pytest

from distributed_backup.training.undisturbed import Undisturbed


async def drawing(steps: int) -> list[float]:
    drawn = []
    for _ in range(steps):
        drawn.append(random.random())
        await asyncio.sleep(0)
    drawn.append(random.random())
    return drawn


def test_the_draws_of_a_request_are_undone_after_each_step() -> None:
    """Training draws between two steps of the request, and its own draws stay."""

    async def main() -> tuple[list[float], list[float]]:
        random.seed(1)
        request = asyncio.ensure_future(Undisturbed(drawing(3)))
        own = []
        while not request.done():
            own.append(random.random())
            await asyncio.sleep(0)
        return own, await request

    own, drawn = asyncio.run(main())
    random.seed(1)
    assert own == [random.random() for _ in own]
    assert len(drawn) == 4


def test_an_error_of_a_request_leaves_it_and_its_draws_are_undone() -> None:
    async def failing() -> None:
        await asyncio.sleep(0)
        random.random()
        raise ValueError("refused")

    async def main() -> None:
        with pytest.raises(ValueError, match="refused"):
            await Undisturbed(failing())

    random.seed(1)
    asyncio.run(main())
    after = random.random()
    random.seed(1)
    assert after == random.random()


def test_a_cancellation_reaches_the_request_once() -> None:
    """The request may clean up, with an await and a draw."""
    seen = []

    async def waiting() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append(random.random())
            raise

    async def main() -> None:
        request = asyncio.ensure_future(Undisturbed(waiting()))
        await asyncio.sleep(0)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    random.seed(1)
    asyncio.run(main())
    assert len(seen) == 1
    after = random.random()
    random.seed(1)
    assert after == random.random()


def test_any_awaitable_is_awaited() -> None:
    async def main() -> int:
        future = asyncio.get_running_loop().create_future()
        future.set_result(7)
        return int(await Undisturbed(future))

    assert asyncio.run(main()) == 7
