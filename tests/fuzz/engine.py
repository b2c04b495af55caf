"""Give a parser changed inputs, and measure each call: its error, its memory, its time and the lines that it reached.

An input that reaches a new line of the package is kept, and later inputs are changes of those that were kept. Lines are
counted with `sys.monitoring`, whose events are switched off after the first of each line. So counting costs nothing.

The limits: memory is what Python's allocator gives out (`tracemalloc`). What a C library takes from the system alone is
not counted. Time is CPU time of this thread, with `tracemalloc` on, which makes it two to four times as long. A call
that is too slow so is repeated with it off.
"""

from __future__ import annotations

import gc
import logging
import random
import sys
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import CodeType
from typing import Any, Final, override

import distributed_backup
from distributed_backup.errors import BackupError
from tests.fuzz.mutator import Mutator

FLOOR: Final = 2**17
"""Bytes. A shorter input counts as this long: a call has fixed costs, such as an error with its traceback."""

MOST_MEMORY: Final = 10.0
"""Bytes of memory for each byte of the input."""

MOST_SECONDS: Final = 1.0
"""Seconds for each MB of the input."""

_PACKAGE: Final = str(Path(distributed_backup.__file__).parent)
# A call that was too slow is repeated: another process may have taken the caches, or a collection may have run.
_REPETITIONS: Final = 3
# One of so many inputs is inflated, and about so many at most: each may take a second.
_INFLATED_EACH: Final = 400
_MOST_INFLATED: Final = 100
_SEALED: Final = 0.7
_FROM_SEEDS: Final = 0.3
# Cycles of tracebacks are collected between two inputs.
_COLLECTED_EACH: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """A parser of the package, as it is reached from outside.

    `call` parses an input. It may raise `ours` only: our own errors, or none. `seal` makes the checksums of an input
    valid. `memory` is the mark in bytes for each byte of the input, where it is not `MOST_MEMORY`. An inflated input
    has at most `longest` bytes.
    """

    name: str
    seeds: tuple[bytes, ...]
    call: Callable[[bytes], object]
    ours: tuple[type[Exception], ...] = (BackupError,)
    seal: Callable[[bytes], bytes] | None = None
    memory: float = MOST_MEMORY
    longest: int = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An input that broke a rule, and which one: `problem` is one line."""

    problem: str
    data: bytes


@dataclass(slots=True, kw_only=True)
class Report:
    """What the inputs of one parser have shown."""

    parser: str
    inputs: int = 0
    lines: int = 0
    refused: int = 0
    memory: float = 0.0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return what is kept of it."""
        return {
            "inputs": self.inputs,
            "lines": self.lines,
            "refused": self.refused,
            "failures": len(self.failures),
            "memory": round(self.memory, 3),
            "seconds": round(self.seconds, 3),
        }


COLUMNS: Final = (
    *("parser", "inputs", "lines reached", "our own errors", "failures"),
    *("most memory for each byte", "slowest, s per MB"),
)
HEADING: Final = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def cells(parser: str, figures: Mapping[str, Any]) -> list[str]:
    """Return the row of a parser in the table."""
    found = (figures[name] for name in ("inputs", "lines", "refused", "failures", "memory", "seconds"))
    forms = (",", "", ",", "", ".1f", ".2f")
    return [parser, *(format(value, form) for value, form in zip(found, forms, strict=True))]


class _Formatted(logging.Handler):
    """Formats each record, as any handler does. An error of that is an error of the parser."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


@contextmanager
def _logged() -> Iterator[None]:
    """Format the log of the package, and print neither that nor warnings of drivers."""
    log, handler = logging.getLogger(distributed_backup.__name__), _Formatted()
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


class _Lines:
    """The lines of the package that were reached, while it is on."""

    def __init__(self) -> None:
        self.reached: set[tuple[CodeType, int]] = set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        tool = sys.monitoring.COVERAGE_ID
        sys.monitoring.use_tool_id(tool, "tests.fuzz")
        try:
            sys.monitoring.register_callback(tool, sys.monitoring.events.LINE, self._note)
            sys.monitoring.set_events(tool, sys.monitoring.events.LINE)
            sys.monitoring.restart_events()
            yield
        finally:
            sys.monitoring.set_events(tool, 0)
            sys.monitoring.free_tool_id(tool)

    def _note(self, code: CodeType, line: int) -> object:
        if code.co_filename.startswith(_PACKAGE):
            self.reached.add((code, line))
        return sys.monitoring.DISABLE


def fuzz(parser: Parser, *, inputs: int, seed: int, failures: int = 10) -> Report:
    """Give `parser` its seeds and then changed inputs, `inputs` in all. Stop after so many different failures."""
    report, lines, kept = Report(parser=parser.name), _Lines(), list(parser.seeds)
    with _logged():
        for data in parser.seeds:  # imports, caches and compiled patterns are not the input's memory
            _outcome(parser, data)
        with lines.counted(), _traced():
            draw = random.Random(f"{parser.name} {seed}")
            mutator = Mutator(
                draw,
                usual=_usual(parser),
                longest=parser.longest,
                inflated_each=max(_INFLATED_EACH, inputs // _MOST_INFLATED),
            )
            for data in islice(_inputs(parser, draw, mutator, kept), inputs):
                before = len(lines.reached)
                failure = _measured(parser, data, report)
                if len(lines.reached) > before and len(data) <= _usual(parser):
                    kept.append(data)
                if failure is not None and failure.problem not in [known.problem for known in report.failures]:
                    report.failures.append(failure)
                report.inputs += 1
                if report.inputs % _COLLECTED_EACH == 0:
                    gc.collect()
                if len(report.failures) == failures:
                    break
    report.lines = len(lines.reached)
    return report


def _usual(parser: Parser) -> int:
    """Return the most bytes of an input that is not inflated."""
    return 1024 + 2 * max(map(len, parser.seeds))


def _inputs(parser: Parser, draw: random.Random, mutator: Mutator, kept: list[bytes]) -> Iterator[bytes]:
    """Yield the seeds, and then changes of them and of the inputs that are kept."""
    yield from parser.seeds
    while True:
        data = mutator.change(draw.choice(parser.seeds if draw.random() < _FROM_SEEDS else kept), kept)
        yield parser.seal(data) if parser.seal is not None and draw.random() < _SEALED else data


def check(parser: Parser, data: bytes) -> str | None:
    """Give one input to a parser. Return the rule that it broke, if any."""
    with _logged():
        _outcome(parser, data)
        with _traced():
            failure = _measured(parser, data, Report(parser=parser.name))
    return None if failure is None else failure.problem


@contextmanager
def _traced() -> Iterator[None]:
    gc.collect()
    gc.disable()  # a collection would count as the time of one input
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        gc.enable()


def _outcome(parser: Parser, data: bytes) -> str | None:
    """Return None if the parser accepted the input, "" if it refused it with an error of ours, else the problem."""
    try:
        parser.call(data)
    except parser.ours:
        return ""
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(last.filename).name}, {last.name}"
    return None


def _untraced(parser: Parser, data: bytes) -> float:
    """Return how many seconds of the CPU a call takes while memory is not traced."""
    tracemalloc.stop()
    began = time.thread_time()
    _outcome(parser, data)
    seconds = time.thread_time() - began
    tracemalloc.start()
    return seconds


def _measured(parser: Parser, data: bytes, report: Report) -> Failure | None:
    """Call the parser, note what the call took, and return what it broke."""
    size = max(len(data), FLOOR)
    seconds = memory = float("inf")
    outcome: str | None = None
    for _ in range(_REPETITIONS):
        base, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        began = time.thread_time()
        outcome = _outcome(parser, data)
        seconds = min(seconds, (time.thread_time() - began) / size * 2**20)
        memory = min(memory, (tracemalloc.get_traced_memory()[1] - base) / size)
        if seconds > MOST_SECONDS:
            seconds = min(seconds, _untraced(parser, data) / size * 2**20)
        if seconds <= MOST_SECONDS and memory <= parser.memory:
            break
    report.refused += outcome == ""
    report.memory, report.seconds = max(report.memory, memory), max(report.seconds, seconds)
    if outcome:
        return Failure(problem=outcome, data=data)
    if memory > parser.memory:
        return Failure(problem=f"more than {parser.memory:.0f} bytes of memory for each byte", data=data)
    if seconds > MOST_SECONDS:
        return Failure(problem=f"more than {MOST_SECONDS:.0f} s for each MB", data=data)
    return None
