"""Check the promises of a cluster in the history of a run. Each check yields one sentence for each violation.

Imports no synalinks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson

from distributed_backup.checkpoints.format import is_final, parse_name, term_of
from distributed_backup.position import Position
from distributed_backup.preemption.grace import shutdown_reserve
from tests.chaos.excuses import ENVIRONMENT, has_overlap, is_begun_anew, is_preempted_in_vain
from tests.chaos.history import Command, Fault, Life, Sample, Story
from tests.chaos.plan import NETWORK, PLATFORM_MARGIN, Run

# Seconds in which a deposed leader must have learned that another one leads: several heartbeats of `life`.
_TO_LEARN: Final = 1.5
# Seconds of the longest pause, and how long heartbeats may be late after it.
_PAUSE: Final = 3.0
# Seconds between a fault and what must surely see it.
_MARGIN: Final = 0.1
_KEYS: Final = frozenset({"lease", "announcement", "members", "expiries", "notices", "files"})


def cluster_violations(story: Story, run: Run) -> list[str]:
    """Return what is wrong with a run as one of a cluster."""
    return [
        *terms(story),
        *newest(story, run),
        *durability(story),
        *deletion(story, run),
        *standby(story, run),
        *times(story),
        *damage(story),
        *commands(story),
        *keys(story),
    ]


def terms(story: Story) -> Iterator[str]:
    """Each term has one holder and one writer. A worker's terms grow, and over a file lock those of all do."""
    holders: dict[int, str] = {}
    writers: dict[int, str] = {}
    elections: list[tuple[float, int, str]] = []
    if story.has("FLUSHALL") and story.store == "redis":
        # The claims of terms were in the storage that was emptied.
        return
    for life in story.lives:
        own = 0
        for at, kind, fields in life.reported("elected", "committed"):
            term: Any = fields["term"]
            known = (holders if kind == "elected" else writers).setdefault(term, life.name)
            if known != life.name and not is_begun_anew(story):
                yield f"terms: term {term} of {known} was {kind} by {life.name}, too"
            if kind == "elected":
                elections.append((at, term, life.name))
                if term <= own:
                    yield f"terms: {life.name} leads under term {term} after {own}"
                own = term
    for sample in story.samples:
        parsed = None if sample.name is None else parse_name(sample.name)
        if parsed is not None and sample.writer is not None:
            life_name = sample.writer.rpartition("-")[0]
            known = writers.setdefault(parsed[0], life_name)
            if known != life_name and not is_begun_anew(story):
                yield f"terms: {sample.name} is by {life_name}, and term {parsed[0]} is of {known}"
    if story.coordinator == "file" and not is_begun_anew(story):
        for (_, one, first), (_, other, second) in zip(sorted(elections), sorted(elections)[1:], strict=False):
            if other <= one:
                yield f"terms: {second} leads under term {other} after {first} under {one}"


def newest(story: Story, run: Run) -> Iterator[str]:
    """The newest checkpoint verifies and never goes back. At the end it is the final state, if that is kept."""
    is_forgotten = story.has("FLUSHALL") and story.store == "redis"
    elections = [(at, int(str(fields["term"]))) for life in story.lives for at, _, fields in life.reported("elected")]
    last: Sample | None = None
    for sample in story.samples:
        is_damaged = has_overlap(story, sample.at - 1.0, sample.at + 1.0, "damage")
        if sample.problem is not None and not is_damaged:
            yield f"newest: {sample.problem}"
        if sample.name is None:
            # The checkpoints of a run are deleted before it is gone.
            is_deleted = sample.is_gone or (run.deletes and any(s.is_gone for s in story.samples if s.at > sample.at))
            if last is not None and not is_deleted and not is_forgotten:
                yield f"newest: {last.name} is gone, and there is no other"
            last = None
            continue
        if last is not None and _goes_back(last, sample, elections) and not (is_forgotten or story.has("damage")):
            yield f"newest: it went from {last.name} back to {sample.name}"
        last = sample
    if not run.deletes and (last is None or last.name is None or not is_final(last.name)) and not is_forgotten:
        yield f"newest: the run has ended, and the newest checkpoint is {None if last is None else last.name}"


def _goes_back(last: Sample, sample: Sample, elections: Sequence[tuple[float, int]]) -> bool:
    """An older leader may save what only it has when the next one has begun already."""
    is_late = any(at < last.at and _term(last) < term <= _term(sample) for at, term in elections)
    return _position(sample) < _position(last) and not is_late


def _term(sample: Sample) -> int:
    return term_of(str(sample.name))


def _position(sample: Sample) -> Position:
    assert sample.name is not None
    parsed = parse_name(sample.name)
    assert parsed is not None
    return parsed[1]


def durability(story: Story) -> Iterator[str]:
    """A worker that leaves before its grace period is over has nothing to lose but the batch in flight."""
    for life in story.lives:
        if life.exit_code != 143 or life.notice is None or not life.boundaries:
            continue
        has_time = life.ended - life.notice < life.grace - shutdown_reserve(life.grace)
        last = Position(*life.boundaries[-1][0])
        is_saved = life.newest is not None and life.newest >= last
        if has_time and not is_saved and not is_preempted_in_vain(story, life):
            yield f"durability: {life.name} left at {last}, and the newest checkpoint is at {life.newest}"


def deletion(story: Story, run: Run) -> Iterator[str]:
    """Only a worker that has finished deletes the run, as the last one, without a notice. And one does."""
    if not run.deletes:
        if any(sample.is_gone for sample in story.samples) and not (story.has("FLUSHALL") and story.store == "redis"):
            yield "deletion: the run was deleted"
        return
    is_split = story.has(*NETWORK, "FLUSHALL")
    for life in story.lives:
        for at, _, _ in life.reported("deleted"):
            if not any(done < at for done, _, _ in life.reported("finished")):
                yield f"deletion: {life.name} has not finished, and has deleted the run"
            if any(told < at for told, _, _ in life.reported("notice")):
                yield f"deletion: {life.name} is being preempted, and has deleted the run"
            others = [other.name for other in story.lives if other is not life and _takes_part(other, at)]
            if others and not is_split:
                yield f"deletion: {life.name} has deleted the run of {others}"


def _takes_part(life: Life, at: float) -> bool:
    """Whether a life was a member at an instant, for longer than the others need to learn it."""
    joined = next((when for when, _, _ in life.reported("restored")), None)
    done = min((when for when, _, _ in life.reported("finished", "preempted", "left")), default=life.ended)
    # A worker that is stopped for longer than its lease is no member.
    return joined is not None and joined < at - _TO_LEARN and done > at and not life.pauses


def standby(story: Story, run: Run) -> Iterator[str]:
    """With `standby`, a worker asks nothing once another one leads, as soon as it can know."""
    if not run.standby or story.has(*NETWORK, "FLUSHALL"):
        return
    for life in story.lives:
        if life.pauses:
            continue
        own = [at for at, _, _ in life.reported("elected")]
        others = [
            (at, _end_of_lead(other, at))
            for other in story.lives
            if other is not life
            for at, _, _ in other.reported("elected")
        ]
        for moment in life.moments:
            if moment.kind != "asked":
                continue
            last = max((at for at in own if at <= moment.at), default=0.0)
            if any(last < at < moment.at - _TO_LEARN and moment.at < until for at, until in others):
                yield f"standby: {life.name} asks for {moment.fields[0]} while another worker leads"
                break


def _end_of_lead(life: Life, begun: float) -> float:
    ends = (at for at, _, _ in life.reported("lost", "resigned", "left", "preempted", "finished") if at > begun)
    return min(ends, default=life.ended)


def times(story: Story) -> Iterator[str]:
    """A preempted worker ends in its grace period. The platform waits a little longer than the worker knows."""
    for life in story.lives:
        if life.notice is None or life.exit_code != 143:
            continue
        seconds = life.ended - life.notice
        if seconds > life.grace + PLATFORM_MARGIN and not life.pauses:
            yield f"times: {life.name} ended {seconds:.1f} s after its notice, and had {life.grace:g} s"


def damage(story: Story) -> Iterator[str]:
    """A leader that starts while the newest checkpoint is damaged says so by name."""
    for fault in story.faults:
        if fault.kind != "damage" or not fault.is_hit or not fault.detail.startswith("checkpoint"):
            continue
        name = fault.detail.rpartition(" ")[2]
        yield from (
            f"damage: {life.name} does not name {name}, which is damaged"
            for life in story.lives
            if _meets(life, story, name, fault) and name not in life.output
        )


def _meets(life: Life, story: Story, name: str, fault: Fault) -> bool:
    """Whether a life has led and looked for a checkpoint while this one was damaged, and no newer one was there."""
    led = next((at for at, _, _ in life.reported("elected")), None)
    # A life that was interrupted before may not have looked.
    looked = next((at for at, _, _ in life.reported("restored")), math.inf if life.ways else life.ended)
    newer = [
        each for each in story.samples if fault.at < each.at < looked and each.name is not None and each.name > name
    ]
    # A leader looks after its election.
    return led is not None and fault.at + _MARGIN < led <= looked < fault.until - _MARGIN and not newer


def commands(story: Story) -> Iterator[str]:
    """Operators' commands do what they say, and fail only for a reason."""
    for command in story.commands:
        if "Traceback" in command.output or command.code not in {0, 1, 2}:
            yield f"commands: {command.words} ended with {command.code}: {command.output[-1500:]}"
        elif command.code == 0:
            yield from _done(command, story)
        elif not _is_excused(command, story):
            yield f"commands: {command.words} ended with {command.code}: {command.output[-500:]}"


def _done(command: Command, story: Story) -> Iterator[str]:
    """Check what a command reports that has succeeded."""
    if command.words not in {"preempt", "resign"}:
        return
    said = orjson.loads(command.output[command.output.index("{") :])
    leader = next((life for life in story.lives if said["leader"].startswith(f"{life.name}-")), None)
    if leader is None:
        yield f"commands: {command.words} names {said['leader']}, which is no worker of the run"
    elif command.words == "preempt":
        passed = [
            Position(*map(int, m.fields[:2])) for m in leader.moments if m.kind == "boundary" and m.at < command.at
        ]
        saved = Position(said["epoch"], said["batch"])
        if passed and saved < passed[-1]:
            yield f"commands: preempt says {saved}, and {leader.name} had come to {passed[-1]}"
    elif said["leader"] == said["previous"]:
        yield f"commands: resign says that {said['leader']} follows itself"


def _is_excused(command: Command, story: Story) -> bool:
    """Whether something else happened to the run meanwhile, or it was not there yet, or no more."""
    began, ended = command.at - _TO_LEARN, command.until
    is_disturbed = any(began < fault.until and fault.at < ended for fault in story.faults if fault.kind in ENVIRONMENT)
    is_over = any(sample.is_gone for sample in story.samples) or not any(
        s.name for s in story.samples if s.at < command.at
    )
    if command.words not in {"preempt", "resign"}:
        return is_disturbed or is_over or story.has("damage")
    changes = [
        moment
        for life in story.lives
        for moment in life.moments
        if began < moment.at < ended and moment.kind == "event" and moment.fields[0] in {"elected", "lost", "resigned"}
    ]
    ends = [life for life in story.lives if began < life.ended < ended or began < life.began < ended]
    finished = [at for life in story.lives for at, _, _ in life.reported("finished") if at < ended]
    paused = [
        moment
        for life in story.lives
        for moment in life.moments
        if moment.kind == "paused" and command.at - _PAUSE < moment.at < ended + _PAUSE
    ]
    return bool(is_disturbed or is_over or changes or ends or finished or paused)


def keys(story: Story) -> Iterator[str]:
    """A run leaves only keys on its server that belong there. Those of the coordinator expire."""
    for key, expiry in story.keys.items():
        name = key.partition(":")[0]
        if name not in _KEYS | {"append"}:
            yield f"leftovers: the key {key}"
        elif name in _KEYS - {"files"} and expiry < 0:
            yield f"leftovers: the key {key} stays for ever"
