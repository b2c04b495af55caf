"""Leases over Redis or Valkey, for the workers of many machines.

A lease says who should write, not who can: a paused holder may wake after its lease lapsed. The term in a checkpoint's
name decides who counts; see `store`. Leases are counted by the server's clock: a clock that is set forward ends one
early, and so does a replica that takes over with a clock ahead of its primary's; one that is set back costs a lease.
What a server forgets, when it is emptied or a stale replica is promoted, costs an election and nothing else: terms are
claimed in the run's directory.

One round trip per worker and tick does everything, at a cost that does not grow with the number of workers. The keys of
a run share a hash tag, so that they live on one node of a cluster, and are gone a week after the run's last word:

    distributed-backup:{RUN}:lease          hash     term; holder, until, lasts, heard: gone when it was given back
    distributed-backup:{RUN}:announcement   string   JSON, as `Announcement`
    distributed-backup:{RUN}:members        hash     worker id -> "seen role epoch batch"
    distributed-backup:{RUN}:expiries       zset     worker id by the instant at which it stops to count as a member
    distributed-backup:{RUN}:notices        hash     notice id -> "until worker-id wish reason"
    distributed-backup:{RUN}:hints          channel  "free", "announced", "finished", "noticed"

Instants are milliseconds since 1970 by the server's clock.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, Self, cast, override

import orjson

from distributed_backup.checks import checked_name
from distributed_backup.coordination.base import (
    Action,
    Announcement,
    ClusterView,
    Coordinator,
    Heartbeat,
    Hint,
    Member,
    Notice,
    Role,
)
from distributed_backup.coordination.redis_hints import HintListener
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import ConfigError, CoordinatorError, CoordinatorUnavailableError
from distributed_backup.position import Position
from distributed_backup.redis_client.address import RedisAddress
from distributed_backup.redis_client.client import RedisClient
from distributed_backup.urls import is_redis_url

if TYPE_CHECKING:
    import redis

# How long the keys of a run stay after its last word: longer than anybody would leave a preempted job waiting, and
# losing them would cost no more than an election.
KEY_TTL_MS: Final = 7 * 24 * 3600 * 1000
# Seconds to wait for the thread that listens; it looks up every quarter of one, unless it is just connecting.
_JOIN_LIMIT: Final = 3.0
_LEASE_KEY: Final = re.compile(r"distributed-backup:\{(.+)\}:lease")


@cache
def script(*names: str) -> str:
    """Return the Lua script that consists of the named files in `lua/`."""
    folder = files("distributed_backup.coordination").joinpath("lua")
    return "".join(folder.joinpath(f"{name}.lua").read_text() for name in names)


class _Keys:
    """Names of a run's keys."""

    def __init__(self, run_id: str) -> None:
        prefix = f"distributed-backup:{{{run_id}}}:"
        self.run_id = run_id
        self.lease = f"{prefix}lease"
        self.announcement = f"{prefix}announcement"
        self.members = f"{prefix}members"
        self.expiries = f"{prefix}expiries"
        self.notices = f"{prefix}notices"
        self.hints = f"{prefix}hints"
        self.all = (self.lease, self.announcement, self.notices, self.members, self.expiries)


class RedisCoordinator(Coordinator):
    """A coordinator on a Redis or Valkey server, 6.2 or newer.

    Making one connects to nothing.

    Args:
        server: A URL (see `redis_url`), or a client, whose settings are taken for connections of our own.

    Raises:
        ConfigError: `server` is neither.

    Example:
        ```python
        coordinator = RedisCoordinator("redis://:secret@redis:6379/0")
        coordinator.open("run-42", LeaseTimings())
        coordinator.heartbeat(Heartbeat(worker_id="a", campaign=True, floor=0, duration=15.0)).holder  # "a"
        ```
    """

    has_expiry = True
    is_server = True

    def __init__(self, server: str | redis.Redis) -> None:
        self._address = RedisAddress.of_url(server) if isinstance(server, str) else RedisAddress.of_client(server)
        self._keys: _Keys | None = None
        # Workers that have opened it and not closed it yet: while there are any, it serves their run only.
        self._users = 0
        self._opened: tuple[RedisClient, HintListener] | None = None

    @classmethod
    @override
    def from_url(cls, url: str, backup_dir: str | os.PathLike[str] | None) -> Self | None:
        return cls(url) if is_redis_url(url) else None

    def __repr__(self) -> str:
        return f"RedisCoordinator({str(self._address)!r})"

    def open(self, run_id: str, timings: LeaseTimings) -> None:
        """Learn which run it coordinates."""
        checked_name("run_id", run_id)
        if self._keys is None or self._opened is None or (self._users == 0 and self._keys.run_id != run_id):
            # A period; less, if three steps would not fit between a renewal and the leader's deadline; never next to
            # nothing.
            left, least = timings.renew_deadline - timings.retry_period, timings.renew_deadline / 10
            limit = max(min(timings.retry_period, left / 3), least)
            link = RedisClient(self._address, limit)
            self._keys = _Keys(run_id)
            listener = HintListener(
                link, self._keys.hints, silence=5 * timings.retry_period, retry=timings.retry_period
            )
            self._opened = (link, listener)
        elif self._keys.run_id != run_id:
            raise ConfigError(
                f"this coordinator serves run {self._keys.run_id!r} and can't serve {run_id!r}: make one for each run"
            )
        self._users += 1

    def runs(self) -> tuple[str, ...]:
        """The ids of all runs on the server.

        Raises:
            CoordinatorUnavailableError: It can't be reached.
        """
        link = RedisClient(self._address, LeaseTimings().retry_period)
        try:
            found = (_LEASE_KEY.fullmatch(key) for key in link.find("distributed-backup:{*}:lease"))
            return tuple(match[1] for match in found if match is not None)
        finally:
            link.close()

    def close(self) -> None:
        """Close all connections when the last that opened it closes it; the next call opens new ones."""
        self._users = max(self._users - 1, 0)
        if self._opened is not None and self._users == 0:
            link, listener = self._opened
            listener.join(_JOIN_LIMIT)
            link.close()

    # ---------------------------------------------------------------- the contract

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        """Refresh the membership; renew the lease, or take it if it is free and wanted; tell what is."""
        keys = self._run_keys
        position = "- -" if beat.position is None else f"{beat.position.epoch} {beat.position.batch}"
        arguments = (
            checked_name("worker_id", beat.worker_id),
            int(beat.campaign),
            beat.floor,
            _ms(beat.duration),
            KEY_TTL_MS,
            f"{beat.role} {position}",
        )
        with self._understood():
            return _view(self._link.run(script("heartbeat", "view"), keys.all, arguments))

    def view(self) -> ClusterView:
        """Tell what is."""
        with self._understood():
            return _view(self._link.run(script("view"), self._run_keys.all[:3], ("",)))

    def members(self) -> tuple[Member, ...]:
        """The workers whose membership has not expired, by id."""
        keys = self._run_keys
        with self._understood():
            told = self._link.run(script("members"), (keys.members, keys.expiries), ())
            return tuple(sorted(map(_member, *_columns(told, 3)), key=lambda member: member.worker_id))

    def announce(self, announcement: Announcement) -> bool:
        """Make `announcement` the announcement of its term; False if its worker no longer holds that term."""
        keys = self._run_keys
        hint: Hint = "finished" if announcement.finished else "announced"
        arguments = (
            checked_name("worker_id", announcement.worker_id),
            announcement.term,
            orjson.dumps(announcement.to_fields()).decode(),
            KEY_TTL_MS,
            keys.hints,
            hint,
        )
        return bool(self._link.run(script("announce"), (keys.lease, keys.announcement), arguments))

    def notify(self, notice: Notice) -> None:
        """Tell all workers of `notice`; it is over after `notice.remaining` seconds, or when its worker leaves."""
        keys = self._run_keys
        arguments = (
            notice.notice_id,
            checked_name("worker_id", notice.worker_id),
            notice.action,
            notice.reason,
            _ms(notice.remaining),
            KEY_TTL_MS,
            keys.hints,
        )
        self._link.run(script("notify"), (keys.notices,), arguments)

    def resign(self, worker_id: str) -> None:
        """Give the lease back at once if `worker_id` holds it."""
        keys = self._run_keys
        self._link.run(script("resign"), (keys.lease,), (checked_name("worker_id", worker_id), keys.hints))

    def leave(self, worker_id: str) -> None:
        """End a membership and take back its notices."""
        keys = self._run_keys
        self._link.run(
            script("leave"), (keys.members, keys.expiries, keys.notices), (checked_name("worker_id", worker_id),)
        )

    def erase(self) -> None:
        """Forget the run."""
        self._link.run(script("erase"), self._run_keys.all, ())

    def subscribe(self, wake: Callable[[Hint], None]) -> Callable[[], None]:
        """Have `wake` called when a look may be worth while, until the function that is returned is called."""
        return self._parts[1].add(wake)

    # ---------------------------------------------------------------- the parts

    @property
    def _parts(self) -> tuple[RedisClient, HintListener]:
        if self._opened is None:
            raise CoordinatorError("open() names the run, and comes before everything else")
        return self._opened

    @property
    def _link(self) -> RedisClient:
        return self._parts[0]

    @property
    def _run_keys(self) -> _Keys:
        if self._keys is None:
            raise CoordinatorError("open() names the run, and comes before everything else")
        return self._keys

    @contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise CoordinatorUnavailableError(
                f"{self._address} holds what we don't write under {self._run_keys.lease} and the keys beside it "
                f"({error!r}); stop the run's workers and delete them"
            ) from None


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _columns(told: list[Any], count: int) -> tuple[list[Any], ...]:
    return tuple(told[column::count] for column in range(count))


def _view(told: list[Any]) -> ClusterView:
    term, holder, age, left, announcement, *notices = told
    return ClusterView(
        term=int(term),
        holder=holder or None,
        # An instant to come, by a clock that was set back: whether the holder is alive can't be told.
        holder_age=int(age) / 1000 if holder and int(age) >= 0 else None,
        remaining=int(left) / 1000 if holder else None,
        announcement=Announcement.from_fields(orjson.loads(announcement)) if announcement else None,
        notices=tuple(sorted(map(_notice, *_columns(notices, 5)), key=lambda notice: notice.notice_id)),
    )


def _notice(notice_id: str, left: int, worker_id: str, action: str, reason: str) -> Notice:
    return Notice(
        notice_id=notice_id, worker_id=worker_id, reason=reason, remaining=int(left) / 1000, action=cast(Action, action)
    )


def _member(worker_id: str, age: int, told: str) -> Member:
    role, epoch, batch = told.split()
    return Member(
        worker_id=worker_id,
        role=cast(Role, role),
        position=None if epoch == "-" else Position(int(epoch), int(batch)),
        age=max(int(age), 0) / 1000,
    )
