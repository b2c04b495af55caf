"""Measure an answer of 2 kB from `JournalWriter.append` to `done`, against a bare write and fdatasync of its line.

Measured: the encoding of the record, the wake-up of the writer's thread, the append to the segment, and its fsync.
With several answers at once, from the first `append` to the last `done`. They share appends. The bare calls are one
`os.write` of all lines to a descriptor that is open, and one `os.fdatasync`. Both alternate in one directory.

Not measured: the key of the request, the response as JSON, and the way back to the event loop. `overhead` has them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import Final

import orjson

from distributed_backup.checkpoints.journal_format import Answer, Boundary, encode_record
from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.clock import SystemClock
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage
from tests.bench.report import milliseconds, ratio, seconds, table
from tests.bench.results import Report

AT_ONCE: Final = (1, 8, 32)
ROUNDS: Final = 1000
_WARM_UP: Final = 20
_VALUE: Final = orjson.dumps({"content": "answer " * 285})
START: Final = Boundary(position=Position(0), digests={"trainable": "0" * 16})


@contextmanager
def writing(directory: Path) -> Iterator[JournalWriter]:
    """Yield the writer of a journal that is begun."""
    storage = LocalStorage(directory)
    storage.prepare()
    writer = JournalWriter(
        storage=storage, worker_id="bench", clock=SystemClock(), term=lambda: 1, run_id=lambda: "bench"
    )
    writer.begin_at(START)
    yield writer
    writer.close(timeout=60.0)


def answers() -> Iterator[Answer]:
    """Yield answers of 2 kB to different requests."""
    return (Answer(key=f"{number:032x}", number=0, value=_VALUE) for number in count())


class Appends:
    """Appends some answers at once, and waits for the last `done`."""

    def __init__(self, writer: JournalWriter, at_once: int) -> None:
        self._writer = writer
        self._at_once = at_once
        self._answers = answers()
        self._is_done = threading.Event()

    def __call__(self) -> float:
        """Return the seconds that it took."""
        self._is_done.clear()
        made = [next(self._answers) for _ in range(self._at_once)]
        ended = []

        def done() -> None:
            ended.append(time.perf_counter())
            if len(ended) == self._at_once:
                self._is_done.set()

        began = time.perf_counter()
        for answer in made:
            self._writer.append(answer, done)
        assert self._is_done.wait(60.0), "the journal does not append"
        return ended[-1] - began


def bare_append(descriptor: int, lines: bytes) -> None:
    """Make bytes durable at the end of a file, with as few system calls as possible."""
    os.write(descriptor, lines)
    os.fdatasync(descriptor)


def measure(directory: Path, at_once: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each round: for the writer, and for the bare system calls."""
    ours, bare = [], []
    with writing(directory) as writer:
        append = Appends(writer, at_once)
        lines = encode_record(next(answers())) * at_once
        descriptor = os.open(directory / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for _ in range(_WARM_UP + ROUNDS):
            ours.append(append())
            bare.append(seconds(lambda: bare_append(descriptor, lines)))
        os.close(descriptor)
    assert writer.answers == (_WARM_UP + ROUNDS) * at_once, "an answer was not appended"
    return ours[_WARM_UP:], bare[_WARM_UP:]


def p99(values: list[float]) -> str:
    """Return the p99 in milliseconds."""
    return milliseconds([quantiles(values, n=100)[98]])


async def report(directory: Path) -> Report:
    rows = []
    for at_once in AT_ONCE:
        ours, bare = measure(directory / str(at_once), at_once)
        compared = ratio(ours, bare, 2.0)
        rows.append([str(at_once), milliseconds(bare), p99(bare), milliseconds(ours), p99(ours), compared])
    head = ["answers at once", "bare p50, ms", "bare p99, ms", "ours p50, ms", "ours p99, ms", "p50 / p50"]
    return table(f"Append of answers of 2 kB ({ROUNDS} rounds; goal for one: p50 2 of the bare calls')", head, rows)
