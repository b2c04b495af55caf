"""The journal of one fit at its edges, with a worker whose lease a test moves. Run in a child. Imports synalinks."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from distributed_backup.checkpoints.format import Checkpoint
from distributed_backup.checkpoints.journal import LogReader, segments_among
from distributed_backup.checkpoints.journal_format import Digests, Header, LogEnd, encode_record
from distributed_backup.checkpoints.journal_tail import LogTail
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage
from distributed_backup.training import fit_journal
from distributed_backup.training.fit_journal import FitJournal
from distributed_backup.training.settings import SessionOptions
from distributed_backup.worker.start_point import StartPoint
from distributed_backup.worker.worker import Worker
from tests.support.answering import JSON, Writer, answer, boundary, quiet
from tests.support.clocks import FakeClock

Report = Callable[..., None]


class Store(CheckpointStore):
    """Fails as often as `failures` says, or for good with a `refusal`.

    Calls `before` before each look for a log, and `between` before it is read.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root, run_id="run")
        self.open_run()
        self.failures = 0
        self.refusal = ""
        self.before: Callable[[], None] = lambda: None
        self.between: Callable[[], object] = lambda: None

    def find_log(self, position: Position, digests: Digests) -> LogReader | None:
        self.before()
        self._fail()
        log = super().find_log(position, digests)
        if log is not None:
            stages, read = log, log.next_stage

            def next_stage() -> Any:
                self._fail()
                self.between()
                return read()

            stages.next_stage = next_stage  # type: ignore[method-assign]
        return log

    def _fail(self) -> None:
        if self.refusal:
            raise StoreError(self.refusal, path="p")
        if self.failures > 0:
            self.failures -= 1
            raise StoreError("busy", path="p", retryable=True)


class Made:
    """A journal whose checkpoint is the boundary 0."""

    def __init__(self, root: Path, *, leads: bool = True) -> None:
        self.lost: list[str] = []
        self.events: list[str] = []
        self.store = Store(root)
        self.storage = LocalStorage(root)
        self.writer = Writer()
        self.writer.wants_checkpoint = False  # type: ignore[attr-defined]
        self.standby = SimpleNamespace(
            stand_down=self.lost.append,
            on_elected=lambda: None,
            on_deposed=lambda: None,
            on_appended=lambda: None,
            leads_since_start=leads,
            began_at=StartPoint(term=1 if leads else None),
            leads_for_certain=True,
            is_in_doubt=False,
            give_up_doubt=lambda: None,
            save_last_boundary=lambda: self.events.append("saves"),
        )
        self.worker = SimpleNamespace(
            journal=self.writer,
            trains_as_leader=leads,
            stands_by=False,
            standby=self.standby,
            worker_id="w",
            report=lambda kind, **_: self.events.append(kind),
        )
        options = SimpleNamespace(
            journal=True, save_freq=1, worker=SimpleNamespace(follows_journal=True), journal_of=()
        )
        self.journal = FitJournal(
            cast("Worker", self.worker), cast("SessionOptions", options), store=self.store, clock=FakeClock()
        )
        self.got: list[Any] = []
        self.asked: list[str] = []

    def log(self, *records: Any, term: int = 1, worker: str = "w") -> None:
        header = Header(
            run_id="run", term=term, worker_id=worker, position=Position(0), after=None, digests=boundary(0).digests
        )
        self.storage.append(header.name, b"".join(map(encode_record, (header, *records))), at=0)

    def begin(self) -> None:
        checkpoint = cast("Checkpoint", SimpleNamespace(position=Position(0), body=b""))
        self.journal.begin(checkpoint)

    def boundary(self, batch: int) -> bool:
        return self.journal.boundary(Position(0, batch), lambda: boundary(batch).digests, due=False)

    def ask(self, key: str) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self._ask(key))

    async def _ask(self, key: str) -> None:
        async def request() -> Any:
            self.asked.append(key)
            return f"new {key}"

        self.got.append(await self.journal._answers.ask(key, request, JSON))


def run(root: Path, name: str) -> Any:
    vars(fit_journal)["digests_in"] = lambda _: boundary(0).digests
    return asyncio.run(globals()[f"_{name}"](root))


async def _storage_that_fails(root: Path) -> Any:
    made = Made(root)
    made.log(answer("a", 1), boundary(1), answer("b", 2))
    made.store.failures = 3
    made.begin()
    await made.ask("a")
    made.store.failures = 5
    made.boundary(1)
    await made.ask("b")
    made.journal.end()
    return made.got, made.asked, made.events


async def _storage_that_stays_away(root: Path) -> Any:
    made = Made(root)
    made.log(answer("a", 1), boundary(1), answer("b", 2))
    made.begin()
    await made.ask("a")
    made.store.failures = 10**6
    made.boundary(1)
    await made.ask("b")
    made.journal.end()
    return made.got, made.events, made.writer.names[-1], 10**6 - made.store.failures


async def _log_that_is_removed(root: Path) -> Any:
    made = Made(root)
    made.log(answer("a", 1))
    made.store.between = lambda: [made.storage.remove(name) for name in segments_among(made.storage.names())]
    made.begin()
    made.boundary(0)
    await made.ask("a")
    made.journal.end()
    return made.got, made.asked


async def _log_that_can_not_be_read(root: Path) -> Any:
    made = Made(root)
    made.log(answer("a", 1))
    made.store.refusal = "permission denied"
    try:
        made.begin()
    except StoreError as error:
        return str(error), made.asked
    finally:
        made.journal.end()
    return None


async def _standby_whose_training_is_about_to_be_cancelled(root: Path) -> Any:
    made = Made(root)
    made.begin()
    await made.ask("a")
    made.worker.stands_by = True
    task = made.ask("b")
    await quiet()
    asked = [*made.asked]
    task.cancel()
    made.worker.stands_by = False
    await made.ask("c")
    made.journal.end()
    return asked, made.asked


async def _follower_without_a_log(root: Path) -> Any:
    made = Made(root, leads=False)
    warned: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("distributed_backup.training.fit_journal").addHandler(handler)
    made.journal.begin(None)
    made.journal.end()
    return warned


async def _elected_before_its_segment_is_there(root: Path) -> Any:
    """The answer was recorded when the new term was claimed, so a follower does not use it."""
    made = Made(root, leads=False)
    made.writer.is_durable = False
    made.begin()
    tail, gate = made.journal._tail, threading.Event()
    assert tail is not None
    ended = tail._listener.ended

    def end(log_end: LogEnd) -> None:
        gate.wait()
        ended(log_end)

    tail._listener = replace(tail._listener, ended=end)
    while tail._known_term is None:
        await asyncio.sleep(0)
    made.storage.create("0000000002.term")
    made.log(answer("a", 1))
    waiting = made.ask("a")
    made.standby.on_elected()
    while not made.journal._replay.outcomes:
        await asyncio.sleep(0)
    await quiet()
    before = [*made.got]
    gate.set()
    while "continue_log" not in made.writer.names:
        await asyncio.sleep(0)
    await quiet()
    before += made.got
    made.writer.flush()
    await waiting
    made.journal.end()
    return before, made.got, made.asked


async def _elected_between_its_restore_and_its_begin(root: Path) -> Any:
    made = Made(root)
    made.standby.leads_since_start = False
    made.writer.is_durable = False
    made.log(answer("a", 1))
    finishes: list[bool] = []
    start = LogTail.start

    def started(tail: LogTail) -> None:
        finishes.append(tail._finishes)
        start(tail)

    LogTail.start = started  # type: ignore[assignment, method-assign]
    made.begin()
    waiting = made.ask("a")
    while "continue_log" not in made.writer.names:
        await asyncio.sleep(0)
    await quiet()
    before = [*made.got]
    made.writer.flush()
    await waiting
    made.writer.is_durable = True
    await made.ask("b")
    made.journal.end()
    return finishes, before, made.got, made.asked, made.lost


async def _elected_where_no_log_is(root: Path) -> Any:
    made = Made(root, leads=False)
    made.begin()
    made.standby.on_elected()
    while "begin_at" not in made.writer.names:
        await asyncio.sleep(0)
    await quiet()
    made.journal.end()
    return made.events


async def _elected_where_no_log_is_left(root: Path) -> Any:
    """The fit is two boundaries behind what was read before the log was removed."""
    made = Made(root, leads=False)
    made.begin()
    made.journal._stop_tail()
    made.journal._replay.extend([answer("a", 1), boundary(1), answer("b", 2), boundary(2)])
    made.journal._lead(LogEnd(link=None, newest=Position(0)))
    due = []
    for batch, key in enumerate("abc", start=1):
        await made.ask(key)
        due.append(made.boundary(batch))
    made.journal.end()
    return due, made.asked, made.events


async def _told_twice_that_it_is_elected(root: Path) -> Any:
    """The thread of the election was slow, so the second call comes after the end of the log."""
    made = Made(root)
    made.standby.leads_since_start = False
    made.writer.is_durable = False
    made.log(answer("a", 1))
    made.begin()
    made.ask("a")
    while "continue_log" not in made.writer.names:
        await asyncio.sleep(0)
    made.standby.on_elected()
    await quiet()
    made.writer.flush()
    await quiet()
    got = [*made.got]
    made.journal.end()
    return got


async def _elected_between_its_restore_and_its_begin_behind_a_checkpoint(root: Path) -> Any:
    """The former leader has committed once more, and has pruned its journal up to there."""
    made = Made(root)
    made.standby.leads_since_start = False
    made.storage.create("0000000001-00000000-00000005.ckpt")
    made.begin()
    made.ask("a")
    while not made.lost and not made.asked:
        await asyncio.sleep(0)
    made.journal.end()
    return made.asked, made.lost


async def _deposed_while_it_begins(root: Path) -> Any:
    made = Made(root)

    def deposed() -> None:
        made.store.before = lambda: None
        made.worker.trains_as_leader = False
        thread = threading.Thread(target=made.standby.on_deposed)
        thread.start()
        thread.join()

    made.store.before = deposed
    made.begin()
    waiting = made.ask("a")
    await quiet()
    found = made.asked[:], made.journal._replay.is_following
    made.log(answer("a", 1), term=2)
    await waiting
    made.journal.end()
    return *found, made.got


async def _deposed_and_elected_in_one_step(root: Path) -> Any:
    """Another worker has recorded an answer in between."""
    made = Made(root)
    made.begin()
    made.standby.on_deposed()
    made.standby.on_elected()
    made.log(answer("a", "of the other"), term=2)
    waiting = made.ask("a")
    await waiting
    await made.ask("b")
    made.journal.end()
    return made.got, made.asked, made.lost


async def _deposed_with_an_answer_and_a_request(root: Path) -> Any:
    """The answer waits for the journal. The request is made before the loop has learned of the new leader."""
    made = Made(root)
    made.begin()
    made.writer.is_durable = False
    answered = made.ask("a")
    await quiet()
    requested = made.ask("b")
    made.standby.on_deposed()
    made.log(answer("a", "A"), answer("b", "B"), term=2, worker="other")
    await quiet()
    made.writer.flush()
    await answered
    await requested
    made.journal.end()
    return made.got, made.asked, made.lost


async def _elected_behind_a_successor(root: Path) -> Any:
    """The successor was behind the last boundary of this worker, and has recorded an answer before it died."""
    made = Made(root)
    made.begin()
    made.boundary(1)
    made.log(answer("a", 1), term=2, worker="other")
    made.worker.trains_as_leader = False
    made.standby.on_deposed()
    await quiet()
    tail = made.journal._tail
    made.standby.on_elected()
    tail._thread.join(30)  # type: ignore[union-attr]
    await quiet()
    made.journal.end()
    return made.lost


async def _deposed_before_its_first_boundary(root: Path) -> Any:
    made = Made(root)
    made.journal.begin(None)
    made.worker.trains_as_leader = False
    made.standby.on_deposed()
    await quiet()
    made.journal.end()
    return made.lost


async def _deposed_between_its_restore_and_its_begin(root: Path, *, leads_again: bool = False) -> Any:
    made = Made(root)
    made.worker.trains_as_leader, made.standby.leads_since_start = leads_again, False
    made.journal.begin(None)
    await quiet()
    made.journal.end()
    return made.lost


async def _deposed_between_its_restore_and_its_begin_and_elected(root: Path) -> Any:
    return await _deposed_between_its_restore_and_its_begin(root, leads_again=True)


async def _end(root: Path) -> Any:
    """A follower ends, while a request waits for the leader. Then its lease moves, and it ends again."""
    made = Made(root, leads=False)
    made.begin()
    thread = made.journal._tail._thread  # type: ignore[union-attr]
    waiting = made.ask("a")
    await quiet()
    made.journal.end()
    await waiting
    made.standby.on_elected()
    made.standby.on_deposed()
    await quiet()
    made.journal.end()
    thread.join(30)
    return made.got, made.journal._tail, thread.is_alive()


def scenario(report: Report, root: str, name: str) -> Any:
    return run(Path(root), name)
