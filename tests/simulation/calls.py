"""Print the calls of a simulated session of two batches: `python -m tests.simulation.calls END`.

A test compares them with those of a real session. `END` is complete, SIGTERM or exception.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from tests.simulation.checks import Checks
from tests.simulation.fit import Fit
from tests.simulation.world import Plan, World, simulated
from tests.support.session_calls import recorded


class StopError(Exception):
    """Leaves the fit."""


def calls(end: str) -> list[str]:
    """Return the calls of a fit that comes to this end."""
    draw, batch, failed = Plan.draw, Fit._batch, list[str]()

    def plan(choose: Any) -> Plan:
        fixed: dict[str, Any] = {
            "workers": 1,
            "epochs": 1,
            "batches": 2,
            "save_freq": 1,
            "journal": True,
            "standby": False,
        }
        return replace(draw(choose), **fixed, deletes=False, grace=30.0, faults_until=0.0)

    async def stopping(self: Fit) -> None:
        if self.position.batch == 1 and end == "SIGTERM":
            self.worker.give_notice("SIGTERM", 30.0)
        if self.position.batch == 1 and end == "exception":
            raise StopError
        await batch(self)

    def gone(_: World, slot: int, process: Any, *, restarts: bool) -> None:
        world.ended.add(slot)
        world.scheduler.kill(process)

    with ExitStack() as stack:
        changes: list[tuple[Any, str, Any]] = [(Plan, "draw", plan), (Fit, "_batch", stopping), (World, "_gone", gone)]
        changes += [
            (Checks, "preempted", lambda *_: failed.append("Preempted")),
            (Checks, "failed", lambda *arguments: failed.append(type(arguments[-1]).__name__)),
            (Checks, "ended", lambda _: None),
        ]
        for change in changes:
            stack.enter_context(patch.object(*change))
        world = World(1)
        found = stack.enter_context(recorded())
        stack.enter_context(simulated(world))
        world.run()
    return [*found, *failed]


if __name__ == "__main__":
    print(*calls(sys.argv[1]), sep="\n")
