"""What a demonstration says, for somebody who has never seen it: one line per event, and the verdict."""

from __future__ import annotations

from typing import Final

from distributed_backup.checkpoints.format import parse_name
from distributed_backup.demo.messages import Event, Plan
from distributed_backup.demo.verdict import Killed, Preempted, Verdict
from distributed_backup.position import Position

# "finished" and "backup kept" are what the library logs just before the process says "done".
_QUIET: Final = frozenset({"ready", "call", "finished", "backup"})


def narrate(event: Event, plan: Plan) -> str:
    """What happened, in words for somebody who knows nothing of us; empty if it is not worth a line."""
    if event.kind in _QUIET:
        return ""
    if event.kind == "boundary":
        return _milestone(event, plan)
    fields = event.fields
    texts = {
        "started": "started" if event.life == 1 else "started again",
        "joined": "joined the run",
        "restored": _resumption(fields.get("from", ""), plan),
        "elected": f"LEADS now, in term {fields.get('term')}",
        "resigned": f"gives the lead back, term {fields.get('term')} is over",
        "lease": "lost the lead: " + event.text.partition("reason=")[2],
        "committed": f"checkpoint on disk: {_where(fields.get('name', ''), plan)}",
        "sent": f"<== {fields.get('signal')}",
        "notice": f"got the signal: has {plan.grace_period:g} s to save and leave",
        "preempted": f"{'saved' if fields.get('saved') == 'True' else 'NOT saved'}, leaves",
        "run": "is the last one out: deletes the backup",
        "done": "finished",
        "gone": _farewell(fields.get("code", "")),
    }
    return texts.get(event.kind, event.text)


def _milestone(event: Event, plan: Plan) -> str:
    if event.position is None or event.position.batch:
        return ""
    return f"reached the {plan.describe(event.position)}" + (
        ", the last" if event.position.epoch == plan.epochs else ""
    )


def _resumption(name: str, plan: Plan) -> str:
    where = _where(name, plan)
    return f"resumes from the checkpoint: {where}" if where else "nothing is saved yet: starts at the beginning"


def _where(name: str, plan: Plan) -> str:
    parsed = parse_name(name)
    return "" if parsed is None else plan.describe(parsed[1])


def _farewell(code: str) -> str:
    return {"0": "process ended", "-9": "process was killed"}.get(code, f"process ended with exit code {code}")


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
