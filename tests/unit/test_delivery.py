"""The order in which answers are handed out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from distributed_backup.checkpoints.journal_format import Outcome, Unanswered
from distributed_backup.training import delivery
from distributed_backup.training.delivery import Delivery, NewAnswer
from distributed_backup.training.doubt import Doubt
from tests.support.answering import answer, quiet, work

ANSWER = answer("a", 1)
FAILURE = Unanswered(key="a", number=0, error="E")
CERTAIN = Doubt(is_certain=lambda: True, exists=lambda: False, give_up=lambda: None)


class Order:
    """A delivery, and what it has handed out."""

    def __init__(self, count: int = 0, *, is_open: bool = True) -> None:
        self.stalls = 0
        self.delivery = Delivery(self._stalled, CERTAIN)
        self.delivery.touch()
        self.delivery.begin([ANSWER] * count, is_open=is_open)
        self.seen: list[Any] = []

    def _stalled(self) -> None:
        self.stalls += 1

    def turn(self, place: int, then: Callable[[], Awaitable[Any]] | None = None) -> asyncio.Task[None]:
        return asyncio.ensure_future(self._log(self.delivery.turn(place), place, then))

    def new(self, name: str, record: Outcome | None = ANSWER) -> NewAnswer:
        entry = self.delivery.add(record)
        asyncio.ensure_future(self._log(entry.future, name, None))  # noqa: RUF006 - ends with the loop
        return entry

    async def _log(self, turn: Awaitable[None], name: Any, then: Callable[[], Awaitable[Any]] | None) -> None:
        await turn
        self.seen.append(name)
        if then is not None:
            await then()
            self.seen.append(f"after {name}")


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(main())  # type: ignore[arg-type]


def test_answers_of_a_log_are_handed_out_by_place() -> None:
    async def main() -> list[Any]:
        order = Order(3)
        for place in (2, 0, 1):
            order.turn(place)
            await quiet()
        return order.seen

    assert run(main) == [0, 1, 2]


def test_the_consequences_of_an_answer_run_before_the_next() -> None:
    """They take several cycles of the event loop."""

    async def main() -> list[Any]:
        order = Order(2)
        order.turn(1, then=lambda: work(3))
        order.turn(0, then=lambda: work(20))
        await quiet()
        return order.seen

    assert run(main) == [0, "after 0", 1, "after 1"]


def test_a_loop_without_a_queue_in_sight_runs_a_fixed_number_of_cycles() -> None:
    """An event loop of another library has no `_ready`."""

    class Other:
        def __init__(self) -> None:
            self.loop = asyncio.get_running_loop()

        def call_soon(self, *call: Any) -> None:
            self.loop.call_soon(*call)

    async def main() -> list[Any]:
        order = Order(2)
        settle = order.delivery._settle
        order.delivery._settle = lambda _, cycles: settle(Other(), cycles)  # type: ignore[method-assign, assignment]
        order.turn(1)
        order.turn(0, then=lambda: work(100))
        await work(350)
        assert order.seen == [0, "after 0"]
        await work(400)
        return order.seen

    assert run(main) == [0, "after 0", 1]


def test_a_task_that_polls_holds_no_answer_up() -> None:
    async def main() -> list[Any]:
        order = Order(2)
        polls = asyncio.ensure_future(work(10_000))
        order.turn(1)
        order.turn(0)
        await work(600)
        polls.cancel()
        return order.seen

    assert run(main) == [0, 1]


def test_new_answers_come_after_those_of_the_log_in_the_order_of_their_arrival() -> None:
    async def main() -> list[Any]:
        order = Order(1)
        first, second = order.new("first"), order.new("second")
        order.delivery.ready(second)
        order.delivery.ready(first)
        await quiet()
        assert order.seen == []
        order.turn(0)
        await quiet()
        return order.seen

    assert run(main) == [0, "first", "second"]


def test_no_answer_is_handed_out_before_what_is_about_to_run() -> None:
    """As the other requests of a batch that begins. So training makes them in the same order, whatever is recorded."""

    async def main() -> list[Any]:
        order = Order(1)
        new = order.new("new")
        for step in (lambda: order.turn(0), lambda: order.delivery.ready(new)):
            step()
            asyncio.get_running_loop().call_soon(order.seen.append, "about to run")
            await quiet()
        return order.seen

    assert run(main) == ["about to run", 0, "about to run", "new"]


def test_a_new_answer_that_is_not_ready_holds_the_next_ones() -> None:
    async def main() -> None:
        order = Order()
        first, second = order.new("first"), order.new("second")
        order.delivery.ready(second)
        await quiet()
        assert order.seen == []
        order.delivery.ready(first)
        await quiet()
        assert order.seen == ["first", "second"]

    run(main)


def test_new_answers_of_a_stage_that_is_not_the_last_do_not_wait_for_the_log() -> None:
    """Its request was made for another reason, and the log may not have its place."""

    async def main() -> list[Any]:
        order = Order(1, is_open=False)
        order.delivery.ready(order.new("new"))
        await quiet()
        return order.seen

    assert run(main) == ["new"]


def test_a_cancelled_request_does_not_block_the_places_after_it() -> None:

    async def main() -> list[Any]:
        order = Order(4)
        waiting = order.turn(1)
        order.turn(3)
        await quiet()
        waiting.cancel()
        await quiet()
        order.turn(0)
        await quiet()
        assert order.seen == [0]
        order.turn(2)
        await quiet()
        return order.seen

    assert run(main) == [0, 2, 3]


def test_a_place_can_be_passed_over_before_and_in_its_turn() -> None:
    async def main() -> list[Any]:
        order = Order(4)
        order.delivery.pass_over(2)
        order.turn(1)
        order.turn(3)
        await quiet()
        order.delivery.pass_over(0)
        await quiet()
        return order.seen

    assert run(main) == [1, 3]


def test_a_log_may_grow() -> None:
    async def main() -> list[Any]:
        order = Order(0, is_open=False)
        order.turn(0)
        await quiet()
        assert order.seen == []
        order.delivery.grow(ANSWER)
        await quiet()
        assert (order.seen, order.delivery.left) == ([0], 0)
        order.delivery.grow(ANSWER)
        assert order.delivery.left == 1
        # This worker leads by now.
        order.delivery.open()
        order.delivery.ready(order.new("new"))
        await quiet()
        assert order.seen == [0]
        order.turn(1)
        await quiet()
        return order.seen

    assert run(main) == [0, 1, "new"]


def test_release_hands_everything_out_and_keeps_nothing_back_after_it() -> None:
    async def main() -> list[Any]:
        order = Order(5)
        order.turn(4)
        order.turn(2)
        order.new("new")
        await quiet()
        order.delivery.release()
        await quiet()
        assert order.seen == [2, 4, "new"]
        order.turn(3)
        await quiet()
        return order.seen

    assert run(main) == [2, 4, "new", 3]


def test_a_new_stage_lets_what_waits_of_the_old_one_go_on() -> None:
    async def main() -> list[Any]:
        order = Order(5)
        order.turn(4)
        order.turn(2)
        await quiet()
        order.delivery.begin([ANSWER], is_open=True)
        await quiet()
        assert order.seen == [2, 4]
        order.turn(0)
        await quiet()
        return order.seen

    assert run(main) == [2, 4, 0]


@pytest.mark.parametrize("is_replayed", [False, True])
def test_outcomes_are_counted_since_the_first_failure_whose_consequences_have_not_run(is_replayed: bool) -> None:
    outcomes: list[Outcome] = [ANSWER, FAILURE, FAILURE, ANSWER]

    async def main() -> list[int]:
        order, counts = Order(), []
        new: list[NewAnswer] = []
        if is_replayed:
            order.delivery.begin(outcomes, is_open=True)
        else:
            new = [order.delivery.add(outcome) for outcome in outcomes]
        for place in range(4):
            counts.append(order.delivery.since_failure)
            if is_replayed:
                order.turn(place)
            else:
                order.delivery.ready(new[place])
            await quiet()
        order.delivery.begin([], is_open=True)
        return [*counts, order.delivery.since_failure]

    assert run(main) == [3, 3, 2, 0, 0]


# ---------------------------------------------------------------- the bound


class Timers:
    """Countdowns that end when a test says so."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.armed: list[Any] = []
        patch.setattr(delivery, "Countdown", self._begin)

    def _begin(self, _: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], None]) -> Any:
        timer = _Timer(seconds, call)
        self.armed.append(timer)
        return timer

    @property
    def pending(self) -> list[Any]:
        return [timer for timer in self.armed if not timer.is_cancelled]


class _Timer:
    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        self.seconds = seconds
        self._call = call
        self.is_cancelled = False

    def go_off(self) -> None:
        self.is_cancelled = True
        self._call()

    def cancel(self) -> None:
        self.is_cancelled = True


def test_a_place_whose_request_is_not_made_stalls_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything is handed out then, and one timer at most is pending. A warning comes after 10 s."""

    async def main() -> None:
        timers = Timers(monkeypatch)
        order = Order(3)
        order.turn(1)
        await quiet()
        order.turn(2)
        await quiet()
        [timer] = timers.pending
        timer.go_off()
        await quiet()
        assert (order.seen, order.stalls, len(caplog.records)) == ([], 0, 1)
        [last] = timers.pending
        assert timer.seconds + last.seconds == delivery.STALL_LIMIT
        last.go_off()
        await quiet()
        assert (order.seen, order.stalls) == ([1, 2], 1)
        assert timers.pending == []
        order.turn(0)
        await quiet()
        assert (order.seen, order.stalls) == ([1, 2, 0], 1)

    run(main)
    assert "has waited 10 s for its request" in caplog.text


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_stalls_that_does_not_wait_for_the_log(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """New answers may take any time, and so may the next request."""

    async def main() -> None:
        timers = Timers(monkeypatch)
        order = Order(count)
        for place in range(count):
            order.turn(place)
        await quiet()
        order.new("slow")
        await quiet()
        assert timers.pending == []

    run(main)


def test_an_answer_that_is_not_recorded_waits_for_the_log_10_s_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of the log may depend on it. A recorded one before it may not be handed out yet."""

    async def main() -> None:
        timers = Timers(monkeypatch)
        order = Order(3)
        order.turn(0)
        order.delivery.ready(order.new("recorded"))
        for name in ("first", "cancelled", "second"):
            order.delivery.ready(order.new(name, record=None))
        order.delivery._new[2].future.cancel()
        await quiet()
        assert order.seen == [0]
        [timer] = timers.pending
        assert timer.seconds == delivery.WARN_LIMIT
        timer.go_off()
        await quiet()
        assert order.seen == [0, "first", "second"]
        order.turn(1)
        order.delivery.ready(order.new("third", record=None))
        await quiet()
        assert order.seen == [0, "first", "second", 1]
        order.turn(2)
        await quiet()
        assert (order.seen[4:], order.stalls) == ([2, "recorded", "third"], 0)

    run(main)


def test_an_answer_that_was_withdrawn_lets_no_other_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[Any]:
        timers = Timers(monkeypatch)
        order = Order(1)
        order.delivery.ready(order.new("withdrawn", record=None))
        await quiet()
        [timer] = timers.pending
        timer.go_off()
        order.delivery.withdraw()
        order.delivery.ready(order.new("new", record=None))
        await quiet()
        assert order.seen == ["withdrawn"]
        order.turn(0)
        await quiet()
        return order.seen

    assert run(main) == ["withdrawn", 0, "new"]


def test_a_stage_may_begin_in_any_thread() -> None:
    async def main() -> list[Any]:
        order = Order()
        new = order.new("new")
        await quiet()
        await asyncio.to_thread(order.delivery.begin, [], is_open=True)
        order.delivery.ready(new)
        await quiet()
        return order.seen

    assert run(main) == ["new"]


def test_a_new_answer_is_handed_out_when_its_stage_ends() -> None:
    """It has waited for an answer of the log whose request was not made."""

    async def main() -> list[Any]:
        order = Order(1)
        order.delivery.ready(order.new("new"))
        await quiet()
        assert order.seen == []
        order.delivery.begin([], is_open=True)
        await quiet()
        return order.seen

    assert run(main) == ["new"]


# ---------------------------------------------------------------- threads


def test_a_call_from_a_thread_runs_in_the_loop_and_not_after_its_end() -> None:
    made = Delivery(lambda: None, CERTAIN)
    # Before the first request there is nothing to release.
    made.call_from_thread(lambda: pytest.fail("no loop"))
    threads: list[threading.Thread] = []

    async def main() -> None:
        made.touch()
        called = asyncio.Event()

        def call() -> None:
            threads.append(threading.current_thread())
            called.set()

        threading.Thread(target=made.call_from_thread, args=(call,)).start()
        await called.wait()

    run(main)
    assert threads == [threading.current_thread()]
    made.call_from_thread(lambda: pytest.fail("the loop is closed"))
