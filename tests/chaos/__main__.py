"""Kill fits at random instants: `uv run python -m tests.chaos --minutes 5`. See README.md."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.campaign import Campaign, Result
from tests.chaos.excuses import is_recorded
from tests.chaos.places import COORDINATORS, STORES, places
from tests.chaos.plan import PROGRAMS, Setting, plan
from tests.chaos.planted import find_all


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="no run is begun after so many minutes")
    parser.add_argument("--runs", type=int, help="the most runs")
    parser.add_argument("--seed", type=int, default=0, help="of the first run, the next ones count up")
    parser.add_argument("--programs", default="all", help=f"all, or some of {','.join(PROGRAMS)}")
    parser.add_argument("--coordinator", choices=COORDINATORS, default="file")
    parser.add_argument("--store", choices=STORES, default="dir")
    parser.add_argument("--workers", type=int, default=1, help="workers of each run")
    parser.add_argument("--bug", help="plant an error, see README.md")
    parser.add_argument("--plant-all", action="store_true", help="plant each error, and print when it is found")
    parser.add_argument("--keep", type=Path, help="folder in which files of runs with violations stay")
    return parser.parse_args()


def summary(results: Sequence[Result], minutes: float) -> str:
    """Return a Markdown table with a row for each kind of fault, as often as it has hit, and the sums."""
    faults = sum((each.faults for each in results), Counter[str]())
    commands = sum((each.commands for each in results), Counter[str]())
    rows: list[tuple[str, object]] = [
        *sorted(faults.items()),
        ("all faults", faults.total()),
        *((f"`{words}`", count) for words, count in sorted(commands.items())),
        ("runs", len(results)),
        ("runs without an excuse", sum(is_recorded(each.story) for each in results)),
        ("processes of workers", sum(len(each.lives) for each in results)),
        ("minutes", f"{minutes:.0f}"),
        ("violations", sum(len(each.violations) for each in results)),
    ]
    return "\n".join(["| what | count |", "|---|---:|", *(f"| {name} | {count} |" for name, count in rows)])


def main() -> int:
    chosen = options()
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    # Of its own, because what an earlier campaign has left would be taken for the runs of this one.
    root = Path(tempfile.mkdtemp(prefix="chaos-", dir=chosen.keep))
    if chosen.plant_all:
        return int(not find_all(root, chosen.runs or 10, lambda text: print(text, flush=True)))
    began = time.monotonic()
    setting = Setting(
        programs=PROGRAMS if chosen.programs == "all" else tuple(chosen.programs.split(",")),
        workers=chosen.workers,
        coordinator=chosen.coordinator,
        store=chosen.store,
        bug=chosen.bug,
    )
    results: list[Result] = []
    with places(root, store=chosen.store, coordinator=chosen.coordinator) as made:
        campaign = Campaign(root, made)
        while time.monotonic() < began + 60 * chosen.minutes and len(results) != chosen.runs:
            results.append(campaign.carry_out(plan(chosen.seed + len(results), setting)))
            print(results[-1].line(), flush=True)
    print(f"\n{summary(results, (time.monotonic() - began) / 60)}\n\nfiles: {root}")
    return int(any(each.violations for each in results))


if __name__ == "__main__":
    sys.exit(main())
