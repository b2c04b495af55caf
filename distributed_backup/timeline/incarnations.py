"""One incarnation of a worker as values: what it did when, and how far it trained.

Times are seconds since 1970, from the worker's own wall clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from distributed_backup.position import Position

type SpanKind = Literal["waiting", "training", "leading", "saving", "exiting", "unreachable"]
type MarkKind = Literal["commit", "restore", "replay", "notice", "failure"]
type JournalFaultKind = Literal["diverged", "voided"]
type Ending = Literal["preempted", "finished", "left", "gone", ""]
type LeadershipEnd = Literal["lost", "resigned"] | Ending

JOURNAL_FAULTS: Final[dict[str, str]] = {
    "diverged": "diverged in a replay",
    "voided": "voided answers",
}
"""What a worker did, by kind."""

LONGEST: Final = 1e12
"""Seconds. A longer duration in an event is not believed."""

_INCARNATION: Final = re.compile(r"-[0-9a-f]{8}$")
# The suffix that Kubernetes adds to a pod's name. The manifests in `deploy/` use that name as the worker id, and a pod
# that replaces another is the same worker. Five digits are rather a process id.
_POD: Final = re.compile(r"-(?![0-9]{5}$)[bcdfghjklmnpqrstvwxz2456789]{5}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """An activity with a duration. `about` is its text in the picture."""

    kind: SpanKind
    start: float
    end: float
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An activity without a duration. `about` is its text in the picture."""

    kind: MarkKind
    at: float
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalFault:
    """A replay that came to another state, or recorded answers that became void. `reason` says where and why."""

    kind: JournalFaultKind
    at: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leadership:
    """A term and the worker that led it, from its election until it stopped leading or reporting.

    `how` is "lost" or "resigned" if the worker continued, otherwise the incarnation's ending. It is "" while it leads.
    """

    worker_id: str
    term: int
    start: float
    end: float
    how: LeadershipEnd
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incarnation:
    """One process of a worker, from its first event to its last, or to now if it is running.

    Args:
        ending: "gone" if it stopped reporting, "left" if an error ended the fit, "" if it is running.
        saved: Whether a preempted worker saved. None if there was nothing to save.
        noticed: The time of the notice that it was preempted by.
        replayed: Number of answers that came from the journal.
        track: Times and positions. A position is lower than the one before only after a restore.
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
    replayed: int
    journal_faults: tuple[JournalFault, ...]
    track: tuple[tuple[float, Position], ...]

    def of(self, kind: SpanKind) -> list[Span]:
        """Return the spans of this kind."""
        return [span for span in self.spans if span.kind == kind]


def lane_name(worker_id: str) -> str:
    """Return the name that all incarnations of a worker share: its id without the suffixes of process and pod.

    Example:
        >>> lane_name("train-0-x7k2p-0123abcd")
        'train-0'
    """
    return _POD.sub("", without_incarnation(worker_id))


def without_incarnation(worker_id: str) -> str:
    """Return the worker id without the random suffix of its process."""
    return _INCARNATION.sub("", worker_id)
