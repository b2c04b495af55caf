"""Events: the transitions of a worker, as values for people and programs that watch a run.

Workers read none of them. `at` is the wall clock of the worker's machine, so events of two machines are in order only
as far as their clocks agree. Events of one worker are in the order in which they were reported.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol

import orjson

logger = logging.getLogger(__name__)

Kind = Literal[
    "joined",
    "restored",
    "elected",
    "lost",
    "resigned",
    "stood_down",
    "committed",
    "commit_failed",
    "commit_recovered",
    "notice",
    "preempted",
    "finished",
    "deleted",
    "left",
    "unreachable",
    "reachable",
    "progress",
    "replayed",
    "diverged",
    "voided",
]

KINDS: Final[Mapping[str, frozenset[str]]] = {
    # The worker waits for its start position. Training starts at this position.
    "joined": frozenset({"run", "standby"}),
    "restored": frozenset({"checkpoint", "epoch", "batch"}),
    # The election, as this worker sees it.
    "elected": frozenset({"term"}),
    "lost": frozenset({"term", "reason"}),
    "resigned": frozenset({"term"}),
    # A standby has stopped training, because `leader` leads under `term`. It waits. `progress` follows if it trains on.
    "stood_down": frozenset({"leader", "term"}),
    # `bytes` is the size of the state, `seconds` the time from the start of the commit until it was durable.
    "committed": frozenset({"checkpoint", "term", "epoch", "batch", "bytes", "seconds"}),
    "commit_failed": frozenset({"reason"}),
    "commit_recovered": frozenset(),
    # The kill comes in `remaining` seconds. The worker is done `seconds` after the notice. `saved` is null if there was
    # nothing to save.
    "notice": frozenset({"reason", "remaining"}),
    "preempted": frozenset({"saved", "checkpoint", "epoch", "batch", "seconds"}),
    # The other ends. The fit is complete. The last worker out has deleted the backup. The fit ended in another way.
    "finished": frozenset({"epoch", "batch"}),
    "deleted": frozenset(),
    "left": frozenset(),
    # The coordinator.
    "unreachable": frozenset({"reason"}),
    "reachable": frozenset(),
    # At the end of each epoch, and every 10 s between.
    "progress": frozenset({"epoch", "batch"}),
    # The journal. The replay of so many answers has ended, and the fit goes on after this position. It has come to
    # another state there. So many answers after this position do not count, and are asked for again.
    "replayed": frozenset({"answers", "epoch", "batch"}),
    "diverged": frozenset({"reason", "epoch", "batch"}),
    "voided": frozenset({"answers", "epoch", "batch"}),
}
"""The fields that an event of each kind always has."""

OPTIONAL_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "joined": frozenset({"directory"}),
    "resigned": frozenset({"reason"}),
    "commit_failed": frozenset({"intact"}),
}
"""Fields that an event may lack. `reason` is there if the worker was asked. `intact`: the run's directory is there."""

FINAL_KINDS: Final = frozenset({"preempted", "finished", "left"})
"""A worker ends with one of these. `resigned` and `deleted` may still follow."""

# Version 0.3 wrote these names into event logs.
_FORMER_NAMES: Final[Mapping[str, Kind]] = {"commits_work": "commit_recovered"}
_EVENT_LOG: Final = re.compile(r"events-[0-9]{8}T[0-9]{6}Z-[A-Za-z0-9][A-Za-z0-9._-]*\.jsonl")
# The name of a checkpoint, in a path or alone. It differs at each boundary.
_CHECKPOINT: Final = re.compile(r"\S*[0-9]{10}-[0-9]{8}-[0-9]{8}\S*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    r"""One transition of one worker, at a wall clock time with a time zone.

    A later version may add fields to those of `KINDS`.

    Raises:
        ValueError: An unknown kind, a missing field, or a time without a zone.

    Example:
        >>> at = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
        >>> Event(at=at, worker="w", kind="elected", fields={"term": 3}).line()
        b'{"at":"2026-11-23T10:00:00.000Z","worker":"w","event":"elected","term":3}\n'
    """

    at: datetime
    worker: str
    kind: Kind
    fields: Mapping[str, Any]

    def __post_init__(self) -> None:
        known = self.kind in KINDS and KINDS[self.kind] <= self.fields.keys()
        if not known or self.at.tzinfo is None or not isinstance(self.worker, str):
            raise ValueError(f"no event: at={self.at} kind={self.kind!r} fields={sorted(self.fields)}")

    def line(self) -> bytes:
        """Return the event as one line of JSON."""
        at = self.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return orjson.dumps({"at": at, "worker": self.worker, "event": self.kind, **self.fields}) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Event:
        """Parse a line that `line` or version 0.3 has written.

        Raises:
            ValueError: The line holds no event.
        """
        try:
            fields = orjson.loads(line)
            at, worker, kind = (fields.pop(name) for name in ("at", "worker", "event"))
            orjson.dumps(fields)  # it reads values that are nested too deep for it to write
            return cls(at=datetime.fromisoformat(at), worker=worker, kind=_FORMER_NAMES.get(kind, kind), fields=fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no event: {line[:80]!r}") from error


class Report(Protocol):
    """Reports a transition. Callable from any thread, with any lock held. It waits for log handlers only."""

    def __call__(self, kind: Kind, /, **fields: Any) -> None:
        """Report that a transition of this kind has just happened."""


class Sink(Protocol):
    """A destination of events."""

    def emit(self, event: Event) -> None:
        """Take over an event. Must not block."""

    def close(self, timeout: float) -> None:
        """Finish within `timeout` seconds: no event that must be kept follows."""


def no_report(kind: Kind, /, **fields: Any) -> None:
    """Discard a report."""


class RepeatedFailures:
    """Recognises commit failures that repeat the last one, whichever checkpoint they were about."""

    def __init__(self) -> None:
        self._reason: str | None = None

    def is_repeated(self, event: Event) -> bool:
        """Whether `event` is a failure for the same reason as the one before."""
        if event.kind == "commit_recovered":
            self._reason = None
        if event.kind != "commit_failed":
            return False
        last, self._reason = self._reason, without_checkpoint_name(str(event.fields["reason"]))
        return last == self._reason


def without_checkpoint_name(reason: str) -> str:
    """Return the reason of a failed commit without the name of the checkpoint."""
    return _CHECKPOINT.sub("", reason)


def is_event_log(name: str) -> bool:
    """Whether `name` is that of a worker's event log: `events-TIME-WORKER.jsonl`, as `event_log_name` makes it."""
    return _EVENT_LOG.fullmatch(name) is not None


def event_log_name(event: Event) -> str:
    """Return the name of the log that begins with `event`. The names of a run's logs sort by age."""
    return f"events-{event.at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{event.worker}.jsonl"
