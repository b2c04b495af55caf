"""Plan runs that are interrupted: which program, how it is saved, what happens when. Imports no synalinks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, cast, get_args

type End = Literal[
    "SIGKILL",
    "SIGTERM",
    "cut off",
    "eviction",
    "exception",
    "Ctrl-C",
    "crash",
    "SIGTERM to all",
    "SIGKILL to all",
]
type Between = Literal[
    "pause",
    "command",
    "FLUSHALL",
    "server restart",
    "delay",
    "cut",
    "half-open",
    "lost reply",
    "store busy",
    "store reply lost",
    "disk full",
    "damage",
    "leftover",
]
type How = End | Between
type Event = Literal["event", "asked", "answered", "seen", "replayed", "commit", "append"]
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
# The same for a run that is to last for a while, so that much happens in it.
_LONG_LATENCY: Final = 0.12
_GRACE_PERIOD: Final = 30.0
_SHORT_GRACE_PERIOD: Final = 1.5
# Seconds that the platform waits for longer than the callback knows, see `grace_period`.
PLATFORM_MARGIN: Final = 2.0
# What ends a life.
ENDS: Final[frozenset[How]] = frozenset(get_args(End.__value__))
# Those after which nothing in the process runs, or may not run to its end.
VIOLENT: Final[frozenset[How]] = frozenset({"SIGKILL", "SIGKILL to all", "crash", "eviction"})
NETWORK: Final[frozenset[How]] = frozenset({"delay", "cut", "half-open", "lost reply", "server restart"})
# The most that a life lives through before it ends.
_MOST_BETWEEN: Final = 10
_DAMAGES: Final = ("truncated", "flipped", "emptied")
COMMANDS: Final = (
    "status",
    "preempt",
    "resign",
    "checkpoints list",
    "checkpoints verify",
    "journal verify",
    "journal show",
)
# Seconds of a pause: longer than a heartbeat's period, or longer than the lease of `life`.
_PAUSES: Final = ((0.05, 0.3), (1.0, 1.8))

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
    grace period. An "eviction" is a SIGTERM, and a SIGKILL after `seconds`, whatever was announced. A "crash" is a
    SIGKILL that the process sends itself at the step of a "commit" or "append" that is counted. A "pause" is a SIGSTOP,
    and a SIGCONT after `seconds`. `detail` names a command of operators, or what is damaged.

    After those that are not in `ENDS`, the life goes on, and its next interruption is counted from there.
    """

    how: How
    event: Event
    count: int
    delay: float
    seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run keeps its files, and what elects its leader. The disk is full while the file `full` exists."""

    backup_dir: str
    coordinator: str | None = None
    run_id: str | None = None
    is_leased: bool = False
    full: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run, from its first start to its end. `kills` are those of each worker, in the order of its lives.

    `keeps_all`: nothing is pruned, so the whole run can be replayed at its end. `keeps_two`: the checkpoint before the
    newest stays. `latency` is the longest time of an answer, in seconds. `bug` names an error of `bugs`.
    """

    seed: int
    program: str
    save_freq: SaveFrequency
    is_shuffled: bool
    deletes: bool
    keeps_all: bool
    kills: tuple[tuple[Kill, ...], ...]
    bug: str | None = None
    standby: bool = False
    latency: float = LATENCY
    keeps_two: bool = False

    @property
    def name(self) -> str:
        """What a report calls the run."""
        words = ("shuffled" if self.is_shuffled else "in order", "standby" * self.standby, "deletes" * self.deletes)
        return f"seed={self.seed} {self.program} save_freq={self.save_freq} {' '.join(filter(None, words))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the runs of a campaign have in common.

    `is_long`: answers take long, so that much happens in a run. `themes` are those of each run, if there are any. The
    name of an interruption stands for it alone. `ends`: lives end by these, and live through nothing before. `standby`
    and `keeps_two` are those of each run.
    """

    programs: tuple[str, ...] = PROGRAMS
    workers: int = 1
    coordinator: str = "file"
    store: str = "dir"
    bug: str | None = None
    is_long: bool = True
    themes: tuple[str, ...] = ()
    ends: tuple[How, ...] = ()
    standby: bool = False
    keeps_two: bool = False

    @property
    def possible(self) -> dict[str, tuple[How, ...]]:
        """What may happen during the lives of a run, by what is hit. Each run has one theme or two."""
        left: tuple[How, ...] = ("leftover",) if self.store == "dir" else ()
        themes: dict[str, tuple[How, ...]] = {"processes": ("pause", "pause", "pause", "command", *left)}
        if "redis" in (self.coordinator, self.store):
            themes["network"] = (*sorted(NETWORK), "FLUSHALL")
        if self.store == "s3":
            themes["store"] = ("store busy", "store reply lost")
        if self.store == "dir":
            themes["disk"] = ("disk full", "damage")
        return themes


def grace_period(kills: Sequence[Kill]) -> float:
    """Return the grace period of a life, in seconds: for a provider that hangs, one in which no batch can end."""
    return _SHORT_GRACE_PERIOD if any(kill.how == "cut off" for kill in kills) else _GRACE_PERIOD


def plan(seed: int, setting: Setting) -> Run:
    """Return the run of a seed. Consecutive seeds take turns with the programs."""
    chosen = random.Random(seed)
    is_alone = setting.workers == 1
    # With False nothing is recorded before a notice, so followers have nothing to follow.
    save_freq = chosen.choices(SAVE_FREQUENCIES, weights=(3, 2, 3, 1 if is_alone else 0))[0]
    possible = setting.possible
    # Half of the runs have no other theme, and so excuse nothing.
    others = [name for name in possible if name != "processes"]
    is_mixed = others and chosen.random() < 0.5
    themes = setting.themes or ("processes", chosen.choice(others) if is_mixed else "processes")
    lived_through = tuple(possible.get(name, (cast("How", name),)) for name in themes)
    run = Run(
        seed=seed,
        program=setting.programs[seed % len(setting.programs)],
        save_freq=save_freq,
        is_shuffled=chosen.random() < 0.3,
        deletes=chosen.random() < (0.3 if is_alone else 0.15),
        keeps_all=False,
        kills=tuple(_kills(chosen, setting, save_freq, lived_through) for _ in range(setting.workers)),
        bug=setting.bug,
        standby=setting.standby or (not is_alone and chosen.random() < 0.2),
        keeps_two=chosen.random() < 0.3 or setting.keeps_two,
        latency=_LONG_LATENCY if setting.is_long else LATENCY,
    )
    # With save_freq=False there is no checkpoint of the start.
    may_keep = setting.store == "dir" and is_alone and not run.deletes and save_freq is not False
    return replace(run, keeps_all=may_keep and chosen.random() < 0.3)


def _kills(
    chosen: random.Random, setting: Setting, save_freq: SaveFrequency, lived_through: tuple[tuple[How, ...], ...]
) -> tuple[Kill, ...]:
    """Return the interruptions of one worker: ends of its lives, and what they live through before."""
    kills: list[Kill] = []

    def between() -> list[Kill]:
        count = 0 if setting.ends else chosen.randint(0, _MOST_BETWEEN)
        return [_lived_through(chosen, chosen.choice(chosen.choice(lived_through))) for _ in range(count)]

    for _ in range(chosen.randint(0 if setting.workers > 1 else 1, _MOST_KILLS)):
        kills += between()
        how = _end(chosen, setting, save_freq)
        # A second exception in the same stage would make its answers void.
        if how == "exception" and any(kill.how == how for kill in kills):
            how = "SIGTERM"
        kills.append(_ending(chosen, how))
    return (*kills, *between())


def _ending(chosen: random.Random, how: How) -> Kill:
    if how == "crash":
        event: Event = chosen.choice(("commit", "append"))
        # A commit has about 8 steps, an append about 3.
        return Kill(how=how, event=event, count=chosen.randint(1, 40), delay=0.0)
    event = chosen.choices(_EVENTS, weights=(2, 1, 1, 6))[0]
    # The first events of a worker are those of its start.
    count = chosen.randint(1, 5) if event == "event" else 1 + int(_MOST_ANSWERS / 2 * chosen.random() ** 1.5)
    return Kill(how=how, event=event, count=count, delay=chosen.random() * LATENCY, seconds=chosen.uniform(0.0, 0.4))


def _lived_through(chosen: random.Random, how: How) -> Kill:
    # Followers ask nothing, so what is counted is what each worker sees.
    event: Event = "event" if chosen.random() < 0.1 else "seen"
    count = 1 if event == "event" else 1 + int(_MOST_ANSWERS / 6 * chosen.random() ** 1.5)
    seconds, detail = _DETAILS.get(how, _of_some_time)(chosen)
    return Kill(how=how, event=event, count=count, delay=chosen.random() * LATENCY, seconds=seconds, detail=detail)


def _end(chosen: random.Random, setting: Setting, save_freq: SaveFrequency) -> How:
    if setting.ends:
        return chosen.choice(setting.ends)
    if not save_freq:
        return chosen.choice(_NOTICES)
    gentle: tuple[How, ...] = (*_NOTICES, "exception", "Ctrl-C", *(("SIGTERM to all",) if setting.workers > 1 else ()))
    # A bucket is written once in a second, so answers of the last second may be lost at a SIGKILL.
    if setting.store == "s3" or chosen.random() < 0.4:
        return chosen.choice(gentle)
    crash: How = "crash" if setting.store == "dir" else "SIGKILL"
    return chosen.choices(
        ("SIGKILL", crash, "eviction", "SIGKILL to all" if setting.workers > 1 else "SIGKILL"), weights=(4, 4, 2, 1)
    )[0]


def _of_some_time(chosen: random.Random) -> tuple[float, str]:
    return chosen.uniform(*chosen.choice(_PAUSES)), ""


_DETAILS: Final[dict[How, Callable[[random.Random], tuple[float, str]]]] = {
    "command": lambda chosen: (0.0, chosen.choice(COMMANDS)),
    "damage": lambda chosen: (
        chosen.uniform(3.0, 5.0),
        f"{chosen.choice(('checkpoint', 'checkpoint,killed', 'journal'))} {chosen.choice(_DAMAGES)}",
    ),
}
