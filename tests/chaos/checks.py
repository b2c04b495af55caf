"""Check the history of a run. Each check returns one sentence for each violation. Imports no synalinks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tests.chaos.history import Life, Stage, final_answers

# Requests that a fit makes at once. So many answers may have arrived, and not be durable, at a SIGKILL.
AT_ONCE: Final = 8
_EXIT_CODES: Final = {
    "SIGKILL": {-9},
    "SIGTERM": {143},
    "cut off": {143},
    "exception": {1},
    "Ctrl-C": {1},
    # It may have to be started again, because it can't follow its successor.
    "pause": {0, 143},
}
_LOST_AFTER_PAUSE: Final = ("the leader has begun another log", "while this one read the stream of an answer")
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


def violations(lives: Sequence[Life], reference: Reference, left: Iterable[str] | None) -> list[str]:
    """Return what is wrong with a run. `left` are the names in its directory, None if it is not to be looked at."""
    found = [
        *order(lives),
        *lost(lives),
        *states(lives),
        *ends(lives),
        *events(lives),
        *whole(lives, reference),
    ]
    return [*found, *leftovers(left)] if left is not None else found


def order(lives: Sequence[Life]) -> Iterator[str]:
    """Each life sees the same answers in a stage, in the same order, as far as it comes. So none is asked for again.

    In the stage in which a fit is cancelled, retries take answers that were cancelled while they waited. So the order
    of what this fit sees before it ends counts for nothing.
    """
    final = final_answers(lives)
    for life in lives:
        for stage, tokens in life.seen.items():
            is_cancelled = life.how in {"cut off", "Ctrl-C"} and stage not in life.completed
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
        allowed = AT_ONCE if life.how == "SIGKILL" else 0
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


def ends(lives: Sequence[Life]) -> Iterator[str]:
    """Each life ends as its interruption wants, or regularly if it was over before."""
    for life in lives:
        wanted = {0} if life.how is None else _EXIT_CODES[life.how]
        # A signal may come when the fit has ended.
        if life.how is not None and life.end is not None:
            wanted = wanted | {0, -15, -2}
        if life.exit_code not in wanted:
            yield f"ends: {life.name} ended with {life.exit_code} after {life.how or 'no interruption'}, not {wanted}"


def events(lives: Sequence[Life]) -> Iterator[str]:
    """No replay comes to another state, and no answer is void.

    A worker that was suspended is no member, so the journal may be pruned before it has read it. And it can't take back
    the chunks of a stream.
    """
    for life in lives:
        for detail in life.details:
            if life.pauses and any(reason in detail for reason in _LOST_AFTER_PAUSE):
                continue
            yield f"events: {life.name}: {detail}"


def whole(lives: Sequence[Life], reference: Reference) -> Iterator[str]:
    """All boundaries are passed. The answers that count are as many as those of an uninterrupted run."""
    passed = {position for life in lives for position, _ in life.boundaries}
    if passed != set(reference.boundaries):
        yield f"whole: boundaries passed {sorted(passed)}, not {sorted(reference.boundaries)}"
    count = sum(map(len, final_answers(lives).values()))
    if reference.answers is not None and count != reference.answers:
        yield f"whole: {count} answers count, an uninterrupted run has {reference.answers}"


def paid(lives: Sequence[Life]) -> tuple[int, int]:
    """Return how many requests were made, and how many of them were under way at an interruption or have failed."""
    seen = {token for life in lives for tokens in life.seen.values() for token in tokens}
    asked = [token for life in lives for token in life.asked]
    return len(asked), sum(token not in seen for token in asked)


def leftovers(names: Iterable[str]) -> Iterator[str]:
    """Nothing is left in the directory that does not belong there."""
    for name in names:
        if not _BELONGS.fullmatch(name):
            yield f"leftovers: {name}"
