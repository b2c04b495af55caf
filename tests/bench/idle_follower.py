"""Measure the memory of a follower that waits for its leader, over a process with the same program.

Measured: the proportional set size (PSS) of processes that were started anew and have all imported synalinks. A leader
waits in `fit` for the first answer of its model, and a follower waits for the answer of the leader. Beside them, a
process has built the same program and waits. Another one waits in a `fit` without our callback for the first answer.

Not measured: what a follower keeps of a stage that its leader is ahead by. `memory` measures the journal.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.bench.lag import Run
from tests.bench.lease import Contender, contenders
from tests.bench.report import series, table
from tests.bench.results import Report

ROUNDS: Final = 2
GOAL: Final = 10.0
# Seconds in which a process that waits has ended all that it had begun.
_SETTLE: Final = 3.0
WITHOUT: Final = "program only"
PLAIN: Final = "fit without our callback"
LEADER: Final = "leader"
FOLLOWER: Final = "follower"


def wait_idle(report: Callable[..., None], kind: str, run: Run) -> None:
    """Build the program, begin a fit unless `kind` has none, and report when it waits."""
    from tests.bench import followed_fit

    reported = partial(_collected, report)
    if kind == WITHOUT:
        built = asyncio.run(followed_fit.build_only())
        reported()
        threading.Event().wait()
        del built
    asyncio.run(followed_fit.begin(reported, kind, run, is_plain=kind == PLAIN))


def _collected(report: Callable[..., None], *_: Any) -> None:
    gc.collect()
    report("idle")


def megabytes(pid: int) -> float:
    """Return the proportional set size of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (kilobytes,) = [line.split()[1] for line in lines if line.startswith("Pss:")]
    return int(kilobytes) / 1024


def measure(directory: Path) -> dict[str, float]:
    """Return the megabytes of each kind of process in one round."""
    directory.mkdir(parents=True)
    run = Run(backup_dir=str(directory / "run"), save_freq="epoch", gate=directory / "gate", batches=4, epochs=1)
    with contenders() as started:
        for kinds in ((WITHOUT, PLAIN, LEADER), (FOLLOWER,)):
            started += [Contender(wait_idle, kind, run) for kind in kinds]
            for each in started[-len(kinds) :]:
                each.expect("idle")
        threading.Event().wait(_SETTLE)
        sizes = [megabytes(each.pid) for each in started]
    return dict(zip((WITHOUT, PLAIN, LEADER, FOLLOWER), sizes, strict=True))


async def report(directory: Path) -> Report:
    found = [measure(directory / str(number)) for number in range(ROUNDS)]
    more = {kind: [each[kind] - each[WITHOUT] for each in found] for kind in (PLAIN, LEADER, FOLLOWER)}
    rows = [[WITHOUT, *(f"{each[WITHOUT]:.1f}" for each in found)]]
    rows += [[kind, *(f"+{value:.1f}" for value in values)] for kind, values in more.items()]
    taken = {"ours": more[FOLLOWER], PLAIN: more[PLAIN]}
    measured = series(("memory of an idle follower", "over its program"), taken, {"ours": GOAL}, scale=1.0, unit="MB")
    head = ["process", *(f"round {number + 1}, MB" for number in range(ROUNDS))]
    return table("Memory of a follower that waits (PSS)", head, rows, measured)
