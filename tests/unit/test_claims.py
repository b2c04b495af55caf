"""Claims of terms in the run's directory: each term is claimed once, also if a coordinator loses its data."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
from multiprocessing.queues import Queue
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import override

import pytest

from distributed_backup.checkpoints import fencing
from distributed_backup.checkpoints.format import Snapshot
from distributed_backup.checkpoints.reader import CheckpointReader
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.election import Elector
from distributed_backup.errors import StaleTermError, StoreError
from distributed_backup.position import Position
from distributed_backup.storage.base import Names
from distributed_backup.storage.local import LocalStorage


def opened(root: Path) -> CheckpointStore:
    store = CheckpointStore(root)
    store.open_run()
    return store


def commit(store: CheckpointStore, term: int, epoch: int = 1) -> None:
    store.commit(Snapshot(position=Position(epoch), body=b"{}"), term=term, worker_id="w")


def claims(root: Path) -> list[int]:
    return sorted(int(name[:10]) for name in os.listdir(root) if name.endswith(".term"))


def test_the_page_on_fencing_names_places_that_exist() -> None:
    """Each place that enforces the rule is found under the name in the docstring of `fencing`."""
    places = re.findall(r"^    \w+(?: \w+)? +`([\w.]+)`", str(fencing.__doc__), re.MULTILINE)
    classes = {kind.__name__: kind for kind in (CheckpointReader, CheckpointStore, Elector)}
    known = SimpleNamespace(**vars(fencing), **classes)
    assert len(places) == 6
    for place in places:
        assert attrgetter(place)(known)


def test_a_term_is_claimed_once(tmp_path: Path) -> None:
    """A second claim of the term is refused, also through another store object."""
    assert opened(tmp_path).claim_term(3)
    assert not opened(tmp_path).claim_term(3)
    assert opened(tmp_path).highest_term() == 3


def test_a_term_below_the_newest_claim_is_used(tmp_path: Path) -> None:
    """A lower term is refused, also if it was never claimed: terms only grow."""
    store = opened(tmp_path)
    assert store.claim_term(5)
    assert not store.claim_term(4)
    assert store.claim_term(6)
    assert claims(tmp_path) == [5, 6]


def test_a_term_that_was_committed_under_is_used(tmp_path: Path) -> None:
    """The term in a checkpoint's name counts: earlier versions wrote no claims."""
    store = opened(tmp_path)
    commit(store, 7)
    assert claims(tmp_path) == []
    assert not store.claim_term(7)
    assert store.claim_term(8)


def test_the_highest_term_is_that_of_claims_and_checkpoints(tmp_path: Path) -> None:
    """`highest_term` is the greater of the two, and the next campaign begins above it."""
    store = opened(tmp_path)
    assert store.highest_term() == 0
    store.claim_term(2)
    assert store.highest_term() == 2
    commit(store, 9)
    assert store.highest_term() == 9


def test_only_the_newest_few_claims_stay(tmp_path: Path) -> None:
    """After 29 claims, 8 files are left, so a long run does not fill its directory."""
    store = opened(tmp_path)
    for term in range(1, 30):
        assert store.claim_term(term)
    assert claims(tmp_path) == list(range(22, 30))


def test_a_claim_fences_no_save(tmp_path: Path) -> None:
    """After the newer leader's claim, the older leader may still commit. After its commit, it may not."""
    store = opened(tmp_path)
    store.claim_term(1)
    store.claim_term(2)
    commit(store, 1)
    assert store.latest() is not None
    commit(store, 2, epoch=2)
    with pytest.raises(StaleTermError):
        commit(store, 1, epoch=3)


def test_claims_are_no_checkpoints_and_go_with_the_run(tmp_path: Path) -> None:
    """Claims are not listed as checkpoints, and `delete` removes them."""
    store = opened(tmp_path / "run")
    store.claim_term(1)
    assert (store.names(), store.list(), store.latest()) == ([], [], None)
    store.delete()
    assert not (tmp_path / "run").exists()


class Slow(LocalStorage):
    """Lets another store claim terms between the listing and the claim."""

    others: tuple[CheckpointStore, int] | None = None

    @override
    def names(self) -> Names:
        found = super().names()
        if self.others is not None:
            (store, terms), self.others = self.others, None
            for term in range(1, terms + 1):
                assert store.claim_term(term)
        return found


@pytest.mark.parametrize("terms", [1, 2, 20])
def test_a_claim_that_others_passed_by_is_none(tmp_path: Path, terms: int) -> None:
    """Term 1 was claimed after the listing. With 20 newer claims, its file has been removed again."""
    storage = Slow(tmp_path)
    store = CheckpointStore(storage)
    store.open_run()
    storage.others = (opened(tmp_path), terms)
    assert not store.claim_term(1)
    assert storage.others is None, "no other store has claimed in between"


def test_a_directory_that_can_not_be_written_is_an_error_that_names_the_claim(tmp_path: Path) -> None:
    """This is an error, while a used term returns False: another worker may be able to claim."""

    class RemovedAfterTheCheck(LocalStorage):
        def exists(self) -> bool:
            return True

    store = CheckpointStore(RemovedAfterTheCheck(tmp_path / "run"))
    with pytest.raises(StoreError, match=r"can't claim the term: can't write .*0000000001\.term"):
        store.claim_term(1)


def _claim_all(root: Path, barrier: threading.Barrier, won: Queue[list[int]]) -> None:
    store = CheckpointStore(root)
    barrier.wait()
    won.put([term for term in range(1, 200) if store.claim_term(term)])


def test_of_many_processes_one_gets_each_term(tmp_path: Path) -> None:
    """Four processes claim the same 199 terms, and each term has one winner."""
    opened(tmp_path)
    context = multiprocessing.get_context("spawn")
    barrier, won = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_claim_all, args=(tmp_path, barrier, won)) for _ in range(4)]
    for process in processes:
        process.start()
    gained = [won.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    every = [term for terms in gained for term in terms]
    assert len(every) == len(set(every))
    assert 199 in every
    won.close()
    won.join_thread()
