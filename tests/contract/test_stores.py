"""What checkpoints of a run are promised, over every storage: what a disk gives, buckets and Redis give too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import (
    CorruptCheckpointError,
    NoUsableCheckpointError,
    RunMismatchError,
    StaleTermError,
    StoreError,
)
from distributed_backup.position import Position
from tests.support.places import Place


def commit(store: CheckpointStore, epoch: int, *, term: int = 1, worker: str = "w") -> CheckpointHeader:
    snapshot = Snapshot(position=Position(epoch), body=b'{"epoch":%d}' % epoch)
    return store.commit(snapshot, term=term, worker_id=worker)


@pytest.fixture
def store(place: Place) -> CheckpointStore:
    return CheckpointStore(place.connect())


def test_what_was_committed_is_found_by_another_process(place: Place, store: CheckpointStore) -> None:
    """The newest by term, then by position. Only the newest is kept."""
    commit(store, 1)
    commit(store, 2)
    header = commit(store, 1, term=2)
    other = CheckpointStore(place.connect())
    newest = other.latest()
    assert newest is not None
    assert (newest.header, newest.body) == (header, b'{"epoch":1}')
    assert other.newest_header() == header
    assert other.names() == [header.name]
    assert other.read_run_id() == store.open_run()
    (row,) = other.list()
    assert (row.valid, row.name) == (True, header.name)


def test_a_late_writer_of_an_older_term_is_refused(place: Place, store: CheckpointStore) -> None:
    """The error names the newer term, and no file changes."""
    commit(store, 1)
    newer = commit(CheckpointStore(place.connect()), 1, term=5, worker="other")
    with pytest.raises(StaleTermError) as caught:
        commit(store, 9)
    assert (caught.value.term, caught.value.newest) == (1, 5)
    assert store.names() == [newer.name]


def test_a_claim_alone_does_not_refuse_an_older_writer(place: Place, store: CheckpointStore) -> None:
    """Until the newer leader has saved something, a save of the older one is worth having: it may be its last."""
    commit(store, 1)
    assert CheckpointStore(place.connect()).claim_term(2)
    commit(store, 2)
    newest = store.latest()
    assert newest is not None
    assert newest.position == Position(2)


def test_a_term_belongs_to_one_worker(place: Place, store: CheckpointStore) -> None:
    """A worker does not hold a term under which another wrote a checkpoint. It may write its own again."""
    commit(store, 1)
    again = commit(store, 1)
    with pytest.raises(StaleTermError, match=r"by w$"):
        commit(CheckpointStore(place.connect()), 1, worker="other")
    assert store.load(again.name).header == again


def test_a_damaged_checkpoint_is_passed_over(place: Place) -> None:
    """The one before it is used. If none is left, that is an error, and nothing is deleted."""
    store = CheckpointStore(place.connect(), keep=2)
    older, newer = commit(store, 1), commit(store, 2)
    place.connect().put(newer.name, [b"torn"])
    other = CheckpointStore(place.connect())
    latest = other.latest()
    assert latest is not None
    assert latest.name == older.name
    with pytest.raises(CorruptCheckpointError):
        other.load(newer.name)
    place.connect().put(older.name, [b""])
    with pytest.raises(NoUsableCheckpointError):
        other.latest()
    assert other.names() == [newer.name, older.name]


def test_all_workers_agree_on_one_run_id(place: Place) -> None:
    """The first worker makes it. A worker with another id is refused."""
    together = threading.Barrier(4)

    def open_run(_: int) -> str:
        mine = CheckpointStore(place.connect())
        together.wait()
        return mine.open_run()

    with ThreadPoolExecutor(4) as pool:
        (run_id,) = set(pool.map(open_run, range(4)))
    with pytest.raises(RunMismatchError):
        CheckpointStore(place.connect(), run_id=f"not-{run_id}").open_run()


def test_a_term_is_claimed_once(place: Place) -> None:
    """Many workers claim the same terms at the same time. Each term has one winner and is granted once."""
    stores = [CheckpointStore(place.connect()) for _ in range(3)]
    stores[0].open_run()
    together = threading.Barrier(3)

    def claim(store: CheckpointStore) -> list[int]:
        together.wait()
        return [term for term in (1, 2, 3, 5) if store.claim_term(term)]

    with ThreadPoolExecutor(3) as pool:
        won = sorted(term for terms in pool.map(claim, stores) for term in terms)
    assert won == sorted(set(won))
    assert won[-1] == 5
    assert stores[0].highest_term() == 5
    assert not stores[1].claim_term(4)


def test_the_last_one_out_leaves_nothing(place: Place, store: CheckpointStore) -> None:
    """Checkpoints, claims, event logs and the run id are deleted. The next run in this place has its own id."""
    before = store.open_run()
    store.claim_term(1)
    commit(store, 1)
    store.storage.put("events-20260101T000000Z-w-12345678.jsonl", [b"{}\n"], durable=False)
    store.delete()
    fresh = CheckpointStore(place.connect())
    assert fresh.storage.names() == []
    assert (fresh.latest(), fresh.highest_term(), fresh.read_run_id()) == (None, 0, None)
    assert fresh.open_run() != before


def test_files_of_the_user_stay(store: CheckpointStore) -> None:
    """Their names only resemble ours."""
    store.open_run()
    store.claim_term(1)
    commit(store, 1)
    theirs = [
        "events-2026.jsonl",
        ".partial-notes",
        ".partial-notes.txt-0123abcd",
        ".probe-x",
        "1.term",
        "run.json.bak",
    ]
    for name in theirs:
        store.storage.put(name, [b"mine"], durable=False)
    store.prune(term=9)
    store.delete()
    assert sorted(store.storage.names()) == sorted(theirs)


def test_leftovers_of_killed_writers_go_with_the_run(store: CheckpointStore) -> None:
    """Parts of checkpoints, claims, event logs and `run.json`, and a test of conditional writes."""
    commit(store, 1)
    names = ["run.json", "0000000001.term", "0000000009-00000001-00000000.ckpt", "events-20260101T000000Z-w.jsonl"]
    for name in names:
        for suffix in ("0123abcd", "0123abcd0123abcd"):
            store.storage.put(f".partial-{name}-{suffix}", [b"torn"], durable=False)
    store.storage.put(".probe-0123abcd0123abcd", [b""], durable=False)
    store.delete()
    assert store.storage.names() == []


def empty(place: Place) -> None:
    """Remove everything, as `rm -r` or a cleaner of temporary directories does."""
    storage = place.connect()
    for name in storage.names():
        storage.remove(name)
    storage.remove_if_empty()


def test_a_run_that_was_removed_is_made_again_by_the_next_commit(
    place: Place, store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same id, so that its other workers and its restarts still find their run. One warning names it."""
    run_id = store.open_run()
    commit(store, 1)
    empty(place)
    header = commit(store, 2, term=3)
    commit(store, 3, term=3)
    fresh = CheckpointStore(place.connect())
    assert (fresh.read_run_id(), header.run_id, fresh.highest_term()) == (run_id, run_id, 3)
    newest = fresh.latest()
    assert newest is not None
    assert newest.position == Position(3)
    assert [record.getMessage() for record in caplog.records if "removed" in record.getMessage()] == [
        f"the run's directory or run.json was removed, making it again path={store.location} run={run_id}"
    ]


def test_a_run_that_was_removed_can_still_be_led(place: Place, store: CheckpointStore) -> None:
    """A new leader claims its term before it has anything to commit."""
    store.open_run()
    empty(place)
    assert store.claim_term(4)
    assert CheckpointStore(place.connect()).highest_term() == 4


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_a_place_that_another_run_has_taken_is_never_written_to(
    place: Place, store: CheckpointStore, has_checkpoint: bool
) -> None:
    """Nothing is committed, and the end of the old run deletes nothing. Both runs' checkpoints have one name."""
    mine = store.open_run()
    commit(store, 1)
    empty(place)
    other = CheckpointStore(place.connect())
    theirs = other.open_run()
    if has_checkpoint:
        commit(other, 1)
    before = {name: other.storage.read(name) for name in other.storage.names()}
    operations: list[Callable[[], object]] = [lambda: commit(store, 2), store.open_run, store.delete]
    for operation in operations:
        with pytest.raises(RunMismatchError) as caught:
            operation()
        assert (caught.value.expected, caught.value.found) == (mine, theirs)
    assert {name: other.storage.read(name) for name in other.storage.names()} == before


def test_checkpoints_of_another_run_without_its_run_file_are_not_taken_over(
    place: Place, store: CheckpointStore
) -> None:
    """No `run.json` with our id is put beside them: their own run could no longer be opened."""
    store.open_run()
    commit(store, 1)
    empty(place)
    other = CheckpointStore(place.connect())
    commit(other, 1)
    other.storage.remove("run.json")
    with pytest.raises(RunMismatchError):
        commit(store, 2)
    assert len(other.storage.names()) == 1


def test_a_write_that_is_refused_leaves_what_was_there(place: Place, store: CheckpointStore) -> None:
    """A file that may not be listed as a checkpoint is no checkpoint, whatever it holds."""
    header = commit(store, 1)
    with pytest.raises(StoreError, match="not the name"):
        store.load("run.json")
    place.connect().put("0000000000-00000001-00000000.ckpt", [b"term 0 is none"])
    assert store.names() == [header.name]
