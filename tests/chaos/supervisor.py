"""Run the lives of a run: start a worker, kill it as planned, and start it again until it ends."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis

from tests.chaos.history import Journalist, Life, read_life
from tests.chaos.plan import LIVED_THROUGH, How, Kill, Place, Run
from tests.support.processes import Child

LIFE = "tests.chaos.life:live"
# A worker that is started again so often does not come to its end.
_MOST_LIVES = 12
_SIGNALS: Final = {
    "SIGKILL": signal.SIGKILL,
    "SIGTERM": signal.SIGTERM,
    "cut off": signal.SIGTERM,
    "Ctrl-C": signal.SIGINT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a run: its lives, in the order in which they began. A worker that hangs is a violation."""

    lives: list[Life]
    problems: list[str]


def carry_out(run: Run, place: Place, logs: Path) -> Outcome:
    """Run all workers to their end."""
    logs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(len(run.kills)) as pool:
        outcomes = list(pool.map(lambda worker: _worker(run, place, logs, worker), range(len(run.kills))))
    return Outcome(
        lives=[life for outcome in outcomes for life in outcome.lives],
        problems=[problem for outcome in outcomes for problem in outcome.problems],
    )


def _worker(run: Run, place: Place, logs: Path, worker: int) -> Outcome:
    outcome = Outcome(lives=[], problems=[])
    kills = list(run.kills[worker])
    for number in range(_MOST_LIVES):
        path = logs / f"w{worker}-{number}.log"
        try:
            life = _life(run, place, path, number, _taken(kills))
        except AssertionError as error:
            outcome.problems.append(f"ends: {path.stem} hangs: {str(error)[-2000:]}")
            return outcome
        outcome.lives.append(life)
        if life.exit_code == 0:
            return outcome
        if life.how is None:
            break
    last = outcome.lives[-1]
    outcome.problems.append(f"ends: worker {worker} has not finished, {last.name} ended with {last.exit_code}")
    return outcome


def _taken(kills: list[Kill]) -> tuple[Kill, ...]:
    """Take the interruptions of the next life: those that it lives through, up to the first one that ends it."""
    taken: list[Kill] = []
    while kills and (not taken or taken[-1].how in LIVED_THROUGH):
        taken.append(kills.pop(0))
    return tuple(taken)


def _life(run: Run, place: Place, path: Path, number: int, kills: tuple[Kill, ...]) -> Life:
    how: How | None = None
    with Child(LIFE, run, place, path, number, kills, log=path.with_suffix(".txt")) as child:
        for kill in kills:
            if not _interrupt(child, kill, place, path):
                break
            how = "pause" if kill.how in LIVED_THROUGH else kill.how
        exit_code = child.join()
    if exit_code == 1 and "PlannedError" in child.output():
        how = "exception"
    return read_life(path, exit_code=exit_code, how=how)


def _interrupt(child: Child, kill: Kill, place: Place, path: Path) -> bool:
    """Interrupt a child when it asks for it. Return False if it ends before, or raises an exception itself."""
    if kill.how == "exception":
        return False
    try:
        child.expect("kill")
    except AssertionError:
        return False
    threading.Event().wait(kill.delay)
    try:
        if kill.how == "FLUSHALL":
            with redis.Redis.from_url(place.backup_dir) as client:
                client.flushall()
            Journalist(path).note("flushed")
            return True
        if kill.how != "pause":
            child.kill(_SIGNALS[kill.how])
            return True
        child.kill(signal.SIGSTOP)
        threading.Event().wait(kill.seconds)
        # Now, because it writes nothing itself.
        Journalist(path).note("paused", kill.seconds)
        child.kill(signal.SIGCONT)
    except ProcessLookupError:
        return False
    return True
