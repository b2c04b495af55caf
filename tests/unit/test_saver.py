"""The saver's thread against a store that blocks and fails on request. Tests wait for events and never sleep."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot
from distributed_backup.checkpoints.saver import Saver
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage
from tests.support.clocks import FakeClock

PATIENCE = 30.0


class TrickyStore(CheckpointStore):
    """Stops before each commit while `gate` is closed, and fails while `broken`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, keep=100)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.broken: Exception | None = None
        self.broken_listing: Exception | None = None
        self.after: Callable[[], None] = lambda: None
        self.tried: list[tuple[int, Position]] = []

    def newest_header(self) -> CheckpointHeader | None:
        if self.broken_listing is not None:
            raise self.broken_listing
        return super().newest_header()

    def commit(self, snapshot: Snapshot, *, term: int, worker_id: str) -> CheckpointHeader:
        self.tried.append((term, snapshot.position))
        self.entered.release()
        assert self.gate.wait(PATIENCE)
        if self.broken is not None:
            raise self.broken
        header = super().commit(snapshot, term=term, worker_id=worker_id)
        self.after()
        return header


class Recorder:
    """Records the calls of the saver, for a test to wait for."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self.commits: list[tuple[Position | None, int, int]] = []
        self.failures: list[StoreError] = []
        self.stale: list[int] = []
        self.before_commit: Callable[[], None] = lambda: None
        self.before_failure: Callable[[], None] = lambda: None

    def on_committed(self, newest: CheckpointHeader | None, term: int, *, served: int) -> None:
        self.before_commit()
        with self._condition:
            self.commits.append((None if newest is None else newest.position, term, served))
            self._condition.notify_all()

    def on_stale_term(self, term: int) -> None:
        with self._condition:
            self.stale.append(term)
            self._condition.notify_all()

    def on_commit_failed(self, error: StoreError) -> None:
        self.before_failure()
        with self._condition:
            self.failures.append(error)
            self._condition.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._condition:
            assert self._condition.wait_for(condition, PATIENCE), (self.commits, self.failures)

    def wait_served(self, ticket: int) -> None:
        self.wait(lambda: any(served >= ticket for _, _, served in self.commits))


class Bench:
    """A saver that leads under term 1, on a store in a directory."""

    def __init__(self, root: Path) -> None:
        self.store = TrickyStore(root)
        self.recorder = Recorder()
        self.term: int | None = 1
        self.clock = FakeClock()
        self.saver = Saver(
            store=self.store,
            worker_id="a",
            clock=self.clock,
            term=lambda: self.term,
            listener=self.recorder,
        )

    def lead(self, term: int | None) -> None:
        self.term = term
        self.saver.wake()

    def drain(self) -> None:
        assert self.saver.drain(PATIENCE)

    @property
    def positions(self) -> list[int]:
        """Epochs of the checkpoints on the disk, newest first."""
        return [row.position.epoch for row in self.store.list()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.saver.start()
    yield made
    made.store.gate.set()
    made.saver.stop()


def snapshot(epoch: int) -> Snapshot:
    return Snapshot(position=Position(epoch), body=b'{"epoch":%d}' % epoch)


def disk_full(location: str) -> StoreError:
    return StoreError(f"can't write {location}: No space left on device", path=location)


# ---------------------------------------------------------------- the schedule


def test_a_due_snapshot_is_committed_under_our_term(bench: Bench) -> None:
    """The saver commits a due snapshot under the leader's term, and reports it to the listener."""
    bench.saver.submit(snapshot(1), due=True)
    bench.drain()
    newest = bench.store.latest()
    assert newest is not None
    assert (newest.header.term, newest.position, newest.header.worker_id) == (1, Position(1), "a")
    assert bench.recorder.commits == [(Position(1), 1, 0)]


def test_what_another_wrote_is_made_durable_before_it_counts_for_ours(bench: Bench) -> None:
    """The saver makes an existing checkpoint durable once, before it reports it as committed."""
    CheckpointStore(bench.store.location).commit(snapshot(1), term=1, worker_id="a")
    with mock.patch.object(LocalStorage, "sync", autospec=True) as sync:
        bench.saver.submit(snapshot(1), due=True)
        bench.drain()
        assert bench.recorder.commits == [(Position(1), 1, 0)]
        sync.assert_called_once_with(bench.store.storage)
        bench.saver.submit(snapshot(1), due=True)
        bench.drain()
        bench.saver.submit(snapshot(2), due=True)
        bench.drain()
        bench.saver.submit(snapshot(2), due=True)
        bench.drain()
        assert sync.call_count == 1
    assert bench.store.tried == [(1, Position(2))]


def test_what_can_not_be_made_durable_is_not_saved(bench: Bench) -> None:
    """The saver reports a failure and no commit when an existing checkpoint can't be made durable."""
    CheckpointStore(bench.store.location).commit(snapshot(1), term=1, worker_id="a")
    with mock.patch.object(LocalStorage, "sync", side_effect=disk_full(bench.store.location)):
        bench.saver.submit(snapshot(1), due=True)
        bench.drain()
    assert (bench.recorder.commits, len(bench.recorder.failures)) == ([], 1)
    assert bench.saver.unsaved


def test_a_snapshot_that_is_not_due_is_not_committed(bench: Bench) -> None:
    """The saver keeps a snapshot that is not due in memory, and writes nothing."""
    bench.saver.submit(snapshot(1), due=False)
    bench.drain()
    assert bench.store.tried == []
    assert bench.saver.last is not None
    assert bench.saver.last.position == Position(1)


def test_an_older_due_snapshot_is_not_dropped_by_a_boundary_that_is_not_due(bench: Bench) -> None:
    """A due snapshot stays due after a later boundary that is not due."""
    bench.lead(None)
    bench.saver.submit(snapshot(1), due=True)
    bench.saver.submit(snapshot(2), due=False)
    bench.lead(1)
    bench.drain()
    assert bench.store.tried == [(1, Position(1))]


def test_while_a_commit_runs_only_the_newest_due_snapshot_waits(bench: Bench) -> None:
    """During a commit one due snapshot waits, the newest, however fast the training is."""
    bench.store.gate.clear()
    bench.saver.submit(snapshot(1), due=True)
    assert bench.store.entered.acquire(timeout=PATIENCE)
    for epoch in range(2, 50):
        bench.saver.submit(snapshot(epoch), due=True)
    bench.store.gate.set()
    bench.drain()
    assert bench.store.tried == [(1, Position(1)), (1, Position(49))]


def test_offering_never_waits_for_the_disk(bench: Bench) -> None:
    """Calls from training return while a commit hangs."""
    bench.store.gate.clear()
    bench.saver.submit(snapshot(1), due=True)
    assert bench.store.entered.acquire(timeout=PATIENCE)
    bench.saver.submit(snapshot(2), due=True)
    bench.saver.request_save()
    bench.saver.request_announcement()
    assert bench.positions == []


# ---------------------------------------------------------------- only while leading


def test_nothing_is_committed_while_another_leads(bench: Bench) -> None:
    """The saver commits a follower's due snapshot once the worker leads, under the new term."""
    bench.lead(None)
    bench.saver.submit(snapshot(1), due=True)
    bench.saver.request_save()
    bench.drain()
    assert bench.store.tried == []
    bench.lead(4)
    bench.drain()
    assert bench.store.tried == [(4, Position(1))]


def test_progress_never_goes_backwards(bench: Bench) -> None:
    """A leader behind the newest checkpoint commits only after its training has passed that checkpoint."""
    bench.store.commit(snapshot(5), term=1, worker_id="b")
    bench.lead(2)
    for epoch in (4, 5):
        bench.saver.submit(snapshot(epoch), due=True)
        bench.drain()
    assert bench.positions == [5]
    assert bench.recorder.commits == [(Position(5), 2, 0)] * 2
    bench.saver.submit(snapshot(6), due=True)
    bench.drain()
    assert bench.positions == [6, 5]


def test_the_final_state_is_committed_once_beside_its_boundary(bench: Bench) -> None:
    """It counts as progress beyond the boundary at its position. The final state of an earlier term is enough."""
    bench.lead(2)
    bench.saver.submit(snapshot(5), due=True)
    bench.drain()
    names = ["0000000002-00000005-00000000.final.ckpt", "0000000002-00000005-00000000.ckpt"]
    final = replace(snapshot(5), final=True)
    for term in (2, 3):
        bench.lead(term)
        for late in (final, snapshot(5)):
            bench.saver.submit(late, due=True)
            bench.drain()
            assert bench.store.names() == names


def test_what_others_committed_counts_for_progress(bench: Bench) -> None:
    """The saver looks for the commits of other workers before each commit."""
    bench.saver.submit(snapshot(1), due=True)
    bench.drain()
    CheckpointStore(bench.store.location, keep=100).commit(snapshot(9), term=1, worker_id="b")
    bench.saver.submit(snapshot(2), due=True)
    bench.drain()
    assert bench.positions == [9, 1]
    assert bench.recorder.commits[-1] == (Position(9), 1, 0)


def test_a_commit_under_a_stale_term_is_no_failure(bench: Bench) -> None:
    """The store refuses a commit under a stale term, and the saver reports no failure."""
    bench.store.commit(snapshot(1), term=7, worker_id="b")
    bench.saver.submit(snapshot(2), due=True)
    bench.drain()
    assert bench.positions == [1]
    assert (bench.recorder.failures, bench.recorder.commits) == ([], [])


def test_a_save_that_was_refused_as_stale_is_not_served(bench: Bench) -> None:
    """A requested save that was refused as stale is committed and served once the worker leads again."""
    bench.store.commit(snapshot(1), term=7, worker_id="b")
    tried = len(bench.store.tried)
    bench.saver.submit(snapshot(2), due=False)
    ticket = bench.saver.request_save()
    bench.drain()
    assert len(bench.store.tried) == tried + 1, "a refused commit is not tried again under the same term"
    bench.lead(8)
    bench.recorder.wait_served(ticket)
    assert bench.positions == [2, 1]


def test_a_due_snapshot_that_was_refused_as_stale_is_tried_when_we_lead_again(bench: Bench) -> None:
    """The saver retries a due snapshot that was refused as stale at the next boundary under a new term."""
    bench.store.commit(snapshot(1), term=7, worker_id="b")
    bench.saver.submit(snapshot(2), due=True)
    bench.drain()
    bench.lead(8)
    bench.saver.submit(snapshot(3), due=False)
    bench.drain()
    assert bench.positions == [2, 1]


# ---------------------------------------------------------------- save_now


def test_save_now_commits_the_last_boundary_although_it_was_not_due(bench: Bench) -> None:
    """A requested save commits the last boundary, due or not, and serves its ticket."""
    bench.saver.submit(snapshot(1), due=False)
    ticket = bench.saver.request_save()
    bench.recorder.wait_served(ticket)
    assert bench.recorder.commits == [(Position(1), 1, ticket)]
    assert bench.positions == [1]


def test_save_now_takes_the_last_boundary_rather_than_the_older_one_that_is_due(bench: Bench) -> None:
    """One commit of the last boundary serves a requested save and an older due snapshot."""
    bench.lead(None)
    bench.saver.submit(snapshot(1), due=True)
    bench.saver.submit(snapshot(2), due=False)
    ticket = bench.saver.request_save()
    bench.lead(1)
    bench.recorder.wait_served(ticket)
    bench.drain()
    assert bench.store.tried == [(1, Position(2))]


def test_save_now_before_the_first_boundary_is_served_by_what_is_there(bench: Bench) -> None:
    """A save that is requested before the first boundary is served without a commit."""
    ticket = bench.saver.request_save()
    bench.recorder.wait_served(ticket)
    assert bench.recorder.commits == [(None, 1, ticket)]


def test_save_now_during_a_commit_is_served_by_the_next_one(bench: Bench) -> None:
    """A save that is requested during a commit is served by the next commit."""
    bench.store.gate.clear()
    bench.saver.submit(snapshot(1), due=True)
    assert bench.store.entered.acquire(timeout=PATIENCE)
    bench.saver.submit(snapshot(2), due=False)
    ticket = bench.saver.request_save()
    bench.store.gate.set()
    bench.recorder.wait_served(ticket)
    assert bench.recorder.commits == [(Position(1), 1, 0), (Position(2), 1, ticket)]


def test_tickets_grow_and_one_commit_may_serve_many(bench: Bench) -> None:
    """Requested saves get increasing tickets, and one commit serves them all."""
    bench.lead(None)
    bench.saver.submit(snapshot(1), due=False)
    tickets = [bench.saver.request_save() for _ in range(3)]
    assert tickets == [1, 2, 3]
    bench.lead(1)
    bench.recorder.wait_served(3)
    bench.drain()
    assert bench.recorder.commits == [(Position(1), 1, 3)]


def test_an_urgent_save_is_tried_until_the_disk_is_back(bench: Bench) -> None:
    """The saver retries a requested save on a full disk until the disk has room."""
    bench.store.broken = disk_full(bench.store.location)
    bench.saver.submit(snapshot(1), due=False)
    ticket = bench.saver.request_save()
    bench.recorder.wait(lambda: len(bench.recorder.failures) >= 3)
    assert bench.recorder.commits == []
    bench.store.broken = None
    bench.recorder.wait_served(ticket)
    assert bench.positions == [1]


def test_an_urgent_save_that_is_tried_again_takes_the_newest_boundary(bench: Bench) -> None:
    """A retry of a requested save commits the newest boundary."""
    bench.store.broken = disk_full(bench.store.location)
    bench.saver.submit(snapshot(1), due=False)
    ticket = bench.saver.request_save()
    bench.recorder.wait(lambda: bool(bench.recorder.failures))
    bench.lead(None)
    bench.drain()
    bench.saver.submit(snapshot(2), due=False)
    bench.store.broken = None
    bench.lead(1)
    bench.recorder.wait_served(ticket)
    assert bench.recorder.commits == [(Position(2), 1, ticket)]


# ---------------------------------------------------------------- failures


def test_a_failed_due_snapshot_is_tried_again_at_the_next_boundary_only(bench: Bench) -> None:
    """The saver retries a failed due snapshot at the next boundary, due or not, and no sooner."""
    bench.store.broken = disk_full(bench.store.location)
    bench.saver.submit(snapshot(1), due=True)
    bench.recorder.wait(lambda: len(bench.recorder.failures) == 1)
    bench.saver.wake()
    bench.store.broken = None
    bench.saver.submit(snapshot(2), due=False)
    bench.drain()
    assert bench.store.tried == [(1, Position(1)), (1, Position(1))]
    assert bench.positions == [1]


def test_a_failed_due_snapshot_gives_way_to_a_newer_one(bench: Bench) -> None:
    """A newer due snapshot replaces one that failed."""
    bench.store.broken = disk_full(bench.store.location)
    bench.saver.submit(snapshot(1), due=True)
    bench.recorder.wait(lambda: len(bench.recorder.failures) == 1)
    bench.store.broken = None
    bench.saver.submit(snapshot(2), due=True)
    bench.drain()
    assert bench.store.tried == [(1, Position(1)), (1, Position(2))]


def test_a_report_in_between_does_not_forget_what_failed(bench: Bench) -> None:
    """A failed snapshot stays due when an announcement is requested before the next boundary."""
    bench.store.broken = bench.store.broken_listing = disk_full(bench.store.location)
    bench.saver.submit(snapshot(1), due=True)
    bench.recorder.wait(lambda: len(bench.recorder.failures) == 1)
    bench.saver.request_announcement()
    bench.recorder.wait(lambda: len(bench.recorder.failures) == 2)
    bench.store.broken = bench.store.broken_listing = None
    bench.saver.submit(snapshot(2), due=False)
    bench.drain()
    assert bench.positions == [1]


def test_a_bug_in_the_store_is_reported_as_a_failure_and_survived(bench: Bench) -> None:
    """The saver reports an unexpected exception of the store as a failure, and commits the next snapshot."""
    bench.store.broken = ValueError("not a StoreError")
    bench.saver.submit(snapshot(1), due=True)
    bench.recorder.wait(lambda: len(bench.recorder.failures) == 1)
    assert "not a StoreError" in str(bench.recorder.failures[0])
    bench.store.broken = None
    bench.saver.submit(snapshot(2), due=True)
    bench.drain()
    assert bench.positions == [2]


def test_a_bug_in_the_listener_is_survived(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The saver logs an exception of the listener, keeps that commit, and reports the next one."""

    def break_once() -> None:
        bench.recorder.before_commit = lambda: None
        raise RuntimeError("a bug in the listener")

    bench.recorder.before_commit = break_once
    bench.saver.submit(snapshot(1), due=True)
    bench.drain()
    bench.saver.submit(snapshot(2), due=True)
    bench.drain()
    assert bench.positions == [2, 1]
    assert bench.recorder.commits == [(Position(2), 1, 0)]
    assert "a bug in the listener" in caplog.text


# ---------------------------------------------------------------- report


def test_a_report_tells_the_newest_checkpoint_without_writing(bench: Bench) -> None:
    """A requested announcement reports the newest checkpoint and writes nothing."""
    CheckpointStore(bench.store.location).commit(snapshot(3), term=1, worker_id="b")
    bench.lead(2)
    bench.saver.request_announcement()
    bench.drain()
    assert bench.recorder.commits == [(Position(3), 2, 0)]
    assert bench.store.tried == []


def test_a_report_waits_until_we_lead_and_commits_what_is_due(bench: Bench) -> None:
    """An announcement waits until the worker leads, and one commit of a due snapshot serves it."""
    bench.lead(None)
    bench.saver.request_announcement()
    bench.saver.submit(snapshot(4), due=True)
    bench.drain()
    assert bench.recorder.commits == []
    bench.lead(2)
    bench.drain()
    assert bench.recorder.commits == [(Position(4), 2, 0)]


def test_a_report_that_failed_is_made_at_the_next_boundary(bench: Bench) -> None:
    """The saver retries a failed announcement at the next boundary."""
    bench.store.broken_listing = disk_full(bench.store.location)
    bench.saver.request_announcement()
    bench.recorder.wait(lambda: len(bench.recorder.failures) == 1)
    bench.store.broken_listing = None
    bench.saver.submit(snapshot(1), due=False)
    bench.drain()
    assert bench.recorder.commits == [(None, 1, 0)]


# ---------------------------------------------------------------- drain, stop


def test_drain_waits_for_the_commit_that_runs(bench: Bench) -> None:
    """`drain` waits for the running commit, and returns False after its timeout."""
    bench.store.gate.clear()
    bench.saver.submit(snapshot(1), due=True)
    assert bench.store.entered.acquire(timeout=PATIENCE)
    assert not bench.saver.drain(0.01)
    bench.store.gate.set()
    assert bench.saver.drain(PATIENCE)
    assert bench.positions == [1]


def test_drain_does_not_wait_for_what_only_another_may_write(bench: Bench) -> None:
    """`drain` returns True for a follower, and leaves its due snapshot to the leader."""
    bench.lead(None)
    bench.saver.submit(snapshot(1), due=True)
    assert bench.saver.drain(PATIENCE)
    assert bench.store.tried == []


def test_drain_tries_once_more_what_failed(bench: Bench) -> None:
    """`drain` retries a failed snapshot."""
    bench.store.broken = disk_full(bench.store.location)
    bench.saver.submit(snapshot(1), due=True)
    bench.recorder.wait(lambda: len(bench.recorder.failures) == 1)
    bench.store.broken = None
    bench.drain()
    assert bench.positions == [1]


def test_stop_waits_for_the_commit_that_runs_and_gives_up_what_waits(bench: Bench) -> None:
    """`stop` completes the running commit and drops a snapshot that is only due."""
    bench.store.gate.clear()
    bench.saver.submit(snapshot(1), due=True)
    assert bench.store.entered.acquire(timeout=PATIENCE)
    bench.saver.submit(snapshot(2), due=True)
    stopping = threading.Thread(target=bench.saver.stop)
    stopping.start()
    bench.recorder.before_commit = lambda: None
    assert stopping.is_alive()
    assert bench.positions == []
    bench.store.gate.set()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    assert bench.positions == [1]
    assert bench.recorder.commits == [(Position(1), 1, 0)]


def test_a_final_state_whose_reply_was_lost_is_refused_if_a_newer_term_was_claimed(bench: Bench) -> None:
    def lose_reply() -> None:
        assert bench.store.claim_term(2)
        raise StoreError("the reply was lost", path=bench.store.location, retryable=True)

    bench.store.after = lose_reply
    bench.saver.submit(replace(snapshot(1), final=True), due=True)
    bench.recorder.wait(lambda: bool(bench.recorder.failures))
    bench.drain()
    bench.recorder.wait(lambda: bench.recorder.stale == [1])
    assert bench.recorder.commits == []


def test_stop_ends_an_urgent_save_that_keeps_failing(bench: Bench) -> None:
    """`stop` ends a requested save that keeps failing, and a second `stop` changes nothing."""
    bench.store.broken = disk_full(bench.store.location)
    bench.saver.request_save()
    bench.saver.submit(snapshot(1), due=False)
    bench.saver.request_save()
    bench.recorder.wait(lambda: bool(bench.recorder.failures))
    bench.saver.stop()
    bench.saver.stop()
    assert bench.positions == []


def test_a_stop_during_a_failing_urgent_save_ends_it_without_the_pause(bench: Bench) -> None:
    """A `stop` during a failing requested save ends the thread without the pause before a retry."""
    bench.store.broken = disk_full(bench.store.location)
    bench.recorder.before_failure = bench.saver.stop
    bench.saver.submit(snapshot(1), due=False)
    bench.saver.request_save()
    bench.recorder.wait(lambda: bool(bench.recorder.failures))
    thread = bench.saver._thread
    assert thread is not None
    thread.join(PATIENCE)
    assert bench.clock.now() == FakeClock().now()


def test_stopping_what_was_never_started_is_harmless(tmp_path: Path) -> None:
    """`stop` returns at once on a saver that never started."""
    Bench(tmp_path).saver.stop()
