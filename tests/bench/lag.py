"""Measure how far a follower is behind its leader: the time between the instants at which both trainings see an answer.

Measured: two real fits on one machine, each in a process of its own, over all answers after the first batch. The model
of the leader answers 8 requests at once after 50 to 150 ms. The follower sends no request. All processes of a machine
share the clock. The time includes the follower's own work on the answers before. It is negative if the event loop of
the leader is busy, and the follower sees a durable answer first. Each commit begins a new segment, so `save_freq=1` has
one for each batch.

Not measured: machines with a network between them, and more followers than one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

from tests.bench.report import table
from tests.bench.results import Report
from tests.support.processes import Child
from tests.support.servers import RedisServer

TRAIN: Final = "tests.bench.followed_fit:train"
BATCHES: Final = 20
EPOCHS: Final = 3
_WARM_UP: Final = 16
_GOALS: Final = (50.0, 250.0)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run keeps its files, how often it commits, and the file that lets the leader's model answer."""

    backup_dir: str
    save_freq: Any
    gate: Path
    batches: int
    epochs: int
    run_id: str = "bench"


def measure(run: Run, directory: Path) -> list[float]:
    """Return the milliseconds by which the follower is behind, for each answer."""
    with ExitStack() as stack:
        workers = []
        for name in ("leader", "follower"):
            worker = stack.enter_context(Child(TRAIN, name, run, log=directory / f"{name}.log"))
            worker.expect("restored")
            workers.append(worker)
        run.gate.touch()
        leader, follower = (worker.result() for worker in workers)
    return behind(leader, follower)


def behind(leader: Mapping[str, float], follower: Mapping[str, float]) -> list[float]:
    """Return the milliseconds between the two instants of each answer."""
    assert leader.keys() == follower.keys(), "the follower has not seen the leader's answers"
    assert all(token.startswith("leader") for token in leader), "the follower has sent a request"
    return [1e3 * (follower[token] - instant) for token, instant in list(leader.items())[_WARM_UP:]]


def row(name: str, save_freq: Any, taken: list[float]) -> list[str]:
    percentiles = quantiles(taken, n=100)
    p50, p99 = percentiles[49], percentiles[98]
    is_met = p50 <= _GOALS[0] and p99 <= _GOALS[1]
    return [
        f"{name}, `save_freq={save_freq!r}`".replace("'", '"'),
        str(len(taken)),
        f"{p50:.1f}",
        f"{p99:.1f}",
        f"{max(taken):.1f}",
        "✓" if is_met else "✗",
    ]


async def report(directory: Path) -> Report:
    rows = []
    with RedisServer(directory / "server", port=0) as server:
        for name in ("disk", "Redis"):
            for save_freq in ("epoch", 1):
                place = directory / f"{name}-{save_freq}"
                place.mkdir(parents=True)
                run = Run(
                    backup_dir=server.url if name == "Redis" else str(place / "run"),
                    save_freq=save_freq,
                    gate=place / "gate",
                    batches=BATCHES,
                    epochs=EPOCHS,
                    run_id=f"bench-{save_freq}",
                )
                rows.append(row(name, save_freq, measure(run, place)))
    head = ["storage", "answers", "p50, ms", "p99, ms", "max, ms", "goals"]
    return table("Follower behind its leader (goals: p50 50 ms, p99 250 ms)", head, rows)
