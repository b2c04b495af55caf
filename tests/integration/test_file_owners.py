"""Files of a run that processes of two users write, as in a container and in its operator's shell.

The kernel refuses root nothing, so these tests need root: they drop to other users, and return.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.base import Announcement, Notice
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.errors import CoordinatorUnavailableError, StoreError
from distributed_backup.inspection.directory import directory_checks
from distributed_backup.position import Position
from tests.support.file_coordinators import beat, notice
from tests.support.stores import checkpoints, commit, newest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as another user")
pytestmark = needs_root

WORKER, OTHER, STRANGER, GROUP = 54321, 54322, 54323, 54400


@contextmanager
def acting_as(uid: int, *groups: int) -> Iterator[None]:
    """Have the rights of a user, in a group of its own and in `groups`, and the umask of a careful shell."""
    before, umask = os.getgroups(), os.umask(0o077)
    os.setgroups(groups)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)
        os.umask(umask)


@contextmanager
def cautious_root() -> Iterator[None]:
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def root() -> Iterator[Path]:
    """A run's directory that belongs to the worker's user. pytest's own directories are closed to others."""
    made = Path(tempfile.mkdtemp())
    os.chown(made, WORKER, WORKER)
    yield made
    shutil.rmtree(made)


def owners(root: Path) -> set[tuple[int, int]]:
    return {(path.stat().st_uid, path.stat().st_gid) for path in root.rglob("*")}


@pytest.mark.parametrize("action", ["save", "resign"])
def test_a_request_of_root_is_read_by_the_workers(root: Path, action: str) -> None:
    """The operator's process makes the folder of the notices too."""
    worker, operator = FileCoordinator(root / "coordinator"), FileCoordinator(root / "coordinator")
    with acting_as(WORKER):
        assert beat(worker, "a").holder == "a"
    with cautious_root():
        assert operator.view().holder == "a"
        operator.notify(Notice(notice_id="n", worker_id="a", reason="operator", remaining=30.0, action=action))  # type: ignore[arg-type]
    with acting_as(WORKER):
        assert [(known.notice_id, known.action) for known in beat(worker, "a").notices] == [("n", action)]
        worker.leave("a")
        worker.notify(notice("of-the-worker"))
        assert [known.notice_id for known in worker.view().notices] == ["of-the-worker"]
        worker.resign("a")
    assert owners(root) == {(WORKER, WORKER)}


def test_a_worker_of_root_leaves_nothing_that_stops_the_next_one(root: Path) -> None:
    """It made the directory, the lock, and the record of its term. The next worker is the user's."""
    first, second = FileCoordinator(root / "coordinator"), FileCoordinator(root / "coordinator")
    with cautious_root():
        assert first.announce(Announcement(term=beat(first, "a").term, worker_id="a", position=Position(1)))
        first.resign("a")
    with acting_as(WORKER):
        seen = beat(second, "b")
        assert (seen.holder, seen.term, seen.announcement is not None) == ("b", 2, True)
        assert [member.worker_id for member in second.members()] == ["a", "b"]
        second.resign("b")
    assert owners(root) == {(WORKER, WORKER)}


def test_another_user_of_the_group_takes_over(root: Path) -> None:
    """Kubernetes gives the volume to the `fsGroup`, and each pod may run as a user of its own."""
    os.chown(root, 0, GROUP)
    root.chmod(0o2775)
    first, second = FileCoordinator(root / "coordinator"), FileCoordinator(root / "coordinator")
    with acting_as(WORKER, GROUP):
        assert first.announce(Announcement(term=beat(first, "a").term, worker_id="a", position=Position(1)))
        first.notify(notice("n"))
    with acting_as(OTHER, GROUP):
        seen = beat(second, "b")
        assert (seen.holder, len(seen.notices), seen.announcement is not None) == ("a", 1, True)
    with acting_as(WORKER, GROUP):
        first.resign("a")
    with acting_as(OTHER, GROUP):
        assert beat(second, "b").term == 2
        second.resign("b")
    assert {gid for _, gid in owners(root)} == {GROUP}
    assert {stat.S_IMODE(path.stat().st_mode) & 0o007 for path in root.rglob("*")} == {0}


def test_a_user_of_the_group_resumes_what_another_has_saved(root: Path) -> None:
    """It reads, prunes and commits, although the directory of the run was made under a umask of 077."""
    os.chown(root, 0, GROUP)
    root.chmod(0o2775)
    place = root / "run"
    with acting_as(WORKER, GROUP):
        first = CheckpointStore(place)
        run_id = first.open_run()
        assert first.claim_term(1)
        commit(first, 1)
    with acting_as(OTHER, GROUP):
        second = CheckpointStore(place)
        assert second.open_run() == run_id
        assert newest(second) == (1, 1)
        assert second.claim_term(2)
        commit(second, 2, term=2)
        assert checkpoints(second) == [(2, 2)]
    with acting_as(STRANGER), pytest.raises(StoreError, match="Permission denied"):
        CheckpointStore(place).names()
    assert {gid for _, gid in owners(root)} == {GROUP}


def test_what_root_writes_is_read_by_the_owner_of_the_directory(root: Path) -> None:
    """An operator copies a run, or takes one worker's place. A file that only root may read would end the job."""
    with cautious_root():
        store = CheckpointStore(root)
        store.open_run()
        assert store.claim_term(1)
        commit(store, 1)
    assert owners(root) == {(WORKER, WORKER)}
    with acting_as(WORKER):
        assert newest(CheckpointStore(root)) == (1, 1)


def closed(path: Path) -> None:
    """Leave a record as an earlier version did: for root only."""
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"worker_id":"x","reason":"operator","wish":"resign","since":0,"until":1e12}')
    path.chmod(0o600)
    os.chown(path, 0, 0)


@pytest.mark.parametrize("kind", ["notices", "members"])
def test_a_record_that_may_not_be_read_does_not_end_the_election(
    root: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """It is skipped with one warning, which names the file and what to do."""
    worker = FileCoordinator(root)
    with acting_as(WORKER):
        worker.notify(notice("n"))
        beat(worker, "a", campaign=False)
    closed(root / kind / "x.json")
    with acting_as(WORKER):
        for _ in range(3):
            assert [known.notice_id for known in beat(worker, "a", campaign=False).notices] == ["n"]
            assert [member.worker_id for member in worker.members()][:1] == ["a"]
        assert beat(worker, "a").holder == "a"
        worker.resign("a")
    warnings = [text for text in caplog.messages if "skipped" in text]
    assert warnings == [
        f"record skipped path={root}/{kind}/x.json reason=Permission denied: give this user access to it"
    ]


def test_a_member_that_may_not_be_read_still_counts(root: Path) -> None:
    """Otherwise a worker that finishes would delete the run of one that goes on under another user."""
    worker = FileCoordinator(root)
    with acting_as(WORKER):
        beat(worker, "a", campaign=False)
    closed(root / "members" / "x.json")
    with acting_as(WORKER):
        assert [member.worker_id for member in worker.members()] == ["a", "x"]


def test_a_term_that_may_not_be_read_stops_only_followers_of_a_live_leader(root: Path) -> None:
    """A free lock is taken under a higher term. A held one is reported as an error that names the record."""
    leader, follower = FileCoordinator(root), FileCoordinator(root)
    with acting_as(WORKER):
        beat(leader, "a")
    record = root / "terms" / "0000000001.json"
    closed(record)
    with acting_as(WORKER):
        with pytest.raises(CoordinatorUnavailableError) as caught:
            beat(follower, "b")
        assert str(caught.value) == (
            f"can't coordinate in {root}: the record of the newest term can't be read ({record}: Permission denied): "
            "make the file readable for this user"
        )
        leader._held["a"].lock.release()
        seen = beat(follower, "b")
        assert (seen.holder, seen.term) == ("b", 2)
        follower.resign("b")


@pytest.mark.parametrize(("mode", "said"), [(0o300, "can't list"), (0o500, "can't create"), (0o600, "can't create")])
def test_a_directory_that_a_user_can_use_in_part_is_a_danger(root: Path, mode: int, said: str) -> None:
    root.chmod(mode)
    with acting_as(WORKER):
        found = list(directory_checks(root, wait=None))
    root.chmod(0o700)
    assert [(finding.name, finding.status) for finding in found[1:]] == [
        ("directory", "danger"),
        ("other checks", "unknown"),
    ]
    assert said in found[1].found
    assert found[1].advice.endswith("Give this user the rights to read, write, list and delete.")
    assert os.listdir(root) == []


def test_a_run_that_a_user_can_not_read_is_a_warning(root: Path) -> None:
    root.chmod(0o777)
    with cautious_root():
        commit(CheckpointStore(root), 1)
    for path in root.iterdir():
        os.chown(path, OTHER, OTHER)
    with acting_as(WORKER), closing(directory_checks(root, wait=None)) as checks:
        _, found = next(checks), next(checks)
    assert (found.status, "this user can't read 2 files, such as 00000" in found.found) == ("warning", True)


@pytest.mark.parametrize(("mode", "status"), [(0o1777, "warning"), (0o777, "ok")])
def test_a_run_that_a_user_can_not_replace_is_a_warning(root: Path, mode: int, status: str) -> None:
    """By the sticky bit, as in a directory for temporary files. A file of the user's own is no reason."""
    os.chown(root, OTHER, OTHER)
    root.chmod(mode)
    for name, owner in (("run.json", OTHER), ("events.jsonl", WORKER)):
        (root / name).touch()
        os.chown(root / name, owner, owner)
    with acting_as(WORKER), closing(directory_checks(root, wait=None)) as checks:
        _, found = next(checks), next(checks)
    assert found.status == status
    assert ("this user can't replace 1 file, such as run.json" in found.found) == (status == "warning")
