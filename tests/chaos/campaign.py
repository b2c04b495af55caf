"""Carry out one run after another, check each, and count what happened. Imports no synalinks."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.chaos.checks import Reference, paid, violations
from tests.chaos.cluster_checks import cluster_violations
from tests.chaos.excuses import excuse, is_begun_anew, is_kept_in_doubt, is_recorded
from tests.chaos.history import Life, Story
from tests.chaos.places import Places
from tests.chaos.plan import ANSWERS, BOUNDARIES, Place, Run
from tests.chaos.supervisor import Supervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run, what it did, and what is wrong with it."""

    run: Run
    story: Story
    violations: Sequence[str]

    @property
    def lives(self) -> Sequence[Life]:
        """All processes of its workers."""
        return self.story.lives

    @property
    def kills(self) -> Counter[str]:
        """The interruptions of lives that happened."""
        ends = Counter(_end(life) for life in self.lives if life.how not in {None, "pause"})
        return ends + Counter(pause=sum(life.pauses for life in self.lives))

    @property
    def faults(self) -> Counter[str]:
        """All faults that have hit, by kind. Commands of operators are no faults."""
        others = Counter(fault.kind for fault in self.story.faults if fault.is_hit and fault.kind != "disk full")
        refused = Counter({"disk full": sum(life.refused > 0 for life in self.lives)})
        return self.kills + others + refused

    @property
    def commands(self) -> Counter[str]:
        """The commands of operators that were called."""
        return Counter(command.words for command in self.story.commands)

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
            f"passed_again={self.passed_again} faults={self.faults.total()} excuse={excuse(self.story)}"
        )
        return "\n".join([text, *(f"  VIOLATION {violation}" for violation in self.violations)])


def _end(life: Life) -> str:
    """Return what a table calls the end of a life."""
    if life.how == "crash":
        return f"SIGKILL in {'a commit' if str(life.crashed).startswith('commit') else 'an append'}"
    return str(life.how)


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
        story = Supervisor(run, place, self.places, directory / "logs").carry_out()
        found = [*story.problems, *violations(story, reference), *cluster_violations(story, run)]
        if run.deletes and not is_begun_anew(story) and not is_kept_in_doubt(story):
            found += [f"leftovers: {name} after the end" for name in story.left]
        if run.keeps_all and not found and is_recorded(story):
            found += self._replay(run, place, story, directory)
        if not found:
            shutil.rmtree(directory)
        return Result(run=run, story=story, violations=found)

    def _replay(self, run: Run, place: Place, story: Story, directory: Path) -> Iterator[str]:
        """Start the run again from its first checkpoint, with its whole journal. It must ask nothing."""
        original = Path(place.backup_dir)
        copied = directory / "again"
        shutil.copytree(original, copied)
        first, *others = sorted(path for path in copied.glob("*.ckpt"))
        for path in others:
            path.unlink()
        elsewhere = replace(place, backup_dir=str(copied), coordinator=None)
        again = Supervisor(replace(run, kills=((),)), elsewhere, self.places, directory / "logs-again").carry_out()
        yield from again.problems
        (life,) = again.lives
        if life.asked:
            yield f"replay: {len(life.asked)} requests were sent, first checkpoint {first.name}"
        if life.end != story.lives[-1].end:
            yield "replay: it ends in another state"
        states = {position: digest for each in story.lives for position, digest in each.boundaries}
        differing = [position for position, digest in life.boundaries if states[position] != digest]
        if differing or life.details:
            yield f"replay: it passes {differing} in another state, {life.details}"
