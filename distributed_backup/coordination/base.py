"""The contract of a coordinator: who should write, and what was decided.

A coordinator grants a lease and keeps the term, the announcement, the members and the notices of one run. It
says who *should* write, not who *can*: a paused holder may wake after its lease lapsed. The term in a
checkpoint's name decides who counts; see `store`.

Every operation may be repeated after a lost reply without changing anything. Driver errors become
`CoordinatorUnavailableError`, or `ConfigError` where trying again can't help: a wrong password, a server that is too
old. Nothing else leaves an implementation. All implementations pass one suite, `tests/contract`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.position import Position

Role = Literal["leader", "follower", "standby"]
Action = Literal["save", "resign"]
Hint = Literal["free", "announced", "finished", "noticed"]
"""What may be worth a look now: the lease was given back; there is an announcement; it is the run's last; a notice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What a worker says at each tick.

    Args:
        worker_id: Who speaks; unique to this incarnation.
        campaign: Whether it wants the lease if it is free.
        floor: Highest term known to be used; a granted term is higher.
        duration: Seconds the lease and the membership last from now.
        role: What it was at the last tick, for `status`.
        position: How far its training has come; None before it knows.
    """

    worker_id: str
    campaign: bool
    floor: int
    duration: float
    role: Role = "follower"
    position: Position | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """Term `term` restored or committed position P in checkpoint C with digest D.

    Args:
        term: The term it was made under.
        worker_id: The leader that made it.
        position: Position of the checkpoint, or where a fresh start begins.
        checkpoint: Its name; None for a fresh start.
        digest: Its digest; None for a fresh start.
        answers: Ids of the notices that this announcement answers: what was to be saved is durable.
        finished: Whether the run is complete.
    """

    term: int
    worker_id: str
    position: Position
    checkpoint: str | None = None
    digest: str | None = None
    answers: tuple[str, ...] = ()
    finished: bool = False

    def to_fields(self) -> dict[str, Any]:
        """Return the announcement as a JSON object.

        The object has the form that version 0.3 writes and reads, because a job may be upgraded while it runs.
        """
        return {
            "term": self.term,
            "worker_id": self.worker_id,
            "kind": "finished" if self.finished else "committed",
            "position": self.position.as_tuple,
            "checkpoint": self.checkpoint,
            "digest": self.digest,
            "answers": self.answers,
        }

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """Read the object that `to_fields` returns. Version 0.3 also writes the kinds "fresh" and "restored".

        Raises:
            KeyError: A field is missing.
            TypeError: A field has another type, or the object is none.
            ValueError: A number is malformed or out of range.
        """
        return cls(
            term=int(fields["term"]),
            worker_id=fields["worker_id"],
            position=Position(*fields["position"]),
            checkpoint=fields["checkpoint"],
            digest=fields["digest"],
            answers=tuple(fields["answers"]),
            finished=fields["kind"] == "finished",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A preemption is coming, or an operator asks for what is done before one.

    Args:
        notice_id: Unique to the notice.
        worker_id: Who is being preempted; who asks; for "resign", the leader that is asked.
        reason: What told it: "SIGTERM".
        remaining: Seconds until the kill, or for which the request stands, as of now.
        action: What the leader is to do: "save"; or "resign", that is to save and to let another lead.
    """

    notice_id: str
    worker_id: str
    reason: str
    remaining: float
    action: Action = "save"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A worker of the run, as last heard of.

    Args:
        worker_id: Its id.
        role: What it said it was.
        position: How far it said it had come; None if it didn't say.
        age: Seconds since it was last heard of.
    """

    worker_id: str
    role: Role
    position: Position | None
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """All a worker knows of the cluster.

    Args:
        term: The newest term that was granted; 0 before the first.
        holder: Who holds the lease of that term; None if nobody does.
        holder_age: Seconds since the holder was last heard of; None without one, or if that can't be told.
        remaining: Seconds the lease still lasts; None if it lasts as long as its holder lives.
        announcement: The newest announcement, made under the newest term that made one.
        notices: All notices that are not over. Only the leader acts on them, so that a heartbeat may leave them out
            for who does not hold the lease: with N workers preempted at once, N² of them would be sent.
        reason: Why the asking worker does not hold a lease it held before, where that is known.
    """

    term: int
    holder: str | None
    holder_age: float | None
    remaining: float | None
    announcement: Announcement | None
    notices: tuple[Notice, ...] = ()
    reason: str = ""


class Coordinator(ABC):
    """One run's coordinator. Thread-safe; one instance may serve several workers of one process."""

    heartbeat_interval: float | None = None
    """Seconds between heartbeats that suit it; None for `LeaseTimings.retry_period`."""

    has_expiry = False
    """Whether the lease of a holder that died goes on until it runs out by time."""

    def open(self, run_id: str, timings: LeaseTimings) -> None:  # noqa: B027 - most have nothing to learn
        """Learn which run it coordinates. Called by each worker before anything else; does no I/O.

        Args:
            run_id: Id of the run.
            timings: Durations of its lease: no operation may block for long in comparison.

        Raises:
            ConfigError: It was opened for another run.
        """

    def subscribe(self, wake: Callable[[Hint], None]) -> Callable[[], None]:  # noqa: ARG002 - for those that give hints
        """Have `wake` called when a look may be worth while, until the function that is returned is called.

        A convenience: hints may be lost, late, and doubled, and one that has no way to give them gives none.

        Args:
            wake: Called from any thread; must not block.
        """
        return lambda: None

    def close(self) -> None:  # noqa: B027 - most hold nothing that the process' end does not free
        """What `open` begins, ends: let go of connections. The next operation makes new ones."""

    @abstractmethod
    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        """Refresh the membership; renew the lease, or take it if it is free and wanted; tell what is.

        The holder's lease is renewed whether or not it campaigns. A free lease is granted under a term
        higher than every term granted before and than `beat.floor`.

        Raises:
            CoordinatorUnavailableError: It can't be reached; nothing is known.
        """

    @abstractmethod
    def view(self) -> ClusterView:
        """Tell what is, without becoming a member or touching the lease.

        Raises:
            CoordinatorUnavailableError: It can't be reached.
        """

    @abstractmethod
    def members(self) -> tuple[Member, ...]:
        """The workers whose membership has not expired, by id.

        Raises:
            CoordinatorUnavailableError: It can't be reached.
        """

    @abstractmethod
    def announce(self, announcement: Announcement) -> bool:
        """Make `announcement` the announcement of its term; False if its worker no longer holds that term.

        Its worker counts as heard of.

        Raises:
            CoordinatorUnavailableError: It can't be reached; the announcement may or may not have been made.
        """

    @abstractmethod
    def notify(self, notice: Notice) -> None:
        """Tell all workers of `notice`; it is over after `notice.remaining` seconds, or when its worker leaves.

        Raises:
            CoordinatorUnavailableError: It can't be reached.
        """

    @abstractmethod
    def resign(self, worker_id: str) -> None:
        """Give the lease back at once if `worker_id` holds it, so that another may take it at its next tick.

        Raises:
            CoordinatorUnavailableError: It can't be reached.
        """

    @abstractmethod
    def leave(self, worker_id: str) -> None:
        """End a membership and take back its notices.

        Raises:
            CoordinatorUnavailableError: It can't be reached.
        """

    @abstractmethod
    def erase(self) -> None:
        """Forget the run: the last one out calls this when the backup has been deleted.

        Raises:
            CoordinatorUnavailableError: It can't be reached.
        """
