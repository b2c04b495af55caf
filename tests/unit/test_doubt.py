"""What waits while it is in doubt whether a worker leads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from distributed_backup.checkpoints.journal_writer import DOUBT_LOOKS, DOUBT_PERIOD
from distributed_backup.training import doubt
from distributed_backup.training.doubt import Doubt
from tests.support.answering import quiet, until


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(main())  # type: ignore[arg-type]


class Lead:
    """A worker in doubt."""

    def __init__(self) -> None:
        self.is_in_doubt = True
        self.looks = 0
        self.given_up = 0
        self.doubt = Doubt(is_certain=lambda: False, exists=self._exists, give_up=self._give_up)
        self.called: list[str] = []

    def _exists(self) -> bool:
        self.looks += 1
        return self.is_in_doubt

    def _give_up(self) -> None:
        self.given_up += 1
        self.is_in_doubt = False


def test_a_request_waits_while_its_training_is_about_to_be_cancelled() -> None:
    """Also if the doubt ends because another worker leads. What is not cancelled goes on after the limit."""

    async def main() -> None:
        now, looks, lead = {"may": True}, list[str](), Lead()

        def may_ask() -> bool:
            looks.append("look")
            return now["may"]

        lead.doubt = Doubt(is_certain=lambda: False, exists=lead._exists, give_up=lead._give_up, may_ask=may_ask)
        waiting = asyncio.ensure_future(lead.doubt.end())
        await until(lambda: lead.looks > 2)
        now["may"] = lead.is_in_doubt = False
        await until(lambda: len(looks) > 2)
        assert not waiting.done()
        waiting.cancel()

    run(main)


def test_a_request_that_nobody_cancels_is_sent_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that asks models is in no batch."""
    monkeypatch.setattr(doubt, "DOUBT_PERIOD", 0.0)

    async def main() -> int:
        looks: list[str] = []
        lead = Lead()
        lead.is_in_doubt = False

        def may_ask() -> bool:
            looks.append("look")
            return False

        lead.doubt = Doubt(is_certain=lambda: False, exists=lead._exists, give_up=lead._give_up, may_ask=may_ask)
        await lead.doubt.end()
        return len(looks)

    assert run(main) == DOUBT_LOOKS


def test_nothing_waits_without_a_doubt() -> None:
    async def main() -> None:
        lead = Lead()
        lead.is_in_doubt = False
        lead.doubt.call_after(lambda: lead.called.append("a"))
        assert lead.called == ["a"]
        await lead.doubt.end()
        assert lead.looks == 2

    run(main)


def test_everything_waits_for_the_end_of_a_doubt() -> None:
    async def main() -> None:
        lead = Lead()
        waiting = asyncio.ensure_future(lead.doubt.end())
        lead.doubt.call_after(lambda: lead.called.append("a"))
        await until(lambda: lead.looks > 6)
        assert (lead.called, waiting.done()) == ([], False)
        lead.is_in_doubt = False
        await waiting
        await until(lambda: lead.called == ["a"])

    run(main)


def test_a_doubt_that_does_not_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator may hang. All requests of a batch wait for one bound together, and for one more after a tick."""

    async def main() -> None:
        lead, loop = Lead(), asyncio.get_running_loop()
        waited = 0.0

        def call_later(delay: float, call: Callable[..., object], *arguments: Any) -> asyncio.Handle:
            nonlocal waited
            waited += delay
            return loop.call_soon(call, *arguments)

        monkeypatch.setattr(loop, "call_later", call_later)
        for _ in range(10):
            await lead.doubt.end()
            lead.doubt.call_after(lambda: lead.called.append("a"))
        assert waited == pytest.approx(DOUBT_LOOKS * DOUBT_PERIOD)
        assert (lead.called, lead.given_up) == (["a"] * 10, 1)
        lead.is_in_doubt = True
        await lead.doubt.end()
        assert waited == pytest.approx(2 * DOUBT_LOOKS * DOUBT_PERIOD)

    run(main)


def test_a_suspension_does_not_count_as_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The elector was suspended, too, and another worker may lead by now."""

    async def main() -> None:
        lead = Lead()
        lead.doubt.call_after(lambda: lead.called.append("a"))
        loop = asyncio.get_running_loop()
        time = loop.time
        monkeypatch.setattr(loop, "time", lambda: time() + 10 * DOUBT_LOOKS * DOUBT_PERIOD)
        await until(lambda: lead.looks > 3 or bool(lead.called))
        assert lead.called == []
        lead.is_in_doubt = False
        await until(lambda: lead.called == ["a"])

    run(main)


def test_a_loop_that_is_closed_in_doubt_ends_the_wait() -> None:
    lead = Lead()

    async def main() -> None:
        lead.doubt.call_after(lambda: lead.called.append("a"))
        await quiet()

    run(main)
    assert lead.called == []
