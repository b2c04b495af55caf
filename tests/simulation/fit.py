"""One worker of a simulated run: what a fit does, around the real worker and the real journal of the fit.

A batch asks a model some questions at once, and the state is a digest of the answers in the order of their arrival. So
two states are equal only if all answers and their order were.

`Fit` stands for `FitSession` and synalinks' loop. It makes the same calls in the same order.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import orjson

from distributed_backup.checkpoints.format import Checkpoint, Snapshot
from distributed_backup.checkpoints.state_digests import digests_in
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.observability.reporter import Reporter
from distributed_backup.position import Position
from distributed_backup.preemption.exit import Preempted
from distributed_backup.training.cancellation import CancelScope, DeadlineExceededError
from distributed_backup.training.codec import Codec
from distributed_backup.training.fit_journal import FitJournal
from distributed_backup.training.standby_wait import StandbyWait
from distributed_backup.worker.worker import Worker
from tests.simulation.disk import SimulatedStorage
from tests.simulation.network import RemoteCoordinator
from tests.simulation.threads import SimulatedClock

if TYPE_CHECKING:
    from tests.simulation.scheduler import Process
    from tests.simulation.world import World

START_LIMIT: Final = 5.0
DRAIN_LIMIT: Final = 30.0
JSON: Final = Codec(orjson.dumps, orjson.loads)


class Program:
    """The state of a fit: one digest. It stands for the program, `TrainingState` and `Snapshots`."""

    def __init__(self) -> None:
        self.state = "start"
        self.restored: Checkpoint | None = None

    def capture(self) -> bytes:
        state = {"variables": {"trainable": [self.state]}, "python_random": 0, "numpy_random": 0}
        return json.dumps(state).encode()

    def apply(self, body: bytes) -> None:
        self.state = json.loads(body)["variables"]["trainable"][0]

    def take_over(self, final: Checkpoint | None) -> None:
        self.restored = final


class Fit:
    """One fit in one process."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process
        self.clock = SimulatedClock(world.scheduler, process)
        self.program = Program()
        self.position = Position(0)
        options = world.options
        self.store = CheckpointStore(SimulatedStorage(world.disk), keep=world.plan.keep)
        self.scope = CancelScope(self.clock)
        self.worker = Worker(
            store=self.store,
            coordinator=RemoteCoordinator(world.network, process),
            clock=self.clock,
            options=options.worker,
            stop_training_at=self.scope.set_deadline,
            report=Reporter(process.name, world.check),
        )
        self.journal = FitJournal(self.worker, options, store=self.store, clock=self.clock)
        self.standby = StandbyWait(
            self.worker,
            options.worker,
            scope=self.scope,
            state=self.program,  # type: ignore[arg-type]
            snapshots=self.program,  # type: ignore[arg-type]
            journal=self.journal,
        )
        self._since_due = 0

    async def run(self) -> None:
        """Train to the end.

        Raises:
            Preempted: A notice was served.
        """
        try:
            self.worker.join()
            start = self.worker.await_start()
            checkpoint = start.checkpoint
            if checkpoint is not None:
                self.program.apply(checkpoint.body)
                self.position = checkpoint.position
                self.program.restored = checkpoint
            self.worker.training_started(self.position)
            self.world.check.started(self, start)
            self.journal.begin(checkpoint)
            if checkpoint is None:
                self._boundary(due=False, wait=START_LIMIT)
            await self._train()
            self._finish()
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self.journal.end()

    def _fail(self, error: BaseException) -> None:
        if self.worker.notice_given and not self.worker.closed:
            raise self.worker.preempt() from error
        if not isinstance(error, Preempted):
            self.journal.failed(error)
        self.worker.close(timeout=DRAIN_LIMIT, save_last=self.world.plan.save_freq is not False)

    async def _train(self) -> None:
        plan = self.world.plan
        while self.position.epoch < plan.epochs:
            if self.position.batch == plan.batches:
                self.position = Position(self.position.epoch + 1)
                self._boundary(due=plan.save_freq == "epoch")
                continue
            if self.standby.before_await():
                return
            try:
                await self.scope.run(self._batch())
            except DeadlineExceededError:
                if await self.standby.undo_await():
                    continue
                raise self.worker.preempt() from None
            self.position = Position(self.position.epoch, self.position.batch + 1)
            self._boundary(due=self._is_due())

    async def _batch(self) -> None:
        plan, arrived = self.world.plan, list[str]()

        async def ask(number: int) -> None:
            text = f"{self.program.state} {self.position} {number}"
            key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            answer = await self.journal._answers.ask(key, lambda: self.world.model.ask(self, key), JSON)
            self.world.check.seen(self, key)
            arrived.append(answer)

        if plan.journal:
            await asyncio.gather(*(ask(number) for number in range(plan.at_once)))
        else:
            for number in range(plan.at_once):
                arrived.append(await self.world.model.ask(self, f"{self.program.state} {self.position} {number}"))
        text = json.dumps([self.program.state, arrived])
        self.program.state = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _is_due(self) -> bool:
        save_freq = self.world.plan.save_freq
        self._since_due += 1
        if save_freq in {"epoch", False} or self._since_due < save_freq:
            return False
        self._since_due = 0
        return True

    def _boundary(self, *, due: bool, wait: float = 0.0) -> None:
        body = self.program.capture()
        self.world.check.reached(self)
        snapshot = Snapshot(position=self.position, body=body, data="data")
        due = self.journal.boundary(self.position, lambda: digests_in(body), due=due)
        self.worker.boundary(snapshot, due=due, wait=wait)

    def _finish(self) -> None:
        if self.standby.wait():
            restored = self.program.restored
            assert restored is not None
            self.program.apply(restored.body)
        self.journal.train_ends()
        self.worker.finish(self._final())
        self.worker.close(timeout=DRAIN_LIMIT)
        self.world.check.finished(self)

    def _final(self) -> Snapshot | None:
        restored = self.program.restored
        if restored is not None and restored.header.final:
            return None
        if not self.world.options.worker.keeps_final_state:
            return None
        last = Snapshot(position=self.position, body=self.program.capture(), data="data")
        return replace(last, final=True)
