"""The file coordinator where it is more than the contract: real processes, real kills, files that others touch.

The children are plain processes without synalinks. They report through a pipe, with instants of the clock that
all processes of the machine share.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Self

import orjson
import pytest

from distributed_backup.clock import SystemClock
from distributed_backup.coordination.base import Announcement, ClusterView
from distributed_backup.coordination.election import Candidate, Elector, LeaseLoss
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.position import Position
from tests.support.file_coordinators import beat
from tests.support.terms import Terms

# spawn: a fork of the test process would take its threads' locks with it.
CONTEXT = multiprocessing.get_context("spawn")
PATIENCE = 60.0
TAKEOVER_LIMIT = 0.3


class Process:
    """A child that runs `function(pipe, root, worker_id)` and is killed at the end."""

    def __init__(self, function: Callable[[Connection, Path, str], None], root: Path, worker_id: str) -> None:
        self._pipe, theirs = CONTEXT.Pipe()
        self.worker_id = worker_id
        self._process = CONTEXT.Process(target=function, args=(theirs, root, worker_id))
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def expect(self, event: str) -> Any:
        while True:
            assert self._pipe.poll(PATIENCE), f"{self.worker_id}: no {event!r}"
            name, value = self._pipe.recv()
            if name == event:
                return value

    def tell(self, what: str) -> None:
        self._pipe.send(what)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        self._process.kill()
        self._process.join()


# ---------------------------------------------------------------- what children do


class Reporter:
    """An election listener that sends each transition with its instant."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._clock = SystemClock()
        self._told = False

    def elected(self, term: int) -> None:
        self._pipe.send(("elected", (term, self._clock.now())))

    def lost(self, loss: LeaseLoss) -> None:
        self._pipe.send(("lost", (loss.term, loss.reason)))

    def observed(self, view: ClusterView) -> None:
        if not self._told:
            self._told = True
            self._pipe.send(("joined", view.holder))


def elect(pipe: Connection, root: Path, worker_id: str) -> None:
    """An elector in its thread until the test says otherwise."""
    coordinator = FileCoordinator(root)
    elector = Elector(
        candidate=Candidate(worker_id=worker_id, timings=LeaseTimings()),
        coordinator=coordinator,
        clock=SystemClock(),
        listener=Reporter(pipe),
        terms=Terms(),
    )
    elector.start()
    while True:
        command = pipe.recv()
        if command == "resign":
            elector.resign()
            pipe.send(("resigned", SystemClock().now()))
        else:
            pipe.send(("term", elector.term))


def beat_on_demand(pipe: Connection, root: Path, worker_id: str) -> None:
    """One heartbeat per message."""
    coordinator = FileCoordinator(root)
    while pipe.recv():
        view = beat(coordinator, worker_id)
        pipe.send(("view", (view.holder, view.term, view.reason)))


def lead_and_fork(pipe: Connection, root: Path, worker_id: str) -> None:
    """Take the lock, then fork a child that stays and tries to use its copy of the lock."""
    coordinator = FileCoordinator(root)
    term = beat(coordinator, worker_id).term
    made = Announcement(term=term, worker_id=worker_id, position=Position(0))
    child = os.fork()
    if child == 0:
        announced = coordinator.announce(made)
        coordinator.resign(worker_id)
        pipe.send(("forked", (os.getpid(), announced)))
        signal.pause()
    os.waitpid(child, os.WNOHANG)
    pipe.recv()
    view = beat(coordinator, worker_id)
    pipe.send(("view", (view.holder, view.term, coordinator.announce(made))))
    signal.pause()


def campaign_wildly(pipe: Connection, root: Path, worker_id: str) -> None:
    """Send heartbeats without pause, resign at random, and report every term that was granted."""
    coordinator, held = FileCoordinator(root), set()
    chance = random.Random(worker_id)
    pipe.send(("ready", None))
    while not pipe.poll():
        view = beat(coordinator, worker_id)
        if view.holder == worker_id:
            held.add(view.term)
            if chance.random() < 0.02:
                coordinator.resign(worker_id)
    pipe.recv()
    pipe.send(("held", held))
    while pipe.recv():
        view = beat(coordinator, worker_id)
        pipe.send(("view", (view.holder, view.term, view.reason)))


# ---------------------------------------------------------------- real processes


def test_a_follower_takes_over_soon_after_the_leader_was_killed(tmp_path: Path) -> None:
    """Median of five kills: SIGKILL of the leader to the election of a follower, on the follower's own clock."""
    seconds, terms = [], []
    with Process(elect, tmp_path, "w0") as first, Process(elect, tmp_path, "w1") as second:
        leader, follower = first, second
        first.expect("joined")
        second.expect("joined")
        first.tell("term")
        second.tell("term")
        if first.expect("term") is None:
            leader, follower = second, first
        for number in range(2, 7):
            before = SystemClock().now()
            leader.signal(signal.SIGKILL)
            term, elected_at = follower.expect("elected")
            seconds.append(elected_at - before)
            terms.append(term)
            leader.end()
            # The next leader is the one that took over. Its challenger is a new process.
            leader, follower = follower, Process(elect, tmp_path, f"w{number}").__enter__()
            try:
                assert follower.expect("joined") == leader.worker_id
            except BaseException:
                follower.end()
                raise
        follower.end()
        leader.end()
    assert terms == [2, 3, 4, 5, 6]
    assert median(seconds) <= TAKEOVER_LIMIT, seconds


def test_a_follower_takes_over_at_once_when_the_leader_resigns(tmp_path: Path) -> None:
    """A hand-over takes a follower's tick at most."""
    with Process(elect, tmp_path, "a") as leader:
        leader.expect("elected")
        with Process(elect, tmp_path, "b") as follower:
            assert follower.expect("joined") == "a"
            leader.tell("resign")
            resigned_at = leader.expect("resigned")
            term, elected_at = follower.expect("elected")
    assert term == 2
    assert elected_at - resigned_at < 2.0


def test_a_stopped_holder_keeps_the_lock(tmp_path: Path) -> None:
    """The documented limit: a flock knows no time. It also keeps its term when it goes on."""
    with Process(beat_on_demand, tmp_path, "a") as holder, Process(beat_on_demand, tmp_path, "b") as other:
        holder.tell("beat")
        assert holder.expect("view") == ("a", 1, "")
        holder.signal(signal.SIGSTOP)
        for _ in range(20):
            other.tell("beat")
            assert other.expect("view") == ("a", 1, "")
        holder.signal(signal.SIGCONT)
        holder.tell("beat")
        assert holder.expect("view") == ("a", 1, "")


def test_a_forked_child_of_the_leader_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A data loader that outlives its killed trainer must not block the run, announce for it or resign for it."""
    with Process(lead_and_fork, tmp_path, "a") as leader:
        child, announced = leader.expect("forked")
        try:
            assert not announced
            leader.tell("beat")
            assert leader.expect("view") == ("a", 1, True)
            leader.end()
            os.kill(child, 0)
            taken = beat(FileCoordinator(tmp_path), "b")
            assert (taken.holder, taken.term) == ("b", 2)
        finally:
            os.kill(child, signal.SIGKILL)


def test_removing_the_lock_file_again_and_again_never_makes_two_holders_of_one_term(tmp_path: Path) -> None:
    """Three processes campaign as fast as they can while the file is removed at random. Then all agree again."""
    chance = random.Random(7)
    pause = threading.Event()
    processes = [Process(campaign_wildly, tmp_path, f"w{number}") for number in range(3)]
    try:
        for process in processes:
            process.expect("ready")
        removed_until = SystemClock().now() + PATIENCE
        while not (tmp_path / "terms" / "0000000150.json").exists() and SystemClock().now() < removed_until:
            (tmp_path / "leader.lock").unlink(missing_ok=True)
            # Not to wait for something, but to hit every place of a heartbeat.
            pause.wait(chance.uniform(0.0, 0.006))
        held: dict[str, set[int]] = {}
        for process in processes:
            process.tell("stop")
        for process in processes:
            held[process.worker_id] = process.expect("held")
        terms = [term for mine in held.values() for term in mine]
        assert len(terms) == len(set(terms)), held
        assert len(terms) > 20, "the lock file was not removed often enough to prove anything"
        views = []
        for _ in range(4):
            for process in processes:
                process.tell("beat")
                views.append(process.expect("view"))
        final = views[-3:]
        assert len({(holder, term) for holder, term, _ in final}) == 1, views
        assert final[0][0] in held
        assert final[0][1] >= max(terms)
    finally:
        for process in processes:
            process.end()


# ---------------------------------------------------------------- the lock file


@pytest.fixture
def a(tmp_path: Path) -> Iterator[FileCoordinator]:
    coordinator = FileCoordinator(tmp_path)
    yield coordinator
    coordinator.resign("a")


@pytest.fixture
def b(tmp_path: Path) -> Iterator[FileCoordinator]:
    coordinator = FileCoordinator(tmp_path)
    yield coordinator
    coordinator.resign("b")


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_lock_file_that_is_no_longer_ours_is_a_loss_with_that_reason(
    tmp_path: Path, a: FileCoordinator, how: str
) -> None:
    """The lock of a removed file excludes no other worker. Its holder stands down and may campaign one tick later."""
    beat(a, "a")
    (tmp_path / "leader.lock").unlink()
    if how == "replaced":
        (tmp_path / "leader.lock").touch()
    seen = beat(a, "a")
    assert seen.holder is None
    assert seen.reason == f"the lock file {tmp_path}/leader.lock was removed or replaced"
    again = beat(a, "a")
    assert (again.holder, again.term, again.reason) == ("a", 2, "")


def test_a_holder_whose_lock_file_was_removed_sees_who_took_over(
    tmp_path: Path, a: FileCoordinator, b: FileCoordinator
) -> None:
    """The loss comes with the reason and with the new holder."""
    beat(a, "a")
    (tmp_path / "leader.lock").unlink()
    assert beat(b, "b").term == 2
    seen = beat(a, "a")
    assert (seen.holder, seen.term) == ("b", 2)
    assert "was removed" in seen.reason


def test_a_refused_announcement_does_not_swallow_the_reason_of_the_loss(tmp_path: Path, a: FileCoordinator) -> None:
    """The next heartbeat still says that the lock file was removed."""
    term = beat(a, "a").term
    (tmp_path / "leader.lock").unlink()
    assert not a.announce(Announcement(term=term, worker_id="a", position=Position(0)))
    assert "was removed" in beat(a, "a").reason


def test_a_holder_whose_term_was_passed_gives_up_the_lock(
    tmp_path: Path, a: FileCoordinator, b: FileCoordinator
) -> None:
    """If two claims crossed, the lock's holder may have the older term. It must release the lock."""
    assert beat(a, "a").term == 1
    record = {"worker_id": "b", "resigned": False, "announcement": None}
    (tmp_path / "terms" / "0000000002.json").write_bytes(orjson.dumps(record))
    seen = beat(a, "a")
    assert seen.reason == "term 2 was granted in its place"
    taken = beat(b, "b")
    assert (taken.holder, taken.term) == ("b", 3)
