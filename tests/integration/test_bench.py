"""The benchmarks of a fit run to their end. Their figures are in tests/bench/README.md, and no test judges them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import lag, memory
from tests.support.processes import Child


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("blocked", "30 kB"),
        ("durable", "30 kB"),
        ("restore", "30 kB"),
        ("append", "8"),
        ("overhead", "after 100 ms"),
        ("replay", "155"),
    ],
)
def test_a_benchmark_measures_what_it_says(tmp_path: Path, name: str, row: str) -> None:
    """It fails if a batch was not saved, for example. A row has a ratio in its last column."""
    with Child("tests.integration.bench_scenarios:figures", name, log=tmp_path / "log") as child:
        table = child.result()
    assert float(cells(table, row)[-1].split()[0]) > 0


def test_the_memory_of_a_journal_is_that_of_a_stage(tmp_path: Path) -> None:
    """With 720 more answers of 2 kB in stages of the same size, it does not grow by half of what these take."""
    (writing, replay), (writing_more, replay_more) = (
        memory.peaks(tmp_path / str(answers), answers, 40) for answers in (80, 800)
    )
    # The peak of a longer run is a bit higher: more often a thread is late, and some batches wait for it.
    assert 0 < writing_more < writing + 0.7
    # The replay reads the segment in chunks, which are larger than these.
    assert 0 < replay_more < replay + 4.0


def test_the_lag_is_that_of_a_follower_that_sends_no_request(tmp_path: Path) -> None:
    """It has an instant for each answer of the leader. The follower may see an answer first, if the leader is busy."""
    run = lag.Run(backup_dir=str(tmp_path / "run"), save_freq=1, gate=tmp_path / "gate", batches=2, epochs=2)
    taken = lag.measure(run, tmp_path)
    assert len(taken) > 16
    assert max(taken) > 0


def cells(table: str, first: str) -> list[str]:
    """Return the row of a table that begins with this cell."""
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]
