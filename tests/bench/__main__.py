"""Run benchmarks and keep their results: `uv run python -m tests.bench [NAME ...]`, by default all of them.

Each table is printed as it is made. Then `results.json`, the tables of the README and the picture are written. Results
of benchmarks that were not run stay. The figures are comparable only if nothing else runs on the machine. `TMPDIR`
names the disk that is written to.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from importlib import import_module
from pathlib import Path

from tests.support.commands import check_disk, leaving_nothing

BENCHMARKS = (
    *("blocked", "durable", "restore"),
    *("append", "overhead", "memory", "idle_follower", "replay", "lag"),
    *("handover", "takeover", "fanout", "interruptions"),
)


async def run(directory: Path, names: list[str]) -> None:
    # Set here because synalinks' import would otherwise request a price list from the network.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from tests.bench.results import DOCUMENT
    from tests.support.figures import origin

    for name in names:
        began = origin(directory)
        made = await import_module(f"tests.bench.{name}").report(directory / name)
        print(made.markdown(), flush=True)
        # After each one, so that a failure loses none.
        DOCUMENT.keep({name: made.as_json(began)})


def _wanted() -> list[str]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}. By default all")
    names: list[str] = parser.parse_args().names
    check_disk(parser)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: choose from {', '.join(BENCHMARKS)}")
    return names or list(BENCHMARKS)


# Contenders for a lease are spawned, and import this module again.
if __name__ == "__main__":
    wanted = _wanted()
    with tempfile.TemporaryDirectory(prefix="bench-") as made, leaving_nothing(Path(made)):
        asyncio.run(run(Path(made), wanted))
