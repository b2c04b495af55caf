"""Kill fits at random instants: `uv run python -m tests.chaos --minutes 5`. See README.md."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.chaos.campaign import Campaign, Result
from tests.chaos.places import COORDINATORS, STORES, places
from tests.chaos.plan import PROGRAMS, Setting, plan
from tests.chaos.planted import COLUMNS, find_all
from tests.chaos.planted import PLANTED as PLANTED_ERRORS
from tests.chaos.results import DOCUMENT, PLANTED, figures, name_of, summary
from tests.support.commands import check_alone, count, duration, leaving_nothing
from tests.support.figures import command, is_whole, missing, origin, parse_with_write, table

_MODULE: Final = "tests.chaos"
_OPTIONS: Final = ("minutes", "runs", "seed", "programs", "store", "coordinator", "workers")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=duration, default=5.0, help="no further run is begun then")
    parser.add_argument("--runs", type=count, help="the most runs")
    parser.add_argument("--seed", type=int, default=0, help="of the first run, the next ones count up")
    parser.add_argument("--programs", type=_programs, default=PROGRAMS, help=f"all, or some of {','.join(PROGRAMS)}")
    parser.add_argument("--coordinator", choices=COORDINATORS, default="file")
    parser.add_argument("--store", choices=STORES, default="dir")
    parser.add_argument("--workers", type=count, default=1, help="workers of each run")
    parser.add_argument("--bug", choices=PLANTED_ERRORS, help="plant an error, see README.md")
    parser.add_argument("--plant-all", action="store_true", help="plant each error, and print when it is found")
    parser.add_argument("--keep", type=Path, help="folder in which files of runs with violations stay")
    chosen = parse_with_write(parser)
    check_alone(parser, chosen, "bug", *(name for name in _OPTIONS if name != "runs"))
    return chosen


def _programs(text: str) -> tuple[str, ...]:
    names = PROGRAMS if text == "all" else tuple(text.split(","))
    if unknown := [name for name in names if name not in PROGRAMS]:
        raise argparse.ArgumentTypeError(f"no program {unknown[0]!r}: want all, or some of {','.join(PROGRAMS)}")
    return names


def main() -> int:
    chosen = options()
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    if chosen.keep is not None:
        chosen.keep.mkdir(parents=True, exist_ok=True)
    # Of its own, because what an earlier campaign has left would be taken for the runs of this one.
    root = Path(tempfile.mkdtemp(prefix="chaos-", dir=chosen.keep))
    with leaving_nothing(*[] if chosen.keep else [root], kept=root if chosen.keep else None):
        code = _plant_all(chosen, root) if chosen.plant_all else _campaign(chosen, root)
    # A run without violations leaves none.
    if any(root.rglob("logs")):
        print(f"files: {root}")
    else:
        shutil.rmtree(root)
    return code


def _plant_all(chosen: argparse.Namespace, root: Path) -> int:
    runs = chosen.runs or 10
    made = origin(root) | {"command": command(_MODULE, {"plant-all": True, "runs": runs}), "seed": 1}
    print(table(COLUMNS, [], COLUMNS), end="")
    found = []
    for each in find_all(root, runs):
        found.append(each)
        print(f"| {' | '.join(each.cells())} |", flush=True)
    if chosen.write and is_whole(missing({each.error: each.runs for each in found})):
        rows = [each.cells() for each in found]
        DOCUMENT.keep({PLANTED: made | {"head": COLUMNS, "rows": rows, "texts": [COLUMNS[0], COLUMNS[-1]]}})
    return int(any(each.runs is None for each in found))


def _campaign(chosen: argparse.Namespace, root: Path) -> int:
    programs = "all" if chosen.programs == PROGRAMS else ",".join(chosen.programs)
    given = {name: getattr(chosen, name) for name in _OPTIONS}
    given |= {"minutes": f"{chosen.minutes:g}", "programs": programs}
    made = origin(root) | {"command": command(_MODULE, given), "seed": chosen.seed}
    began = time.monotonic()
    setting = Setting(
        programs=chosen.programs,
        workers=chosen.workers,
        coordinator=chosen.coordinator,
        store=chosen.store,
        bug=chosen.bug,
    )
    results: list[Result] = []
    with places(root, store=chosen.store, coordinator=chosen.coordinator) as places_made:
        campaign = Campaign(root, places_made)
        while not results or (time.monotonic() < began + 60 * chosen.minutes and len(results) != chosen.runs):
            seed = chosen.seed + len(results)
            results.append(campaign.carry_out(plan(seed, setting)))
            print(results[-1].line(), flush=True)
            if results[-1].violations:
                words = {"minutes": None, "runs": 1, "seed": seed, "bug": chosen.bug}
                print(f"  again: {command(_MODULE, given | words)}", flush=True)
    found = figures(results, (time.monotonic() - began) / 60)
    has_violations = any(each.violations for each in results)
    if chosen.write and is_whole("there were violations" if has_violations else ""):
        DOCUMENT.keep({name_of(chosen.coordinator, chosen.store): made | found})
    print(f"\n{summary({'count': found})}")
    return int(has_violations)


if __name__ == "__main__":
    sys.exit(main())
