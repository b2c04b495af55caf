"""Which segments a prune removes: histories of leaders at random, and the files of a run.

Each worker of a history is a real `JournalWriter` that takes its steps in the test's thread. Its state is a digest of
its answers. A worker may be paused, lose its term, regain one, be killed, and start without a log.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import override

import pytest

from distributed_backup.checkpoints.format import Snapshot, checkpoint_name
from distributed_backup.checkpoints.journal import LogReader, Stage, find_log, segments_among, unneeded_segments
from distributed_backup.checkpoints.journal_format import Boundary, encode_record
from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import StoreError
from distributed_backup.storage.local import LocalStorage
from tests.support.clocks import FakeClock
from tests.support.journals import RUN, DictStorage, answer, at, boundary, error, header, name, replayed, state
from tests.support.stores import Recorded, damage, files

type Checkpoint = tuple[int, int, str]
"""The term, the batch and the state."""


class DirectWriter(JournalWriter):
    """A writer that takes each step at once."""

    has_gap = False
    """Whether something is not recorded since the last checkpoint of this worker, because its segment was removed."""

    @override
    def _add(self, step: Callable[[], None], *, size: int = 0, urgent: bool = False) -> bool:
        self._thread = threading.current_thread()
        self._take(step)
        self._take(self._flush)
        return True

    @override
    def _must_give_up(self, error: StoreError) -> bool:
        self.has_gap = True
        return super()._must_give_up(error)

    def is_open_under(self, term: int | None) -> bool:
        """Whether all that the worker does is recorded under this term."""
        return self._segment is not None and self._segment.header.term == term


def snapshot_at(batch: int) -> Snapshot:
    return Snapshot(position=at(batch), body=b"{}")


class Simulated:
    """A worker. It replays the log of a checkpoint, and then asks."""

    def __init__(self, history: History, term: int, checkpoint: Checkpoint | None, *, has_log: bool = True) -> None:
        self.history = history
        self.term: int | None = term
        self.writer = DirectWriter(
            storage=history.storage,
            worker_id=f"w{term}",
            clock=FakeClock(),
            term=lambda: self.term,
            run_id=lambda: RUN,
        )
        self.batch, self.state = (0, "fresh") if checkpoint is None else checkpoint[1:]
        self.stage: list[int] = []
        self.since: list[int] = []
        """Answers since the checkpoint that this worker has restored, or committed last."""
        self.pending: list[tuple[Checkpoint, int]] = []
        self.left: list[int] = []
        self.log: LogReader | None = None
        self.end: Boundary | None = None
        if checkpoint is None:
            self.come_to_boundary(due=False)
        elif has_log:
            self.begin(checkpoint)

    def begin(self, checkpoint: Checkpoint) -> None:
        start = Boundary(position=at(self.batch), digests=state(self.state))
        found = find_log(self.history.storage, run_id=RUN, position=start.position, digests=start.digests)
        if found is None:
            self.writer.begin_at(start)
            return
        self.log = LogReader(self.history.storage, found)
        self.writer.replay_begins()
        self.enter(self.log.next_stage(), start)

    def enter(self, stage: Stage, start: Boundary) -> None:
        assert self.log is not None
        self.left = [int(each.value) for each in stage.answers]
        self.end = stage.end
        if stage.end is None:
            self.writer.continue_log(self.log.end, start, mark=None)
            self.log = None

    def ask(self) -> None:
        if self.left:
            number = self.left.pop(0)
        elif self.log is not None:
            return
        else:
            number = self.history.new_number()
            self.writer.append(answer(number), lambda: None)
        self.stage.append(number)
        self.since.append(number)

    def come_to_boundary(self, *, due: bool) -> None:
        while self.left:
            self.ask()
        if self.stage:
            text = f"{self.state} {self.stage}"
            self.state, self.stage = hashlib.sha256(text.encode()).hexdigest()[:8], []
            self.batch += 1
        elif self.since or self.batch or self.history.checkpoints:
            return
        due = due or self.writer.wants_checkpoint
        self.writer.boundary(at(self.batch), lambda: state(self.state), due=due)
        if due:
            self.pending = [((0, self.batch, self.state), len(self.since))]
        if self.log is not None:
            assert self.end == Boundary(position=at(self.batch), digests=state(self.state))
            try:
                self.enter(self.log.next_stage(), self.end)
            except StoreError:  # a paused leader has committed and pruned
                self.log = None
                self.writer.give_up()


class History:
    """One history, and the checks after each of its steps."""

    def __init__(self, seed: int, *, keep: int) -> None:
        self.random = random.Random(seed)
        self.storage = DictStorage()
        self.keep = keep
        self.checkpoints: list[Checkpoint] = []
        self.workers: list[Simulated] = []
        self.terms = self.numbers = self.pruned = self.checked = 0
        self.elect()

    def new_number(self) -> int:
        self.numbers += 1
        return self.numbers

    @property
    def leader(self) -> Simulated:
        return self.workers[0]

    def elect(self, worker: Simulated | None = None) -> None:
        """Give a new term to a worker that trains already, or to one that starts. The old leader may not notice."""
        self.terms += 1
        if self.workers and self.random.random() < 0.7:
            self.leader.term = None
        newest = max(self.checkpoints, default=None)
        if worker is None:
            worker = Simulated(self, self.terms, newest, has_log=self.random.random() < 0.9)
        else:
            self.workers.remove(worker)
            worker.term = self.terms
        self.workers.insert(0, worker)
        del self.workers[3:]

    def commit(self, worker: Simulated) -> None:
        """Commit what is due, unless the rules of `fencing` forbid it, and prune."""
        newest = max(self.checkpoints, default=(0, -1, ""))
        if not worker.pending or worker.term is None or newest[0] > worker.term:
            return
        ((_, batch, tag), count), worker.pending = worker.pending[0], []
        if batch <= newest[1]:
            return
        self.checkpoints.append((worker.term, batch, tag))
        worker.since = worker.since[count:]
        worker.writer.has_gap = not worker.writer.is_open_under(worker.term)
        self.checkpoints = sorted(self.checkpoints)[-self.keep :]
        before = self.logs()
        kept = [(term, at(batch)) for term, batch, _ in self.checkpoints]
        unneeded = unneeded_segments(self.storage.names(), kept=kept, term=worker.term)
        for each in unneeded:
            self.storage.remove(each)
        self.pruned += len(unneeded)
        after = self.logs()
        assert after[-1] == before[-1], unneeded
        # Two workers may have gone on from an older one. The log of one of them stays.
        assert all(new == old or new for new, old in zip(after, before, strict=True)), unneeded

    def logs(self) -> list[list[int]]:
        """Return the answers that each kept checkpoint is followed by."""
        return [self.log_of(checkpoint) for checkpoint in self.checkpoints]

    def log_of(self, checkpoint: Checkpoint) -> list[int]:
        _, batch, tag = checkpoint
        found = find_log(self.storage, run_id=RUN, position=at(batch), digests=state(tag))
        if found is None:
            return []
        reader, answers = LogReader(self.storage, found), []
        while True:
            stage = reader.next_stage()
            answers += [int(each.value) for each in stage.answers]
            if stage.end is None:
                return answers

    def step(self) -> None:
        actor = self.random.choices(self.workers, [6, 2, 1][: len(self.workers)])[0]
        choice = self.random.random()
        if choice < 0.5:
            actor.ask()
        elif choice < 0.75:
            actor.come_to_boundary(due=self.random.random() < 0.5)
        elif choice < 0.92:
            self.commit(actor)
        elif choice < 0.95:
            self.elect()
        elif choice < 0.97 and len(self.workers) > 1:
            self.elect(self.random.choice(self.workers[1:]))
        elif choice < 0.99:
            # The same worker, after an outage, under another term. It may come to boundaries in between.
            self.leader.term = None
            self.leader.ask()
            self.leader.come_to_boundary(due=self.random.random() < 0.5)
            self.leader.ask()
            if self.random.random() < 0.5:
                self.elect(self.leader)
        elif len(self.workers) > 1:
            self.workers.pop()
        self.check()

    def check(self) -> None:
        """The next start finds all answers of a leader that records, and that has written the newest checkpoint."""
        leader, newest = self.leader, max(self.checkpoints, default=None)
        is_recorded = leader.writer.is_open_under(leader.term) and not leader.writer.has_gap
        # Before its first answer, the log of another worker may continue the same state.
        is_alone = leader.since and not leader.left and leader.log is None
        if newest is not None and leader.term == newest[0] and is_recorded and is_alone:
            assert self.log_of(newest) == leader.since
            self.checked += 1


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("group", range(10))
def test_a_prune_takes_no_answer_from_a_kept_checkpoint(group: int, keep: int) -> None:
    """In histories of 120 steps. Each prune is checked, and so is what the leader has asked after each step."""
    pruned = checked = 0
    for seed in range(40):
        history = History(1000 * group + seed, keep=keep)
        for _ in range(120):
            history.step()
        pruned += history.pruned
        checked += history.checked
    assert pruned > 50, "little was pruned"
    assert checked > 500, "little was checked"


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_segments_do_not_pile_up(seed: int, keep: int) -> None:
    """Whatever happened before, a leader whose checkpoints are the kept ones has at most `keep` + 2 segments."""
    history = History(seed, keep=keep)
    for _ in range(150):
        history.step()
    history.elect()
    leader = history.leader
    while leader.log is not None or leader.left:
        leader.ask()
        leader.come_to_boundary(due=True)
    for commits in range(50):
        leader.ask()
        leader.come_to_boundary(due=True)
        leader.ask()
        history.commit(leader)
        if commits > keep:
            assert len(history.storage.files) <= keep + 2
            assert history.log_of(history.checkpoints[-1]) == leader.since


@pytest.mark.parametrize("keep", [1, 2])
def test_leaders_that_die_after_one_commit_leave_no_pile(keep: int) -> None:
    """Each one replays, asks, commits once and dies. One in ten has no log."""
    history = History(0, keep=keep)
    counts = []
    for _ in range(100):
        history.elect()
        del history.workers[1:]
        history.leader.ask()
        history.leader.come_to_boundary(due=True)
        history.leader.ask()
        history.commit(history.leader)
        counts.append(len(history.storage.files))
    assert max(counts[50:]) <= max(counts[:50]) <= 8 * keep


# -------------------------------------------------------------------- the files of a run


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    made = CheckpointStore(tmp_path, run_id=RUN)
    made.open_run()
    return made


def put(root: Path, term: int, batch: int, *, run_id: str = RUN) -> str:
    """Write a segment."""
    first = header(term, batch, digests=state(batch), run_id=run_id)
    (root / first.name).write_bytes(encode_record(first) + encode_record(answer(batch)))
    return first.name


def test_a_commit_prunes_segments_and_a_prune_reports_them(tmp_path: Path, store: CheckpointStore) -> None:
    """The last one before the checkpoint stays. What is not of this run stays, too."""
    foreign = put(tmp_path, 1, 0, run_id="other")
    first, second, third = (put(tmp_path, 1, batch) for batch in (5, 10, 20))
    (tmp_path / "notes.journal").write_text("mine")

    def journals() -> list[str]:
        return [each for each in files(tmp_path) if each.endswith(".journal")]

    store.commit(snapshot_at(10), term=1, worker_id="w")
    assert journals() == [foreign, first, second, third, "notes.journal"]
    store.commit(snapshot_at(20), term=1, worker_id="w")
    assert journals() == [foreign, second, third, "notes.journal"]
    put(tmp_path, 1, 5)
    (tmp_path / name(1, 6)).write_bytes(b"damaged\n")
    assert store.prune(term=1) == [first, name(1, 6)]
    assert store.prune(term=1) == []


def test_a_commit_keeps_what_the_slowest_follower_needs(tmp_path: Path, store: CheckpointStore) -> None:
    """It is behind the checkpoint."""
    for batch in (0, 10, 20):
        put(tmp_path, 1, batch)
    store.slowest_follower = lambda: at(5)
    store.commit(snapshot_at(30), term=1, worker_id="w")
    assert len(segments_among(files(tmp_path))) == 3
    store.slowest_follower = lambda: at(15)
    assert store.prune(term=1) == [name(1, 0)]
    store.slowest_follower = lambda: at(40)
    assert store.prune(term=1) == [name(1, 10)]


def test_a_segment_of_a_newer_term_keeps_all(tmp_path: Path, store: CheckpointStore) -> None:
    """It may continue any of them. The newer leader prunes them."""
    put(tmp_path, 1, 0)
    put(tmp_path, 1, 10)
    put(tmp_path, 2, 10)
    store.commit(snapshot_at(20), term=1, worker_id="w")
    assert len(segments_among(files(tmp_path))) == 3
    assert store.prune(term=2) == [name(1, 0)]


def test_a_segment_that_cannot_be_removed_fails_no_commit(tmp_path: Path) -> None:
    """The checkpoint stands."""

    class Stuck(LocalStorage):
        @override
        def remove(self, name: str) -> None:
            if name.endswith(".journal"):
                raise error("the disk is read-only")
            super().remove(name)

    store = CheckpointStore(Stuck(tmp_path), run_id=RUN)
    store.open_run()
    first = put(tmp_path, 1, 0)
    put(tmp_path, 1, 10)
    assert store.commit(snapshot_at(20), term=1, worker_id="w").name in files(tmp_path)
    with pytest.raises(StoreError):
        store.prune(term=1)
    assert first in files(tmp_path)


def test_a_delete_removes_segments(tmp_path: Path, store: CheckpointStore) -> None:
    """After the checkpoints, oldest first, and damaged ones too. What is not of this run stays."""
    storage = Recorded(tmp_path)
    store = CheckpointStore(storage, run_id=RUN)
    store.open_run()
    mine = [put(tmp_path, 1, 0), put(tmp_path, 1, 10), put(tmp_path, 2, 10)]
    (tmp_path / mine[1]).write_bytes(b"damaged")
    made = store.commit(snapshot_at(10), term=2, worker_id="w").name
    foreign = put(tmp_path, 1, 5, run_id="other")
    (tmp_path / "notes.journal").write_text("mine")
    storage.calls.clear()
    store.delete()
    assert files(tmp_path) == [foreign, "notes.journal"]
    removed = [call.removeprefix("remove ") for call in storage.calls if call.startswith("remove")]
    assert removed == [made, *mine, RUN_FILE]


def test_a_crash_during_a_delete_leaves_a_run_that_restores(tmp_path: Path) -> None:
    """From its newest checkpoint with its log, or from the beginning. After each removal."""

    class Killed(LocalStorage):
        left = 0

        @override
        def _unlink(self, path: Path) -> None:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            super()._unlink(path)

    logs = set()
    for count in range(6):
        root = tmp_path / str(count)
        storage = Killed(root)
        store = CheckpointStore(storage, run_id=RUN, keep=2)
        store.open_run()
        for position in (0, 10):
            put(root, 1, position)
            store.commit(snapshot_at(position), term=1, worker_id="w")
        storage.left = count
        if count < 5:
            with pytest.raises(KeyboardInterrupt):
                store.delete()
        else:
            store.delete()
        fresh = CheckpointStore(root, run_id=RUN)
        fresh.open_run()
        newest = fresh.latest()
        found = newest and fresh.find_log(newest.position, state(newest.position.batch))
        assert (newest is None) == (count >= 2)
        assert newest is None or newest.position == at(10)
        logs.add(found and found.next_stage().answers)
    assert logs == {None, (answer(10),)}


@pytest.mark.parametrize("is_damaged", [False, True])
def test_the_log_of_an_older_checkpoint_goes_on_over_newer_segments(tmp_path: Path, is_damaged: bool) -> None:
    """With two checkpoints, and the newest one damaged, all that was asked after the older one is replayed."""
    store = CheckpointStore(tmp_path, run_id=RUN, keep=2)
    store.open_run()
    writer = DirectWriter(
        storage=store.storage, worker_id="w", clock=FakeClock(), term=lambda: 1, run_id=lambda: store.run_id
    )
    writer.begin_at(boundary(0))
    for batch in range(1, 6):
        writer.append(answer(batch), lambda: None)
        writer.boundary(at(batch), lambda batch=batch: state(batch), due=True)  # type: ignore[misc]
        store.commit(snapshot_at(batch), term=1, worker_id="w")
    writer.append(answer(6), lambda: None)
    if is_damaged:
        damage(tmp_path / checkpoint_name(1, at(5)))
    fresh = CheckpointStore(tmp_path, run_id=RUN, keep=2)
    fresh.open_run()
    newest = fresh.latest()
    assert newest is not None
    reader = fresh.find_log(newest.position, state(newest.position.batch))
    assert replayed(reader) == ([5, at(5), 6] if is_damaged else [6])
