"""The contract of a coordinator, which grants the lease and keeps the shared records of one run.

The records are the term, the announcement, the members and the notices. A lease says who *should* write, not who *can*:
a paused holder may wake up after its lease has expired. The term in a checkpoint's name decides, see
`checkpoints.fencing`.

Every operation may be repeated after a lost reply without further effect. Driver errors become
`CoordinatorUnavailableError`, or `ConfigError` where a retry can't help: a wrong password, a server that is too old.
An implementation raises no other errors. All implementations pass one suite, `tests/contract`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, cast

from distributed_backup.checks import is_whole, shown
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import ConfigError
from distributed_backup.position import Position

Role = Literal["leader", "follower", "standby"]
Action = Literal["save", "resign"]
Hint = Literal["free", "announced", "finished", "noticed", "appended"]
"""What has happened: lease released, announcement made, run finished, notice posted, journal appended to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What a worker sends at each tick.

    Args:
        worker_id: The sender. Unique to this incarnation.
        campaign: Whether the worker takes the lease if it is free.
        floor: The highest term known to be used. A granted term is higher.
        duration: Seconds until the lease and the membership expire, counted from now.
        role: The worker's role at the last tick.
        position: How far the worker's training has come. None if it has not started.
        gives_way_to: The worker leaves a free lease to a member that is ahead, and whose last heartbeat is less than
            this many seconds old. See `giving_way.is_ahead`. 0: the worker takes the lease in any case.
    """

    worker_id: str
    campaign: bool
    floor: int
    duration: float
    role: Role = "follower"
    position: Position | None = None
    gives_way_to: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """Term `term` restored or committed position P in checkpoint C with digest D.

    Args:
        term: The term it was made under.
        worker_id: The leader that made it.
        position: Position of the checkpoint, or where a fresh start begins.
        checkpoint: The checkpoint's name. None for a fresh start.
        digest: The checkpoint's digest. None for a fresh start.
        acknowledged: Ids of the notices that this announcement serves: the state they asked to save is durable.
        finished: Whether the run is complete.
    """

    term: int
    worker_id: str
    position: Position
    checkpoint: str | None = None
    digest: str | None = None
    acknowledged: tuple[str, ...] = ()
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
            "answers": self.acknowledged,
        }

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """Read the object that `to_fields` returns. Version 0.3 also writes the kinds "fresh" and "restored".

        Raises:
            KeyError: A field is missing.
            TypeError: A field has another type, or `fields` is no object.
            ValueError: A number is out of range.
        """
        answers = fields["answers"]
        texts = [fields["worker_id"], *(fields[name] for name in ("checkpoint", "digest") if fields[name] is not None)]
        are_lists = isinstance(answers, list) and isinstance(fields["position"], list)
        if not (is_whole(fields["term"]) and are_lists and all(isinstance(text, str) for text in [*texts, *answers])):
            raise TypeError(f"want an announcement, got {shown(fields)}")
        return cls(
            term=fields["term"],
            worker_id=fields["worker_id"],
            position=Position(*fields["position"]),
            checkpoint=fields["checkpoint"],
            digest=fields["digest"],
            acknowledged=tuple(answers),
            finished=fields["kind"] == "finished",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A preemption is coming, or an operator requests what is done before one.

    Args:
        notice_id: Unique to the notice.
        worker_id: The worker that is being preempted, or the operator. For "resign", the leader that is to resign.
        reason: The cause, for example "SIGTERM".
        remaining: Seconds until the kill, or until the request expires, counted from now.
        action: What the leader does: "save", or "resign", which is to save and let another worker lead.
        position: The last boundary of the worker that is being preempted. A leader that is behind it saves and gives
            way. None: the leader's save is enough.
    """

    notice_id: str
    worker_id: str
    reason: str
    remaining: float
    action: Action = "save"
    position: Position | None = None

    def to_wish(self) -> str:
        """Return action and position in one word, as records have them: "save" or "save@EPOCH,BATCH".

        A leader of version 0.3 saves for both.
        """
        return self.action if self.position is None else f"{self.action}@{self.position.epoch},{self.position.batch}"

    @staticmethod
    def parse_wish(wish: str) -> tuple[Action, Position | None]:
        """Return action and position of what `to_wish` returned.

        Raises:
            ValueError: The position is malformed.
        """
        action, _, position = wish.partition("@")
        return cast(Action, action), Position(*map(int, position.split(","))) if position else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A worker of the run, as of its last tick.

    Args:
        worker_id: Its id.
        role: Its role.
        position: Its position. None if its training had not started.
        age: Seconds since that tick.
    """

    worker_id: str
    role: Role
    position: Position | None
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """All that a worker knows of the cluster.

    Args:
        term: The newest term that was granted. 0 before the first.
        holder: The worker that holds the lease of that term. None if the lease is free.
        holder_age: Seconds since the holder's last tick. None without a holder, or if the age is unknown.
        remaining: Seconds until the lease expires. None if it lasts as long as its holder's process.
        announcement: The newest announcement, made under the newest term that made one.
        notices: All notices that have not expired. A heartbeat may leave them out of the view of a follower: only the
            leader acts on them, and N preempted workers would otherwise receive N² of them.
        reason: Why the sender lost a lease it held before, where that is known.
    """

    term: int
    holder: str | None
    holder_age: float | None
    remaining: float | None
    announcement: Announcement | None
    notices: tuple[Notice, ...] = ()
    reason: str = ""


def has_another_led(*, worker_id: str, led: int, holder: str | None, term: int) -> bool:
    """Whether another worker leads or has led since `worker_id` led under `led`. `holder` holds the lease of `term`.

    Terms grow by one. So other workers may have led under the terms between two terms of one worker. A coordinator
    that lost its data may grant a used term, but no worker leads under it.
    """
    if holder == worker_id:
        return term > led + 1
    return holder is not None and term > led


class Coordinator(ABC):
    """The coordinator of one run. Thread-safe. One instance may serve several workers of one process."""

    heartbeat_interval: float | None = None
    """Seconds between heartbeats. None for `LeaseTimings.retry_period`."""

    has_expiry = False
    """Whether the lease of a dead holder stays until it expires."""

    is_server: ClassVar[bool] = False
    """Whether its URL names a server, which keeps the records of many runs."""

    has_hints: ClassVar[bool] = False
    """Whether hints reach other workers."""

    @classmethod
    def from_url(cls, url: str, backup_dir: str | os.PathLike[str] | None) -> Self | None:  # noqa: ARG003 - see below
        """Return the coordinator that a URL of its scheme names. None if the URL has another form.

        Args:
            url: The URL. `coordination.SCHEMES` leads its scheme here.
            backup_dir: The backup directory, if it is one and known.

        Raises:
            ConfigError: The URL has the right form and can't be used.
        """
        raise ConfigError(f"{cls.__name__} can't be made from a URL")

    def open(self, run_id: str, timings: LeaseTimings) -> None:  # noqa: B027 - most have nothing to learn
        """Set the run. Each worker calls this first. It does no I/O.

        Args:
            run_id: Id of the run.
            timings: Durations of the lease. No operation may block for a large part of them.

        Raises:
            ConfigError: It was opened for another run.
        """

    def subscribe(self, wake: Callable[[Hint], None]) -> Callable[[], None]:  # noqa: ARG002 - for those that give hints
        """Call `wake` with each hint until the returned function is called.

        Hints are a convenience: they may be lost, late or doubled, and some coordinators give none.

        Args:
            wake: Called from any thread. It must not block.
        """
        return lambda: None

    def give_hint(self, hint: Hint) -> None:  # noqa: B027 - most have no hints
        """Give a hint to all workers, also to this one.

        Raises:
            CoordinatorUnavailableError: It can't be reached.
        """

    def close(self) -> None:  # noqa: B027 - most hold nothing that the process' end does not free
        """Close connections. The next operation opens new ones."""

    @abstractmethod
    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        """Refresh the membership, renew the lease or take a free one, and return the view.

        The holder's lease is renewed whether or not it campaigns. A free lease is granted under a term
        higher than every term granted before and than `beat.floor`. It stays free if the sender gives way.

        Raises:
            CoordinatorUnavailableError: It can't be reached. The lease may or may not have been granted.
        """

    @abstractmethod
    def view(self) -> ClusterView:
        """Return the view without becoming a member or touching the lease.

        Raises:
            CoordinatorUnavailableError: It can't be reached.
        """

    @abstractmethod
    def members(self) -> tuple[Member, ...]:
        """Return the workers whose membership has not expired, by id.

        Raises:
            CoordinatorUnavailableError: It can't be reached.
        """

    @abstractmethod
    def announce(self, announcement: Announcement) -> bool:
        """Record `announcement` as that of its term. False if its worker no longer holds that term.

        It counts as a tick of its worker.

        Raises:
            CoordinatorUnavailableError: It can't be reached. The announcement may or may not have been made.
        """

    @abstractmethod
    def notify(self, notice: Notice) -> None:
        """Post `notice` for all workers. It expires after `notice.remaining` seconds, or when its worker leaves.

        The last notice of an id counts, so one with 0 seconds withdraws the one before it.

        Raises:
            CoordinatorUnavailableError: It can't be reached.
        """

    @abstractmethod
    def resign(self, worker_id: str) -> None:
        """Release the lease if `worker_id` holds it, so that another worker takes it at its next tick.

        Raises:
            CoordinatorUnavailableError: It can't be reached.
        """

    @abstractmethod
    def leave(self, worker_id: str) -> None:
        """End a membership and remove its notices.

        Raises:
            CoordinatorUnavailableError: It can't be reached.
        """

    @abstractmethod
    def erase(self) -> None:
        """Delete all records of the run. The last worker out calls this after it has deleted the backup.

        Raises:
            CoordinatorUnavailableError: It can't be reached.
        """
