"""The records of the file coordinator: torn, foreign, old, or from before a reboot, and what is removed of them."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import override

import pytest

from distributed_backup.clock import SystemClock
from distributed_backup.coordination.base import Announcement, ClusterView
from distributed_backup.coordination.election import Candidate, Elector, LeaseLoss
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.coordination.file_records import UNREADABLE_MEMBER_DURATION, FileRecords
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import ConfigError, CoordinatorUnavailableError
from distributed_backup.position import Position
from tests.support.clocks import FakeClock
from tests.support.file_coordinators import beat, notice, only_record
from tests.support.terms import Terms

PATIENCE = 60.0


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
        acknowledged=("n",),
        finished=finished,
    )


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"{}", "'worker_id' is missing"),
        (b'{"worker_id": 1}', "unexpected value 1"),
        (b'{"resigned": false}', "'worker_id' is missing"),
        (b'{"worker_id": "a"}', "'resigned' is missing"),
    ],
)
def test_a_garbage_record_of_a_term_makes_the_coordinator_unavailable(
    tmp_path: Path, a: FileCoordinator, b: FileCoordinator, garbage: bytes, reason: str
) -> None:
    """A follower can't tell who leads. The error names the file. The leader repairs it with a new term."""
    beat(a, "a")
    (record := only_record(tmp_path)).write_bytes(garbage)
    refusal = (
        f"can't coordinate in {tmp_path}: the record of the newest term can't be read ({record}: {reason}): its leader "
        "replaces it at its next heartbeat. If it stays, remove the file: terms never go back"
    )
    looks: tuple[Callable[[], ClusterView], ...] = (lambda: beat(b, "b"), b.view)
    for look in looks:
        with pytest.raises(CoordinatorUnavailableError) as caught:
            look()
        assert str(caught.value) == refusal
    lost = beat(a, "a")
    assert (lost.holder, lost.reason) == (None, f"the record of term 1 can't be read ({record}: {reason})")
    healed = beat(a, "a")
    assert (healed.holder, healed.term) == ("a", 2)
    assert beat(b, "b").holder == "a"


def test_a_garbage_record_of_a_free_lease_does_not_stop_the_next_leader(tmp_path: Path, b: FileCoordinator) -> None:
    """The lock decides who leads, and the names of the records which term comes next."""
    (tmp_path / "terms").mkdir()
    (tmp_path / "terms" / "0000000041.json").write_bytes(b"{}")
    (tmp_path / "terms" / "0000000042.json").mkdir()
    assert (b.view().holder, b.view().term) == (None, 42)
    assert (beat(b, "b").holder, beat(b, "b").term) == ("b", 43)


def test_a_leader_resigns_although_its_record_is_garbage(tmp_path: Path, a: FileCoordinator) -> None:
    """The record is whole afterwards."""
    beat(a, "a")
    only_record(tmp_path).write_bytes(b"{}")
    a.resign("a")
    assert (a.view().holder, beat(a, "a").term) == (None, 2)


@pytest.mark.parametrize("torn", [b"", b'{"worker_id": "a", "resi', b"\x00\x00\xff", b"[]"])
def test_a_torn_record_of_the_holders_term_is_a_loss_and_not_the_end(
    tmp_path: Path, a: FileCoordinator, b: FileCoordinator, torn: bytes
) -> None:
    """A power cut may empty a record. Then no worker holds by it, and any worker can claim a new term."""
    beat(a, "a")
    only_record(tmp_path).write_bytes(torn)
    assert b.view().holder is None
    seen = beat(a, "a")
    assert (seen.holder, seen.reason) == (None, "the record of term 1 was removed or changed")
    assert (beat(a, "a").holder, beat(b, "b").holder, beat(b, "b").term) == ("a", "a", 2)


@pytest.mark.parametrize("garbage", [b"{}", b'{"seen": "now", "duration": 15}', b'{"seen": 1, "duration": null}'])
def test_a_garbage_record_of_a_member_is_a_member_until_it_is_old(
    tmp_path: Path, a: FileCoordinator, caplog: pytest.LogCaptureFixture, garbage: bytes
) -> None:
    """No worker may conclude that another has left, and the election goes on. One warning names the file."""
    beat(a, "a")
    (path := tmp_path / "members" / "x.json").write_bytes(garbage)
    for _ in range(3):
        assert [member.worker_id for member in a.members()] == ["a", "x"]
    a.resign("a")
    assert beat(a, "a").term == 2
    os.utime(path, (0.0, time.time() - UNREADABLE_MEMBER_DURATION))
    assert [member.worker_id for member in a.members()] == ["a"]
    assert caplog.text.count("record skipped") == caplog.text.count(f"record skipped path={path} reason=") == 1
    a.resign("a")
    assert beat(a, "a").term == 3
    assert not path.exists()


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b'{"worker_id": "x"}', "'reason' is missing"),
        (b'{"worker_id": 5, "reason": "", "wish": "save", "since": 0, "until": 9}', "unexpected value 5"),
        (
            b'{"worker_id": "x", "reason": "", "wish": "save@3,x", "since": 0, "until": 9}',
            "invalid literal for int() with base 10: 'x'",
        ),
        (b"[]", "want an object, got []"),
    ],
)
def test_a_garbage_record_of_a_notice_is_skipped(
    tmp_path: Path, a: FileCoordinator, caplog: pytest.LogCaptureFixture, garbage: bytes, reason: str
) -> None:
    """The election goes on, and the other notices count. One warning names the file."""
    a.notify(notice("n"))
    (path := tmp_path / "notices" / "x.json").write_bytes(garbage)
    for _ in range(3):
        assert [known.notice_id for known in beat(a, "a", campaign=False).notices] == ["n"]
    [warning] = [text for text in caplog.messages if text.startswith("record skipped")]
    assert warning == f"record skipped path={path} reason={reason}: remove it unless its writer replaces it"
    assert (beat(a, "a").holder, path.exists()) == ("a", False)


def test_a_garbage_announcement_is_skipped_and_an_older_one_counts(
    tmp_path: Path, a: FileCoordinator, b: FileCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    """The record still names the holder."""
    assert a.announce(made := Announcement(term=beat(a, "a").term, worker_id="a", position=Position(1)))
    a.resign("a")
    beat(a, "a")
    path = tmp_path / "terms" / "0000000002.json"
    path.write_bytes(b'{"worker_id": "a", "resigned": false, "announcement": {"position": [1, 2, 3]}}')
    for _ in range(3):
        assert (beat(b, "b").holder, b.view().announcement) == ("a", made)
    assert caplog.text.count(f"record skipped path={path}") == 1


def test_a_torn_record_of_a_member_is_no_member(tmp_path: Path, a: FileCoordinator) -> None:
    """It is whole again at that worker's next tick."""
    beat(a, "a")
    (tmp_path / "members" / "a.json").write_bytes(b'{"seen"')
    assert a.members() == ()
    beat(a, "a")
    assert len(a.members()) == 1


def test_a_file_in_the_way_does_not_end_the_electors_thread(tmp_path: Path, b: FileCoordinator) -> None:
    """To the elector it is a coordinator that can't be reached, and may be again."""
    (tmp_path / "terms").touch()
    observed = threading.Semaphore(0)

    class Listener:
        def elected(self, term: int) -> None: ...
        def lost(self, loss: LeaseLoss) -> None: ...
        def observed(self, view: ClusterView) -> None:
            observed.release()

    elector = Elector(
        candidate=Candidate(worker_id="b", timings=LeaseTimings()),
        coordinator=b,
        clock=SystemClock(),
        listener=Listener(),
        terms=Terms(),
    )
    elector.start()
    assert not observed.acquire(timeout=0.3)
    (tmp_path / "terms").unlink()
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


def test_names_that_would_leave_the_directory_are_refused(tmp_path: Path) -> None:
    """Ids become file names, so they are checked."""
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


def test_files_of_the_user_outlive_the_run(tmp_path: Path) -> None:
    """The records are removed, and what killed writers left of them."""
    coordinator = FileCoordinator(tmp_path)
    beat(coordinator, "a")
    coordinator.resign("a")
    (tmp_path / "members" / ".a.json-0123abcd").write_bytes(b"torn")
    (tmp_path / "members" / "alice.txt").write_text("mine")
    coordinator.erase()
    assert [path.name for path in tmp_path.rglob("*")] == ["members", "alice.txt"]


def test_a_notice_of_an_earlier_version_has_no_position(a: FileCoordinator, tmp_path: Path) -> None:
    """Workers of two versions may run side by side."""
    a.notify(replace(notice("n"), position=Position(3, 4)))
    path = tmp_path / "notices" / "n.json"
    fields = json.loads(path.read_bytes())
    assert fields["wish"] == "save@3,4"
    path.write_text(json.dumps({**fields, "wish": "save"}))
    assert [(known.notice_id, known.action, known.position) for known in a.view().notices] == [("n", "save", None)]
