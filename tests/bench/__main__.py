"""Run all benchmarks and print one Markdown table each: `uv run python -m tests.bench [DIRECTORY]`.

Run nothing else on the machine meanwhile. The benchmarks write to DIRECTORY.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path


async def run(directory: Path) -> None:
    # Set before the import of synalinks, which would otherwise fetch a price list.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from tests.bench import blocked, durable, fanout, handover, report, restore, takeover

    print(report.machine(directory), end="\n\n", flush=True)
    for benchmark in (blocked, durable, restore, handover, takeover, fanout):
        print(await benchmark.report(directory / benchmark.__name__.rpartition(".")[2]), flush=True)


# Contenders for a lease are spawned processes, which import this module again.
if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="bench-", dir=sys.argv[1] if len(sys.argv) > 1 else None) as made:
        asyncio.run(run(Path(made)))
