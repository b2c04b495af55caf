"""Random programs whose requests fail at random: no answer is paid twice, and a follower comes to the same result.

All is chosen by a number, which the output of a failure names last. The leader is restarted or replaced until it has a
result. A program may handle a failed request, ask something else instead, try again, or end by the exception.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any, Final

import pytest

from distributed_backup.checkpoints.journal_format import Answer, Failed, Outcome, Record, apply
from distributed_backup.errors import RecordedFailureError
from tests.support.answering import END, Fit, boundary, ended, keys, quiet, stage

type Program = list[list[str]]
"""What each of the samples, which run at the same time, does with its requests, one after another."""

_HOW: Final = ("let it fail", "let it fail", "go on without", "ask for a fallback", "try again")


class BusyError(Exception):
    status_code = 429


REFUSED: Final = (BusyError, RecordedFailureError)


async def sample(fit: Fit, name: str, hows: list[str], examples: list[Any]) -> list[Any]:
    found: list[Any] = []
    for how in hows:
        # What is asked depends on what was answered, also to other samples.
        key = f"{name}, {len(found)}, {examples}"
        try:
            found.append(await fit.response_to(key))
        except REFUSED:
            if how == "let it fail":
                raise
            again = f"{key}, fallback" if how == "ask for a fallback" else key
            found.append(None if how == "go on without" else await fit.response_to(again))
        examples.append(found[-1])
    return found


async def train(fit: Fit, program: Program) -> list[list[Any]] | None:
    """Return the result of a fit, None if an exception has ended it."""
    examples: list[Any] = []
    tasks = [sample(fit, str(number), hows, examples) for number, hows in enumerate(program)]
    try:
        return await asyncio.gather(*tasks)
    except REFUSED as error:
        fit.answers.failed(error)
        fit.answers.close()
        return None


class Worker:
    """The fit of one worker."""

    def __init__(self, program: Program, fit: Fit) -> None:
        self.fit = fit
        self.task = asyncio.ensure_future(train(self.fit, program))

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Story:
    """What happens to one program."""

    def __init__(self, number: int) -> None:
        self.rng = random.Random(number)
        self.program: Program = [
            self.rng.choices(_HOW, k=self.rng.randint(1, 3)) for _ in range(self.rng.randint(1, 4))
        ]
        self.journal: list[Record] = []
        self.seen: Counter[str] = Counter()

    async def follower(self) -> Worker:
        fit = Fit()
        fit.follow(*self.journal)
        return await self.started(fit)

    async def restarted(self, outcomes: list[Outcome]) -> Worker:
        fit = Fit()
        fit.begin(stage(*outcomes))
        fit.replay.delivery.touch()
        return await self.started(fit)

    async def started(self, fit: Fit) -> Worker:
        """Start a fit, before or after its segment is written and the records are read."""
        if self.rng.random() < 0.5:
            await quiet()
        return Worker(self.program, fit)

    def stage(self) -> list[Outcome] | None:
        """Return the outcomes that a restart finds. None if they are void."""
        outcomes: list[Outcome] = []
        failures = 0
        for record in self.journal:
            if isinstance(record, Failed):
                failures += not record.causes(outcomes)
            elif isinstance(record, Answer):
                failures = 0
            apply(record, outcomes)
        return outcomes if failures < 2 else None

    async def lead(self, leader: Worker) -> None:
        """Let the requests of a leader be answered in any order, until its fit ends or it is killed."""
        fit, life = leader.fit, self.rng.choice([99, 99, self.rng.randint(1, 12)])
        fit.writer.is_durable = self.rng.random() < 0.5
        paid = set(keys(self.stage() or []))
        for _ in range(life):
            await quiet()
            assert not paid & set(fit.asked)
            if leader.task.done():
                break
            steps = [key for key, sent in fit.requests.items() if sent] + ["flush"] * bool(fit.writer.waiting)
            assert steps, "training waits for something that never comes"
            if (step := self.rng.choice(steps)) == "flush":
                fit.writer.flush()
                fit.writer.is_durable = self.rng.random() < 0.3
            else:
                self.seen["response"] += 1
                fit.respond(step, BusyError() if self.rng.random() < 0.35 else self.seen["response"])
        assert "diverged" not in fit.events_seen
        # What a killed worker has not made durable may be lost.
        lost = 0 if leader.task.done() else self.rng.randint(0, fit.writer.waiting)
        self.journal += fit.writer.records[: max(0, len(fit.writer.records) - lost)]

    async def tell(self) -> None:
        """Restart or replace the leader until it has a result, at most 9 times."""
        follower = await self.follower()
        for _ in range(9):
            told, outcomes = len(self.journal), self.stage()
            if outcomes is None:
                self.seen["void"] += 1
                break
            if self.rng.random() < 0.3:
                self.seen["takeover"] += 1
                leader, follower = follower, await self.follower()
                leader.fit.replay.end_of_log(ended(END))
            else:
                leader = await self.restarted(outcomes)
            await self.lead(leader)
            result = leader.task.result() if leader.task.done() else "killed"
            self.seen["exception" if result is None else "killed" if result == "killed" else "result"] += 1
            await leader.end()
            follower.fit.replay.extend(self.journal[told:])
            await quiet()
            assert (follower.fit.lost, follower.fit.asked) == ([], [])
            if isinstance(result, list):
                follower.fit.replay.extend([boundary(1)])
                await quiet()
                assert follower.task.result() == result
                break
            assert not follower.task.done() or follower.task.result() is not None
        await follower.end()


@pytest.mark.parametrize("first", range(0, 600, 100))
def test_no_answer_of_a_failing_program_is_paid_twice(first: int) -> None:
    seen: Counter[str] = Counter()
    for number in range(first, first + 100):
        print(f"story {number}")
        story = Story(number)
        asyncio.run(story.tell())
        seen += story.seen
    assert set(seen) >= {"response", "takeover", "killed", "exception", "result"}
    assert seen["result"] > 90
