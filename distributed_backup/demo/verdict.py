"""The verdict on a demonstration: figures from its recording, and the promises that did not hold.

It judges one run on one machine. The tests show what holds under every timing.

A language model call is *paid* when the model has answered it. A call that a signal cut off is counted apart. A paid
call is *repeated* if all workers together have paid for its request more often than the uninterrupted run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
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
    when the process had exited.
    """

    worker: str
    last_boundary: tuple[int, int]
    on_disk: tuple[int, int] | None
    durable_ms: float | None
    in_flight_durable_ms: float | None
    gone_ms: float | None
    next_leader_ms: float
    grace_period_ms: float
    exit_code: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SigkillOutcome:
    """Figures of the killed leader, in milliseconds. `next_leader_ms` counts from the signal.

    `lease_ms` is the duration of its lease, and `limit_ms` the lease and one heartbeat, the longest time to the next
    leader. A file lock has neither.
    """

    worker: str
    next_leader_ms: float
    lease_ms: float | None
    limit_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Figures of one demonstration, and the promises that did not hold.

    `coordinator` is a URL without credentials, or "embedded-redis". `workers` counts those that finished.
    `differences` holds "worker-1: metrics" for each part of a final state that differs from the uninterrupted run's.
    `calls_paid` sums all workers, and `calls_by_worker` the incarnations of each. `calls_missing` were paid in the
    uninterrupted run only. `calls_cut_off` were never answered. `backup_deleted` is None if the backup was kept.
    """

    coordinator: str
    workers: int
    differences: tuple[str, ...]
    checkpoints_written: int
    calls_uninterrupted: int
    calls_paid: int
    calls_repeated: int
    calls_missing: int
    calls_cut_off: int
    calls_by_worker: dict[str, int]
    sigterm: SigtermOutcome
    sigkill: SigkillOutcome
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
    records = [record for records in table.workers() for record in records]
    expected, paid = table.reference().answers, _answers(records)
    verdict = Verdict(
        coordinator=plan.coordination.name,
        workers=sum(bool(record.final_state) for record in table.current()),
        differences=_differences(table),
        checkpoints_written=sum(len(record.commits) for record in records),
        calls_uninterrupted=expected.total(),
        calls_paid=paid.total(),
        calls_repeated=(paid - expected).total(),
        calls_missing=(expected - paid).total(),
        calls_cut_off=sum(record.asked for record in records) - paid.total(),
        calls_by_worker={starts[0].name: _answers(starts).total() for starts in table.workers()},
        sigterm=_sigterm_outcome(recording, plan),
        sigkill=_sigkill_outcome(recording, plan),
        backup_deleted=None if keep else not recording.leftovers,
    )
    problems = [
        *(f"the final state differs from the uninterrupted run's in {item}" for item in verdict.differences),
        *_problems_of_sigterm(verdict.sigterm),
        *_problems_of_sigkill(verdict.sigkill),
        *_problems_of_calls(verdict),
        *(f"{record.name} stopped following the journal: {reason}" for record in records for reason in record.diverged),
        *(f"checkpoint {name} does not verify" for name in recording.unreadable),
    ]
    if verdict.backup_deleted is False:
        problems.append(f"the last worker out did not delete the backup: {', '.join(recording.leftovers)}")
    return replace(verdict, problems=tuple(problems))


# -------------------------------------------------------------------- figures


def _sigterm_outcome(recording: Recording, plan: Plan) -> SigtermOutcome:
    sent = recording.sigterm
    victim, boundary = sent.record, sent.last_boundary
    return SigtermOutcome(
        worker=victim.name,
        last_boundary=boundary.as_tuple,
        on_disk=None if sent.on_disk is None else sent.on_disk.as_tuple,
        durable_ms=_ms_to_durable(sent, boundary),
        in_flight_durable_ms=_ms_to_durable(sent, Position(boundary.epoch, boundary.batch + 1)),
        gone_ms=None if victim.exited_at is None else _milliseconds(victim.exited_at, sent.at),
        next_leader_ms=_milliseconds(sent.next_leader_at, sent.at),
        grace_period_ms=plan.grace_period * 1000,
        exit_code=victim.exit_code,
    )


def _sigkill_outcome(recording: Recording, plan: Plan) -> SigkillOutcome:
    sent = recording.sigkill
    timings, has_lease = plan.coordination.timings, plan.coordination.has_lease
    return SigkillOutcome(
        worker=sent.record.name,
        next_leader_ms=_milliseconds(sent.next_leader_at, sent.at),
        lease_ms=timings.duration * 1000 if has_lease else None,
        limit_ms=(timings.duration + timings.retry_period) * 1000 if has_lease else None,
    )


def _ms_to_durable(sent: SentSignal, position: Position) -> float | None:
    """Return the time from the signal until its process had made `position` durable, 0 if it was so before."""
    instants = [at for at, committed in sent.record.commits if committed >= position]
    return _milliseconds(max(sent.at, min(instants)), sent.at) if instants else None


def _answers(records: Iterable[ProcessRecord]) -> Counter[str]:
    """Count the answers of the model to each request."""
    return sum((record.answers for record in records), Counter())


def _differences(table: ProcessTable) -> tuple[str, ...]:
    """Compare the final states. A worker that did not finish differs in every part."""
    expected = table.reference().final_state
    return tuple(
        f"{record.name}: {part}"
        for record in table.current()
        for part in sorted({*expected, *record.final_state})
        if record.final_state.get(part) != expected.get(part)
    )


def _milliseconds(instant: float, since: float) -> float:
    return round((instant - since) * 1000, 1)


# -------------------------------------------------------------------- promises


def _problems_of_sigterm(found: SigtermOutcome) -> list[str]:
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
    return problems


def _problems_of_sigkill(found: SigkillOutcome) -> list[str]:
    if found.limit_ms is not None and found.next_leader_ms > found.limit_ms:
        return [f"after SIGKILL it took {found.next_leader_ms} ms to the next leader, more than {found.limit_ms:g} ms"]
    return []


def _problems_of_calls(verdict: Verdict) -> list[str]:
    problems = []
    if verdict.calls_repeated:
        problems.append(f"LM calls paid more often than in the uninterrupted run: {verdict.calls_repeated}")
    if verdict.calls_missing:
        problems.append(f"LM calls of the uninterrupted run that no worker has paid: {verdict.calls_missing}")
    return problems
