"""A bounded wait whose time a suspension does not use up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed_backup.training.countdown import LOOKS, Countdown


class Loop:
    """Keeps the timers of an event loop that stands still."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, seconds: float, call: Callable[..., None], *arguments: Any) -> Timer:
        self.timers.append(Timer(seconds, lambda: call(*arguments)))
        return self.timers[-1]

    def let_all_go_off(self) -> None:
        """What a loop does after a suspension that was longer than all timers."""
        due, self.timers = self.timers, []
        for timer in due:
            timer.go_off()


class Timer:
    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        self.seconds = seconds
        self._call = call
        self.is_cancelled = False

    def go_off(self) -> None:
        if not self.is_cancelled:
            self._call()

    def cancel(self) -> None:
        self.is_cancelled = True


def begun(seconds: float = 5.0) -> tuple[Loop, Countdown, list[str]]:
    loop, calls = Loop(), list[str]()
    return loop, Countdown(loop, seconds, lambda: calls.append("called")), calls  # type: ignore[arg-type]


def test_a_countdown_takes_its_seconds_and_calls_once() -> None:
    loop, _, calls = begun()
    seconds = 0.0
    while loop.timers:
        assert calls == []
        seconds += loop.timers[0].seconds
        loop.let_all_go_off()
    assert (round(seconds, 6), calls) == (5.0, ["called"])


def test_suspensions_use_up_one_look_each() -> None:
    """However long they are: the timer goes off, and what the wait is for may come before the next one does."""
    loop, _, calls = begun()
    for _ in range(LOOKS - 1):
        loop.let_all_go_off()
    assert calls == []


def test_a_countdown_that_was_cancelled_calls_nothing_at_any_look() -> None:
    for looks in range(LOOKS):
        loop, countdown, calls = begun()
        for _ in range(looks):
            loop.let_all_go_off()
        countdown.cancel()
        while loop.timers:
            loop.let_all_go_off()
        assert calls == []
