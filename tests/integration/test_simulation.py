"""Simulated runs: a few hundred keep all promises, equal seeds give equal runs, and planted errors are found."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.figures import Document
from tests.support.processes import Child

ROOT = Path(__file__).parents[2]
DOCUMENT = Document(folder=ROOT / "tests" / "simulation")
BUDGET = 500
# The command, which keeps its figures in another folder.
ELSEWHERE = """
import sys
from pathlib import Path
from tests.simulation import __main__ as command
{}
command.DOCUMENT = command.Document(folder=Path({!r}))
sys.exit(command.main())
"""
BROKEN = """
command.plant_all = lambda *_: {name: None if name == "no fencing" else 1 for name in command.BUGS}
command.run_all = lambda *_, **__: command.Result(2, command.Counter(), 0, 0.0, "story", 3)
"""


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


EARLIER = {"head": ["earlier"], "rows": [], "day": "earlier", "machine": ""}


def write(folder: Path, *arguments: str, first: str = "") -> tuple[subprocess.CompletedProcess[str], Document]:
    """Run the command, which keeps its figures in this folder beside earlier ones."""
    shutil.copy(DOCUMENT.folder / "README.md", folder)
    copy = Document(folder=folder)
    copy.replace({"campaign": EARLIER, "planted": EARLIER})
    line = [sys.executable, "-c", ELSEWHERE.format(first, str(folder)), *arguments, "--write"]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False), copy


def test_a_campaign_keeps_its_own_figures(tmp_path: Path) -> None:
    """Those of planted errors stay."""
    done, copy = write(tmp_path, "--runs", "2", "--seed", "4")
    after = copy.read()
    assert (done.returncode, after["planted"], after["campaign"]["seed"]) == (0, EARLIER, 4), done.stderr
    text = (tmp_path / "README.md").read_text()
    assert "`uv run python -m tests.simulation --runs 2 --seed 4`, " in text
    assert copy.texts(after) == {tmp_path / "README.md": text}


@pytest.mark.parametrize(
    ("words", "why"),
    [("--plant-all", "no fencing was not found: give more --runs"), ("", "seed 3 broke a promise")],
)
def test_figures_that_are_not_whole_are_not_kept(tmp_path: Path, words: str, why: str) -> None:
    """They would replace whole ones."""
    done, copy = write(tmp_path, *words.split(), "--runs", "2", first=BROKEN)
    assert (done.returncode, copy.read()) == (1, {"campaign": EARLIER, "planted": EARLIER})
    assert done.stderr == f"nothing was written, because {why}\n"


def test_a_seed_repeats_its_run_in_another_process() -> None:
    """Also the order of all steps."""
    first, second = (simulate("--runs", "5", "--seed", "3", "--digest").stdout.splitlines()[0] for _ in range(2))
    assert first == second
    assert re.fullmatch(r"digest [0-9a-f]{8}", first)


def test_a_campaign_that_goes_on_after_a_failure_carries_out_all_runs() -> None:
    """With each failure stands the command that repeats it."""
    done = simulate("--runs", "12", "--bug", "prune before durable", "--keep-going")
    assert "12 runs, " in done.stdout
    again = re.findall(r"^seed (\d+) again: uv run python -m tests.simulation (.*)$", done.stdout, re.MULTILINE)
    assert len(again) > 1
    for seed, words in again:
        assert words == f"--runs 1 --seed {seed} --bug 'prune before durable'"


def test_each_planted_error_is_found(tmp_path: Path) -> None:
    """The table of the README names each. The figures of a campaign stay."""
    found, copy = write(tmp_path, "--runs", str(BUDGET), "--plant-all")
    assert found.returncode == 0, found.stdout + found.stderr
    names = [row[0] for row in DOCUMENT.read()["planted"]["rows"]]
    assert [line.split("|")[1].strip() for line in found.stdout.splitlines()] == names
    assert len(names) >= 15
    after = copy.read()
    assert ([row[0] for row in after["planted"]["rows"]], after["campaign"]) == (names, EARLIER)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--runs|0", "want a whole number from 1 on, got 0"),
        ("--bug|nosuch", "invalid choice: 'nosuch'"),
        ("--plant-all|--bug|no fencing", "--plant-all has campaigns of its own: leave out --bug"),
        ("--plant-all|--digest|--keep-going", "--plant-all has campaigns of its own: leave out --digest --keep-going"),
    ],
)
def test_wrong_words_are_refused(words: str, said: str) -> None:
    done = simulate(*words.split("|"))
    assert (done.returncode, said in done.stderr) == (2, True)


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
