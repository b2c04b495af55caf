"""Measure the memory that a journal takes: the peak of what Python allocates, for runs of 10^3 to 10^5 answers.

Measured with `tracemalloc`, each figure in a process of its own: the requests of a fit with answers of 2 kB, 8 at
once, through `Answers`, `Replay` and `JournalWriter`, as a fit sends them. "Writing" asks and records. "Replay" takes
all from the log and asks nothing. The last rows have no boundary between their answers, as in one very large batch.

Not measured: the program and its optimizer, which keep what they are made to keep, and a follower, which also keeps
what it has not come to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.bench.report import table
from tests.bench.results import Report
from tests.support.processes import Child

RECORD: Final = "tests.bench.recorded_answers:peak"
ANSWERS: Final = (1_000, 10_000, 100_000)
STAGE: Final = 100
# In one stage, so many answers of 2 kB are 20 MB.
_LONGEST_STAGE: Final = 10_000


def peaks(directory: Path, answers: int, stage: int) -> tuple[float, float]:
    """Return the megabytes of writing and of replaying so many answers, with a boundary after each `stage` of them."""
    directory.mkdir(parents=True)
    found = []
    for replays in (False, True):
        with Child(RECORD, directory / "run", answers, stage, replays, log=directory / "log") as child:
            found.append(child.result(timeout=600.0))
    return found[0], found[1]


async def report(directory: Path) -> Report:
    cases = [(answers, min(STAGE, answers)) for answers in ANSWERS]
    cases += [(answers, answers) for answers in ANSWERS if answers <= _LONGEST_STAGE]
    rows = []
    for answers, stage in cases:
        megabytes = peaks(directory / f"{answers}-{stage}", answers, stage)
        rows.append([str(answers), str(stage), *(f"{each:.1f}" for each in megabytes)])
    head = ["answers of the run", "answers between boundaries", "writing, MB", "replay, MB"]
    return table("Peak memory of a journal (goal: flat in the answers of the run)", head, rows)
