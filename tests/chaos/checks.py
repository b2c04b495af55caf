"""Check the history of a run. Each check returns one sentence for each violation. Imports no synalinks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from distributed_backup.checkpoints.format import term_of
from distributed_backup.checkpoints.journal import term_of_segment
from distributed_backup.storage.base import partial_target
from tests.chaos.excuses import ENVIRONMENT, has_overlap, is_recorded
from tests.chaos.history import Life, Stage, Story, final_answers
from tests.chaos.plan import VIOLENT

# Requests that a fit makes at once. So many answers may have arrived, and not be durable, at a SIGKILL.
AT_ONCE: Final = 8
_EXIT_CODES: Final = {
    "SIGKILL": {-9},
    "SIGKILL to all": {-9},
    "crash": {-9},
    "SIGTERM": {143},
    "SIGTERM to all": {143},
    "cut off": {143},
    "eviction": {143, -9},
    "exception": {1},
    "Ctrl-C": {1},
    # It may have to be started again, because it can't follow its successor.
    "pause": {0, 143},
}
_STREAM_LOST: Final = "while this one read the stream of an answer"
_LOST_AFTER_PAUSE: Final = ("the leader has begun another log", _STREAM_LOST)
# Seconds in which a batch in flight surely ends, and its boundary is saved.
_TO_LEAVE: Final = 4.0
# Seconds from the listing of a directory to the report of the commit.
_WHILE_COMMITTING: Final = 0.5
# A partial event log may be of a worker that still runs. So only a deletion removes it.
_BELONGS: Final = re.compile(
    r"run\.json|coordinator|(\.partial-)?events-\S+\.jsonl\S*|[0-9]{10}\.term|[0-9]{10}-[0-9]{8}-[0-9]{8}(\.final)?\.ckpt"
    r"|[0-9]{10}-[0-9]{8}-[0-9]{8}\.journal"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An uninterrupted run: its boundaries, and the number of its answers. None if that depends on the answers."""

    boundaries: tuple[Stage, ...]
    answers: int | None


def violations(story: Story, reference: Reference) -> list[str]:
    """Return what is wrong with a run, as far as each life of it can tell."""
    lives = story.lives
    found = [*ends(story), *whole(story, reference), *late(lives), *leftovers(story)]
    if is_recorded(story):
        found += [*order(lives), *lost(lives), *states(lives), *events(lives)]
    return found


def order(lives: Sequence[Life]) -> Iterator[str]:
    """Each life sees the same answers in a stage, in the same order, as far as it comes. So none is asked for again.

    In the stage in which a fit is cancelled, retries take answers that were cancelled while they waited. So the order
    of what this fit sees before it ends counts for nothing.
    """
    final = final_answers(lives)
    for life in lives:
        for stage, tokens in life.seen.items():
            is_cancelled = life.ways & {"cut off", "Ctrl-C"} and stage not in life.completed
            if is_cancelled and set(tokens) <= set(final[stage]):
                continue
            if final[stage][: len(tokens)] != tokens:
                place = next(at for at, token in enumerate(tokens) if final[stage][at] != token)
                yield f"order: {life.name} saw another answer after {stage} at number {place} of {len(tokens)}"
            elif stage in life.completed and len(tokens) < len(final[stage]):
                yield f"order: {life.name} saw {len(tokens)} answers after {stage}, not {len(final[stage])}"


def lost(lives: Sequence[Life]) -> Iterator[str]:
    """What is durable counts in the end. What was answered is durable, see `AT_ONCE`.

    Of a leader that has lost its lease, the requests that were under way then need not count.
    """
    final = {token for tokens in final_answers(lives).values() for token in tokens}
    for life in lives:
        durable = set(life.durable)
        gone = durable - final - life.cut_off
        if gone:
            yield f"lost: {len(gone)} of {len(durable)} answers that {life.name} made durable"
        not_durable = [token for token in life.answered if token not in durable | life.cut_off]
        allowed = AT_ONCE if life.ways & VIOLENT else 0
        if len(not_durable) > allowed:
            yield f"lost: {len(not_durable)} answers of {life.name} never became durable, {allowed} may"


def states(lives: Sequence[Life]) -> Iterator[str]:
    """A boundary that is passed again is passed in the same state."""
    first: dict[Stage, tuple[str, str]] = {}
    for life in lives:
        for position, digest in life.boundaries:
            known, name = first.setdefault(position, (digest, life.name))
            if known != digest:
                yield f"states: {life.name} passed {position} in another state than {name}"
    finals = {life.end for life in lives if life.end is not None}
    if len(finals) > 1:
        yield f"states: {len(finals)} different states at the end"


def ends(story: Story) -> Iterator[str]:
    """Each life ends as its interruptions want, or regularly if it was over before."""
    for life in story.lives:
        wanted = {code for way in life.ways for code in _EXIT_CODES[way]} or {0}
        # A signal may come before the fit has begun, or when it has ended: after the deletion it does at once.
        if life.ways and (life.end is not None or life.events["deleted"] or not life.events["joined"]):
            wanted |= {-15, -2}
        if life.ways and life.end is not None and not _trains_on(life):
            wanted |= {0}
        # It can't go on, and is to be started again.
        if life.events["stood_down"] or life.events["diverged"]:
            wanted |= {0, 143}
        is_hindered = life.error is not None and has_overlap(story, life.began - 1.0, life.ended, *ENVIRONMENT)
        if life.exit_code not in wanted | ({1} if is_hindered else set()):
            yield f"ends: {life.name} ended with {life.exit_code} after {life.how or 'no interruption'}, not {wanted}"


def _trains_on(life: Life) -> bool:
    """Whether a life has finished long after its notice, so that it can't have been about to."""
    finished = max((at for at, _, _ in life.reported("finished")), default=0.0)
    return life.notice is not None and finished - life.notice > _TO_LEAVE and not life.pauses


def events(lives: Sequence[Life]) -> Iterator[str]:
    """No replay comes to another state, and no answer is void.

    A worker that was suspended is no member, so the journal may be pruned before it has read it. And it can't take back
    the chunks of a stream. Nor can one that was asked to let another worker lead.
    """
    for life in lives:
        was_asked = any("reason" in fields for _, _, fields in life.reported("resigned"))
        excused = _LOST_AFTER_PAUSE if life.pauses else (_STREAM_LOST,) if was_asked else ()
        for detail in life.details:
            if any(reason in detail for reason in excused):
                continue
            yield f"events: {life.name}: {detail}"


def whole(story: Story, reference: Reference) -> Iterator[str]:
    """All boundaries are passed. The answers that count are as many as those of an uninterrupted run."""
    passed = {position for life in story.lives for position, _ in life.boundaries}
    if passed != set(reference.boundaries):
        yield f"whole: boundaries passed {sorted(passed)}, not {sorted(reference.boundaries)}"
    count = sum(map(len, final_answers(story.lives).values()))
    if is_recorded(story) and reference.answers is not None and count != reference.answers:
        yield f"whole: {count} answers count, an uninterrupted run has {reference.answers}"


def late(lives: Sequence[Life]) -> Iterator[str]:
    """A fit that has returned sends nothing more.

    One that was interrupted may: retries of synalinks catch the cancellation of their task, and its process ends.
    """
    for life in lives:
        if life.late and life.end is not None:
            yield f"late: {life.name} sent {len(life.late)} requests after its fit had finished"


def paid(lives: Sequence[Life]) -> tuple[int, int]:
    """Return how many requests were made, and how many of them were under way at an interruption or have failed."""
    seen = {token for life in lives for tokens in life.seen.values() for token in tokens}
    asked = [token for life in lives for token in life.asked]
    return len(asked), sum(token not in seen for token in asked)


def leftovers(story: Story) -> Iterator[str]:
    """Nothing is left in the directory that does not belong there. A commit removes what was left before it."""
    commits = [(at, fields["term"]) for life in story.lives for at, _, fields in life.reported("committed")]
    last, term = max(commits, default=(0.0, 0))
    planted = {f.detail.strip() for f in story.faults if f.kind == "leftover" and f.until > last - _WHILE_COMMITTING}
    died = any(life.ways & VIOLENT and life.ended > last for life in story.lives)
    for name in story.left:
        target = partial_target(name) or ""
        # What a worker leaves that dies after the last commit stays.
        is_late = died and max(term_of(target), term_of_segment(target)) >= int(str(term))
        if not (name in planted or is_late or _BELONGS.fullmatch(name)):
            yield f"leftovers: {name}"
