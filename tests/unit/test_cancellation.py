"""Cancel an await of a fit: what it began ends with it, and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from distributed_backup.clock import SystemClock
from distributed_backup.training import cancellation
from distributed_backup.training.cancellation import CancelScope, DeadlineExceededError

FOREVER = 600.0


async def cut_off(call: Callable[[], Awaitable[object]]) -> None:
    """Await a call that is cancelled when all of its tasks wait, and end what goes on."""
    clock = SystemClock()
    scope = CancelScope(clock)
    asyncio.get_running_loop().call_later(0.01, lambda: scope.set_deadline(clock.now()))
    with pytest.raises(DeadlineExceededError):
        await scope.run(call())
    await scope.end_cancelled()
    await asyncio.sleep(0)  # no cancellation is left over


class Requests:
    """Two requests of one batch. The retries of one take a cancellation for a failed request, as those of synalinks."""

    def __init__(self, cancellations: int = 1) -> None:
        self.asked = 0
        self._cancellations = cancellations

    async def plain(self) -> None:
        await asyncio.sleep(FOREVER)

    async def retried(self) -> None:
        for _ in range(self._cancellations):
            self.asked += 1
            try:
                await asyncio.sleep(FOREVER)
            except asyncio.CancelledError:
                continue
        # The pause before the next attempt.
        await asyncio.sleep(FOREVER)
        self.asked += 1

    async def batch(self) -> None:
        await asyncio.gather(self.plain(), self.retried())

    async def batch_of_modules(self) -> None:
        await asyncio.gather(self.batch(), self.plain())


@pytest.mark.parametrize("error", [None, ValueError("no answer")], ids=["goes on without", "fails"])
def test_what_was_cut_off_is_never_taken_for_a_result(error: Exception | None) -> None:
    """An await that is cancelled at the deadline raises, even if a retry catches the cancellation."""

    async def swallowing() -> str:
        try:
            await asyncio.sleep(FOREVER)
        except asyncio.CancelledError:
            if error is not None:
                raise error from None
        return "a result without the answer"

    asyncio.run(cut_off(swallowing))


@pytest.mark.parametrize("cancellations", [1, 3])
@pytest.mark.parametrize("is_nested", [False, True])
def test_no_request_of_a_batch_that_was_cut_off_is_sent_later(is_nested: bool, cancellations: int) -> None:
    """`gather` ends with the first of its tasks. The others go on, and would ask again after a pause."""

    async def main() -> None:
        requests = Requests(cancellations)
        await cut_off(requests.batch_of_modules if is_nested else requests.batch)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert requests.asked == cancellations

    asyncio.run(main())


@pytest.mark.parametrize("is_alone", [True, False])
def test_no_request_of_a_fit_within_the_batch_is_sent_later(is_alone: bool) -> None:
    """A program may train another one. What this one began is part of both."""

    async def main() -> None:
        requests = Requests()

        async def batch() -> None:
            inner = CancelScope(SystemClock()).run(requests.batch())
            await (inner if is_alone else asyncio.gather(inner, requests.plain()))

        await cut_off(batch)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert requests.asked == 1

    asyncio.run(main())


def test_a_task_that_takes_no_cancellation_does_not_hold_up_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "_END_LIMIT", 0.05)

    async def main() -> None:
        requests = Requests(cancellations=1000)
        await cut_off(requests.batch)
        [task] = asyncio.all_tasks() - {asyncio.current_task()}
        assert requests.asked >= 3, "it was not cancelled again"
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)

    asyncio.run(main())


def test_a_task_that_was_not_cancelled_goes_on() -> None:
    """A client that began its own task in the batch has it still, and so has other code that is about to end."""

    async def main() -> None:
        tasks: list[asyncio.Task[None]] = []
        release = asyncio.Event()

        async def ending() -> None:
            try:
                await asyncio.sleep(FOREVER)
            finally:
                await release.wait()

        async def batch() -> None:
            tasks.append(asyncio.create_task(asyncio.sleep(FOREVER)))
            await Requests().batch()

        other = asyncio.create_task(ending())
        await asyncio.sleep(0)
        other.cancel()
        await cut_off(batch)
        [task] = tasks
        assert [(each.done(), each.cancelling()) for each in (task, other)] == [(False, 0), (False, 1)]
        release.set()
        task.cancel()
        await asyncio.wait([task, other])

    asyncio.run(main())


def test_a_task_that_was_cancelled_may_release_what_it_holds() -> None:
    async def main() -> None:
        released: list[bool] = []

        async def tool() -> None:
            try:
                await asyncio.sleep(FOREVER)
            finally:
                await asyncio.sleep(0.03)
                released.append(True)

        async def batch() -> None:
            await asyncio.gather(Requests().plain(), tool())

        await cut_off(batch)
        assert released == [True]

    asyncio.run(main())


def test_a_cancellation_from_outside_at_the_moment_of_the_deadline_is_not_lost() -> None:
    """Ctrl-C, as a standby begins to wait."""
    clock = SystemClock()
    scope = CancelScope(clock)

    async def both() -> None:
        fit = asyncio.current_task()
        assert fit is not None
        scope._cancel()
        fit.cancel()
        await asyncio.sleep(FOREVER)

    async def main() -> None:
        fit = asyncio.create_task(scope.run(both()))
        await asyncio.wait([fit])
        assert (fit.cancelled(), fit.cancelling()) == (True, 1)

    asyncio.run(main())


def test_an_await_that_is_never_ended_is_closed_as_any_coroutine() -> None:
    """Its event loop was stopped. The coroutine is closed in another context when it is collected."""
    loop = asyncio.new_event_loop()
    scope = CancelScope(SystemClock())
    waits = scope.run(asyncio.sleep(FOREVER))
    task = loop.create_task(waits)
    loop.call_soon(loop.stop)
    loop.run_forever()
    waits.close()
    assert scope._task is None
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
