"""The verdict on a demonstration: figures from its recording, and the promises that did not hold.

It judges one run on one machine. The tests show what holds under every timing.

A restarted worker *repeats* the language model calls that its earlier incarnation had begun after the position at
which the new one starts. Each worker trains and pays for a replica of its own, which is no repetition.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from distributed_backup.demo.messages import Plan
from distributed_backup.demo.process_table import ProcessRecord, ProcessTable
from distributed_backup.demo.scenario import Recording, SentSignal
from distributed_backup.position import Position


@dataclass(frozen=True, slots=True, kw_only=True)
class SigtermOutcome:
    """Figures of the preempted leader. Durations are in milliseconds from the signal, None where it did not happen.

    `last_boundary` is the last batch boundary before the signal, as (epochs, batches) completed. It was durable after
    `durable_ms`, the batch in flight after `in_flight_durable_ms`. `on_disk` is the newest checkpoint that verified
    when the process had exited. At most the `calls_in_flight` may be repeated.
    """

    worker: str
    last_boundary: tuple[int, int]
    on_disk: tuple[int, int] | None
    durable_ms: float | None
    in_flight_durable_ms: float | None
    gone_ms: float | None
    next_leader_ms: float | None
    grace_period_ms: float
    exit_code: int | None
    calls_repeated: int
    calls_in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SigkillOutcome:
    """Figures of the killed leader, in milliseconds. `next_leader_ms` counts from the signal, None without an election.

    `lease_ms` is the duration of its lease, and `limit_ms` the lease and one heartbeat, the longest time to the next
    leader. A file lock has neither. Calls may be repeated: only the last checkpoint is promised here.
    """

    worker: str
    next_leader_ms: float | None
    lease_ms: float | None
    limit_ms: float | None
    calls_repeated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Figures of one demonstration, and the promises that did not hold.

    `coordinator` is a URL without credentials, or "embedded-redis". `workers` counts those that finished.
    `differences` holds "worker-1: metrics" for each part of a final state that differs from the uninterrupted run's.
    `calls_by_worker` sums the incarnations of each worker. `backup_deleted` is None if the backup was kept.
    """

    coordinator: str
    workers: int
    differences: tuple[str, ...]
    checkpoints_written: int
    calls_uninterrupted: int
    calls_by_worker: dict[str, int]
    sigterm: SigtermOutcome | None
    sigkill: SigkillOutcome | None
    backup_deleted: bool | None
    problems: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether all promises held."""
        return not self.problems

    @property
    def final_state_equal(self) -> bool:
        """Whether every worker ended in the state of the uninterrupted run."""
        return self.workers > 0 and not self.differences

    def as_json(self) -> dict[str, Any]:
        """Return all figures, the two answers first."""
        return {"holds": self.holds, "final_state_equal": self.final_state_equal, **asdict(self)}


def judge(recording: Recording, plan: Plan, *, keep: bool) -> Verdict:
    """Compute the verdict. `keep`: the backup was to be kept."""
    table = recording.table
    reference = table.reference()
    sigterm = None if recording.sigterm is None else _sigterm_outcome(recording, recording.sigterm, plan)
    sigkill = None if recording.sigkill is None else _sigkill_outcome(table, recording.sigkill, plan)
    finished = [record for record in table.current() if record.final_state is not None]
    figures: dict[str, Any] = {
        "coordinator": plan.coordination.name,
        "workers": len(finished),
        "differences": _differences(finished, reference),
        "checkpoints_written": sum(len(record.commits) for records in table.workers() for record in records),
        "calls_uninterrupted": 0 if reference is None else reference.calls,
        "calls_by_worker": {records[0].name: sum(record.calls for record in records) for records in table.workers()},
        "sigterm": sigterm,
        "sigkill": sigkill,
        "backup_deleted": None if keep else not recording.leftovers,
    }
    problems = (
        *_problems_of_state(figures, expected=len(table.current()), reference=reference),
        *_problems_of_sigterm(sigterm),
        *_problems_of_sigkill(sigkill),
        *_problems_of_calls(table, reference),
        *(f"checkpoint {name} does not verify" for name in recording.unreadable),
        *_problems_of_leftovers(figures, recording),
    )
    return Verdict(**figures, problems=problems)


# -------------------------------------------------------------------- figures


def _sigterm_outcome(recording: Recording, sent: SentSignal, plan: Plan) -> SigtermOutcome:
    table, victim = recording.table, sent.record
    boundary, newest = sent.last_boundary, recording.on_disk
    in_flight = _next_boundary(table, boundary)
    return SigtermOutcome(
        worker=victim.name,
        last_boundary=_pair(boundary),
        on_disk=None if newest is None else _pair(newest),
        durable_ms=_milliseconds(_durable_at(victim, boundary, sent.at), sent.at),
        in_flight_durable_ms=_milliseconds(_durable_at(victim, in_flight, sent.at), sent.at),
        gone_ms=_milliseconds(victim.exited_at, sent.at),
        next_leader_ms=_milliseconds(table.next_election(sent.at, not_by=victim), sent.at),
        grace_period_ms=plan.grace_period * 1000,
        exit_code=victim.exit_code,
        calls_repeated=_repeated_calls(table, victim),
        calls_in_flight=_calls_between(table, boundary, in_flight),
    )


def _sigkill_outcome(table: ProcessTable, sent: SentSignal, plan: Plan) -> SigkillOutcome:
    timings, has_lease = plan.coordination.timings, plan.coordination.has_lease
    return SigkillOutcome(
        worker=sent.record.name,
        next_leader_ms=_milliseconds(table.next_election(sent.at, not_by=sent.record), sent.at),
        lease_ms=timings.duration * 1000 if has_lease else None,
        limit_ms=(timings.duration + timings.retry_period) * 1000 if has_lease else None,
        calls_repeated=_repeated_calls(table, sent.record),
    )


def _durable_at(record: ProcessRecord, position: Position | None, since: float) -> float | None:
    """Return the first instant from `since` on at which the record's process had made `position` durable."""
    instants = [commit.at for commit in record.commits if position is not None and commit.position >= position]
    return max(since, min(instants)) if instants else None


def _successor(table: ProcessTable, record: ProcessRecord) -> ProcessRecord | None:
    records = table.records[record.name]
    return records[record.incarnation] if record.incarnation < len(records) else None


def _repeated_calls(table: ProcessTable, record: ProcessRecord) -> int:
    """Return the calls that the process had begun after the start position of its successor."""
    successor = _successor(table, record)
    if successor is None or successor.start > record.position:
        return 0
    return record.calls - record.calls_at.get(successor.start, 0)


def _skipped_calls(table: ProcessTable, record: ProcessRecord) -> int:
    """Return the calls that the successor saved because other workers had trained further."""
    successor = _successor(table, record)
    if successor is None or successor.start <= record.position:
        return 0
    begun = record.calls - record.calls_at.get(record.position, 0)
    return _calls_between(table, record.position, successor.start) - begun


def _calls_between(table: ProcessTable, first: Position, last: Position | None) -> int:
    """Return the calls of the uninterrupted run from one boundary to another."""
    reference = table.reference()
    if reference is None or last is None:
        return 0
    return reference.calls_at.get(last, 0) - reference.calls_at.get(first, 0)


def _next_boundary(table: ProcessTable, position: Position) -> Position | None:
    reference = table.reference()
    later = () if reference is None else (item for item in reference.calls_at if item > position)
    return min(later, default=None)


def _differences(finished: list[ProcessRecord], reference: ProcessRecord | None) -> tuple[str, ...]:
    expected = {} if reference is None or reference.final_state is None else reference.final_state
    return tuple(
        f"{record.name}: {part}"
        for record in finished
        for part in sorted({*expected, *(record.final_state or {})})
        if (record.final_state or {}).get(part) != expected.get(part)
    )


def _milliseconds(instant: float | None, since: float) -> float | None:
    return None if instant is None else round((instant - since) * 1000, 1)


def _pair(position: Position) -> tuple[int, int]:
    return (position.epoch, position.batch)


# -------------------------------------------------------------------- promises


def _problems_of_state(figures: dict[str, Any], *, expected: int, reference: ProcessRecord | None) -> list[str]:
    problems = [f"the final state differs from the uninterrupted run's in {item}" for item in figures["differences"]]
    if reference is None or not reference.final_state:
        problems.append("the uninterrupted run did not finish, so final states can't be compared")
    if figures["workers"] < expected:
        problems.append(f"only {figures['workers']} of {expected} workers finished")
    if not figures["checkpoints_written"]:
        problems.append("no checkpoint was written")
    return problems


def _problems_of_sigterm(found: SigtermOutcome | None) -> list[str]:
    if found is None:
        return ["no leader was preempted"]
    problems = []
    if found.durable_ms is None or found.durable_ms > found.grace_period_ms:
        problems.append("after SIGTERM the last boundary was not durable within the grace period")
    if found.on_disk is None or found.on_disk < found.last_boundary:
        problems.append(f"after SIGTERM the disk held {found.on_disk}, the last boundary was {found.last_boundary}")
    if found.gone_ms is None or found.gone_ms > found.grace_period_ms or found.exit_code != 143:
        problems.append(
            "after SIGTERM the leader did not exit with code 143 within the grace period: "
            f"code {found.exit_code}, {found.gone_ms} ms of {found.grace_period_ms:g} ms"
        )
    if found.next_leader_ms is None:
        problems.append("after SIGTERM no other worker was elected")
    if found.calls_repeated > found.calls_in_flight:
        problems.append(
            f"after SIGTERM {found.calls_repeated} calls were repeated, the batch in flight had {found.calls_in_flight}"
        )
    return problems


def _problems_of_sigkill(found: SigkillOutcome | None) -> list[str]:
    if found is None:
        return ["no leader was killed"]
    if found.next_leader_ms is None:
        return ["after SIGKILL no other worker was elected"]
    if found.limit_ms is not None and found.next_leader_ms > found.limit_ms:
        return [f"after SIGKILL it took {found.next_leader_ms} ms to the next leader, more than {found.limit_ms:g} ms"]
    return []


def _problems_of_leftovers(figures: dict[str, Any], recording: Recording) -> list[str]:
    if figures["backup_deleted"] is not False:
        return []
    return [f"the last worker out did not delete the backup: {', '.join(recording.leftovers)}"]


def _problems_of_calls(table: ProcessTable, reference: ProcessRecord | None) -> list[str]:
    """Check that each worker's calls, minus repeated plus skipped ones, are as many as the uninterrupted run's."""
    problems = []
    for records in table.workers():
        paid = sum(item.calls - _repeated_calls(table, item) + _skipped_calls(table, item) for item in records)
        if reference is not None and records[-1].final_state is not None and paid != reference.calls:
            problems.append(f"the calls of {records[0].name} don't add up: {paid}, uninterrupted {reference.calls}")
    return problems
