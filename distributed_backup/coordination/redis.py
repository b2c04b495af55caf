"""Leases over Redis or Valkey, for the workers of many machines.

The server's clock measures leases. If the clock is set forward, or a replica with a faster clock takes over, a lease
expires early. If it is set back, the next leader waits up to one lease longer. A server that is emptied, or a stale
replica that is promoted, costs an election: terms are claimed in the run's directory.

A worker sends one script per tick. Its cost does not grow with the number of workers, except while the lease is free.
The keys of a run share a hash tag, so that one node of a cluster has them all. They expire a week after the run's last
call:

    distributed-backup:{RUN}:lease          hash     term, and while the lease is held: holder, until, lasts, heard
    distributed-backup:{RUN}:announcement   string   JSON, see `Announcement.to_fields`
    distributed-backup:{RUN}:members        hash     worker id -> "seen role epoch batch"
    distributed-backup:{RUN}:expiries       zset     worker id by the instant at which its membership expires
    distributed-backup:{RUN}:notices        hash     notice id -> "until worker-id wish reason", see `Notice.to_wish`
    distributed-backup:{RUN}:hints          channel  "free", "announced", "finished", "noticed", "appended"

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

from distributed_backup.checks import checked_name, shown
from distributed_backup.coordination.base import (
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

# Milliseconds that a run's keys stay after its last call. A job rarely waits longer to be started again, and losing
# the keys costs one election.
KEY_TTL_MS: Final = 7 * 24 * 3600 * 1000
# Seconds to wait for the listener thread. It checks every 0.25 s whether to end, unless it is connecting.
_JOIN_LIMIT: Final = 3.0
_LEASE_KEY: Final = re.compile(r"distributed-backup:\{(.+)\}:lease")


@cache
def script(*names: str) -> str:
    """Return the Lua script that consists of the named files in `lua/`."""
    folder = files("distributed_backup.coordination").joinpath("lua")
    return "".join(folder.joinpath(f"{name}.lua").read_text() for name in names)


class _Keys:
    """The names of a run's keys."""

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
        server: A URL (see `redis_client.address`), or a client. A client's settings are copied, and connections are
            our own.

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
    has_hints = True

    def __init__(self, server: str | redis.Redis) -> None:
        self._address = RedisAddress.of_url(server) if isinstance(server, str) else RedisAddress.of_client(server)
        self._keys: _Keys | None = None
        # How many workers have it open. While there are any, it serves their run only.
        self._users = 0
        self._opened: tuple[RedisClient, HintListener] | None = None

    @classmethod
    @override
    def from_url(cls, url: str, backup_dir: str | os.PathLike[str] | None) -> Self | None:
        return cls(url) if is_redis_url(url) else None

    def __repr__(self) -> str:
        return f"RedisCoordinator({str(self._address)!r})"

    @override
    def open(self, run_id: str, timings: LeaseTimings) -> None:
        checked_name("run_id", run_id)
        if self._keys is None or self._opened is None or (self._users == 0 and self._keys.run_id != run_id):
            # A period. Less if three steps would not fit between a renewal and the leader's deadline, and at least a
            # tenth of that deadline.
            left, least = timings.renew_deadline - timings.retry_period, timings.renew_deadline / 10
            limit = max(min(timings.retry_period, left / 3), least)
            client = RedisClient(self._address, limit)
            self._keys = _Keys(run_id)
            listener = HintListener(
                client, self._keys.hints, silence=5 * timings.retry_period, retry=timings.retry_period
            )
            self._opened = (client, listener)
        elif self._keys.run_id != run_id:
            raise ConfigError(
                f"this coordinator serves run {self._keys.run_id!r} and can't serve {run_id!r}: make one for each run"
            )
        self._users += 1

    def runs(self) -> tuple[str, ...]:
        """Return the ids of all runs on the server.

        Raises:
            CoordinatorUnavailableError: The server can't be reached.
        """
        client = RedisClient(self._address, LeaseTimings().retry_period)
        try:
            found = (_LEASE_KEY.fullmatch(key) for key in client.find("distributed-backup:{*}:lease"))
            return tuple(match[1] for match in found if match is not None)
        finally:
            client.close()

    @override
    def close(self) -> None:
        self._users = max(self._users - 1, 0)
        if self._opened is not None and self._users == 0:
            client, listener = self._opened
            listener.join(_JOIN_LIMIT)
            client.close()

    # ---------------------------------------------------------------- the contract

    @override
    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        keys = self._run_keys
        position = "- -" if beat.position is None else f"{beat.position.epoch} {beat.position.batch}"
        arguments = (
            checked_name("worker_id", beat.worker_id),
            int(beat.campaign),
            beat.floor,
            _ms(beat.duration),
            KEY_TTL_MS,
            f"{beat.role} {position}",
            _ms(beat.gives_way_to),
        )
        reply = self._client.run(script("heartbeat", "view"), keys.all, arguments)
        with self._parsing():
            return _view(reply)

    @override
    def view(self) -> ClusterView:
        reply = self._client.run(script("view"), self._run_keys.all[:3], ("",))
        with self._parsing():
            return _view(reply)

    @override
    def members(self) -> tuple[Member, ...]:
        keys = self._run_keys
        reply = self._client.run(script("members"), (keys.members, keys.expiries), ())
        with self._parsing():
            return tuple(sorted(map(_member, *_columns(reply, 3)), key=lambda member: member.worker_id))

    @override
    def announce(self, announcement: Announcement) -> bool:
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
        return bool(self._client.run(script("announce"), (keys.lease, keys.announcement), arguments))

    @override
    def give_hint(self, hint: Hint) -> None:
        self._client.command("PUBLISH", self._run_keys.hints, hint)

    @override
    def notify(self, notice: Notice) -> None:
        keys = self._run_keys
        arguments = (
            notice.notice_id,
            checked_name("worker_id", notice.worker_id),
            notice.to_wish(),
            notice.reason,
            _ms(notice.remaining),
            KEY_TTL_MS,
            keys.hints,
        )
        self._client.run(script("notify"), (keys.notices,), arguments)

    @override
    def resign(self, worker_id: str) -> None:
        keys = self._run_keys
        self._client.run(script("resign"), (keys.lease,), (checked_name("worker_id", worker_id), keys.hints))

    @override
    def leave(self, worker_id: str) -> None:
        keys = self._run_keys
        self._client.run(
            script("leave"), (keys.members, keys.expiries, keys.notices), (checked_name("worker_id", worker_id),)
        )

    @override
    def erase(self) -> None:
        self._client.run(script("erase"), self._run_keys.all, ())

    @override
    def subscribe(self, wake: Callable[[Hint], None]) -> Callable[[], None]:
        return self._parts[1].add(wake)

    # ---------------------------------------------------------------- the parts

    @property
    def _parts(self) -> tuple[RedisClient, HintListener]:
        if self._opened is None:
            raise CoordinatorError("no run is set: call open() first")
        return self._opened

    @property
    def _client(self) -> RedisClient:
        return self._parts[0]

    @property
    def _run_keys(self) -> _Keys:
        if self._keys is None:
            raise CoordinatorError("no run is set: call open() first")
        return self._keys

    @contextmanager
    def _parsing(self) -> Iterator[None]:
        try:
            yield
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
            raise CoordinatorUnavailableError(
                f"{self._address} has a malformed record under {self._run_keys.lease} or the keys beside it "
                f"({shown(error)}): stop the run's workers and delete these keys"
            ) from None


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _columns(reply: list[Any], count: int) -> tuple[list[Any], ...]:
    return tuple(reply[column::count] for column in range(count))


def _view(reply: list[Any]) -> ClusterView:
    term, holder, age, left, announcement, *notices = reply
    return ClusterView(
        term=int(term),
        holder=holder or None,
        # A negative age means that the server's clock was set back. The holder's age is unknown.
        holder_age=int(age) / 1000 if holder and int(age) >= 0 else None,
        remaining=int(left) / 1000 if holder else None,
        announcement=Announcement.from_fields(orjson.loads(announcement)) if announcement else None,
        notices=tuple(sorted(map(_notice, *_columns(notices, 5)), key=lambda notice: notice.notice_id)),
    )


def _notice(notice_id: str, left: int, worker_id: str, wish: str, reason: str) -> Notice:
    action, position = Notice.parse_wish(wish)
    return Notice(
        notice_id=notice_id,
        worker_id=worker_id,
        reason=reason,
        remaining=int(left) / 1000,
        action=action,
        position=position,
    )


def _member(worker_id: str, age: int, record: str) -> Member:
    role, epoch, batch = record.split()
    return Member(
        worker_id=worker_id,
        role=cast(Role, role),
        position=None if epoch == "-" else Position(int(epoch), int(batch)),
        age=max(int(age), 0) / 1000,
    )
