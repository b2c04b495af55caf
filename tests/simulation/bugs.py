"""Errors that are planted on purpose, to see that they are found. Each is what a slip in the code would do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

from distributed_backup.checkpoints import saver
from distributed_backup.checkpoints.fencing import TermClaims
from distributed_backup.checkpoints.format import checkpoints_among
from distributed_backup.checkpoints.journal import LogReader, SegmentReader
from distributed_backup.checkpoints.journal_tail import LogTail
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.election import Elector
from distributed_backup.training import new_answers
from distributed_backup.training.delivery import Delivery
from distributed_backup.training.fit_journal import FitJournal
from distributed_backup.worker import preemption, restore, standby
from distributed_backup.worker.restore import LiveTerms
from distributed_backup.worker.shutdown import Shutdown
from distributed_backup.worker.standby import Standby

type Change = tuple[Any, str, Any]

_next_step = restore.next_step


def _no_fencing() -> list[Change]:
    """A leader that is behind the newest checkpoint commits, and no writer is refused."""
    return [
        (saver, "is_superseded", lambda *_, **__: False),
        (CheckpointStore, "_check_writer", lambda *_: None),
    ]


def _delete_at_preemption() -> list[Change]:
    preempt = Shutdown.preempt

    def delete(self: Any) -> Any:
        self._context.store.delete()
        return preempt(self)

    return [(Shutdown, "preempt", delete)]


def _used_term_granted() -> list[Change]:
    return [
        (TermClaims, "claim_term", lambda *_: True),
        (TermClaims, "highest_term", lambda _: 0),
    ]


def _seen_before_durable() -> list[Change]:
    record = new_answers.NewAnswers.record

    def at_once(self: Any, outcome: Any) -> Any:
        entry = record(self, outcome)
        self._delivery.ready(entry)
        return entry

    return [(new_answers.NewAnswers, "record", at_once)]


def _answers_without_order() -> list[Change]:
    async def turn(self: Any, place: int) -> None:
        self._next = max(self._next, place + 1)

    return [(Delivery, "turn", turn)]


def _journal_not_replayed() -> list[Change]:
    return [(FitJournal, "_replay_from", lambda *_: False)]


def _election_not_seen_by_the_tail() -> list[Change]:
    """A follower that is elected waits for a leader that is itself."""
    return [(LogTail, "finish", lambda _: None)]


def _two_trainers_with_standby() -> list[Change]:
    return [(Standby, "observe", lambda *_: None)]


def _notice_answered_by_an_older_position() -> list[Change]:
    return [
        (preemption, "covers", lambda *_: True),
        (preemption, "is_superseded", lambda *_, **__: True),
    ]


def _notice_forgotten() -> list[Change]:
    return [(preemption.OwnPreemption, "wait_until_saved", lambda _: True)]


def _final_state_not_awaited() -> list[Change]:
    return [(Shutdown, "_awaits_final", lambda _: False)]


def _progress_goes_back_with_standby() -> list[Change]:
    return [(standby, "next_step", lambda *_: "train")]


def _prune_before_durable() -> list[Change]:
    put = CheckpointStore._put

    def late(self: Any, header: Any, chunks: Any, found: Any) -> None:
        self._remove_all(checkpoints_among(found))
        put(self, header, chunks, found)

    return [(CheckpointStore, "_put", late)]


def _answer_of_the_old_term_read() -> list[Change]:
    """What a deposed leader has appended late is read, and a follower does not look for a newer term."""

    def all_of_it(self: Any) -> Any:
        part = self._parts.pop(0)
        return SegmentReader(self._storage, part.name, start=part.start)

    return [(LogReader, "_next_reader", all_of_it), (LogTail, "_is_newest_term", lambda *_: True)]


def _announcement_of_the_old_incarnation() -> list[Change]:
    """A worker starts from what was announced before it joined, also as the leader."""
    return [(LiveTerms, "__contains__", lambda *_: True), (restore, "next_step", _any_announcement)]


def _any_announcement(status: Any) -> Any:
    view = status.view
    if view is None or view.announcement is None or status.standby:
        return _next_step(status)
    return restore.RestoreAnnounced(view.announcement, finished=False)


def _doubt_ignored() -> list[Change]:
    return [(Elector, "is_in_doubt", property(lambda _: False))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """An error that can be planted, and the promise that a run then breaks."""

    change: Callable[[], list[Change]]
    breaks: str


BUGS: Final = {
    "no fencing": Bug(change=_no_fencing, breaks="the newest checkpoint goes back"),
    "delete at preemption": Bug(change=_delete_at_preemption, breaks="a run that is not complete is deleted"),
    "used term granted": Bug(change=_used_term_granted, breaks="two writers under one term"),
    "seen before durable": Bug(change=_seen_before_durable, breaks="another state after a kill"),
    "answers without order": Bug(change=_answers_without_order, breaks="another state after a replay"),
    "journal not replayed": Bug(change=_journal_not_replayed, breaks="an answer is asked for again"),
    "election not seen by the tail": Bug(change=_election_not_seen_by_the_tail, breaks="the run hangs"),
    "two trainers with standby": Bug(change=_two_trainers_with_standby, breaks="two workers in different states"),
    "notice answered by an older position": Bug(
        change=_notice_answered_by_an_older_position, breaks="a preempted worker leaves too early"
    ),
    "notice forgotten": Bug(change=_notice_forgotten, breaks="a preempted worker leaves too early"),
    "final state not awaited": Bug(
        change=_final_state_not_awaited, breaks="a worker finishes before the final state is durable"
    ),
    "progress goes back with standby": Bug(
        change=_progress_goes_back_with_standby, breaks="another state than a worker before"
    ),
    "prune before durable": Bug(change=_prune_before_durable, breaks="a run that is not complete is deleted"),
    "answer of the old term read": Bug(change=_answer_of_the_old_term_read, breaks="two workers in different states"),
    "announcement of the old incarnation": Bug(
        change=_announcement_of_the_old_incarnation, breaks="a worker starts from an older checkpoint, or the run hangs"
    ),
    "doubt ignored": Bug(change=_doubt_ignored, breaks="another state than a worker before"),
}


def planted(name: str) -> ExitStack:
    """Plant an error until the returned stack is closed."""
    stack = ExitStack()
    for target, attribute, replacement in BUGS[name].change():
        stack.enter_context(patch.object(target, attribute, replacement))
    return stack
