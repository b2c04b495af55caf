"""The history of a run: what happened in each life of its workers, and around them. Imports no synalinks.

A life is one process. It appends each event to a file of its own with one system call, so a SIGKILL loses none. Each
line begins with an instant, in seconds of the machine's monotonic clock:

    start EPOCH BATCH            the position that it has restored
    asked TOKEN KEY              the request has come to the provider
    failed TOKEN                 the provider has raised an error
    answered TOKEN               the answer is about to leave the provider
    durable TOKEN                the journal has it
    seen TOKEN                   the fit has it, from the provider or from the journal
    boundary EPOCH BATCH DIGEST  the fit has come to this position, in this state
    event KIND FIELDS            an event of the worker
    tool NAME                    a tool was called
    crash STEP NAME              it kills itself at this step of a commit or append
    full NAME                    a write to this file was refused, because the disk is full
    paused SECONDS               it goes on after a pause. The supervisor notes this, and the next one
    flushed                      the Redis server of the run was emptied
    end DIGEST                   the fit has returned, in this state

A stage is what lies between two boundaries.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from distributed_backup.observability.events import FINAL_KINDS
from distributed_backup.position import Position

type Stage = tuple[int, int]
"""The position at which a stage begins."""


class Journalist:
    """Appends the events of one life to a file."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # A test may have replaced it by one whose disk is full.
        self._write = os.write

    def note(self, kind: str, *fields: object) -> None:
        """Append an event, from any thread."""
        line = " ".join(map(str, (f"{time.monotonic():.6f}", kind, *fields)))
        self._write(self._descriptor, f"{line}\n".encode())


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of a history."""

    at: float
    kind: str
    fields: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Life:
    """What one process did.

    `exit_code` is negative after a kill by a signal. `how` says what has interrupted it, None if nothing did. `ways`
    are all that did, because a life may be interrupted twice. `notice` is the instant of its first SIGTERM. `newest` is
    the newest checkpoint right after its end. `error` is the name of the error of the package that has ended it.
    """

    name: str
    exit_code: int
    how: str | None
    ways: frozenset[str] = frozenset()
    began: float = 0.0
    ended: float = 0.0
    notice: float | None = None
    grace: float = 0.0
    newest: Position | None = None
    error: str | None = None
    output: str = ""
    moments: list[Moment] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    durable: list[str] = field(default_factory=list)
    seen: dict[Stage, list[str]] = field(default_factory=dict)
    boundaries: list[tuple[Stage, str]] = field(default_factory=list)
    completed: set[Stage] = field(default_factory=set)
    events: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    # Requests after the end of the fit.
    late: list[str] = field(default_factory=list)
    # Requests that were under way when this life learned that it leads no more. Its successor asks for them, too.
    cut_off: set[str] = field(default_factory=set)
    crashed: str | None = None
    refused: int = 0
    pauses: int = 0
    flushes: int = 0
    tools: int = 0
    is_over: bool = False
    is_lost: bool = False
    repeats: bool = False
    gives_way: bool = False
    end: str | None = None

    @property
    def replayed(self) -> int:
        """Answers that this life has seen, and not asked for."""
        own = set(self.answered)
        return sum(token not in own for tokens in self.seen.values() for token in tokens)

    def reported(self, *kinds: str) -> Iterator[tuple[float, str, dict[str, object]]]:
        """Yield instant, kind and fields of each event of its worker of these kinds."""
        for moment in self.moments:
            if moment.kind == "event" and moment.fields[0] in kinds:
                yield moment.at, moment.fields[0], _fields(moment)


def _fields(moment: Moment) -> dict[str, object]:
    try:
        found: dict[str, object] = orjson.loads(" ".join(moment.fields[1:]))
    except orjson.JSONDecodeError:
        return {}
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What the supervisor has done to a run. `is_hit`: it has had an effect on what it was aimed at."""

    kind: str
    at: float
    until: float
    is_hit: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What an operator has called. `before` is the farthest boundary of the leader then, None if it is unknown."""

    words: str
    at: float
    until: float
    code: int
    output: str
    before: Position | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the observer has found: the newest checkpoint by name, its writer, and whether it verifies.

    `name` is None if there is none. `is_gone`: the run was there, and is no more.
    """

    at: float
    name: str | None
    writer: str | None = None
    problem: str | None = None
    is_gone: bool = False


@dataclass(slots=True, kw_only=True)
class Story:
    """A run as a whole, with what kept its files and elected its leaders.

    `left` are the names in its directory, `keys` those on its server, with the milliseconds for which they stay.
    """

    store: str = "dir"
    coordinator: str = "file"
    lives: list[Life] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=dict)

    def has(self, *kinds: str) -> bool:
        """Whether a fault of one of these kinds has hit."""
        return any(fault.is_hit and fault.kind in kinds for fault in self.faults)


def read_life(path: Path, *, exit_code: int, how: str | None) -> Life:
    """Return the life that a file tells of."""
    life = Life(name=path.stem, exit_code=exit_code, how=how, ways=frozenset(filter(None, [how])))
    stage = (0, 0)
    for line in path.read_text().splitlines() if path.exists() else ():
        at, kind, *fields = line.split(" ")
        life.moments.append(Moment(float(at), kind, tuple(fields)))
        match kind:
            case "start":
                stage = (int(fields[0]), int(fields[1]))
            case "seen" if life.is_lost:
                # Of a stream that was read at the change. The fit is cancelled.
                pass
            case "asked" if life.is_over:
                life.late.append(fields[0])
            case "answered" if life.is_over:
                pass
            case "asked" | "failed" | "answered" | "durable":
                getattr(life, kind).append(fields[0])
                if kind == "asked" and life.gives_way:
                    life.cut_off.add(fields[0])
            case "seen":
                if life.repeats:
                    life.seen[stage], life.repeats = [], False
                life.seen.setdefault(stage, []).append(fields[0])
                life.cut_off.discard(fields[0])
                # From the first answer of another worker on, it follows that one.
                life.gives_way = life.gives_way and fields[0].startswith(f"{life.name}.")
            case "boundary":
                life.completed.add(stage)
                life.repeats = False
                stage = (int(fields[0]), int(fields[1]))
                life.boundaries.append((stage, fields[2]))
            case "event":
                _read_event(life, fields)
            case "crash":
                life.crashed = fields[0]
            case "full":
                life.refused += 1
            case "paused":
                life.pauses += 1
            case "flushed":
                life.flushes += 1
            case "tool":
                life.tools += 1
            case "end":
                life.end = fields[0]
            case _:
                raise ValueError(f"unknown event {line!r} of {path}")
    return life


def _read_event(life: Life, fields: list[str]) -> None:
    kind = fields[0]
    life.events[kind] += 1
    life.is_over = life.is_over or kind in FINAL_KINDS
    if kind in {"diverged", "voided"}:
        life.details.append(" ".join(fields))
    if kind == "stood_down":
        life.is_lost = True
    if kind == "progress" and life.is_lost:
        # A standby that leads again repeats its batch, if that was cancelled before its end.
        life.is_lost, life.repeats = False, True
    # A resignation has a reason where the worker goes on. It asks until another one leads.
    is_asked_to = kind == "resigned" and "reason" in " ".join(fields)
    if kind == "lost" or is_asked_to:
        life.cut_off |= set(life.asked) - {token for tokens in life.seen.values() for token in tokens}
    life.gives_way = is_asked_to or (life.gives_way and kind != "elected")


def final_answers(lives: Iterable[Life]) -> dict[Stage, list[str]]:
    """Return the answers of the history that counts: for each stage, those of a life that completed it, or saw most."""
    final: dict[Stage, list[str]] = {}
    completed: set[Stage] = set()
    for life in lives:
        for stage, tokens in life.seen.items():
            is_better = (stage in life.completed, len(tokens)) > (stage in completed, len(final.get(stage, ())))
            if is_better:
                final[stage] = tokens
        completed |= life.completed
    return final
