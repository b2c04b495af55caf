"""The texts of a demonstration, for a newcomer: one line per message, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from distributed_backup.demo.messages import Message, Plan
from distributed_backup.demo.verdict import SigkillOutcome, SigtermOutcome, Verdict
from distributed_backup.position import Position

TEXTS: Final[Mapping[str, str]] = {
    "started": "started",
    "ready": "",
    "joined": "joined the run",
    "restored": "resumes from the checkpoint: {where}",
    "asked": "",
    "answered": "",
    "boundary": "reached the {where}",
    "progress": "",
    "elected": "LEADS now, in term {term}",
    "lost": "lost the lead: {reason}",
    "resigned": "gives the lead back, term {term} is over",
    "stood_down": "waits: {leader} leads now",
    "committed": "checkpoint on disk: {where}",
    "commit_failed": "could not write a checkpoint: {reason}",
    "commit_recovered": "can write checkpoints again",
    "unreachable": "can't reach the coordinator: {reason}",
    "reachable": "reaches the coordinator again",
    "signal_sent": "<== {signal}",
    "notice": "got the signal: has {grace:g} s to save and exit",
    "preempted": "saved, exits",
    "finished": "",
    "deleted": "has deleted the backup: all workers have finished",
    "left": "",
    "replayed": "took {answers} answers from the journal, and asks the language model from here on",
    "diverged": "STOPS following the journal: {reason}",
    "voided": "asks AGAIN for {answers} answers: earlier starts failed after them",
    "completed": "finished",
    "exited": "process ended with exit code {code}",
}
"""The text of each kind of message. Kinds with an empty text get no line."""


def describe_message(message: Message, plan: Plan) -> str:
    """Return the line for a message, empty if the message gets none."""
    where = "" if message.position is None else plan.describe(message.position)
    return _template(message).format_map({**message.fields, "where": where, "grace": plan.grace_period})


def _template(message: Message) -> str:
    text = TEXTS[message.kind]
    match message.kind, message.fields:
        case "started", _ if message.incarnation > 1:
            text = "started again"
        case "restored", {"checkpoint": None}:
            text = "nothing is saved yet: starts at the beginning"
        case "restored", {"epoch": 0, "batch": 0}:
            text = "starts at the beginning, from the leader's checkpoint"
        case "boundary", {"batch": batch} if batch:
            text = ""
        case "preempted", {"saved": False}:
            text = "NOT saved, exits"
        case "preempted", {"saved": None}:
            text = "nothing to save, exits"
        case "exited", {"code": 0}:
            text = "process ended"
        case "exited", {"code": -9}:
            text = "process was killed"
    return text


def format_verdict(verdict: Verdict, plan: Plan) -> list[str]:
    """Return the lines of the verdict."""
    workers, unequal = len(verdict.calls_by_worker), {item.partition(":")[0] for item in verdict.differences}
    equal = f"{workers - len(unequal)} of {workers} workers"
    return [
        "VERDICT: " + ("" if verdict.holds else "NOT ") + "everything that is promised held",
        *(f"  PROBLEM              {problem}" for problem in verdict.problems),
        f"  Final state          {equal} ended in exactly the state of the uninterrupted run",
        *_call_lines(verdict),
        f"  Checkpoints written  {verdict.checkpoints_written}",
        *_sigterm_lines(verdict.sigterm, plan),
        *_sigkill_lines(verdict.sigkill),
    ]


def _call_lines(verdict: Verdict) -> list[str]:
    by_worker = ", ".join(f"{name} {count}" for name, count in verdict.calls_by_worker.items())
    again = ", and asked again by the next leader" if verdict.calls_cut_off else ""
    return [
        f"  LM calls             {verdict.calls_uninterrupted} uninterrupted, {verdict.calls_paid} paid by all workers "
        f"together, {verdict.calls_repeated} repeated",
        f"    by worker          {by_worker}, with all restarts",
        f"    under way          {verdict.calls_cut_off} at the signals{again}",
    ]


def _sigterm_lines(found: SigtermOutcome, plan: Plan) -> list[str]:
    durable, in_flight = _format_ms(found.durable_ms), _format_ms(found.in_flight_durable_ms)
    limit, next_leader = _format_ms(found.grace_period_ms), _format_ms(found.next_leader_ms)
    return [
        f"  SIGTERM the leader   {found.worker}, in the batch after {plan.describe(Position(*found.last_boundary))}",
        f"    to durable         {durable}, with the batch in flight {in_flight}",
        f"    to exit            {_format_ms(found.gone_ms)} of {limit}, exit code {found.exit_code}",
        f"    to the next leader {next_leader}. The old leader leads until it has saved the batch in flight",
    ]


def _sigkill_lines(found: SigkillOutcome) -> list[str]:
    lines = [
        f"  SIGKILL the leader   {found.worker}, without a chance to save",
        f"    to the next leader {_format_ms(found.next_leader_ms)}, exact: the demo sent the signal. "
        "`timeline` shows an upper bound",
    ]
    if found.lease_ms is not None:
        seconds = found.lease_ms / 1000
        lines.append(f"{'':23}It took over when the lease had run out, {seconds:.1f} s after its last renewal")
    return lines


def _format_ms(milliseconds: float | None) -> str:
    return "never" if milliseconds is None else f"{milliseconds:.1f} ms"
