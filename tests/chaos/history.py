"""The history of a run: what happened in each life of its workers. Imports no synalinks.

A life is one process. It appends each event to a file of its own with one system call, so a SIGKILL loses none:

    start EPOCH BATCH            the position that it has restored
    asked TOKEN KEY              the request has come to the provider
    failed TOKEN                 the provider has raised an error
    answered TOKEN               the answer is about to leave the provider
    durable TOKEN                the journal has it
    seen TOKEN                   the fit has it, from the provider or from the journal
    boundary EPOCH BATCH DIGEST  the fit has come to this position, in this state
    event KIND FIELDS            an event of the worker
    tool NAME                    a tool was called
    paused SECONDS               it goes on after a pause. The supervisor notes this, and the next one
    flushed                      the Redis server of the run was emptied
    end DIGEST                   the fit has returned, in this state

A stage is what lies between two boundaries.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from distributed_backup.observability.events import FINAL_KINDS

type Stage = tuple[int, int]
"""The position at which a stage begins."""


class Journalist:
    """Appends the events of one life to a file."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, kind: str, *fields: object) -> None:
        """Append an event, from any thread."""
        os.write(self._descriptor, (" ".join(map(str, (kind, *fields))) + "\n").encode())


@dataclass(slots=True, kw_only=True)
class Life:
    """What one process did.

    `exit_code` is negative after a kill by a signal. `how` says what has interrupted it, None if nothing did.
    """

    name: str
    exit_code: int
    how: str | None
    asked: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    durable: list[str] = field(default_factory=list)
    seen: dict[Stage, list[str]] = field(default_factory=dict)
    boundaries: list[tuple[Stage, str]] = field(default_factory=list)
    completed: set[Stage] = field(default_factory=set)
    events: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    # Requests that were under way when this life learned that it leads no more. Its successor asks for them, too.
    cut_off: set[str] = field(default_factory=set)
    pauses: int = 0
    flushes: int = 0
    tools: int = 0
    is_over: bool = False
    is_lost: bool = False
    end: str | None = None

    @property
    def replayed(self) -> int:
        """Answers that this life has seen, and not asked for."""
        own = set(self.answered)
        return sum(token not in own for tokens in self.seen.values() for token in tokens)


def read_life(path: Path, *, exit_code: int, how: str | None) -> Life:
    """Return the life that a file tells of."""
    life = Life(name=path.stem, exit_code=exit_code, how=how)
    stage = (0, 0)
    for line in path.read_text().splitlines() if path.exists() else ():
        kind, *fields = line.split(" ")
        match kind:
            case "start":
                stage = (int(fields[0]), int(fields[1]))
            case "seen" if life.is_lost:
                # Of a stream that was read at the change. The fit is cancelled.
                pass
            case "asked" | "answered" if life.is_over:
                # Retries of synalinks catch the cancellation of their task, and ask again when the fit has ended.
                pass
            case "asked" | "failed" | "answered" | "durable":
                getattr(life, kind).append(fields[0])
            case "seen":
                life.seen.setdefault(stage, []).append(fields[0])
            case "boundary":
                life.completed.add(stage)
                stage = (int(fields[0]), int(fields[1]))
                life.boundaries.append((stage, fields[2]))
            case "event":
                life.events[fields[0]] += 1
                life.is_over = life.is_over or fields[0] in FINAL_KINDS
                if fields[0] in {"diverged", "voided"}:
                    life.details.append(" ".join(fields))
                life.is_lost = life.is_lost or fields[0] == "stood_down"
                if fields[0] == "lost":
                    life.cut_off |= set(life.asked) - {token for tokens in life.seen.values() for token in tokens}
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
