"""The file coordinator where it is more than the contract: real processes, real kills, files that others touch.

The children are plain processes without synalinks. They report through a pipe, with instants of the clock that
all processes of the machine share.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Self, override

import orjson
import pytest

from distributed_backup.clock import SystemClock
from distributed_backup.coordination.base import Announcement, ClusterView, Heartbeat, Notice
from distributed_backup.coordination.election import Elector, LeaseLoss
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.coordination.file_records import FileRecords
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import ConfigError, CoordinatorUnavailableError
from distributed_backup.position import Position
from tests.support.clocks import FakeClock
from tests.support.terms import Terms

# spawn: a fork of the test process would take its threads' locks with it.
CONTEXT = multiprocessing.get_context("spawn")
PATIENCE = 60.0
TAKEOVER_LIMIT = 0.3


def beat(
    coordinator: FileCoordinator, worker_id: str, *, campaign: bool = True, floor: int = 0, duration: float = 15.0
) -> ClusterView:
    return coordinator.heartbeat(Heartbeat(worker_id=worker_id, campaign=campaign, floor=floor, duration=duration))


def only_record(root: Path) -> Path:
    (path,) = (root / "terms").glob("*.json")
    return path


class Process:
    """A child that runs `function(pipe, root, worker_id)`; killed at the end."""

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
        coordinator=coordinator,
        worker_id=worker_id,
        timings=LeaseTimings(),
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
    """Take the lock, then fork a child that stays; the child also tries what its copy of the lock allows."""
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
    """Heartbeats without pause, sometimes resigning; reports every term it was told to hold."""
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
            # The next leader is the one that took over; its challenger is a new process.
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
    """A data loader that outlives its killed trainer must not block the run; nor may it speak or resign for it."""
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
    """Three processes campaign as fast as they can while the file vanishes at random; then all agree again."""
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
    """The lock of a removed file excludes nobody, so its holder stands down; one tick later it may campaign."""
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
    """If two claims crossed, the lock's holder may have the older term: unless it lets go, nobody can lead again."""
    assert beat(a, "a").term == 1
    record = {"worker_id": "b", "resigned": False, "announcement": None}
    (tmp_path / "terms" / "0000000002.json").write_bytes(orjson.dumps(record))
    seen = beat(a, "a")
    assert seen.reason == "term 2 was granted in its place"
    taken = beat(b, "b")
    assert (taken.holder, taken.term) == ("b", 3)


@pytest.mark.parametrize("seen", [[], [8]])
def test_a_claim_that_a_newer_one_passed_is_made_again(tmp_path: Path, seen: list[int]) -> None:
    """A claimer that was stopped after it looked finds its number taken, or free because it was used and cleaned up."""

    class Stopped(FileRecords):
        looked = False

        @override
        def terms(self) -> list[int]:
            if self.looked:
                return super().terms()
            self.looked = True
            return seen

    (tmp_path / "terms").mkdir()
    (tmp_path / "terms" / "0000000009.json").write_bytes(b"{}")
    assert Stopped(tmp_path, FakeClock()).claim_term("a", 0) == 10


# ---------------------------------------------------------------- records that others touched


@pytest.mark.parametrize(
    ("kind", "finished"), [("fresh", False), ("restored", False), ("committed", False), ("finished", True)]
)
def test_an_announcement_of_version_0_3_is_read(tmp_path: Path, a: FileCoordinator, kind: str, finished: bool) -> None:
    """A job may be upgraded while its records are in the directory."""
    announcement = f'{{"kind":"{kind}","position":[2,3],"checkpoint":"c.ckpt","digest":"d","answers":["n"]}}'
    terms = tmp_path / "terms"
    terms.mkdir(parents=True)
    record = f'{{"worker_id":"old","resigned":false,"announcement":{announcement}}}'
    (terms / "0000000007.json").write_text(record)
    assert a.view().announcement == Announcement(
        term=7,
        worker_id="old",
        position=Position(2, 3),
        checkpoint="c.ckpt",
        digest="d",
        answers=("n",),
        finished=finished,
    )


@pytest.mark.parametrize("garbage", [b"{}", b'{"worker_id": 1}', b'{"resigned": false}'])
def test_a_garbage_record_of_a_term_makes_the_coordinator_unavailable(
    tmp_path: Path, a: FileCoordinator, b: FileCoordinator, garbage: bytes
) -> None:
    """A follower can't tell who leads, and says where the trouble is; the leader makes a new term, which heals it."""
    beat(a, "a")
    only_record(tmp_path).write_bytes(garbage)
    with pytest.raises(CoordinatorUnavailableError, match="a record there is malformed"):
        beat(b, "b")
    with pytest.raises(CoordinatorUnavailableError, match=f"can't coordinate in {tmp_path}"):
        b.view()
    for _ in range(2):
        try:
            healed = beat(a, "a")
        except CoordinatorUnavailableError:
            continue
    assert (healed.holder, healed.term) == ("a", 2)
    assert beat(b, "b").holder == "a"


@pytest.mark.parametrize("torn", [b"", b'{"worker_id": "a", "resi', b"\x00\x00\xff", b"[]"])
def test_a_torn_record_of_the_holders_term_is_a_loss_and_not_the_end(
    tmp_path: Path, a: FileCoordinator, b: FileCoordinator, torn: bytes
) -> None:
    """After a power cut a record may be empty: nobody holds by it, and somebody can hold again."""
    beat(a, "a")
    only_record(tmp_path).write_bytes(torn)
    assert b.view().holder is None
    seen = beat(a, "a")
    assert (seen.holder, seen.reason) == (None, "the record of term 1 was removed or changed")
    assert (beat(a, "a").holder, beat(b, "b").holder, beat(b, "b").term) == ("a", "a", 2)


@pytest.mark.parametrize("garbage", [b"{}", b'{"seen": "now", "duration": 15}', b'{"seen": 1, "duration": null}'])
def test_a_garbage_record_of_a_member_makes_the_members_unavailable(
    tmp_path: Path, a: FileCoordinator, garbage: bytes
) -> None:
    """Nobody may conclude that a worker is gone; but the election goes on."""
    beat(a, "a")
    (tmp_path / "members" / "x.json").write_bytes(garbage)
    with pytest.raises(CoordinatorUnavailableError, match="a record there is malformed"):
        a.members()
    a.resign("a")
    assert beat(a, "a").term == 2


def test_a_torn_record_of_a_member_is_no_member(tmp_path: Path, a: FileCoordinator) -> None:
    """It is whole again at that worker's next tick."""
    beat(a, "a")
    (tmp_path / "members" / "a.json").write_bytes(b'{"seen"')
    assert a.members() == ()
    beat(a, "a")
    assert len(a.members()) == 1


def test_garbage_does_not_end_the_electors_thread(tmp_path: Path, b: FileCoordinator) -> None:
    """To the elector it is a coordinator that can't be reached, and may be again."""
    (tmp_path / "notices").mkdir()
    (tmp_path / "notices" / "x.json").write_bytes(b'{"worker_id": "x"}')
    observed = threading.Semaphore(0)

    class Listener:
        def elected(self, term: int) -> None: ...
        def lost(self, loss: LeaseLoss) -> None: ...
        def observed(self, view: ClusterView) -> None:
            observed.release()

    elector = Elector(
        coordinator=b,
        worker_id="b",
        timings=LeaseTimings(),
        clock=SystemClock(),
        listener=Listener(),
        terms=Terms(),
    )
    elector.start()
    assert not observed.acquire(timeout=0.3)
    (tmp_path / "notices" / "x.json").unlink()
    assert observed.acquire(timeout=PATIENCE)
    elector.stop()
    assert elector.term == 1


def test_a_directory_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    """A file where the directory should be: one clear error for each operation."""
    (tmp_path / "file").touch()
    coordinator = FileCoordinator(tmp_path / "file")
    for operation in (lambda: beat(coordinator, "a"), lambda: coordinator.notify(notice("n"))):
        with pytest.raises(CoordinatorUnavailableError, match=f"can't coordinate in {tmp_path}/file: Not a directory"):
            operation()


def notice(notice_id: str) -> Notice:
    return Notice(notice_id=notice_id, worker_id="a", reason="SIGTERM", remaining=30.0)


def test_names_that_would_leave_the_directory_are_refused(tmp_path: Path) -> None:
    """Ids become file names; what comes from outside is checked."""
    coordinator = FileCoordinator(tmp_path / "coordinator")
    for operation in (
        lambda: beat(coordinator, "../a"),
        lambda: coordinator.notify(notice("../../n")),
        lambda: coordinator.leave("../terms/0000000001"),
    ):
        with pytest.raises(ConfigError):
            operation()
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_failed_leaves_nothing_behind(tmp_path: Path, a: FileCoordinator) -> None:
    """On a full disk, each tick of each worker would otherwise leave one more file."""
    (tmp_path / "members" / "a.json").mkdir(parents=True)
    for _ in range(3):
        with pytest.raises(CoordinatorUnavailableError):
            beat(a, "a")
    assert [path.name for path in (tmp_path / "members").iterdir()] == ["a.json"]


# ---------------------------------------------------------------- time


class Interposed(FakeClock):
    """Something else happens, once, right after the time was read."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] | None = None

    def now(self) -> float:
        now = super().now()
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            self.advance(0.01)
            meanwhile()
        return now


def test_a_heartbeat_during_the_count_of_members_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    """A member that is heard of in the middle of it is a member: who leaves last would delete the backup."""
    clock = Interposed()
    a, b = FileCoordinator(tmp_path, clock), FileCoordinator(tmp_path, clock)
    beat(b, "b", campaign=False)
    clock.meanwhile = lambda: beat(b, "b", campaign=False)
    assert [member.worker_id for member in a.members()] == ["b"]
    assert [member.worker_id for member in a.members()] == ["b"]


def test_what_is_from_before_a_reboot_is_over(tmp_path: Path) -> None:
    """The clock starts again at zero: instants of the future are the past."""
    clock = FakeClock(1_000_000.0)
    before = FileCoordinator(tmp_path, clock)
    beat(before, "a", campaign=False)
    before.notify(notice("n"))
    rebooted = FileCoordinator(tmp_path, FakeClock(60.0))
    assert rebooted.members() == ()
    assert rebooted.view().notices == ()
    assert beat(rebooted, "b").holder == "b"
    assert {path.name for path in tmp_path.glob("*/*.json")} == {"b.json", "0000000001.json"}
    rebooted.resign("b")


def test_what_is_long_over_is_cleaned_up_by_the_next_leader(tmp_path: Path) -> None:
    """A run that is preempted a thousand times does not read a thousand files at each tick."""
    clock = FakeClock()
    for number in range(30):
        coordinator = FileCoordinator(tmp_path, clock)
        beat(coordinator, f"w{number}")
        coordinator.notify(notice(f"n{number}"))
        coordinator.resign(f"w{number}")
        clock.advance(100.0)
    assert len(list((tmp_path / "terms").iterdir())) <= 10
    assert len(list((tmp_path / "members").iterdir())) <= 3
    assert len(list((tmp_path / "notices").iterdir())) <= 3


# ---------------------------------------------------------------- runs and files


def test_runs_in_two_directories_do_not_see_each_other(tmp_path: Path) -> None:
    """Each has its leader, its term, its members, its notices."""
    one, two = FileCoordinator(tmp_path / "one"), FileCoordinator(tmp_path / "two")
    assert beat(one, "a", floor=4).term == 5
    one.notify(notice("n"))
    seen = beat(two, "b")
    assert (seen.holder, seen.term, seen.notices, seen.announcement) == ("b", 1, (), None)
    assert [member.worker_id for member in two.members()] == ["b"]
    one.resign("a")
    two.resign("b")


@contextmanager
def permissive_umask() -> Iterator[None]:
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def test_all_files_are_for_their_owner_only(tmp_path: Path, a: FileCoordinator) -> None:
    """Whatever the umask says."""
    with permissive_umask():
        term = beat(a, "a").term
        assert a.announce(Announcement(term=term, worker_id="a", position=Position(0)))
        a.notify(notice("n"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_making_and_asking_one_touches_no_disk(tmp_path: Path) -> None:
    """`status` of a directory where nothing ran makes nothing."""
    coordinator = FileCoordinator(tmp_path / "coordinator")
    assert coordinator.view().holder is None
    assert coordinator.members() == ()
    assert list(tmp_path.iterdir()) == []


def test_erasing_leaves_foreign_files_alone(tmp_path: Path, a: FileCoordinator) -> None:
    """Ours go, and the directory only if it is empty then."""
    beat(a, "a")
    (tmp_path / "notes.txt").touch()
    a.erase()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
