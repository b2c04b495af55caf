"""The texts of a demonstration, for a newcomer: one line per message, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from distributed_backup.demo.messages import Message, Plan
from distributed_backup.demo.verdict import SigkillOutcome, SigtermOutcome, Verdict
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
    "signal_sent": "<== {signal}",
    "notice": "got the signal: has {grace:g} s to save and exit",
    "preempted": "saved, exits",
    "finished": "",
    "deleted": "is the last one out: has deleted the backup",
    "left": "",
    "completed": "finished",
    "exited": "process ended with exit code {code}",
}
"""The text of each kind of message. Kinds with an empty text get no line."""

_STARTED_AGAIN: Final = "started again"
_FRESH_START: Final = "nothing is saved yet: starts at the beginning"
_UNSAVED: Final = {False: "NOT saved, exits", None: "nothing to save, exits"}
_EXITS: Final = {0: "process ended", -9: "process was killed"}


def describe_message(message: Message, plan: Plan) -> str:
    """Return the line for a message, empty if the message gets none."""
    if message.position is not None:
        return _milestone(message.position, plan)
    fields = message.fields
    where = "" if fields.get("epoch") is None else plan.describe(Position(fields["epoch"], fields["batch"]))
    return _template(message).format_map({**fields, "where": where, "grace": plan.grace_period})


def _template(message: Message) -> str:
    kind, fields, usual = message.kind, message.fields, TEXTS[message.kind]
    if kind == "started" and message.incarnation > 1:
        return _STARTED_AGAIN
    if kind == "restored" and fields["checkpoint"] is None:
        return _FRESH_START
    if kind == "preempted":
        return _UNSAVED.get(fields["saved"], usual)
    if kind == "exited":
        return _EXITS.get(fields["code"], usual)
    return usual


def _milestone(position: Position, plan: Plan) -> str:
    if position.batch:
        return ""
    return f"reached the {plan.describe(position)}" + (", the last" if position.epoch == plan.epochs else "")


def format_verdict(verdict: Verdict, plan: Plan) -> list[str]:
    """Return the lines of the verdict."""
    calls = ", ".join(f"{name} {count}" for name, count in verdict.calls_by_worker.items())
    return [
        "VERDICT: " + ("" if verdict.holds else "NOT ") + "everything that is promised held",
        *(f"  PROBLEM              {problem}" for problem in verdict.problems),
        f"  Final state          {_state_line(verdict)}",
        f"  Checkpoints written  {verdict.checkpoints_written}",
        *([] if verdict.sigterm is None else _sigterm_lines(verdict.sigterm, plan)),
        *([] if verdict.sigkill is None else _sigkill_lines(verdict.sigkill)),
        f"  LM calls             {verdict.calls_uninterrupted} in the uninterrupted run, with all restarts: {calls}",
    ]


def _state_line(verdict: Verdict) -> str:
    equal = verdict.workers - len({item.partition(":")[0] for item in verdict.differences})
    return f"{equal} of {verdict.workers} workers ended in exactly the state of the uninterrupted run"


def _sigterm_lines(found: SigtermOutcome, plan: Plan) -> list[str]:
    durable, in_flight = _format_ms(found.durable_ms), _format_ms(found.in_flight_durable_ms)
    limit, next_leader = _format_ms(found.grace_period_ms), _format_ms(found.next_leader_ms)
    return [
        f"  SIGTERM the leader   {found.worker}, in the batch after {plan.describe(Position(*found.last_boundary))}",
        f"    to durable         {durable}, with the batch in flight {in_flight}",
        f"    to exit            {_format_ms(found.gone_ms)} of {limit}, exit code {found.exit_code}",
        f"    to the next leader {next_leader}. The old leader leads until it has saved the batch in flight",
        f"    LM calls repeated  {found.calls_repeated}. The batch in flight had {found.calls_in_flight}",
    ]


def _sigkill_lines(found: SigkillOutcome) -> list[str]:
    return [
        f"  SIGKILL the leader   {found.worker}, without a chance to save",
        *_takeover_lines(found),
        f"    LM calls repeated  {found.calls_repeated}. Only the last checkpoint is promised here",
    ]


def _takeover_lines(found: SigkillOutcome) -> Iterator[str]:
    exact = "" if found.next_leader_ms is None else ", exact: the demo sent the signal. `timeline` shows an upper bound"
    yield f"    to the next leader {_format_ms(found.next_leader_ms)}{exact}"
    if found.lease_ms is not None and found.next_leader_ms is not None:
        yield f"{'':23}It took over when the lease had run out, {found.lease_ms / 1000:.1f} s after its last renewal"


def _format_ms(milliseconds: float | None) -> str:
    return "never" if milliseconds is None else f"{milliseconds:.1f} ms"
