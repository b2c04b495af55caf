"""Test the order in which answers are handed out: by place, one at a time, and across cancellations."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from distributed_backup.training import delivery as module
from distributed_backup.training.delivery import Delivery


class Bench:
    """A delivery, and what it has handed out so far."""

    def __init__(self, places: int = 0, *, is_open: bool = True) -> None:
        self.stalls = 0
        self.out: list[str] = []
        self.delivery = Delivery(self._stalled)
        self.delivery.begin(places, is_open=is_open)
        self._tasks: list[asyncio.Task[None]] = []

    def _stalled(self) -> None:
        self.stalls += 1

    def start(self, wait: Coroutine[Any, Any, Any], name: str, after: int = 0) -> asyncio.Task[None]:
        """Wait in a task of its own. Note the name when the wait is over, and again after so many cycles."""

        async def run() -> None:
            await wait
            self.out.append(name)
            for _ in range(after):
                await asyncio.sleep(0)
            if after:
                self.out.append(f"{name} done")

        self._tasks.append(asyncio.create_task(run()))
        return self._tasks[-1]

    def place(self, number: int, after: int = 0) -> asyncio.Task[None]:
        return self.start(self.delivery.turn(number), str(number), after)

    def new(self, name: str) -> module.NewAnswer:
        entry = self.delivery.add()
        self.wait(entry, name)
        return entry

    def wait(self, entry: module.NewAnswer, name: str) -> asyncio.Task[None]:
        async def wait() -> None:
            await entry.future

        return self.start(wait(), name)

    async def settle(self) -> list[str]:
        """Return what was handed out when nothing is about to run."""
        for _ in range(3):
            await asyncio.sleep(0.001)
            while self.delivery._is_settling:
                await asyncio.sleep(0.001)
        return self.out


def test_answers_of_a_log_are_handed_out_by_place() -> None:
    """The order in which the requests are made does not count."""

    async def run() -> None:
        bench = Bench(3)
        for number in (2, 1):
            bench.place(number)
        assert await bench.settle() == []
        bench.place(0)
        assert await bench.settle() == ["0", "1", "2"]

    asyncio.run(run())


def test_the_consequences_of_an_answer_run_before_the_next_one() -> None:
    """A task that goes on for some cycles without waiting has ended when the next answer comes."""

    async def run() -> None:
        bench = Bench(2)
        bench.place(0, after=5)
        bench.place(1, after=5)
        assert await bench.settle() == ["0", "0 done", "1", "1 done"]

    asyncio.run(run())


def test_new_answers_come_after_those_of_the_log_and_in_their_order() -> None:
    """One that is not durable holds those behind it."""

    async def run() -> None:
        bench = Bench(1)
        first, second = bench.new("first"), bench.new("second")
        bench.delivery.ready(second)
        bench.delivery.ready(first)
        assert await bench.settle() == []
        bench.place(0)
        assert await bench.settle() == ["0", "first", "second"]

    asyncio.run(run())


def test_a_cancelled_place_holds_nothing_up() -> None:
    """It is passed over in its turn."""

    async def run() -> None:
        bench = Bench(3)
        cancelled = bench.place(1)
        bench.place(2)
        await bench.settle()
        cancelled.cancel()
        bench.place(0)
        assert await bench.settle() == ["0", "2"]

    asyncio.run(run())


@pytest.mark.parametrize("is_passed", [False, True])
def test_a_place_that_was_cancelled_can_be_waited_for_again(is_passed: bool) -> None:
    """It keeps its turn if that has not come. If it was passed over, it need not wait."""

    async def run() -> None:
        bench = Bench(2)
        cancelled = bench.place(1)
        await bench.settle()
        cancelled.cancel()
        if is_passed:
            bench.place(0)
        await bench.settle()
        bench.place(1)
        if not is_passed:
            assert await bench.settle() == []
            bench.place(0)
        assert await bench.settle() == ["0", "1"]

    asyncio.run(run())


@pytest.mark.parametrize("is_passed", [False, True])
def test_a_new_answer_that_was_cancelled_can_be_waited_for_again(is_passed: bool) -> None:
    """It keeps its turn, or takes the last one if it was passed over."""

    async def run() -> None:
        bench = Bench()
        entries = [bench.delivery.add() for _ in range(2)]
        tasks = [bench.wait(entry, name) for entry, name in zip(entries, ("first", "second"), strict=True)]
        await bench.settle()
        tasks[0].cancel()
        await bench.settle()
        if is_passed:
            for entry in entries:
                bench.delivery.ready(entry)
            await bench.settle()
        bench.delivery.renew(entries[0])
        bench.wait(entries[0], "first again")
        for entry in entries:
            bench.delivery.ready(entry)
        wanted = ["second", "first again"] if is_passed else ["first again", "second"]
        assert await bench.settle() == wanted

    asyncio.run(run())


def test_a_request_that_is_not_made_any_more_blocks_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `STALL_LIMIT` everything is handed out, and the stall is reported once."""
    monkeypatch.setattr(module, "STALL_LIMIT", 0.0)

    async def run() -> None:
        bench = Bench(3)
        bench.place(1)
        bench.delivery.ready(bench.new("new"))
        while not bench.stalls:
            await asyncio.sleep(0.001)
        assert await bench.settle() == ["1", "new"]
        assert bench.stalls == 1

    asyncio.run(run())


def test_a_delivery_that_is_closed_from_another_thread_hands_out_everything() -> None:
    """A fit that ends leaves no task waiting."""

    async def run() -> None:
        bench = Bench(2)
        bench.place(1)
        bench.new("new")
        await bench.settle()
        await asyncio.to_thread(bench.delivery.close)
        assert await bench.settle() == ["1", "new"]
        assert bench.stalls == 0

    asyncio.run(run())
