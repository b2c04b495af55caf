"""What happens to a worker, as values: its transitions, for whoever wants to keep or to count them.

Workers tell each other nothing by these; they are for people. To report one never blocks and never fails, whatever
becomes of it. `at` is the wall clock of the worker's machine: events of two machines are in order as far as their
clocks agree, those of one worker are in the order in which they were reported.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    "committed",
    "commit_failed",
    "commits_work",
    "notice",
    "preempted",
    "finished",
    "left",
    "unreachable",
    "reachable",
    "progress",
]

KINDS: Final[Mapping[str, frozenset[str]]] = {
    # Waits to start from now on; training starts at this position.
    "joined": frozenset({"run", "standby"}),
    "restored": frozenset({"checkpoint", "epoch", "batch"}),
    # The election, as this worker sees it.
    "elected": frozenset({"term"}),
    "lost": frozenset({"term", "reason"}),
    "resigned": frozenset({"term"}),
    # What is written: bytes are those of the state, seconds from the start of the commit until it was durable.
    "committed": frozenset({"checkpoint", "term", "epoch", "batch", "bytes", "seconds"}),
    "commit_failed": frozenset({"reason"}),
    "commits_work": frozenset(),
    # It will be killed in `remaining` seconds; it left `seconds` after that (saved: None if there was nothing to save).
    "notice": frozenset({"reason", "remaining"}),
    "preempted": frozenset({"saved", "checkpoint", "epoch", "batch", "seconds"}),
    # The other two ends: the fit is complete; it ended in another way.
    "finished": frozenset({"epoch", "batch"}),
    "left": frozenset(),
    # The coordinator.
    "unreachable": frozenset({"reason"}),
    "reachable": frozenset(),
    # At each epoch's end, and now and then between.
    "progress": frozenset({"epoch", "batch"}),
}
"""Which fields an event of each kind has."""

FINAL_KINDS: Final = frozenset({"preempted", "finished", "left"})
"""A worker ends with one of these. What it held, it gives back: `resigned` may still follow."""

# An error's text may be long; a log is bounded.
_LONGEST_TEXT: Final = 500
# The name of a checkpoint, in a path or not: another one at each boundary.
_CHECKPOINT: Final = re.compile(r"\S*[0-9]{10}-[0-9]{8}-[0-9]{8}\S*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    r"""One transition of one worker.

    Args:
        at: When, by the wall clock, with a time zone.
        worker: Id of the incarnation.
        kind: What.
        fields: What belongs to it: those of `KINDS`; a later version may add some.

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
        """The event as one line of JSON."""
        at = self.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return orjson.dumps({"at": at, "worker": self.worker, "event": self.kind, **self.fields}) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Event:
        """The event that a line tells.

        Raises:
            ValueError: It is not one.
        """
        try:
            fields = orjson.loads(line)
            at, worker, kind = (fields.pop(name) for name in ("at", "worker", "event"))
            return cls(at=datetime.fromisoformat(at), worker=worker, kind=kind, fields=fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no event: {line[:80]!r}") from error


class Report(Protocol):
    """Tells of a transition. From any thread, with any lock held; returns at once."""

    def __call__(self, kind: Kind, /, **fields: Any) -> None:
        """Something of this kind has just happened."""


class Sink(Protocol):
    """What events go to."""

    def emit(self, event: Event) -> None:
        """Take over an event; must not block."""

    def close(self, timeout: float) -> None:
        """Nothing more will come. Be done within `timeout` seconds."""


def no_report(kind: Kind, /, **fields: Any) -> None:
    """A report that nobody hears."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Reporter:
    """Stamps what one worker reports, and hands it on.

    Args:
        worker_id: Who reports.
        sinks: Where it goes.
        wall: The wall clock.
    """

    def __init__(self, worker_id: str, *sinks: Sink, wall: Callable[[], datetime] = _utc_now) -> None:
        self._worker_id = worker_id
        self._sinks = sinks
        self._wall = wall
        # Held while handing on, so that every sink has the events in one order.
        self._lock = threading.Lock()
        self._farewell_said = False

    def __call__(self, kind: Kind, /, **fields: Any) -> None:
        """Report a transition; of several farewells the first counts."""
        with self._lock:
            if kind in FINAL_KINDS:
                if self._farewell_said:
                    return
                self._farewell_said = True
            # A bug here must not end the election or the saving, one in a sink not keep the event from the others.
            with self._surviving(kind):
                cut = {name: _cut(value) if isinstance(value, str) else value for name, value in fields.items()}
                event = Event(at=self._wall(), worker=self._worker_id, kind=kind, fields=cut)
                for sink in self._sinks:
                    with self._surviving(kind):
                        sink.emit(event)

    @contextmanager
    def _surviving(self, kind: Kind) -> Iterator[None]:
        try:
            yield
        except Exception:
            logger.exception("event not reported worker=%s event=%s", self._worker_id, kind)

    def close(self, timeout: float) -> None:
        """Let the sinks finish, for at most `timeout` seconds each; nothing is taken afterwards."""
        for sink in self._sinks:
            sink.close(timeout)


def _cut(text: str) -> str:
    """Of bounded length, and without surrogates, which JSON can't hold: a file's name may be no UTF-8."""
    return text[:_LONGEST_TEXT].encode(errors="replace").decode()


def without_checkpoint_name(reason: str) -> str:
    """A reason for which commits fail, without the checkpoint that it was about."""
    return _CHECKPOINT.sub("", reason)


def is_event_log(name: str) -> bool:
    """Whether a file of this name is a worker's event log: `events-TIME-WORKER.jsonl`."""
    return name.startswith("events-") and name.endswith(".jsonl")


def event_log_name(event: Event) -> str:
    """The name of the log that begins with `event`: the names of a run's logs are in the order of their age."""
    return f"events-{event.at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{event.worker}.jsonl"
