"""A worker whose store is away, was deleted by another worker, or knows more than the coordinator."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import override

import pytest

from distributed_backup.checkpoints.format import CheckpointHeader
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.base import ClusterView, Heartbeat, Notice
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import CoordinatorError, CoordinatorUnavailableError, RunMismatchError, StoreError
from distributed_backup.position import Position
from distributed_backup.preemption.exit import Preempted
from distributed_backup.storage.local import LocalStorage
from distributed_backup.worker import preemption
from distributed_backup.worker.worker import Worker
from tests.support.internals import context_of
from tests.support.segments import answers, boundary, write_segment
from tests.support.stores import remove_at_once
from tests.support.team import PATIENCE, FaultyStore, Team, snapshot, soon


class Bucket(LocalStorage):
    """Reads fail while `away` is set."""

    away: StoreError | None = None
    tries = 0

    @override
    def read(self, name: str) -> bytes:
        if self.away is not None:
            self.tries += 1
            raise self.away
        return super().read(name)


def busy(*, retryable: bool = True) -> StoreError:
    return StoreError("can't read s3://bucket/run/run.json: status 503", path="s3://bucket/run", retryable=retryable)


# ---------------------------------------------------------------- a store that is away at the start


def test_a_store_that_is_away_when_a_worker_joins_is_waited_for(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """A worker keeps trying to join until the store answers, and logs the reason once."""
    bucket = Bucket(team.root)
    bucket.away = busy()
    joining = team.begin(lambda: team.worker("a", store=CheckpointStore(bucket)))
    team.until(lambda: bucket.tries >= 3)
    assert caplog.text.count("can't join yet, retrying worker=a reason=can't read s3://bucket/run") == 1
    bucket.away = None
    worker: Worker = team.result(joining)
    assert team.result(team.begin(worker.await_start)).checkpoint is None


def test_a_store_that_stays_away_is_given_up(team: Team) -> None:
    """After `restore_timeout`, the worker fails with the store's own error."""
    bucket = Bucket(team.root)
    bucket.away = busy()
    joining = team.begin(lambda: team.worker("a", store=CheckpointStore(bucket), restore_timeout=5.0))
    begin = team.clock.now()
    # A second try while no time passes: the worker waits for it in real time.
    soon(lambda: bucket.tries >= 2)
    assert not joining.done()
    with pytest.raises(StoreError, match="status 503"):
        team.result(joining)
    assert team.clock.now() - begin > 5.0


def test_what_will_not_pass_ends_a_worker_at_once(team: Team) -> None:
    """An error that a retry can't cure, like a wrong key, ends the worker after one try."""
    bucket = Bucket(team.root)
    bucket.away = busy(retryable=False)
    with pytest.raises(StoreError, match="status 503"):
        team.worker("a", store=CheckpointStore(bucket))
    assert bucket.tries == 1


def test_a_notice_ends_the_wait_for_a_store(team: Team) -> None:
    """A worker that waits for its store exits at a notice, with no checkpoint to name."""
    bucket = Bucket(team.root)
    bucket.away = busy()
    worker = team.unjoined("a", store=CheckpointStore(bucket))
    joining = team.begin(worker.join)
    team.until(lambda: bucket.tries >= 2)
    worker.give_notice("SIGTERM")
    with pytest.raises(Preempted) as caught:
        team.result(joining)
    assert caught.value.checkpoint is None


# ---------------------------------------------------------------- a run that another has deleted


def test_a_second_fit_joins_the_run_that_is_there_now(team: Team) -> None:
    """After the first run was deleted, the stores of all workers open the second run under its new id."""
    stores = {name: CheckpointStore(team.root) for name in ("a", "b")}
    workers = [team.started(name, store=store) for name, store in stores.items()]
    workers[0].boundary(snapshot(1), due=True)
    team.until(lambda: team.positions() == [Position(1)])
    first = stores["a"].read_run_id()
    for worker in workers:
        team.result(team.begin(worker.finish))
    assert not team.root.exists()
    again = [team.started(f"{name}-again", store=store) for name, store in reversed(stores.items())]
    second = stores["a"].read_run_id()
    assert second not in {None, first}
    assert [store.open_run() for store in stores.values()] == [second] * 2
    # This checkpoint has the same name as one of the first run.
    again[0].boundary(snapshot(1), due=True)
    team.until(lambda: team.positions() == [Position(1)])
    found = stores["a"].newest_header()
    assert found is not None
    assert (found.run_id, found.worker_id) == (second, "b-again")


def test_a_directory_that_was_removed_is_made_again(team: Team) -> None:
    """By the leader's next commit, or by the next leader, with a coordinator that keeps nothing in it."""
    leader, follower = team.started("a"), team.started("b")
    run_id = CheckpointStore(team.root).read_run_id()
    remove_at_once(team.root)
    leader.boundary(snapshot(1), due=True)
    team.until(lambda: team.positions() == [Position(1)])
    assert CheckpointStore(team.root).read_run_id() == run_id
    remove_at_once(team.root)
    leader.close(timeout=0.0)
    team.until(lambda: team.holder() == "b")
    follower.boundary(snapshot(2), due=True)
    team.until(lambda: team.positions() == [Position(2)])
    assert CheckpointStore(team.root).read_run_id() == run_id


def test_a_directory_that_another_run_has_taken_is_left_to_it(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """The leader's commits fail, and its end deletes nothing, also where the other run began at the same position."""
    worker = team.started("a")
    mine = CheckpointStore(team.root).read_run_id()
    worker.boundary(snapshot(1), due=True)
    team.until(lambda: team.positions() == [Position(1)])
    remove_at_once(team.root)
    other = CheckpointStore(team.root)
    theirs = other.commit(snapshot(1), term=1, worker_id="other").run_id
    worker.boundary(snapshot(1), due=True)
    team.until(lambda: f"{team.root} belongs to run '{theirs}', this worker to run '{mine}'" in caplog.text)
    before = sorted(path.name for path in team.root.iterdir())
    team.result(team.begin(worker.finish))
    assert "deleting the backup" in caplog.text
    assert sorted(path.name for path in team.root.iterdir()) == before
    assert [row.header and row.header.worker_id for row in other.list()] == ["other"]


def test_a_run_that_was_led_and_has_no_checkpoint_is_told_of(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """A leader that finds an earlier term but no checkpoint warns that the checkpoints may have been removed."""
    CheckpointStore(team.root).open_run()
    first = team.started("a")
    assert "was led before" not in caplog.text
    first.close(timeout=0.0)
    team.started("b")
    assert f"{team.root} was led before and has no checkpoint" in caplog.text


@pytest.mark.parametrize("left", ["none", "older", "older without its segment", "newest"])
def test_answers_whose_checkpoint_was_removed_are_told_of_once(
    team: Team, caplog: pytest.LogCaptureFixture, left: str
) -> None:
    """An older checkpoint leads to them as well, through its own segment."""
    store = CheckpointStore(team.root, keep=2)
    names = [store.commit(snapshot(epoch), term=1, worker_id="old").name for epoch in (1, 2)]
    run_id = store.read_run_id() or ""
    first = write_segment(store.storage, (1, Position(1)), [*answers(3), boundary(2)], run_id=run_id)
    second = write_segment(store.storage, (1, Position(2)), answers(2), after=first, run_id=run_id)
    if left != "newest":
        (team.root / names[1]).unlink()
    if left == "none":
        (team.root / names[0]).unlink()
    if left == "older without its segment":
        (team.root / first.name).unlink()
    team.started("a")
    told = [record.getMessage() for record in caplog.records if "recorded answers from" in record.getMessage()]
    expected = {"none": (5, first.name), "older without its segment": (2, second.name)}.get(left)
    assert len(told) == (expected is not None)
    if expected is not None:
        assert told[0].startswith(f"{expected[0]} recorded answers from {expected[1]} on are not used")
        assert "put it back" in told[0]


def test_a_journal_that_can_not_be_read_does_not_stop_a_start_that_needs_none(team: Team) -> None:
    """The fit says what is wrong with it, if it keeps a journal."""
    CheckpointStore(team.root).open_run()
    (team.root / "0000000001-00000001-00000000.journal").write_bytes(b"x")

    def refuse(*_: object) -> bytes:
        raise StoreError("can't read it", path="")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "read_from", refuse)
        team.started("a")


# ---------------------------------------------------------------- a coordinator that is away at the end


class Away(MemoryCoordinator):
    """Heartbeats and notices fail while it is `away`."""

    away = False

    @override
    def heartbeat(self, request: Heartbeat) -> ClusterView:
        if self.away:
            raise CoordinatorUnavailableError("connection refused")
        return super().heartbeat(request)

    @override
    def notify(self, notice: Notice) -> None:
        if self.away:
            raise CoordinatorUnavailableError("connection refused")
        super().notify(notice)


def follower_without_coordinator(
    team: Team, *, store: CheckpointStore | None = None, data: str | None = None
) -> tuple[Worker, Worker]:
    """A leader and a follower, each at its second boundary, whose coordinator is away."""
    coordinator = Away(team.clock)
    leader = team.started("a", coordinator=coordinator, grace_period=30.0)
    follower = team.started("b", coordinator=coordinator, grace_period=30.0, store=store)
    for worker in (leader, follower):
        worker.boundary(replace(snapshot(1, 1), data=data), due=False)
    coordinator.away = True
    team.steps(3.0)
    return leader, follower


def test_a_follower_that_can_ask_nobody_leaves_when_its_state_is_saved(team: Team) -> None:
    """Without a coordinator, a preempted follower exits as soon as the store holds a checkpoint of its position."""
    leader, follower = follower_without_coordinator(team)
    follower.give_notice("SIGTERM")
    leaving = team.begin(follower.check)
    team.steps(3.0)
    assert not leaving.done()
    leader.give_notice("SIGTERM")
    # The clock stands still here, so the follower exits at once.
    with pytest.raises(Preempted) as caught:
        leaving.result(PATIENCE)
    assert (caught.value.position, team.positions()) == (Position(1, 1), [Position(1, 1)])


def test_a_follower_that_can_ask_nobody_stays_while_there_is_less_than_it_has(team: Team) -> None:
    """While the newest checkpoint is behind it, a follower without a coordinator stays until its grace period ends."""
    _, follower = follower_without_coordinator(team)
    FaultyStore(team.root).commit(snapshot(1), term=1, worker_id="a")
    follower.give_notice("SIGTERM")
    begin = team.clock.now()
    with pytest.raises(Preempted):
        team.result(team.begin(follower.check))
    assert team.clock.now() - begin > 25.0


def test_a_checkpoint_of_other_data_is_not_what_a_follower_has(team: Team) -> None:
    """A checkpoint of other data does not cover the follower's state, even if its batch number is higher."""
    _, follower = follower_without_coordinator(team, data="new")
    FaultyStore(team.root).commit(replace(snapshot(1, 8), data="old"), term=1, worker_id="a")
    follower.give_notice("SIGTERM")
    begin = team.clock.now()
    with pytest.raises(Preempted):
        team.result(team.begin(follower.check))
    assert team.clock.now() - begin > 25.0


class Hanging(FaultyStore):
    """Reading the newest header hangs while `hangs` is set."""

    hangs = False

    def __init__(self, root: Path) -> None:
        super().__init__(root, keep=10)
        self.looks = 0
        self.released = threading.Event()

    @override
    def newest_header(self) -> CheckpointHeader | None:
        if self.hangs:
            self.looks += 1
            assert self.released.wait(PATIENCE)
        return super().newest_header()


def test_a_store_that_hangs_too_does_not_keep_a_follower(team: Team) -> None:
    """A follower without a coordinator still exits when its one look at the store hangs."""
    store = Hanging(team.root)
    _, follower = follower_without_coordinator(team, store=store)
    store.hangs = True
    follower.give_notice("SIGTERM")
    with pytest.raises(Preempted):
        team.result(team.begin(follower.check))
    assert store.looks == 1
    store.released.set()


class Counted(FaultyStore):
    """Counts the looks at the newest header by a thread of the preemption."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, keep=10)
        self.looks = 0
        self.looked, self.looked_again = threading.Event(), threading.Event()

    @override
    def newest_header(self) -> CheckpointHeader | None:
        if threading.current_thread().name == "distributed-backup-look":
            self.looks += 1
            (self.looked if self.looks == 1 else self.looked_again).set()
        return super().newest_header()


def test_a_follower_that_can_ask_nobody_looks_once_in_each_slice(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that finds nothing must not end the wait, or each of them would start the next one at once."""
    monkeypatch.setattr(preemption, "WAIT_SLICE", PATIENCE)
    store = Counted(team.root)
    _, follower = follower_without_coordinator(team, store=store)
    follower.give_notice("SIGTERM")
    leaving = team.begin(follower.check)
    assert store.looked.wait(PATIENCE)
    assert not store.looked_again.wait(0.3)
    team.clock.advance(60.0)
    context_of(follower).state.notify_all()
    with pytest.raises(Preempted):
        leaving.result(PATIENCE)


# ---------------------------------------------------------------- what can't be read


def test_a_term_that_none_can_follow_is_named(tmp_path: Path) -> None:
    """The error for the highest possible term names the files to remove, since no leader could commit after it."""
    store = CheckpointStore(tmp_path)
    store.open_run()
    (tmp_path / "9999999999.term").touch()
    with pytest.raises(
        StoreError, match=r"^no term is left in .*: remove the files whose names begin with 9999999999$"
    ):
        store.claim_term(10_000_000_000)


class Unopened(MemoryCoordinator):
    """Can't be used before it is opened, like a coordinator over a server."""

    opened = False

    def open(self, run_id: str, timings: LeaseTimings) -> None:
        self.opened = True

    def leave(self, worker_id: str) -> None:
        if not self.opened:
            raise CoordinatorError("open() names the run, and comes before everything else")
        super().leave(worker_id)


def test_a_worker_that_could_not_join_leaves_without_a_warning(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    """Closing a worker that could not join logs nothing, so that the user sees only the error of `join`."""
    team.commit(1)
    coordinator = Unopened(team.clock)
    worker = team.unjoined("a", store=FaultyStore(team.root, run_id="another"), coordinator=coordinator)
    with pytest.raises(RunMismatchError):
        worker.join()
    worker.close(timeout=0.0)
    assert not coordinator.opened
    assert caplog.text == ""
