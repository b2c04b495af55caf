"""Errors that are planted on purpose, to see that the checks find them. Imports synalinks.

Each one is what a slip in the code would do. README.md says which check finds which.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from synalinks.src.callbacks.callback_list import CallbackList

from distributed_backup import Preempted
from distributed_backup.checkpoints import reader, store
from distributed_backup.checkpoints.journal import LogReader
from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.checkpoints.saver import Saver
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.election import Elector
from distributed_backup.redis_client.client import RedisClient
from distributed_backup.storage.base import Chunks
from distributed_backup.storage.local import LocalStorage
from distributed_backup.training import answers, state
from distributed_backup.training.delivery import Delivery
from distributed_backup.training.tickets import Tickets
from distributed_backup.worker.notices import NoticePublisher
from distributed_backup.worker.preemption import OwnPreemption
from distributed_backup.worker.shutdown import Shutdown
from distributed_backup.worker.standby import Standby
from distributed_backup.worker.worker import Worker
from tests.simulation import bugs as simulated


def _without_order() -> None:
    async def turn(self: Any, place: int) -> None:
        await asyncio.sleep(0.001 * (place % 7))
        self._next += 1

    Delivery.turn = turn  # type: ignore[method-assign]


def _entry_dropped() -> None:
    next_stage = LogReader.next_stage

    def shortened(self: Any) -> Any:
        stage = next_stage(self)
        return replace(stage, outcomes=stage.outcomes[:2] + stage.outcomes[3:])

    LogReader.next_stage = shortened  # type: ignore[method-assign]


def _failures_sent_again() -> None:
    next_stage = LogReader.next_stage

    def shortened(self: Any) -> Any:
        stage = next_stage(self)
        return replace(stage, outcomes=stage.answers)

    LogReader.next_stage = shortened  # type: ignore[method-assign]


def _key_without_number() -> None:
    Tickets.take = lambda self, key: (key, 0)  # type: ignore[method-assign]


def _seen_before_durable() -> None:
    append, flush = JournalWriter.append, JournalWriter._flush

    def at_once(self: Any, record: Any, done: Callable[[], None]) -> None:
        done()
        append(self, record, lambda: None)

    def slow(self: Any, **options: Any) -> None:
        time.sleep(0.05)
        flush(self, **options)

    JournalWriter.append, JournalWriter._flush = at_once, slow  # type: ignore[method-assign]


def _random_numbers_of_requests() -> None:
    vars(answers)["Undisturbed"] = lambda request: request


def _generators_not_restored() -> None:
    state._set_random_states = lambda state: None


def _journal_not_flushed() -> None:
    JournalWriter.close = lambda self, *, timeout: None  # type: ignore[method-assign]
    JournalWriter._flush = lambda self, **options: self._release()  # type: ignore[method-assign]


def _doubt_ignored() -> None:
    Elector.is_in_doubt = property(lambda self: False)  # type: ignore[assignment]
    Standby.leads_for_certain = property(lambda self: True)  # type: ignore[assignment]


def _exit_code() -> None:
    initialise = Preempted.__init__

    def with_another_code(self: Any, *arguments: Any, **options: Any) -> None:
        initialise(self, *arguments, **options)
        self.code = 1

    Preempted.__init__ = with_another_code  # type: ignore[method-assign]


def _litter() -> None:
    commit = CheckpointStore.commit

    def littering(self: Any, *arguments: Any, **options: Any) -> Any:
        self._storage.put("notes.tmp", [b"left"])
        return commit(self, *arguments, **options)

    CheckpointStore.commit = littering  # type: ignore[method-assign]


def _boundary_skipped() -> None:
    call = CallbackList.on_test_batch_end

    def skipping(self: Any, batch: int, logs: Any = None) -> None:
        if batch != 1:
            call(self, batch, logs)

    CallbackList.on_test_batch_end = skipping


def _torn_commit() -> None:
    """A commit writes in place, with a pause in the middle."""

    def put(self: Any, name: str, chunks: Chunks, **_: Any) -> None:
        data = b"".join(chunks)
        path = self.root / name
        path.write_bytes(data[: len(data) // 2])
        time.sleep(0.03)
        path.write_bytes(data)

    LocalStorage.put = put  # type: ignore[method-assign]


def _parts_kept() -> None:
    store._partials = lambda *_: []


def _notice_not_heard() -> None:
    Worker.give_notice = lambda *_, **__: None  # type: ignore[method-assign]


def _notice_forgotten() -> None:
    """A worker leaves at a notice, without a save."""
    Saver.request_save = lambda self: self._served  # type: ignore[method-assign]
    OwnPreemption.wait_until_saved = lambda self: True  # type: ignore[method-assign]


def _delete_at_preemption() -> None:
    preempt = Shutdown.preempt

    def deleting(self: Any) -> Preempted:
        exit_ = preempt(self)
        self._context.store.delete()
        return exit_

    Shutdown.preempt = deleting  # type: ignore[method-assign]


def _resign_refused() -> None:
    NoticePublisher.handle_resign_requests = lambda *_: None  # type: ignore[method-assign]


def _keys_stay() -> None:
    run = RedisClient.run

    def persisting(self: Any, script: str, keys: Any, arguments: Any) -> Any:
        reply = run(self, script, keys, arguments)
        for key in keys:
            self.command("PERSIST", key)
        return reply

    RedisClient.run = persisting  # type: ignore[method-assign]


def _final_state_dropped() -> None:
    finish = Shutdown.finish
    Shutdown.finish = lambda self, final=None: finish(self, None)  # type: ignore[method-assign]


def _damage_hidden() -> None:
    logging.getLogger(reader.__name__).setLevel(logging.ERROR)


def _of_the_simulation(name: str) -> Callable[[], None]:
    def plant_it() -> None:
        simulated.planted(name)

    return plant_it


BUGS: dict[str, Callable[[], None]] = {
    "no journal": lambda: None,
    "no order": _without_order,
    "entry dropped": _entry_dropped,
    "failures sent again": _failures_sent_again,
    "key without number": _key_without_number,
    "seen before durable": _seen_before_durable,
    "never written": _journal_not_flushed,
    "random numbers of requests": _random_numbers_of_requests,
    "generators not restored": _generators_not_restored,
    "doubt ignored": _doubt_ignored,
    "exit code": _exit_code,
    "litter": _litter,
    "boundary skipped": _boundary_skipped,
    "torn commit": _torn_commit,
    "parts kept": _parts_kept,
    "notice not heard": _notice_not_heard,
    "notice forgotten": _notice_forgotten,
    "delete at preemption": _delete_at_preemption,
    "resign refused": _resign_refused,
    "keys stay": _keys_stay,
    "final state dropped": _final_state_dropped,
    "damage hidden": _damage_hidden,
    **{
        name: _of_the_simulation(name)
        for name in (
            "used term granted",
            "two trainers with standby",
        )
    },
}


def plant(name: str | None) -> bool:
    """Plant an error for the rest of this process. Return whether the fit keeps a journal."""
    if name is not None:
        BUGS[name]()
    return name != "no journal"
