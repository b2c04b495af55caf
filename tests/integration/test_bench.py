"""The benchmarks of a fit run to their end. Their figures are in tests/bench/README.md, and no test judges them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import Child


@pytest.mark.parametrize("name", ["blocked", "durable", "restore"])
def test_a_benchmark_measures_what_it_says(tmp_path: Path, name: str) -> None:
    """It fails if a batch was not saved, for example. A row has a ratio in its last column."""
    with Child("tests.integration.bench_scenarios:figures", name, log=tmp_path / "log") as child:
        table = child.result()
    (row,) = [line for line in table.splitlines() if line.startswith("| 30 kB |")]
    assert float(row.split("|")[-2].split()[0]) > 0
