"""A simulated run: its workers, its disk, its server and its model, and what happens to them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import distributed_backup.checkpoints.journal_tail
import distributed_backup.checkpoints.journal_writer
import distributed_backup.checkpoints.run_identity
import distributed_backup.checkpoints.saver
import distributed_backup.checkpoints.store
import distributed_backup.coordination.election
import distributed_backup.observability.reporter
import distributed_backup.training.cancellation
import distributed_backup.training.fit_journal
import distributed_backup.worker.announcer
import distributed_backup.worker.append_hints
import distributed_backup.worker.context
import distributed_backup.worker.notices
import distributed_backup.worker.preemption
import distributed_backup.worker.shutdown
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.preemption.exit import Preempted
from distributed_backup.training.settings import SessionOptions
from distributed_backup.worker.options import WorkerOptions
from tests.simulation.checks import Checks
from tests.simulation.disk import Disk
from tests.simulation.fit import Fit
from tests.simulation.loop import SimulatedLoop
from tests.simulation.network import Network
from tests.simulation.scheduler import Process, Scheduler
from tests.simulation.threads import Threading

_ROOM: Final[Any] = distributed_backup
THREADED: Final = (
    _ROOM.checkpoints.journal_tail,
    _ROOM.checkpoints.journal_writer,
    _ROOM.checkpoints.saver,
    _ROOM.checkpoints.store,
    _ROOM.coordination.election,
    _ROOM.observability.reporter,
    _ROOM.training.cancellation,
    _ROOM.training.fit_journal,
    _ROOM.worker.announcer,
    _ROOM.worker.append_hints,
    _ROOM.worker.context,
    _ROOM.worker.notices,
    _ROOM.worker.preemption,
    _ROOM.worker.shutdown,
)


# Seconds of quiet in which each run must end. A worker that can't follow waits 30 minutes at most for the others.
MOST_SECONDS: Final = 4000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is drawn once for a run."""

    workers: int
    epochs: int
    batches: int
    at_once: int
    save_freq: Any
    keep: int
    journal: bool
    standby: bool
    deletes: bool
    grace: float
    answer_takes: float
    faults_until: float
    is_dense: bool
    """Whether the lead changes as often as it can: answers are fast, and workers are suspended all the time."""

    @classmethod
    def draw(cls, choose: random.Random) -> Plan:
        """Draw a plan."""
        is_dense = choose.random() < 0.3
        standby = choose.random() < (0.5 if is_dense else 0.2)
        return cls(
            workers=choose.choice([1, 2, 3, 3]),
            epochs=choose.choice([1, 2, 3]),
            batches=choose.choice([2, 4]),
            at_once=choose.choice([1, 2, 3]),
            save_freq=choose.choice([1, 2, "epoch", False]),
            keep=choose.choice([1, 2]),
            journal=choose.random() < 0.8,
            standby=standby,
            deletes=choose.random() < 0.4,
            grace=choose.choice([3.0, 10.0] if is_dense else [3.0, 10.0, 30.0, 120.0]),
            answer_takes=0.2 if is_dense else choose.choice([0.2, 2.0, 6.0]),
            faults_until=choose.choice([10.0, 60.0] if is_dense else [10.0, 40.0, 120.0]),
            is_dense=is_dense,
        )


class Model:
    """Answers after random times, each time with another answer."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.answers = 0

    async def ask(self, fit: Fit, key: str) -> str:
        """Return a new answer."""
        import asyncio

        world = self._world
        world.check.asked(fit, key)
        await asyncio.sleep(world.scheduler.random.expovariate(1 / world.plan.answer_takes))
        self.answers += 1
        return f"answer {self.answers}"


class World:
    """One run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.scheduler = Scheduler(seed)
        choose = self.scheduler.random
        self.plan = plan = Plan.draw(choose)
        self.threading = Threading(self.scheduler)
        self.cluster = Process("cluster")
        self.disk = Disk(self.scheduler)
        self.faults: Counter[str] = Counter()
        self.check = Checks(self)
        self.disk.on_change = self.check.disk_changed
        self.model = Model(self)
        self.options = SessionOptions(
            worker=WorkerOptions(
                timings=LeaseTimings.for_grace_period(plan.grace),
                standby=plan.standby,
                grace_period=plan.grace,
                delete_checkpoint=plan.deletes,
                follows_journal=plan.journal and not plan.standby and plan.save_freq is not False,
            ),
            worker_name=None,
            save_freq=plan.save_freq,
            save_before_preemption=True,
            notices=None,  # type: ignore[arg-type]
            signals=(),
            state_of=None,
            journal=plan.journal,
            journal_of=(),
            metrics_port=None,
        )
        self.network = Network(self.scheduler, self.cluster)
        self.live: dict[int, Fit | None] = dict.fromkeys(range(plan.workers))
        self.ended: set[int] = set()
        self._started = 0

    # ---------------------------------------------------------------- workers

    def start(self, slot: int) -> None:
        """Start the worker of a slot, as a Job controller does."""
        self._started += 1
        choose = self.scheduler.random
        process = Process(f"w{slot}-{self._started}", rate=choose.uniform(0.99, 1.01))
        process.ahead = choose.uniform(0.0, 100.0)

        def main() -> None:
            fit = Fit(self, process)
            self.check.joins(fit)
            self.live[slot] = fit
            loop = SimulatedLoop(self.scheduler, self.threading, fit.clock)
            try:
                loop.run_until_complete(fit.run())
            except Preempted:
                self.check.preempted(fit)
                self._gone(slot, process, restarts=True)
            except Exception as error:  # noqa: BLE001 - the checks judge it
                self.check.failed(fit, error)
                self._gone(slot, process, restarts=True)
            else:
                self._gone(slot, process, restarts=False)

        self.scheduler.spawn(process, main)

    def _gone(self, slot: int, process: Process, *, restarts: bool) -> None:
        """End a process that has left its fit."""
        self.live[slot] = None
        # A run that its last worker deletes must not be begun again before all have left: GUARANTEES.md says so.
        if restarts and not (self.plan.deletes and self.ended):
            self._restart(slot)
        else:
            self.ended.add(slot)
        self.scheduler.kill(process)

    def _restart(self, slot: int) -> None:
        delay = self.scheduler.random.expovariate(1 / 3.0)

        def later() -> None:
            self.scheduler.pause(delay)
            self.start(slot)

        self.scheduler.spawn(self.cluster, later)

    def kill(self, slot: int) -> None:
        """SIGKILL, and a new pod."""
        fit = self.live[slot]
        if fit is not None and not fit.process.is_dead:
            self.check.killed(fit)
            self._gone(slot, fit.process, restarts=True)

    def _is_over(self) -> bool:
        if self.check.broken is not None:
            raise self.check.broken
        assert self.scheduler.now < self.plan.faults_until + MOST_SECONDS, (
            f"the run does not end\n{self.scheduler.stacks()}"
        )
        return len(self.ended) == len(self.live)

    # ---------------------------------------------------------------- the run

    def run(self) -> None:
        """Run to the end.

        Raises:
            AssertionError: An invariant does not hold.
        """
        from tests.simulation.faults import Faults

        for slot in self.live:
            self.start(slot)
        self.scheduler.spawn(self.cluster, Faults(self).run)
        self.scheduler.run(self._is_over)
        self.check.ended()


@contextmanager
def simulated(world: World) -> Iterator[None]:
    """Let the package use the threads and the random numbers of a world."""
    choose = world.scheduler.random
    numbers = SimpleNamespace(Random=lambda: random.Random(choose.random()))
    secrets = SimpleNamespace(token_hex=lambda count: f"{choose.getrandbits(8 * count):0{2 * count}x}")
    with ExitStack() as stack:
        for module in THREADED:
            stack.enter_context(patch.object(module, "threading", world.threading))
        stack.enter_context(patch.object(_ROOM.coordination.election, "random", numbers))
        for module in (_ROOM.checkpoints.run_identity, _ROOM.worker.notices):
            stack.enter_context(patch.object(module, "secrets", secrets))
        yield
