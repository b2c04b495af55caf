"""What a demonstration says, for somebody who has never seen it: one line per event, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from distributed_backup.demo.messages import Message, Plan
from distributed_backup.demo.verdict import Killed, Preempted, Verdict
from distributed_backup.position import Position

TEXTS: Final[Mapping[str, str]] = {
    "started": "started",
    "ready": "",
    "joined": "joined the run",
    "restored": "resumes from the checkpoint: {where}",
    "call": "",
    "boundary": "",
    "progress": "",
    "elected": "LEADS now, in term {term}",
    "lost": "lost the lead: {reason}",
    "resigned": "gives the lead back, term {term} is over",
    "committed": "checkpoint on disk: {where}",
    "commit_failed": "could not write a checkpoint: {reason}",
    "commit_recovered": "can write checkpoints again",
    "unreachable": "can't reach the coordinator: {reason}",
    "reachable": "reaches the coordinator again",
    "sent": "<== {signal}",
    "notice": "got the signal: has {grace:g} s to save and leave",
    "preempted": "saved, leaves",
    "finished": "",
    "deleted": "is the last one out: has deleted the backup",
    "left": "",
    "done": "finished",
    "gone": "process ended with exit code {code}",
}
"""What a message of each kind says. Kinds with an empty text get no line."""

_STARTED_AGAIN: Final = "started again"
_FRESH_START: Final = "nothing is saved yet: starts at the beginning"
_UNSAVED: Final = {False: "NOT saved, leaves", None: "nothing to save, leaves"}
_EXITS: Final = {0: "process ended", -9: "process was killed"}


def narrate(message: Message, plan: Plan) -> str:
    """Return what happened, for a newcomer. Empty if it is not worth a line."""
    if message.position is not None:
        return _milestone(message.position, plan)
    fields = message.fields
    where = "" if fields.get("epoch") is None else plan.describe(Position(fields["epoch"], fields["batch"]))
    return _template(message).format_map({**fields, "where": where, "grace": plan.grace_period})


def _template(message: Message) -> str:
    kind, fields, usual = message.kind, message.fields, TEXTS[message.kind]
    if kind == "started" and message.life > 1:
        return _STARTED_AGAIN
    if kind == "restored" and fields["checkpoint"] is None:
        return _FRESH_START
    if kind == "preempted":
        return _UNSAVED.get(fields["saved"], usual)
    if kind == "gone":
        return _EXITS.get(fields["code"], usual)
    return usual


def _milestone(position: Position, plan: Plan) -> str:
    if position.batch:
        return ""
    return f"reached the {plan.describe(position)}" + (", the last" if position.epoch == plan.epochs else "")


def pronounce(verdict: Verdict, plan: Plan) -> list[str]:
    """The verdict in words, a line each."""
    calls = ", ".join(f"{name} {count}" for name, count in verdict.calls_by_worker.items())
    return [
        "VERDICT: " + ("" if verdict.holds else "NOT ") + "everything that is promised held",
        *(f"  PROBLEM              {problem}" for problem in verdict.problems),
        f"  Final state          {_of_state(verdict)}",
        f"  Checkpoints written  {verdict.checkpoints_written}",
        *([] if verdict.sigterm is None else _of_sigterm(verdict.sigterm, plan)),
        *([] if verdict.sigkill is None else _of_sigkill(verdict.sigkill)),
        f"  LM calls             {verdict.calls_uninterrupted} uninterrupted; in all their lives {calls}",
    ]


def _of_state(verdict: Verdict) -> str:
    equal = verdict.workers - len({item.partition(":")[0] for item in verdict.differences})
    return f"{equal} of {verdict.workers} workers ended in exactly the state of the run that nothing happened to"


def _of_sigterm(found: Preempted, plan: Plan) -> list[str]:
    return [
        f"  SIGTERM the leader   {found.worker}, in the batch after {plan.describe(Position(*found.last_boundary))}",
        f"    to durable         {_ms(found.durable_ms)}; the batch in flight too: {_ms(found.in_flight_durable_ms)}",
        f"    to gone            {_ms(found.gone_ms)} of {_ms(found.grace_period_ms)}, exit code {found.exit_code}",
        f"    to the next leader {_ms(found.next_leader_ms)}; until the batch in flight is saved it leads itself",
        f"    LM calls repeated  {found.calls_repeated}; the batch in flight had {found.calls_in_flight}",
    ]


def _of_sigkill(found: Killed) -> list[str]:
    return [
        f"  SIGKILL the leader   {found.worker}, without a chance to save",
        f"    to the next leader {_ms(found.next_leader_ms)}{_of_lease(found)}",
        f"    LM calls repeated  {found.calls_repeated}; only the last checkpoint is promised here",
    ]


def _of_lease(found: Killed) -> str:
    if found.lease_ms is None or found.next_leader_ms is None:
        return ""
    return f"; it took over when the lease had run out, {found.lease_ms / 1000:.1f} s after its last renewal"


def _ms(milliseconds: float | None) -> str:
    return "never" if milliseconds is None else f"{milliseconds:.1f} ms"
