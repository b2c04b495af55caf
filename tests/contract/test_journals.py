"""Journals over every storage: written by leaders of two terms, read by another process, pruned and deleted."""

from __future__ import annotations

import threading

import pytest

from distributed_backup.checkpoints.format import Snapshot
from distributed_backup.checkpoints.journal import segments_among
from distributed_backup.checkpoints.journal_format import Answer
from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import SystemClock
from distributed_backup.storage.base import Storage
from tests.support.journals import PATIENCE, RUN, answer, at, boundary, found, name, replayed, state
from tests.support.places import Place


def writer_on(storage: Storage, term: int) -> JournalWriter:
    return JournalWriter(
        storage=storage, worker_id=f"w{term}", clock=SystemClock(), term=lambda: term, run_id=lambda: RUN
    )


def ask(writer: JournalWriter, *answers: Answer) -> None:
    """Record answers, and wait until they are durable."""
    done = threading.Semaphore(0)
    for each in answers:
        writer.append(each, done.release)
    writer.write_stage()  # ends a pause
    for _ in answers:
        assert done.acquire(timeout=PATIENCE)


def test_a_log_over_two_terms_is_written_read_pruned_and_deleted(place: Place) -> None:
    """A third process finds all that was recorded after each checkpoint."""
    store = CheckpointStore(place.connect(), run_id=RUN)
    store.open_run()
    old = writer_on(store.storage, 1)
    old.begin_at(boundary(0))
    ask(old, answer(0), answer(1))
    old.boundary(at(1), lambda: state(1), due=True)
    ask(old, answer(2))
    log = found(place.connect(), 0)
    assert log is not None
    assert log.next_stage().end == boundary(1)
    assert [each.value for each in log.next_stage().answers] == [b"2"]

    new = writer_on(place.connect(), 2)
    new.replay_begins()
    new.continue_log(log.end, boundary(1), mark=None)
    ask(new, answer(3))
    ask(old, answer(100))
    reader = place.connect()
    assert replayed(found(reader, 0)) == [0, 1, at(1), 2, 3]
    assert replayed(found(reader, 1)) == [2, 3]

    for batch in (2, 3):
        new.boundary(at(batch), lambda batch=batch: state(batch), due=True)  # type: ignore[misc]
        ask(new, answer(2 + batch))
        store.commit(Snapshot(position=at(batch), body=b"{}"), term=2, worker_id="w2")
    new.close(timeout=PATIENCE)
    assert segments_among(reader.names()) == [name(2, 3), name(2, 2)]
    assert replayed(found(reader, 3)) == [5]
    # The first leader's segment is gone, and its records do not come back.
    ask(old, answer(101))
    old.close(timeout=PATIENCE)
    assert replayed(found(place.connect(), 3)) == [5]
    store.delete()
    assert segments_among(place.connect().names()) == []


# gcsfs passes bodies of any size as bytes.
@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
def test_a_large_answer_between_small_ones(place: Place) -> None:
    """20 MB, which is many reads."""
    storage = place.connect()
    storage.prepare()
    large = Answer(key="k", number=0, value=b'"' + b"x" * 20 * 2**20 + b'"')
    writer = writer_on(storage, 1)
    writer.begin_at(boundary(0))
    ask(writer, answer(1), large, answer(2))
    writer.close(timeout=PATIENCE)
    log = found(place.connect(), 0)
    assert log is not None
    assert log.next_stage().answers == (answer(1), large, answer(2))
