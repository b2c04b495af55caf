"""Find each planted error: the campaign for each, and after how many runs a check sees it. Imports no synalinks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.chaos.campaign import Campaign
from tests.chaos.places import places
from tests.chaos.plan import Setting, plan

_ALONE: Final = Setting(is_long=False)
_TEAM: Final = Setting(workers=3)

PLANTED: Final = {
    "no journal": _ALONE,
    "no order": _ALONE,
    "entry dropped": _ALONE,
    "failures sent again": replace(_ALONE, programs=("refused",)),
    "key without number": _ALONE,
    "seen before durable": _ALONE,
    "never written": _ALONE,
    "random numbers of requests": _ALONE,
    "generators not restored": _ALONE,
    "doubt ignored": replace(_TEAM, coordinator="redis", themes=("processes",)),
    "exit code": _ALONE,
    "litter": _ALONE,
    "boundary skipped": _ALONE,
    "torn commit": _ALONE,
    "parts kept": _ALONE,
    "notice not heard": Setting(programs=("agent",), ends=("SIGTERM",)),
    "final state dropped": _ALONE,
    "damage hidden": replace(_TEAM, themes=("damage",), keeps_two=True),
    "used term granted": replace(_TEAM, coordinator="redis", themes=("network",)),
    "delete at preemption": replace(_ALONE, ends=("SIGTERM",)),
    "notice forgotten": replace(_ALONE, ends=("SIGTERM",)),
    "resign refused": replace(_TEAM, programs=("agent",), themes=("command",)),
    "keys stay": replace(_ALONE, coordinator="redis"),
    "two trainers with standby": replace(_TEAM, coordinator="redis", themes=("processes",), standby=True),
}
"""The campaign in which each error is looked for."""

COLUMNS: Final = ("error", "found after runs", "by the checks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """After how many runs an error was found, and by which checks. `runs` is None if it was not."""

    error: str
    runs: int | None
    checks: Sequence[str]

    def cells(self) -> list[str]:
        """Return the row of the table."""
        return [self.error, str(self.runs or "-"), ", ".join(f"`{check}`" for check in self.checks)]


def find_all(root: Path, runs: int) -> Iterator[Found]:
    """Plant each error in turn, and yield what is found."""
    for bug, setting in PLANTED.items():
        count, checks = find(root / bug.replace(" ", "-"), replace(setting, bug=bug), runs)
        yield Found(error=bug, runs=count, checks=sorted(checks))


def find(root: Path, setting: Setting, runs: int) -> tuple[int | None, set[str]]:
    """Return after how many runs an error is found, and by which checks. None if it is not."""
    root.mkdir(parents=True)
    with places(root, store=setting.store, coordinator=setting.coordinator) as made:
        campaign = Campaign(root, made)
        for seed in range(1, runs + 1):
            violations = campaign.carry_out(plan(seed, setting)).violations
            if violations:
                return seed, {violation.partition(":")[0] for violation in violations}
    return None, set()
