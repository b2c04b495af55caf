"""Run benchmarks and print one Markdown table each: `uv run python -m tests.bench [NAME ...]`, by default all of them.

The figures are comparable only if nothing else runs on the machine. `TMPDIR` names the disk that is written to.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

BENCHMARKS = (
    *("blocked", "durable", "restore"),
    *("append", "overhead", "memory", "replay", "lag"),
    *("handover", "takeover", "fanout", "interruptions"),
)


async def run(directory: Path, names: list[str]) -> None:
    # Set here because synalinks' import would otherwise request a price list from the network.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from tests.bench import report

    print(report.machine(directory), end="\n\n", flush=True)
    for name in names:
        print(await import_module(f"tests.bench.{name}").report(directory / name), flush=True)


# Contenders for a lease are spawned, and import this module again.
if __name__ == "__main__":
    wanted = sys.argv[1:] or list(BENCHMARKS)
    if unknown := set(wanted) - set(BENCHMARKS):
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}: choose from {', '.join(BENCHMARKS)}")
    with tempfile.TemporaryDirectory(prefix="bench-") as made:
        asyncio.run(run(Path(made), wanted))
