"""Simulated runs: a few hundred keep all promises, equal seeds give equal runs, and planted errors are found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import Child

ROOT = Path(__file__).parents[2]
README = (ROOT / "tests" / "simulation" / "README.md").read_text()
TABLE = README.partition("| error | broken promise | found after, runs |\n|---|---|---:|\n")[2].partition("\n\n")[0]
BUDGET = 500


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: killed threads stay in memory."""
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_hundreds_of_runs_keep_all_promises() -> None:
    done = simulate("--runs", str(BUDGET))
    assert (done.returncode, "no promise broken" in done.stdout) == (0, True), done.stdout + done.stderr
    faults = re.search(r"(\d+) runs, (\d+) faults", done.stdout)
    assert faults is not None
    assert (int(faults[1]), int(faults[2]) > 10 * BUDGET) == (BUDGET, True)


def test_a_seed_repeats_its_run_in_another_process() -> None:
    """Also the order of all steps."""
    first, second = (simulate("--runs", "5", "--seed", "3", "--digest").stdout.splitlines()[0] for _ in range(2))
    assert first == second
    assert re.fullmatch(r"digest [0-9a-f]{8}", first)


def test_each_planted_error_is_found() -> None:
    """The table of the README names each."""
    found = simulate("--runs", str(BUDGET), "--plant-all")
    assert found.returncode == 0, found.stdout + found.stderr
    names = [line.split("|")[1].strip() for line in TABLE.splitlines()]
    assert [line.split("|")[1].strip() for line in found.stdout.splitlines()] == names
    assert len(names) >= 15


@pytest.mark.parametrize("end", ["complete", "SIGTERM", "exception"])
def test_a_simulated_session_makes_the_calls_of_a_real_one(tmp_path: Path, end: str) -> None:
    """In the same order. How many boundaries come before a notice is served depends on the machine."""
    with Child("tests.integration.session_calls_scenarios:calls_of_a_fit", tmp_path / "run", end) as child:
        real = child.result()
    command = [sys.executable, "-m", "tests.simulation.calls", end]
    simulated = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True).stdout
    expected, found = (without_repeats(calls) for calls in (real, simulated.split()))
    assert found == expected
    assert found.count("Worker.boundary") == 1


def without_repeats(calls: list[str]) -> list[str]:
    """Leave out the boundaries that follow a boundary."""
    pair = ["FitJournal.boundary", "Worker.boundary"]
    return [call for place, call in enumerate(calls) if call not in pair or calls[place - 2] != call]
