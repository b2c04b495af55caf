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
from tests.chaos.places import COORDINATORS, STORES, places
from tests.chaos.plan import PROGRAMS, plan


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="no run is begun after so many minutes")
    parser.add_argument("--runs", type=int, help="the most runs")
    parser.add_argument("--seed", type=int, default=0, help="of the first run, the next ones count up")
    parser.add_argument("--programs", default="all", help=f"all, or some of {','.join(PROGRAMS)}")
    parser.add_argument("--coordinator", choices=COORDINATORS, default="file")
    parser.add_argument("--store", choices=STORES, default="dir")
    parser.add_argument("--workers", type=int, default=1, help="workers of each run")
    parser.add_argument("--pauses", action="store_true", help="also stop workers, and let them go on")
    parser.add_argument("--bug", help="plant an error, see README.md")
    parser.add_argument("--keep", type=Path, help="where files of runs with violations stay")
    return parser.parse_args()


def summary(results: Sequence[Result]) -> str:
    """Return a Markdown table with a row for each program, and the sums."""
    head = ("program", "runs", "SIGKILL", "others", "replayed", "passed again", "violations")
    rows = [(name, [each for each in results if each.run.program == name]) for name in PROGRAMS]
    lines = [" | ".join(("", *head, "")).strip(), "|---|" + "---:|" * (len(head) - 1)]
    for name, of_program in [*rows, ("all", list(results))]:
        kills = sum((each.kills for each in of_program), Counter[str]())
        cells = (
            name,
            len(of_program),
            kills["SIGKILL"],
            kills.total() - kills["SIGKILL"],
            sum(each.replayed for each in of_program),
            sum(each.passed_again for each in of_program),
            sum(len(each.violations) for each in of_program),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    chosen = options()
    programs = PROGRAMS if chosen.programs == "all" else tuple(chosen.programs.split(","))
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    root = chosen.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    deadline = time.monotonic() + 60 * chosen.minutes
    results: list[Result] = []
    with places(root, store=chosen.store, coordinator=chosen.coordinator) as made:
        campaign = Campaign(root, made)
        while time.monotonic() < deadline and len(results) != chosen.runs:
            run = plan(
                chosen.seed + len(results),
                programs=programs,
                workers=chosen.workers,
                # A bucket is written once in a second, so answers of the last second may be lost at a SIGKILL.
                is_orderly=chosen.store == "s3",
                keeps_all=chosen.store == "dir",
                has_pauses=chosen.pauses,
                bug=chosen.bug,
            )
            results.append(campaign.carry_out(run))
            print(results[-1].line(), flush=True)
    print(f"\n{summary(results)}\n\nfiles: {root}")
    return int(any(each.violations for each in results))


if __name__ == "__main__":
    sys.exit(main())
