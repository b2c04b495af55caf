"""Carry out one run after another, check each, and count what happened. Imports no synalinks."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.chaos.checks import Reference, paid, violations
from tests.chaos.history import Life
from tests.chaos.places import Places, names_in
from tests.chaos.plan import ANSWERS, BOUNDARIES, Place, Run
from tests.chaos.supervisor import Outcome, carry_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run, what it did, and what is wrong with it."""

    run: Run
    lives: Sequence[Life]
    violations: Sequence[str]

    @property
    def kills(self) -> Counter[str]:
        """The interruptions that happened."""
        ends = Counter(life.how for life in self.lives if life.how not in {None, "pause"})
        return ends + Counter(pause=sum(life.pauses for life in self.lives))

    @property
    def passed_again(self) -> int:
        """How often a boundary was passed again."""
        passed = [position for life in self.lives for position, _ in life.boundaries]
        return len(passed) - len(set(passed))

    @property
    def replayed(self) -> int:
        """Answers that came from the journal."""
        return sum(life.replayed for life in self.lives)

    def line(self) -> str:
        """Return the result on one line, and its violations below."""
        asked, under_way = paid(self.lives)
        codes = " ".join(f"{life.how or '-'}={life.exit_code}{'p' * life.pauses}" for life in self.lives)
        text = (
            f"{self.run.name}: {codes} asked={asked} under_way={under_way} replayed={self.replayed} "
            f"passed_again={self.passed_again}"
        )
        return "\n".join([text, *(f"  VIOLATION {violation}" for violation in self.violations)])


@dataclass(frozen=True, slots=True)
class Campaign:
    """Runs at one kind of place. The files of runs with violations stay in `root`."""

    root: Path
    places: Places

    def carry_out(self, run: Run) -> Result:
        """Carry out a run, and check it."""
        reference = Reference(boundaries=BOUNDARIES, answers=ANSWERS.get(run.program))
        directory = self.root / f"{run.seed}-{run.program}"
        place = self.places(directory)
        outcome = carry_out(run, place, directory / "logs")
        left = names_in(place)
        found = [*outcome.problems, *violations(outcome.lives, reference, left)]
        if run.deletes:
            found += [f"leftovers: {name} after the end" for name in left]
        if run.keeps_all and not found:
            found += self._replay(run, place, outcome, directory)
        if not found:
            shutil.rmtree(directory)
        return Result(run=run, lives=outcome.lives, violations=found)

    def _replay(self, run: Run, place: Place, outcome: Outcome, directory: Path) -> Iterator[str]:
        """Start the run again from its first checkpoint, with its whole journal. It must ask nothing."""
        original = Path(place.backup_dir)
        copied = directory / "again"
        shutil.copytree(original, copied)
        first, *others = sorted(path for path in copied.glob("*.ckpt"))
        for path in others:
            path.unlink()
        elsewhere = replace(place, backup_dir=str(copied), coordinator=None)
        again = carry_out(replace(run, kills=((),)), elsewhere, directory / "logs-again")
        yield from again.problems
        (life,) = again.lives
        if life.asked:
            yield f"replay: {len(life.asked)} requests were sent, first checkpoint {first.name}"
        if life.end != outcome.lives[-1].end:
            yield "replay: it ends in another state"
        states = {position: digest for each in outcome.lives for position, digest in each.boundaries}
        differing = [position for position, digest in life.boundaries if states[position] != digest]
        if differing or life.details:
            yield f"replay: it passes {differing} in another state, {life.details}"
