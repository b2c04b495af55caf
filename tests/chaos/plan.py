"""Plan runs that are interrupted: which program, how it is saved, when it is killed. Imports no synalinks."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final, Literal

type How = Literal["SIGKILL", "SIGTERM", "cut off", "exception", "Ctrl-C", "pause", "FLUSHALL"]
type Event = Literal["event", "asked", "answered", "seen", "replayed"]
type SaveFrequency = int | Literal["epoch", False]

PROGRAMS: Final = (
    "few-shot",
    "omega",
    "agent",
    "judge",
    "embeddings",
    "stream",
    "decision",
    "client",
    "failing",
    "refused",
    "twins",
)
SAVE_FREQUENCIES: Final[tuple[SaveFrequency, ...]] = (1, 3, "epoch", False)
# An uninterrupted fit makes 120 requests or more.
_MOST_ANSWERS: Final = 140
# Three starts in a row that die in their replay make its answers void.
_MOST_KILLS: Final = 3
_EVENTS: Final[tuple[Event, ...]] = ("event", "asked", "answered", "seen")
_NOTICES: Final[tuple[How, ...]] = ("SIGTERM", "cut off")
# The longest time that the provider takes for one answer, in seconds.
LATENCY: Final = 0.02
# What ends no life.
LIVED_THROUGH: Final[frozenset[How]] = frozenset({"pause", "FLUSHALL"})
# The part of the pauses after which the worker is also killed.
_KILLED_AFTER_PAUSE: Final = 0.4
# Seconds of a pause: longer than a heartbeat's period, or longer than the lease of `life`.
_PAUSES: Final = ((0.05, 0.5), (1.0, 2.5))

EPOCHS: Final = 3
BATCH_SIZE: Final = 8
SAMPLES: Final = 16
VALIDATION_SAMPLES: Final = 8
STEPS: Final = SAMPLES // BATCH_SIZE
# Batches of the training and of the validation.
BATCHES: Final = STEPS + 2 * VALIDATION_SAMPLES // BATCH_SIZE
BOUNDARIES: Final = tuple(
    (epoch, batch) for epoch in range(EPOCHS + 1) for batch in range(BATCHES + 1) if (epoch, batch) > (0, 0)
)[: EPOCHS * (BATCHES + 1)]
# Answers of an uninterrupted run. Those of "omega" depend on the answers, those of "refused" on the failures.
ANSWERS: Final = {
    "few-shot": 120,
    "agent": 360,
    "judge": 240,
    "embeddings": 360,
    "stream": 120,
    "decision": 120,
    "client": 240,
    "failing": 120,
    "twins": 120,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """An interruption, `delay` seconds after this life has seen `count` events of one kind.

    "event" is one of the worker, such as a commit. The other kinds are of requests. "replayed" is the answer to a
    request of another life.

    "cut off" is a SIGTERM while the provider answers only half of its requests, so that the batch can't end in the
    grace period. A "pause" is a SIGSTOP, and a SIGCONT after `seconds`. "FLUSHALL" empties the Redis server of the run.
    After these two the life goes on, and its next interruption is counted from there.
    """

    how: How
    event: Event
    count: int
    delay: float
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run keeps its files, and what elects its leader."""

    backup_dir: str
    coordinator: str | None = None
    run_id: str | None = None
    is_leased: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run, from its first start to its end. `kills` are those of each worker, in the order of its lives.

    `keeps_all`: nothing is pruned, so the whole run can be replayed at its end. `bug` names an error of `bugs`.
    """

    seed: int
    program: str
    save_freq: SaveFrequency
    is_shuffled: bool
    deletes: bool
    keeps_all: bool
    kills: tuple[tuple[Kill, ...], ...]
    bug: str | None = None

    @property
    def name(self) -> str:
        """What a report calls the run."""
        data = "shuffled" if self.is_shuffled else "in order"
        return f"seed={self.seed} {self.program} save_freq={self.save_freq} {data}"


def plan(
    seed: int,
    *,
    programs: tuple[str, ...] = PROGRAMS,
    workers: int = 1,
    is_orderly: bool = False,
    keeps_all: bool = False,
    has_pauses: bool = False,
    bug: str | None = None,
) -> Run:
    """Return the run of a seed. Consecutive seeds take turns with the programs. `is_orderly`: without SIGKILL.

    `keeps_all`: some runs keep everything. `has_pauses`: a pause comes before each interruption, or in its place.
    """
    chosen = random.Random(seed)
    # With False nothing is recorded before a notice, so followers have nothing to follow.
    save_freq = chosen.choices(SAVE_FREQUENCIES, weights=(3, 2, 3, 1 if workers == 1 else 0))[0]
    run = Run(
        seed=seed,
        program=programs[seed % len(programs)],
        save_freq=save_freq,
        is_shuffled=chosen.random() < 0.3,
        deletes=workers == 1 and chosen.random() < 0.3,
        keeps_all=False,
        kills=tuple(_kills(chosen, save_freq, is_orderly=is_orderly) for _ in range(workers)),
        bug=bug,
    )
    if has_pauses:
        run = replace(run, kills=tuple(_with_pauses(chosen, kills) for kills in run.kills))
    # With save_freq=False there is no checkpoint of the start.
    may_keep = keeps_all and workers == 1 and not run.deletes and save_freq is not False
    return replace(run, keeps_all=may_keep and chosen.random() < 0.3)


def _kills(chosen: random.Random, save_freq: SaveFrequency, *, is_orderly: bool) -> tuple[Kill, ...]:
    kills: list[Kill] = []
    for _ in range(chosen.randint(1, _MOST_KILLS)):
        how = _how(chosen, save_freq, is_orderly=is_orderly)
        # A second exception in the same stage would make its answers void.
        if how == "exception" and any(kill.how == how for kill in kills):
            how = "SIGTERM"
        event = chosen.choices(_EVENTS, weights=(1, 1, 5, 2))[0]
        # The first events of a worker are those of its start.
        count = chosen.randint(1, 5) if event == "event" else 1 + int(_MOST_ANSWERS * chosen.random() ** 1.5)
        kills.append(Kill(how=how, event=event, count=count, delay=chosen.random() * LATENCY))
    return tuple(kills)


def _with_pauses(chosen: random.Random, kills: tuple[Kill, ...]) -> tuple[Kill, ...]:
    """Return the interruptions of one worker with pauses among them."""
    made: list[Kill] = []
    for kill in kills:
        seconds = chosen.uniform(*chosen.choice(_PAUSES))
        count = chosen.randint(1, 8) if kill.event == "event" else 1 + int(_MOST_ANSWERS * chosen.random() ** 1.5)
        made.append(replace(kill, how="pause", count=count, seconds=seconds))
        if chosen.random() < _KILLED_AFTER_PAUSE:
            made.append(kill)
    return tuple(made)


def _how(chosen: random.Random, save_freq: SaveFrequency, *, is_orderly: bool) -> How:
    if not save_freq:
        return chosen.choice(_NOTICES)
    if chosen.random() < 0.7 and not is_orderly:
        return "SIGKILL"
    return chosen.choice((*_NOTICES, "exception", "Ctrl-C"))
