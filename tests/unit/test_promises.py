"""The promises of the package under any order of elections, pauses, crashes, lost replies, outages and late commits.

Electors, savers, stores and coordinators are real, without their threads: hypothesis chooses the next worker to act.
All workers share one clock, because workers compare no clocks. A paused worker makes no step while time passes. A late
commit begins under a term that another worker may have replaced when it ends.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import override

import fakeredis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.exceptions import NoScriptError

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot
from distributed_backup.checkpoints.saver import CommitTask, Saver
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.base import Announcement, ClusterView, Coordinator, Heartbeat, Member, Notice
from distributed_backup.coordination.election import Candidate, Elector, LeaseLoss
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import CoordinatorUnavailableError, StoreError
from distributed_backup.position import Position
from distributed_backup.redis_client.address import RedisAddress
from distributed_backup.storage.local import LocalStorage
from tests.contract.harness import release_locks
from tests.support.clocks import FakeClock

TIMINGS = LeaseTimings(duration=15.0, renew_deadline=10.0, retry_period=2.0)
SETTINGS = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SLOTS = st.integers(0, 2)


@dataclass
class Network:
    """The faults of the network between all workers and the coordinator."""

    down: bool = False


class Wire(Coordinator):
    """One worker's connection to the coordinator. It may be down, lose the next reply, or delay it."""

    heartbeat_interval = 2.0

    def __init__(self, coordinator: Coordinator, network: Network, clock: FakeClock) -> None:
        self.far_end = coordinator
        self._network = network
        self._clock = clock
        self.lose_next = False
        self.delay_next = 0.0

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        self._request()
        view = self.far_end.heartbeat(beat)
        self._reply()
        return view

    def announce(self, announcement: Announcement) -> bool:
        self._request()
        accepted = self.far_end.announce(announcement)
        self._reply()
        return accepted

    def resign(self, worker_id: str) -> None:
        self._request()
        self.far_end.resign(worker_id)
        self._reply()

    def view(self) -> ClusterView:
        return self.far_end.view()

    def members(self) -> tuple[Member, ...]:
        return self.far_end.members()

    def notify(self, notice: Notice) -> None:
        self.far_end.notify(notice)

    def leave(self, worker_id: str) -> None:
        self.far_end.leave(worker_id)

    def erase(self) -> None:
        self.far_end.erase()

    def _request(self) -> None:
        if self._network.down:
            raise CoordinatorUnavailableError("down")

    def _reply(self) -> None:
        delay, self.delay_next = self.delay_next, 0.0
        self._clock.advance(delay)
        lost, self.lose_next = self.lose_next, False
        if lost:
            raise CoordinatorUnavailableError("reply lost")


class InterruptedStorage(LocalStorage):
    """Lets others act between the last check of a commit and its rename."""

    others_act = staticmethod(lambda: None)

    @override
    def _publish(self, partial: Path, path: Path) -> None:
        others_act, self.others_act = self.others_act, lambda: None
        others_act()
        super()._publish(partial, path)


@dataclass
class Incarnation:
    """One worker in one incarnation, and the commits that it has begun and not finished."""

    worker_id: str
    wire: Wire
    elector: Elector
    saver: Saver
    store: CheckpointStore
    storage: InterruptedStorage
    position: int
    paused: bool = False
    begun: list[tuple[int, Snapshot]] = field(default_factory=list)


class Observer:
    """Listens for one worker, and asserts the first promise: see `checkpoints/fencing.py`."""

    def __init__(self, machine: Promises, worker_id: str) -> None:
        self._machine = machine
        self._worker_id = worker_id

    def elected(self, term: int) -> None:
        holders = self._machine.holders
        assert holders.setdefault(term, self._worker_id) == self._worker_id, f"term {term} has two holders: {holders}"
        assert term == max(holders), f"term {term} was granted after term {max(holders)}"

    def lost(self, loss: LeaseLoss) -> None:
        assert self._machine.holders[loss.term] == self._worker_id

    def observed(self, view: ClusterView) -> None:
        pass

    def on_committed(self, newest: CheckpointHeader | None, term: int, *, served: int) -> None:
        pass

    def on_stale_term(self, term: int) -> None:
        pass

    def on_commit_failed(self, error: StoreError) -> None:
        raise AssertionError(error)


class Promises(RuleBasedStateMachine):
    """Three workers, their incarnations one after another, one coordinator and one store."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="promises-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.clock = FakeClock()
        self.network = Network()
        self.server = MemoryCoordinator(self.clock)
        self.store = CheckpointStore(self.root / "run")
        self.holders: dict[int, str] = {}
        self.writers: dict[int, str] = {}
        self.best: CheckpointHeader | None = None
        self.forgetful = False
        self.forgotten_at = -1e9
        self.count = 0
        self.workers: dict[int, Incarnation] = {}
        for slot in range(3):
            self.start(slot)
        self.tick_all()
        assert self.leaders(), "no worker leads: nothing would be shown"

    def teardown(self) -> None:
        for worker in self.workers.values():
            self.kill(worker)
        shutil.rmtree(self.root)

    # ------------------------------------------------------------ what differs between coordinators

    def connect(self) -> Coordinator:
        return self.server

    def kill(self, worker: Incarnation) -> None:
        """End the process. A lease in memory expires by itself."""

    def onlooker(self) -> Coordinator:
        return self.server

    # ------------------------------------------------------------ helpers

    def start(self, slot: int) -> None:
        self.count += 1
        worker_id = f"w{slot}-{self.count}"
        storage = InterruptedStorage(self.root / "run")
        store = CheckpointStore(storage, keep=1)
        store.open_run()
        wire = Wire(self.connect(), self.network, self.clock)
        observer = Observer(self, worker_id)
        elector = Elector(
            candidate=Candidate(worker_id=worker_id, timings=TIMINGS),
            coordinator=wire,
            clock=self.clock,
            listener=observer,
            terms=store.terms,
        )
        saver = Saver(store=store, worker_id=worker_id, clock=self.clock, term=lambda: elector.term, listener=observer)
        newest = store.latest()
        position = 0 if newest is None else newest.position.batch
        self.workers[slot] = Incarnation(worker_id, wire, elector, saver, store, storage, position)

    def leaders(self) -> list[Incarnation]:
        """Return the workers that believe to lead and are not paused."""
        return [worker for worker in self.workers.values() if worker.elector.is_leader and not worker.paused]

    def snapshot(self, worker: Incarnation) -> Snapshot:
        body = b'{"by":"%s","batch":%d}' % (worker.worker_id.encode(), worker.position)
        return Snapshot(position=Position(0, worker.position), body=body)

    def save(self, worker: Incarnation, term: int | None, snapshot: Snapshot) -> None:
        if term is not None:
            task = CommitTask(snapshot=snapshot, term=term, ticket=0, is_urgent=False, announce=False)
            worker.saver._commit(task)
            self.check()

    def check(self) -> None:
        """Assert that each term has one writer, and that neither the newest name nor the position goes back."""
        for row in self.store.list():
            assert row.header is not None
            term, writer = row.term, row.header.worker_id
            assert self.writers.setdefault(term, writer) == writer, f"term {term} was used by two workers"
            assert self.holders.get(term) == writer, f"{writer} committed under term {term}, which it never held"
        newest = self.store.latest()
        if self.best is not None:
            assert newest is not None, f"{self.best.name} is lost"
            assert newest.name >= self.best.name, f"{newest.name} is the newest, {self.best.name} was"
            assert newest.position >= self.best.position, f"progress went from {self.best.name} to {newest.name}"
            if newest.name == self.best.name:
                assert newest.header == self.best, "a checkpoint was written over"
        self.best = None if newest is None else newest.header

    # ------------------------------------------------------------ what can happen

    @rule(slot=SLOTS)
    def tick(self, slot: int) -> None:
        worker = self.workers[slot]
        if not worker.paused:
            # Members have positions, so that some give way to others.
            worker.elector.position = Position(0, worker.position)
            worker.elector.tick()

    @rule()
    def tick_all(self) -> None:
        for slot in self.workers:
            self.tick(slot)

    @rule(seconds=st.sampled_from([1.0, 4.0, 9.5, 15.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(slot=SLOTS)
    def pause(self, slot: int) -> None:
        self.workers[slot].paused = True

    @rule()
    def resume_all(self) -> None:
        for worker in self.workers.values():
            worker.paused = False

    @rule(slot=SLOTS)
    def crash_and_restart(self, slot: int) -> None:
        self.kill(self.workers[slot])
        self.start(slot)

    @rule(slot=SLOTS)
    def resign_and_restart(self, slot: int) -> None:
        with suppress(CoordinatorUnavailableError):
            self.workers[slot].elector.resign()
        self.crash_and_restart(slot)

    @rule(slot=SLOTS)
    def tick_with_a_lost_reply(self, slot: int) -> None:
        self.workers[slot].wire.lose_next = True
        self.tick(slot)

    @rule(slot=SLOTS, seconds=st.sampled_from([6.0, 12.0]), late=st.sampled_from([0.0, 4.0]))
    def tick_with_a_late_reply(self, slot: int, seconds: float, late: float) -> None:
        """The reply takes most of a lease. Then the other workers tick."""
        self.workers[slot].wire.delay_next = seconds
        self.tick(slot)
        self.clock.advance(late)
        for other in self.workers.keys() - {slot}:
            self.tick(other)

    @rule()
    def cut_the_network(self) -> None:
        self.network.down = True

    @precondition(lambda self: self.network.down)
    @rule()
    def mend_the_network(self) -> None:
        self.network.down = False

    @initialize(forgetful=st.booleans())
    def character(self, forgetful: bool) -> None:
        # If the coordinator forgets a lease, two workers may believe to lead until it expires: less can be asserted.
        self.forgetful = forgetful

    @precondition(lambda self: self.forgetful)
    @rule()
    def coordinator_forgets(self) -> None:
        self.onlooker().erase()
        self.forgotten_at = self.clock.now()

    @rule(slot=SLOTS, batches=st.integers(1, 3))
    def train(self, slot: int, batches: int) -> None:
        if not self.workers[slot].paused:
            self.workers[slot].position += batches

    @precondition(lambda self: self.leaders())
    @rule(batches=st.integers(0, 3))
    def leader_commits(self, batches: int) -> None:
        for worker in self.leaders():
            worker.position += batches
            self.save(worker, worker.elector.term, self.snapshot(worker))

    @rule(slot=SLOTS)
    def commit_as_a_last_resort(self, slot: int) -> None:
        worker = self.workers[slot]
        if not worker.paused:
            self.save(worker, worker.elector.term_of_last_resort, self.snapshot(worker))

    @precondition(lambda self: self.leaders())
    @rule(batches=st.integers(0, 3))
    def leader_begins_a_commit(self, batches: int) -> None:
        for worker in self.leaders():
            worker.position += batches
            assert worker.elector.term is not None
            worker.begun.append((worker.elector.term, self.snapshot(worker)))

    @rule(slot=SLOTS)
    def finish_a_commit_late(self, slot: int) -> None:
        worker = self.workers[slot]
        if worker.begun:
            self.save(worker, *worker.begun.pop(0))

    @precondition(lambda self: self.leaders())
    @rule(other=SLOTS)
    def commit_while_another_takes_over(self, other: int) -> None:
        """The longest pause: after the last check of the commit, until the next leader has committed."""
        worker, successor = self.leaders()[0], self.workers[other]
        if worker is successor or successor.paused:
            return

        def take_over() -> None:
            self.clock.advance(TIMINGS.duration)
            successor.elector.tick()
            successor.position += 1
            self.save(successor, successor.elector.term, self.snapshot(successor))

        worker.position += 1
        worker.storage.others_act = take_over
        self.save(worker, worker.elector.term, self.snapshot(worker))
        worker.storage.others_act = lambda: None

    # ------------------------------------------------------------ what must hold

    @invariant()
    def at_most_one_believes_to_lead(self) -> None:
        """At most one worker believes to lead, unless the coordinator forgot a lease that had not expired."""
        leaders = [worker.worker_id for worker in self.workers.values() if worker.elector.is_leader]
        if self.clock.now() - self.forgotten_at >= TIMINGS.renew_deadline:
            assert len(leaders) <= 1, leaders

    @invariant()
    def the_store_keeps_its_promises(self) -> None:
        self.check()


class FilePromises(Promises):
    """The same over a file lock. Each incarnation has its own coordinator object, and a crash frees its lock."""

    def connect(self) -> Coordinator:
        return FileCoordinator(self.root / "coordinator", self.clock)

    def kill(self, worker: Incarnation) -> None:
        assert isinstance(worker.wire.far_end, FileCoordinator)
        release_locks(worker.wire.far_end)

    def onlooker(self) -> Coordinator:
        return self.connect()


class TimedFake:
    """A Redis client over fakeredis, whose server reads the time from the test's clock."""

    def __init__(self, server: fakeredis.FakeServer, clock: FakeClock) -> None:
        self._client = fakeredis.FakeRedis(server=server, decode_responses=True)
        self._clock = clock

    def evalsha(self, sha: str, numkeys: int, *keys_and_args: object) -> object:
        raise NoScriptError

    def eval(self, script: str, numkeys: int, *keys_and_args: object) -> object:
        asked = "redis.call('TIME')"
        seconds, fraction = divmod(round(self._clock.now() * 1_000_000), 1_000_000)
        return self._client.eval(script.replace(asked, f"{{'{seconds}', '{fraction}'}}"), numkeys, *keys_and_args)

    def unlink(self, *names: str) -> object:
        return self._client.unlink(*names)

    def info(self) -> dict[str, str]:
        return {"redis_version": "7.0.15"}

    def close(self) -> None:
        self._client.close()


class FakeRedisCoordinator(RedisCoordinator):
    """The coordinator and its scripts over fakeredis."""

    def __init__(self, server: fakeredis.FakeServer, clock: FakeClock) -> None:
        super().__init__("redis://fake")
        self._address = RedisAddress("redis://fake", lambda _: TimedFake(server, clock))
        self.open("run", TIMINGS)


class RedisPromises(Promises):
    """The same over the scripts of the Redis coordinator. Each incarnation has its own coordinator object."""

    def __init__(self) -> None:
        self.fake = fakeredis.FakeServer()
        super().__init__()

    def connect(self) -> Coordinator:
        return FakeRedisCoordinator(self.fake, self.clock)

    def onlooker(self) -> Coordinator:
        return self.connect()


def test_the_promises_hold_with_a_lease_on_redis() -> None:
    """The same, with lease, term and announcement kept by Lua scripts."""
    run_state_machine_as_test(RedisPromises, settings=SETTINGS)


def test_the_promises_hold_with_a_lease_in_memory() -> None:
    """A term has one holder, an older term never wins, no commit is lost, and progress never goes backwards."""
    run_state_machine_as_test(Promises, settings=SETTINGS)


def test_the_promises_hold_with_a_file_lock() -> None:
    """The same, where a paused holder keeps the lock and a killed one frees it."""
    run_state_machine_as_test(FilePromises, settings=SETTINGS)
