"""The life of one worker, as values: what it did when, what happened to it, how far it came.

Times are seconds since 1970, of the worker's own wall clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from distributed_backup.position import Position

type SpanKind = Literal["waiting", "training", "leading", "saving", "leaving", "unreachable"]
type MarkKind = Literal["commit", "restore", "notice", "failure"]
type Ending = Literal["preempted", "finished", "left", "gone", ""]
type LeadershipEnd = Literal["lost", "resigned"] | Ending

_INCARNATION: Final = re.compile(r"-[0-9a-f]{8}$")
# What Kubernetes adds to the name of a pod: the pod that replaces one is the same worker of the job. Digits alone are
# rather the id of a process.
_POD: Final = re.compile(r"-(?![0-9]{5}$)[bcdfghjklmnpqrstvwxz2456789]{5}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that lasted; `about` is for people."""

    kind: SpanKind
    start: float
    end: float
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that happened; `about` is for people."""

    kind: MarkKind
    at: float
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leadership:
    """A term and who held it.

    Args:
        worker_id: Who led.
        term: Its term.
        start: When it was elected.
        end: When it knew that it leads no more, or when it was heard of last.
        how: "lost" and "resigned" if it lived on, else its ending; empty if it leads still.
        reason: Why it was lost.
    """

    worker_id: str
    term: int
    start: float
    end: float
    how: LeadershipEnd
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incarnation:
    """One incarnation of a worker.

    Args:
        worker_id: Its id.
        start: Its first word.
        end: Its last; now, if it goes on.
        ending: "gone" if it ended without a word; empty if it goes on.
        saved: What a preempted one says of its save: False if there was none, None if there was nothing to save.
        noticed: When the notice came that it was preempted by.
        spans: What it did.
        marks: What happened to it.
        leads: When it led.
        track: How far it had come, when; it only goes back where a checkpoint was restored.
    """

    worker_id: str
    start: float
    end: float
    ending: Ending
    saved: bool | None
    noticed: float | None
    spans: tuple[Span, ...]
    marks: tuple[Mark, ...]
    leaderships: tuple[Leadership, ...]
    track: tuple[tuple[float, Position], ...]

    @property
    def trainings(self) -> list[Span]:
        """When it trained."""
        return self.of("training")

    def of(self, kind: SpanKind) -> list[Span]:
        """When it did this."""
        return [span for span in self.spans if span.kind == kind]


def lane_name(worker_id: str) -> str:
    """What a worker is called in all its lives: its id without what tells its incarnations, and pods, apart.

    Example:
        >>> name_of("train-0-x7k2p-0123abcd")
        'train-0'
    """
    return _POD.sub("", without_incarnation(worker_id))


def without_incarnation(worker_id: str) -> str:
    """What all lives of one pod or process name share."""
    return _INCARNATION.sub("", worker_id)
