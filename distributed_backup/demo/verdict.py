"""The verdict on a demonstration: figures computed from what happened, and what of the promises did not hold.

It judges one run on one machine. What holds under every timing is for the tests to show.

Calls of the language model that were *repeated* are counted per restarted worker: those that its earlier life had
begun beyond the position at which its next life resumed, for they have to be made again. Each worker trains a replica
of its own and pays for it; that is not counted as repetition.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from distributed_backup.demo.messages import Plan
from distributed_backup.demo.process_table import Cast, Life
from distributed_backup.demo.scenario import Blow, Recording
from distributed_backup.position import Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Preempted:
    """What became of the leader that got a SIGTERM.

    Args:
        worker: Its name.
        last_boundary: The last batch boundary it had reached, (epochs, batches) completed.
        on_disk: The newest checkpoint that verified when it was gone; None if there was none.
        durable_ms: Milliseconds from the signal until `last_boundary` was on the disk; None if it never was.
        in_flight_durable_ms: The same for the batch in flight; None if the grace period was too short for it.
        gone_ms: Milliseconds from the signal until the process was gone.
        next_leader_ms: Milliseconds from the signal until another worker led; None if none did.
        grace_period_ms: Milliseconds it had.
        exit_code: Its exit code.
        calls_repeated: Calls of the language model that had to be made again.
        calls_in_flight: Calls of the batch that was in flight: no more than these may be repeated.
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
class Killed:
    """What became of the leader that got a SIGKILL.

    Args:
        worker: Its name.
        next_leader_ms: Milliseconds from the signal until another worker led; None if none did.
        lease_ms: Milliseconds that its lease lasted from its last renewal; None where its lock ended with it.
        limit_ms: Milliseconds within which another should lead: those of the lease and of one tick; None without one.
        calls_repeated: Calls that had to be made again; nothing is promised here but the last checkpoint.
    """

    worker: str
    next_leader_ms: float | None
    lease_ms: float | None
    limit_ms: float | None
    calls_repeated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Figures of one demonstration, and what of the promises did not hold.

    Args:
        coordinator: What may be shown of the coordinator's URL, or "embedded-redis".
        workers: How many workers finished.
        differences: "worker-1: metrics" for each part of a final state that differs from the uninterrupted run's.
        checkpoints_written: Checkpoints that became durable, by whomever.
        calls_uninterrupted: Calls of the language model that the uninterrupted run made.
        calls_by_worker: Calls that each worker made in all its lives.
        sigterm: The preemption; None if it came to none.
        sigkill: The kill; None if it came to none.
        backup_deleted: Whether the last one out deleted the backup, and the run on the server; None if it was to be
            kept.
        problems: What did not hold, in words; empty if all did.
    """

    coordinator: str
    workers: int
    differences: tuple[str, ...]
    checkpoints_written: int
    calls_uninterrupted: int
    calls_by_worker: dict[str, int]
    sigterm: Preempted | None
    sigkill: Killed | None
    backup_deleted: bool | None
    problems: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether everything that is promised held."""
        return not self.problems

    @property
    def final_state_equal(self) -> bool:
        """Whether every worker ended in the uninterrupted run's state."""
        return self.workers > 0 and not self.differences

    def as_json(self) -> dict[str, Any]:
        """All figures, with the two answers first."""
        return {"holds": self.holds, "final_state_equal": self.final_state_equal, **asdict(self)}


def judge(recording: Recording, plan: Plan, *, keep: bool) -> Verdict:
    """Compute the verdict.

    Args:
        recording: What happened.
        plan: What was trained.
        keep: Whether the backup was to be kept.
    """
    cast = recording.cast
    reference = cast.reference()
    sigterm = None if recording.sigterm is None else _preempted(recording, recording.sigterm, plan)
    sigkill = None if recording.sigkill is None else _killed(cast, recording.sigkill, plan)
    finished = [life for life in cast.current() if life.state is not None]
    figures: dict[str, Any] = {
        "coordinator": plan.coordination.name,
        "workers": len(finished),
        "differences": _differences(finished, reference),
        "checkpoints_written": sum(len(life.commits) for lives in cast.workers() for life in lives),
        "calls_uninterrupted": 0 if reference is None else reference.calls,
        "calls_by_worker": {lives[0].name: sum(life.calls for life in lives) for lives in cast.workers()},
        "sigterm": sigterm,
        "sigkill": sigkill,
        "backup_deleted": None if keep else not recording.left_behind,
    }
    problems = (
        *_problems_of_state(figures, expected=len(cast.current()), reference=reference),
        *_problems_of_sigterm(sigterm),
        *_problems_of_sigkill(sigkill),
        *_problems_of_calls(cast, reference),
        *(f"checkpoint {name} does not verify" for name in recording.unreadable),
        *_problems_of_leftovers(figures, recording),
    )
    return Verdict(**figures, problems=problems)


# -------------------------------------------------------------------- figures


def _preempted(recording: Recording, blow: Blow, plan: Plan) -> Preempted:
    cast, victim = recording.cast, blow.life
    boundary, newest = blow.last_boundary, recording.on_disk
    return Preempted(
        worker=victim.name,
        last_boundary=_pair(boundary),
        on_disk=None if newest is None else _pair(newest),
        durable_ms=_milliseconds(_durable(victim, boundary, blow.at), blow.at),
        in_flight_durable_ms=_milliseconds(_durable(victim, _after(cast, boundary), blow.at), blow.at),
        gone_ms=_milliseconds(victim.ended, blow.at),
        next_leader_ms=_milliseconds(cast.next_election(blow.at, not_by=victim), blow.at),
        grace_period_ms=plan.grace_period * 1000,
        exit_code=victim.code,
        calls_repeated=_repeated(cast, victim),
        calls_in_flight=_calls_between(cast, boundary, _after(cast, boundary)),
    )


def _killed(cast: Cast, blow: Blow, plan: Plan) -> Killed:
    timings, has_lease = plan.coordination.timings, plan.coordination.has_lease
    return Killed(
        worker=blow.life.name,
        next_leader_ms=_milliseconds(cast.next_election(blow.at, not_by=blow.life), blow.at),
        lease_ms=timings.duration * 1000 if has_lease else None,
        limit_ms=(timings.duration + timings.retry_period) * 1000 if has_lease else None,
        calls_repeated=_repeated(cast, blow.life),
    )


def _durable(life: Life, position: Position | None, at: float) -> float | None:
    """The instant, not before `at`, from which on `position` was on the disk."""
    instants = [commit.at for commit in life.commits if position is not None and commit.position >= position]
    return max(at, min(instants)) if instants else None


def _repeated(cast: Cast, life: Life) -> int:
    """Calls that a life had begun beyond the position at which the next life of the same worker resumed."""
    lives = cast.lives[life.name]
    successor = lives[life.number] if life.number < len(lives) else None
    if successor is None or successor.resumed > life.position:
        return 0
    return life.calls - life.calls_at.get(successor.resumed, 0)


def _skipped(cast: Cast, life: Life) -> int:
    """Calls that a worker was spared, for others had come further by the time that it was restarted."""
    lives = cast.lives[life.name]
    successor = lives[life.number] if life.number < len(lives) else None
    if successor is None or successor.resumed <= life.position:
        return 0
    begun = life.calls - life.calls_at.get(life.position, 0)
    return _calls_between(cast, life.position, successor.resumed) - begun


def _calls_between(cast: Cast, first: Position, last: Position | None) -> int:
    """What the uninterrupted run paid to come from one boundary to another."""
    reference = cast.reference()
    if reference is None or last is None:
        return 0
    return reference.calls_at.get(last, 0) - reference.calls_at.get(first, 0)


def _after(cast: Cast, position: Position) -> Position | None:
    """The boundary that follows `position`."""
    reference = cast.reference()
    later = () if reference is None else (item for item in reference.calls_at if item > position)
    return min(later, default=None)


def _differences(finished: list[Life], reference: Life | None) -> tuple[str, ...]:
    wanted = {} if reference is None or reference.state is None else reference.state
    return tuple(
        f"{life.name}: {part}"
        for life in finished
        for part in sorted({*wanted, *(life.state or {})})
        if (life.state or {}).get(part) != wanted.get(part)
    )


def _milliseconds(instant: float | None, since: float) -> float | None:
    return None if instant is None else round((instant - since) * 1000, 1)


def _pair(position: Position) -> tuple[int, int]:
    return (position.epoch, position.batch)


# -------------------------------------------------------------------- promises


def _problems_of_state(figures: dict[str, Any], *, expected: int, reference: Life | None) -> list[str]:
    problems = [f"the final state differs from an uninterrupted run's in {item}" for item in figures["differences"]]
    if reference is None or not reference.state:
        problems.append("the uninterrupted run did not finish, so there is nothing to compare with")
    if figures["workers"] < expected:
        problems.append(f"only {figures['workers']} of {expected} workers finished")
    if not figures["checkpoints_written"]:
        problems.append("no checkpoint was written")
    return problems


def _problems_of_sigterm(found: Preempted | None) -> list[str]:
    if found is None:
        return ["no leader was preempted"]
    problems = []
    if found.durable_ms is None or found.durable_ms > found.grace_period_ms:
        problems.append("after SIGTERM the last boundary was not durable within the grace period")
    if found.on_disk is None or found.on_disk < found.last_boundary:
        problems.append(f"after SIGTERM the disk held {found.on_disk}, the last boundary was {found.last_boundary}")
    if found.gone_ms is None or found.gone_ms > found.grace_period_ms or found.exit_code != 143:
        problems.append(f"the preempted leader was not gone in time with exit code 143, but with {found.exit_code}")
    if found.next_leader_ms is None:
        problems.append("after SIGTERM nobody else led")
    if found.calls_repeated > found.calls_in_flight:
        problems.append(
            f"after SIGTERM {found.calls_repeated} calls were repeated, the batch in flight had {found.calls_in_flight}"
        )
    return problems


def _problems_of_sigkill(found: Killed | None) -> list[str]:
    if found is None:
        return ["no leader was killed"]
    if found.next_leader_ms is None:
        return ["after SIGKILL nobody else led"]
    if found.limit_ms is not None and found.next_leader_ms > found.limit_ms:
        return [f"after SIGKILL it took {found.next_leader_ms} ms to the next leader, more than {found.limit_ms:g} ms"]
    return []


def _problems_of_leftovers(figures: dict[str, Any], recording: Recording) -> list[str]:
    if figures["backup_deleted"] is not False:
        return []
    return [f"the last worker out did not delete the backup: {', '.join(recording.left_behind)}"]


def _problems_of_calls(cast: Cast, reference: Life | None) -> list[str]:
    """Calls of all lives, less what was repeated, plus what was spared, are those of the uninterrupted run."""
    problems = []
    for lives in cast.workers():
        paid = sum(life.calls - _repeated(cast, life) + _skipped(cast, life) for life in lives)
        if reference is not None and lives[-1].state is not None and paid != reference.calls:
            problems.append(f"the calls of {lives[0].name} don't add up: {paid}, uninterrupted {reference.calls}")
    return problems
