"""Run simulated worlds: `python -m tests.simulation --runs N --seed S`."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.simulation.bugs import BUGS, planted
from tests.simulation.world import World, simulated
from tests.support.commands import check_alone, count, leaving_nothing
from tests.support.figures import Document, command, is_whole, missing, origin, parse_with_write

DOCUMENT: Final = Document(folder=Path(__file__).parent)
_MODULE: Final = "tests.simulation"

# A run leaves threads that were killed. They can't be freed, because that would run their `finally`.
RUNS_PER_PROCESS: Final = 50

_kept: list[World] = []


@dataclass(frozen=True)
class Result:
    """What became of some runs. `failure` is the story of the first one that has broken a promise."""

    runs: int
    faults: Counter[str]
    steps: int
    simulated: float
    failure: str | None = None
    seed: int | None = None
    digest: int = 0
    """Of all choices."""


def run_seeds(seeds: range, bug: str | None = None) -> Result:
    """Run the worlds of these seeds, up to the first failure. `bug`: with this error planted."""
    logging.getLogger("distributed_backup").setLevel(logging.CRITICAL)
    faults: Counter[str] = Counter()
    steps, simulated_seconds, digest = 0, 0.0, 0
    with ExitStack() if bug is None else planted(bug):
        for number, seed in enumerate(seeds, 1):
            world = World(seed)
            _kept.append(world)
            failure = None
            try:
                with simulated(world):
                    world.run()
            except BaseException:  # noqa: BLE001 - a simulated thread may raise what it likes
                failure = "\n".join([*world.check.log[-50:], f"{world.plan}", traceback.format_exc()])
            faults += world.faults
            steps += world.scheduler.steps
            digest ^= world.scheduler.digest
            simulated_seconds += world.scheduler.now
            if failure is not None:
                return Result(number, faults, steps, simulated_seconds, failure, seed, digest)
    return Result(len(seeds), faults, steps, simulated_seconds, digest=digest)


def run_all(first: int, runs: int, bug: str | None, *, keeps_going: bool) -> Result:
    """Run the worlds of many seeds in two processes. Print each failure, and return the sums."""
    last = first + runs
    chunks = [range(each, min(each + RUNS_PER_PROCESS, last)) for each in range(first, last, RUNS_PER_PROCESS)]
    total = Result(0, Counter(), 0, 0.0)
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        while chunks:
            left = []
            for seeds, result in zip(chunks, pool.imap(_run_chunk, [(seeds, bug) for seeds in chunks]), strict=True):
                total = _sum(total, result)
                if result.seed is not None:
                    again = command(_MODULE, {"runs": 1, "seed": result.seed, "bug": bug})
                    print(f"{result.failure}\nseed {result.seed} again: {again}\n", flush=True)
                    if not keeps_going:
                        return total
                    left.append(range(result.seed + 1, seeds.stop))
            chunks = [seeds for seeds in left if seeds]
    return total


def _sum(one: Result, other: Result) -> Result:
    return Result(
        one.runs + other.runs,
        one.faults + other.faults,
        one.steps + other.steps,
        one.simulated + other.simulated,
        one.failure or other.failure,
        other.seed if one.seed is None else one.seed,
        one.digest ^ other.digest,
    )


def plant_all(first: int, runs: int) -> dict[str, int | None]:
    """Plant each error in turn. Return after how many runs it is found, None if it is not."""
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        results = pool.map(_run_chunk, [(range(first, first + runs), bug) for bug in BUGS], chunksize=1)
    return {bug: None if result.failure is None else result.runs for bug, result in zip(BUGS, results, strict=True)}


def _run_chunk(chunk: tuple[range, str | None]) -> Result:
    return run_seeds(*chunk)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--runs", type=count, default=500)
    parser.add_argument("--seed", type=int, default=1, help="of the first run, the next ones count up")
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant an error")
    parser.add_argument("--plant-all", action="store_true", help="plant each error, and print when it is found")
    parser.add_argument("--digest", action="store_true", help="print a digest of all steps first")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    chosen = parse_with_write(parser)
    check_alone(parser, chosen, "bug", "digest", "keep_going")
    return chosen


def main() -> int:
    """Run the command."""
    chosen = options()
    given = {"plant-all": chosen.plant_all or None, "runs": chosen.runs, "seed": chosen.seed}
    made = origin() | {"command": command(_MODULE, given), "seed": chosen.seed}
    with leaving_nothing():
        return _plant_all(chosen, made) if chosen.plant_all else _campaign(chosen, made)


def _plant_all(chosen: argparse.Namespace, made: dict[str, Any]) -> int:
    found = plant_all(chosen.seed, chosen.runs)
    print("\n".join(f"| {bug} | {runs or '-'} |" for bug, runs in found.items()))
    if chosen.write and is_whole(missing(found)):
        head = ["error", "broken promise", "found after runs"]
        rows = [[bug, BUGS[bug].breaks, str(runs)] for bug, runs in found.items()]
        DOCUMENT.keep({"planted": made | {"head": head, "rows": rows, "texts": head[:2]}})
    return int(None in found.values())


def _campaign(chosen: argparse.Namespace, made: dict[str, Any]) -> int:
    began = time.perf_counter()
    total = run_all(chosen.seed, chosen.runs, chosen.bug, keeps_going=chosen.keep_going)
    if chosen.digest:
        print(f"digest {total.digest:08x}")
    hours, seconds = f"{total.simulated / 3600:.1f}", f"{time.perf_counter() - began:.0f}"
    print(
        f"{total.runs} runs, {total.faults.total()} faults, {hours} hours simulated in {seconds} s, "
        f"{'no promise broken' if total.failure is None else 'PROMISE BROKEN'}"
    )
    for name, times in total.faults.most_common():
        print(f"{times:8}  {name}")
    if chosen.write and is_whole("" if total.failure is None else f"seed {total.seed} broke a promise"):
        rows = [
            ["runs", str(total.runs)],
            ["faults", str(total.faults.total())],
            *([f"faults: {name}", str(times)] for name, times in total.faults.most_common()),
            ["simulated hours", hours],
            ["seconds", seconds],
            ["the first run that broke a promise", "none"],
        ]
        DOCUMENT.keep({"campaign": made | {"head": ["what", "count"], "rows": rows, "texts": ["what"]}})
    return 0 if total.failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
