"""Workers over a real Redis that record when they believed to lead, and what child processes run.

All instants are of CLOCK_BOOTTIME, which all processes of the machine share. A recorded belief covers the real one, and
lies within what the server granted. It begins when the reply to the granting heartbeat is here. It ends when the worker
reports the end, at the latest at the deadline that its last renewal set.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import redis

from distributed_backup.checkpoints.format import Snapshot
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import SystemClock
from distributed_backup.coordination.base import Announcement, ClusterView, Heartbeat, Hint
from distributed_backup.coordination.election import Candidate, Elector, LeaseLoss
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import CoordinatorError
from distributed_backup.observability.reporter import Reporter
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage
from distributed_backup.worker.options import WorkerOptions
from distributed_backup.worker.worker import Worker
from tests.support.internals import elector_of
from tests.support.servers import PATIENCE, wait_for

CLOCK = SystemClock()

SHORT = LeaseTimings(duration=1.5, renew_deadline=1.0, retry_period=0.2)
"""Where the lease is to run out."""

SHORTEST = LeaseTimings(duration=0.9, renew_deadline=0.6, retry_period=0.15)
"""Where it is to run out often."""

CALM = LeaseTimings(duration=60.0, renew_deadline=40.0, retry_period=5.0)
"""Where nothing is to run out, however noisy the machine is: each step of a call may take 5 s."""

BRISK = LeaseTimings(duration=60.0, renew_deadline=40.0, retry_period=0.25)
"""Where nothing is to run out and ticks are to come soon."""


@dataclass(slots=True)
class Belief:
    """From when to when a worker believed to lead under a term."""

    worker_id: str
    term: int
    start: float
    end: float


def overlaps(beliefs: Iterable[Belief]) -> list[tuple[Belief, Belief]]:
    """The pairs that were held at one instant."""
    found: list[tuple[Belief, Belief]] = []
    last: Belief | None = None
    for belief in sorted((belief for belief in beliefs if belief.start < belief.end), key=lambda belief: belief.start):
        if last is not None and belief.start < last.end:
            found.append((last, belief))
        if last is None or belief.end > last.end:
            last = belief
    return found


class Watched(RedisCoordinator):
    """A coordinator of one worker that remembers its heartbeats and what the worker believed."""

    def __init__(self, server: str | redis.Redis) -> None:
        super().__init__(server)
        self.elector: Elector | None = None
        self.beliefs: list[Belief] = []
        self.losses: list[LeaseLoss] = []
        self.answered: list[tuple[float, ClusterView]] = []
        """Of each heartbeat that was answered: when it was sent, and the answer."""
        self.sent = 0
        self._replied_at = 0.0

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        sent_at, self.sent = CLOCK.now(), self.sent + 1
        view = super().heartbeat(beat)
        self._replied_at = CLOCK.now()
        self.answered.append((sent_at, view))
        return view

    def resign(self, worker_id: str) -> None:
        if self.elector is not None and self.elector.term is None:
            self._end()
        super().resign(worker_id)

    # What the elector's listener passes on.

    def elected(self, worker_id: str, term: int) -> None:
        assert self.elector is not None
        assert self.elector._lease is not None
        self.beliefs.append(Belief(worker_id, term, self._replied_at, self.elector._lease.deadline))

    def observed(self) -> None:
        if self.elector is not None and self.elector._lease is not None:
            self.beliefs[-1].end = self.elector._lease.deadline

    def lost(self, loss: LeaseLoss) -> None:
        self.losses.append(loss)
        self._end()

    def _end(self) -> None:
        if self.beliefs:
            self.beliefs[-1].end = min(self.beliefs[-1].end, CLOCK.now())


class _WatchedWorker(Worker):
    """A worker that also tells its coordinator how its election goes."""

    watched: Watched

    def elected(self, term: int) -> None:
        self.watched.elected(self.worker_id, term)
        super().elected(term)

    def observed(self, view: ClusterView) -> None:
        self.watched.observed()
        super().observed(view)

    def lost(self, loss: LeaseLoss) -> None:
        self.watched.lost(loss)
        super().lost(loss)


def snapshot(batch: int) -> Snapshot:
    return Snapshot(position=Position(0, batch), body=b'{"batch":%d}' % batch)


class Trainer:
    """A worker and its training thread: a boundary every few hundredths of a second, each due to be committed.

    Args:
        root: The shared backup directory.
        server: URL or client.
        worker_id: Its id.
        timings: Of its lease.
        store: Default: one of its own on `root`.
        trains: Whether it does, or only joins and campaigns.
    """

    def __init__(
        self,
        root: Path,
        server: str | redis.Redis,
        worker_id: str,
        *,
        timings: LeaseTimings = SHORT,
        store: CheckpointStore | None = None,
        trains: bool = True,
    ) -> None:
        self.worker_id = worker_id
        self.batches = 0
        self.error: BaseException | None = None
        self.coordinator = Watched(server)
        self.worker = _WatchedWorker(
            store=store or CheckpointStore(root, keep=10),
            coordinator=self.coordinator,
            clock=CLOCK,
            options=WorkerOptions(timings=timings, restore_timeout=PATIENCE, delete_checkpoint=False),
            report=Reporter(worker_id),
        )
        self.worker.watched = self.coordinator
        self.coordinator.elector = elector_of(self.worker)
        self.resting = threading.Event()
        """While it is set no boundary is reached."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._train, name=f"training-{worker_id}", daemon=True)
        self.worker.join()
        if trains:
            self._thread.start()

    @property
    def term(self) -> int | None:
        return elector_of(self.worker).term

    @property
    def terms(self) -> list[int]:
        """All it was elected under, in order."""
        return [belief.term for belief in self.coordinator.beliefs]

    @property
    def beliefs(self) -> list[Belief]:
        return self.coordinator.beliefs

    def await_batches(self, count: int = 3) -> None:
        """Wait until that many more boundaries have been passed: training goes on."""
        aim = self.batches + count
        wait_for(lambda: self.batches >= aim or self.error is not None, f"{self.worker_id} trains on")
        assert self.error is None, self.error

    def await_term(self, above: int = 0) -> int:
        """Wait until it leads under a term above `above`, and return the term."""
        return wait_for(
            lambda: term if (term := self.term) is not None and term > above else None,
            f"{self.worker_id} leads under a term above {above}",
        )

    def resign(self) -> None:
        """Leave the run in good order."""
        self._end_training()
        self.worker.close(timeout=0.0)

    def stop(self) -> None:
        """End it, whatever state it and the server are in."""
        self.resign()
        self.coordinator.close()

    def _end_training(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)

    def _train(self) -> None:
        try:
            start = self.worker.await_start()
            position = start.position or Position(0)
            self.worker.training_started(position)
            batch = position.batch
            while not self._stopping.wait(0.04):
                if self.resting.is_set():
                    continue
                batch += 1
                self.worker.boundary(snapshot(batch), due=True)
                self.batches += 1
        except BaseException as error:  # noqa: BLE001 - for the test to see
            self.error = error


class Team:
    """The trainers of one run, whose coordinator the test may ask for itself."""

    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        self.url = url
        self.store = CheckpointStore(root, keep=10)
        self.trainers: list[Trainer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # At once, as each may wait for a server that is gone.
        enders = [threading.Thread(target=trainer.stop) for trainer in self.trainers]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join(PATIENCE)

    def start(self, worker_id: str, *, url: str | None = None, **options: Any) -> Trainer:
        """A new worker, in the midst of training."""
        self.trainers.append(Trainer(self.root, url or self.url, worker_id, **options))
        if options.get("trains", True):
            self.trainers[-1].await_batches(1)
        return self.trainers[-1]

    def start_all(self, *worker_ids: str) -> list[Trainer]:
        """New workers, the first of which leads."""
        trainers = [self.start(worker_id) for worker_id in worker_ids]
        trainers[0].await_term()
        return trainers

    def leader(self, above: int = 0) -> Trainer:
        """Wait for the one that leads, under a term above that one."""
        return wait_for(
            lambda: next((one for one in self.trainers if (one.term or 0) > above), None),
            f"somebody leads under a term above {above}",
        )

    def view(self, url: str | None = None) -> ClusterView:
        with asking(self.root, url or self.url) as coordinator:
            return coordinator.view()

    def await_going_on(self, above: int = 0, url: str | None = None) -> ClusterView:
        """Wait until a worker leads under a term above `above`, has announced it and has committed under it."""

        def look() -> ClusterView | None:
            with suppress(CoordinatorError):
                view, newest = self.view(url), self.store.newest_header()
                told = view.announcement
                if view.holder is None or told is None or newest is None:
                    return None
                if view.term > above and view.term == told.term == newest.term:
                    return view
            return None

        return wait_for(look, f"the run goes on under a term above {above}")

    def await_losses(self, *trainers: Trainer) -> None:
        """Wait until each of them has lost a lease."""
        for trainer in trainers:
            wait_for(partial(_has_lost, trainer), f"{trainer.worker_id} learns of its loss")

    def check_beliefs(self, *, overlap: bool = False) -> None:
        """No term was led under twice. Unless data were lost, no two workers led at one instant."""
        beliefs = [belief for trainer in self.trainers for belief in trainer.beliefs]
        terms = sorted(belief.term for belief in beliefs)
        assert len(terms) == len(set(terms)), f"a term was used twice: {beliefs}"
        if not overlap:
            assert overlaps(beliefs) == []

    def check_training(self) -> None:
        """No fault of the coordinator ended a worker's training."""
        assert [trainer.error for trainer in self.trainers] == [None] * len(self.trainers)


def _has_lost(trainer: Trainer) -> bool:
    return bool(trainer.coordinator.losses)


@contextmanager
def asking(root: Path, server: str) -> Iterator[RedisCoordinator]:
    """A coordinator of the run in `root` for one who only looks."""
    coordinator = RedisCoordinator(server)
    coordinator.open(CheckpointStore(root).open_run(), CALM)
    try:
        yield coordinator
    finally:
        coordinator.close()


def key(root: Path, name: str) -> str:
    """The name of a key of the run in `root`."""
    return f"distributed-backup:{{{CheckpointStore(root).open_run()}}}:{name}"


def beat(
    coordinator: RedisCoordinator, worker_id: str, *, campaign: bool = True, floor: int = 0, duration: float = 60.0
) -> ClusterView:
    return coordinator.heartbeat(Heartbeat(worker_id=worker_id, campaign=campaign, floor=floor, duration=duration))


def committed(term: int, worker_id: str, batch: int = 1) -> Announcement:
    return Announcement(
        term=term,
        worker_id=worker_id,
        position=Position(0, batch),
        checkpoint=f"{term:010d}-00000000-{batch:08d}.ckpt",
        digest="d" * 16,
    )


# ---------------------------------------------------------------- what child processes run


class _StoppingStorage(LocalStorage):
    """Stops its process between a checkpoint's bytes and its name, once, when it is armed."""

    armed = False

    def _publish(self, partial: Path, path: Path) -> None:
        if self.armed:
            self.armed = False
            os.kill(os.getpid(), signal.SIGSTOP)
        super()._publish(partial, path)


def lead_until_stopped(report: Callable[..., None], root: Path, url: str, during_commit: bool) -> int:
    """Train and lead, and stop in the middle of a commit if asked to. After the loss, report the batches trained since.

    Reports: "leads" with the term, and "lost" with the term that was lost.
    """
    storage = _StoppingStorage(root)
    store = CheckpointStore(storage, keep=10)
    trainer = Trainer(root, url, "stopped", store=store)
    try:
        term = trainer.await_term()
        wait_for(lambda: (newest := store.newest_header()) is not None and newest.term == term, "a commit")
        report("leads", term)
        storage.armed = during_commit
        wait_for(lambda: trainer.coordinator.losses, "the loss")
        report("lost", trainer.coordinator.losses[0].term)
        before = trainer.batches
        trainer.await_batches(5)
        return trainer.batches - before
    finally:
        trainer.stop()


class ClaimBook(CheckpointStore):
    """Terms as the directory keeps them, with each claim that was granted and the instants around it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.claims: list[tuple[int, float, float]] = []

    def claim_term(self, term: int) -> bool:
        before = CLOCK.now()
        granted = super().claim_term(term)
        if granted:
            self.claims.append((term, before, CLOCK.now()))
        return granted


class Contender:
    """One incarnation after the other of a worker without training: leads for a moment, then resigns or freezes.

    Args:
        root: The run's directory.
        url: The server.
        name: Its ids begin so.
        chance: What it draws from.
        timings: Of its lease.
    """

    def __init__(self, root: Path, url: str, name: str, *, timings: LeaseTimings = SHORTEST) -> None:
        self.book = ClaimBook(root)
        self.coordinator = Watched(url)
        self.coordinator.open(self.book.open_run(), timings)
        self.frozen = 0
        self._name = name
        self._timings = timings
        self._chance = random.Random(name)
        self._elected = threading.Event()
        self._stop_listening = self.coordinator.subscribe(self._on_hint)
        self._worker_id = ""

    def run(self, over: Callable[[], bool]) -> None:
        """Campaign until it is over."""
        number = 0
        while not over():
            number += 1
            self._live(f"{self._name}-{number}", over)
        self._stop_listening()
        self.coordinator.close()

    def _live(self, worker_id: str, over: Callable[[], bool]) -> None:
        self._worker_id = worker_id
        self._elected.clear()
        elector = self.coordinator.elector = Elector(
            candidate=Candidate(worker_id=worker_id, timings=self._timings),
            coordinator=self.coordinator,
            clock=CLOCK,
            listener=self,
            terms=self.book,
        )
        elector.start()
        while not self._elected.wait(0.2) and not over():
            pass
        CLOCK.wait(threading.Event(), self._chance.uniform(0.0, 0.02))
        if self._elected.is_set() and self._chance.random() < 0.03:
            # No tick until others may lead and beyond, and then one, as of a process that is continued.
            self.frozen += 1
            elector.stop()
            CLOCK.wait(threading.Event(), self._timings.duration * 1.3)
            elector.tick()
        with suppress(CoordinatorError):
            elector.resign()
        elector.stop()
        with suppress(CoordinatorError):
            self.coordinator.leave(worker_id)

    def elected(self, term: int) -> None:
        self.coordinator.elected(self._worker_id, term)
        self._elected.set()

    def lost(self, loss: LeaseLoss) -> None:
        self.coordinator.lost(loss)

    def observed(self, view: ClusterView) -> None:
        self.coordinator.observed()

    def _on_hint(self, hint: Hint) -> None:
        if hint == "free" and self.coordinator.elector is not None:
            self.coordinator.elector.wake()


@dataclass(frozen=True, slots=True)
class Contest:
    """What the candidates of one process did."""

    beliefs: list[Belief]
    claims: list[tuple[int, float, float]]
    frozen: int


def contest(report: Callable[..., None], root: Path, url: str, name: str, count: int, terms: int) -> Contest:
    """Have `count` candidates, a thread each, contest until so many terms were used."""
    end = CLOCK.now() + 2 * PATIENCE

    def over() -> bool:
        return CheckpointStore(root).highest_term() >= terms or CLOCK.now() > end

    candidates = [Contender(root, url, f"{name}{number}") for number in range(count)]
    report("ready")
    with ExitStack() as stack:
        for candidate in candidates:
            thread = threading.Thread(target=candidate.run, args=(over,))
            thread.start()
            stack.callback(thread.join)
    return Contest(
        beliefs=[belief for one in candidates for belief in one.coordinator.beliefs],
        claims=[claim for one in candidates for claim in one.book.claims],
        frozen=sum(one.frozen for one in candidates),
    )
