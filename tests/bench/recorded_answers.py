"""The process of the benchmark `memory`: it sends requests through the journal, as a fit does."""

from __future__ import annotations

import asyncio
import logging
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from distributed_backup.checkpoints.journal import LogReader, find_log
from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.clock import SystemClock
from distributed_backup.observability.events import no_report
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage
from distributed_backup.training.answers import Answers
from distributed_backup.training.doubt import Doubt
from distributed_backup.training.replay import Replay
from distributed_backup.training.responses import RESPONSES
from tests.bench.append import START

AT_ONCE: Final = 8


def peak(report: Callable[..., None], directory: Path, answers: int, stage: int, replays: bool) -> float:
    """Return the peak in megabytes of a run with so many answers, and a boundary after each `stage` of them."""
    logging.getLogger("distributed_backup").setLevel(logging.WARNING)
    tracemalloc.start()
    asyncio.run(_run(directory, answers, stage, replays))
    return tracemalloc.get_traced_memory()[1] / 2**20


async def _run(directory: Path, count: int, stage: int, replays: bool) -> None:
    storage = LocalStorage(directory)
    storage.prepare()
    writer = JournalWriter(
        storage=storage, worker_id="bench", clock=SystemClock(), term=lambda: 1 + replays, run_id=lambda: "bench"
    )
    doubt = Doubt(is_certain=lambda: True, exists=lambda: False, give_up=lambda: None)
    replay = Replay(writer, no_report, lambda reason: None, doubt)
    answers = Answers(writer, replay, doubt)
    answers.start(START)
    replay.delivery.touch()
    if replays:
        log = find_log(storage, run_id="bench", position=START.position, digests=START.digests)
        assert log is not None
        replay.begin(LogReader(storage, log), START)
    else:
        writer.begin_at(START)
    asked = await _ask_all(answers, count, stage)
    answers.close()
    writer.close(timeout=60.0)
    recorded = 0 if replays else count
    assert (asked, writer.answers, replay.replayed) == (recorded, recorded, count - recorded), "not what is measured"


async def _ask_all(answers: Answers, count: int, stage: int) -> int:
    """Send `count` requests. Return how many were not answered from the log."""
    asked = 0

    def request(number: int) -> Callable[[], Awaitable[Any]]:
        async def respond() -> Any:
            nonlocal asked
            asked += 1
            return {"content": f"answer {number:06} " * 140}

        return respond

    for first in range(0, count, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, count))
        await asyncio.gather(*(answers.ask(f"{number:032x}", request(number), RESPONSES) for number in numbers))
        if numbers.stop % stage < AT_ONCE:
            answers.boundary(Position(0, numbers.stop), lambda: START.digests, due=False)
    return asked
