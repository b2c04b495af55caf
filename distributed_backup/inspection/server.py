"""Check a Redis or Valkey server: as coordinator, and as the place of checkpoints.

All keys are those of a run of the test alone, and are deleted at the end. One process suffices: a server serves one
command after the other, and two coordinators here have connections of their own.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from distributed_backup.coordination.base import Announcement, Heartbeat, Notice
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import BackupError
from distributed_backup.inspection.files import file_checks
from distributed_backup.inspection.finding import NOT_MADE, Finding, Outcome, duration, ok, perform
from distributed_backup.position import Position
from distributed_backup.redis_client.address import RedisAddress
from distributed_backup.redis_client.client import RedisClient
from distributed_backup.redis_client.server_info import ServerInfo
from distributed_backup.storage.redis import RedisStorage

# Seconds of the lease that must expire, and by how much it may do so early or late.
_LEASE: Final = 1.0
_SLACK: Final = 0.3
# Seconds until a hint must have come.
_HINT_WITHIN: Final = 2.0
# Number of round trips, and the part of a tick that one may take.
_TRIPS: Final = 100
_PART_OF_TICK: Final = 0.1
# Bytes of a large file. A server in use may have little memory left.
_LARGE: Final = 1_000_000
# Part of `maxmemory` that may be used.
_FULL: Final = 0.9
# Seconds of one request for a file.
_LIMIT: Final = 20.0

_TICK: Final = LeaseTimings().retry_period
_NO_LEASE: Final = (
    "Workers would wait for this server, and nothing is committed by schedule. Start the server, or "
    "correct its address and the credentials."
)
_NO_AGREEMENT: Final = (
    "Workers could not agree on the checkpoint to restore, and notices would be lost. Use another server."
)
_TWO_LEADERS: Final = "Two workers would believe that they lead, again and again. Use another server."


def server_checks(url: str) -> Iterator[Finding]:
    """Yield the findings about a server.

    Raises:
        ConfigError: The URL is malformed.
    """
    run_id = f"check-{secrets.token_hex(8)}"
    client = RedisClient(RedisAddress.of_url(url), _TICK)
    coordinators = [RedisCoordinator(url) for _ in range(2)]
    storage = RedisStorage(url, run_id=run_id, limit=_LIMIT)
    for each in coordinators:
        each.open(run_id, LeaseTimings())
    try:
        for finding in _info_checks(client):
            yield finding
            if finding.name == "server" and finding.status == "danger":
                yield NOT_MADE
                return
        elected = perform("election", lambda: _elected(*coordinators), advice=_NO_LEASE)
        yield elected
        if elected.status == "danger":
            yield NOT_MADE
            return
        yield perform("lease expires", lambda: _expires(*coordinators), advice=_NO_LEASE)
        yield perform("round trip", lambda: _round_trip(coordinators[0]), advice=_NO_LEASE)
        yield perform("hints", lambda: _hints(*coordinators), advice=_NO_LEASE)
        yield perform("list of runs", lambda: _listed(coordinators[0]), advice="")
        for finding in file_checks(storage, large=_LARGE):
            if finding.name != "clock":  # no key has a time
                yield replace(finding, name=f"{finding.name}, as backup_dir")
    finally:
        with suppress(BackupError):
            coordinators[0].erase()
        with suppress(BackupError):
            for name in storage.names():
                storage.remove(name)
        for close in (client.close, storage.close, *(each.close for each in coordinators)):
            close()


def _info_checks(client: RedisClient) -> Iterator[Finding]:
    """Yield what the server says of itself. The first finding is a danger if it can't be used at all."""
    try:
        info = client.info()
    except BackupError as error:
        yield Finding(name="server", status="danger", found=str(error), advice=_NO_LEASE)
        return
    if info is None:
        yield Finding(
            name="server",
            status="unknown",
            found="the user may not run INFO, so version, memory and persistence are not known",
            advice="Allow +info, or look at maxmemory-policy and appendonly yourself.",
        )
        return
    for name, check in (("server", _kind), ("memory", _memory), ("persistence", _persistence)):
        yield Finding(name=name, **check(info)._asdict())


def _kind(info: ServerInfo) -> Outcome:
    if problem := info.is_replica:
        return Outcome("danger", problem, _NO_LEASE)
    name = info.fields.get("server_name", "redis")
    version = info.fields.get(f"{name}_version", info.version)
    replicas = int(info.fields.get("connected_slaves", 0))
    found = f"{name} {version}, a primary with {replicas} replica(s)"
    return ok(f"{found}, in a cluster" if info.fields.get("cluster_enabled") else found)


def _memory(info: ServerInfo) -> Outcome:
    limit, used = int(info.fields.get("maxmemory", 0)), int(info.fields.get("used_memory", 0))
    policy = info.fields.get("maxmemory_policy", "noeviction")
    found = f"maxmemory-policy {policy}, {used / 1e6:.1f} MB used of {f'{limit / 1e6:.1f} MB' if limit else 'no limit'}"
    if info.may_evict:
        # Without a limit nothing is evicted, until a limit is set.
        advice = f"Two workers can then lead at once: {info.may_evict}."
        return Outcome("danger" if limit else "warning", found, advice)
    if limit and used > _FULL * limit:
        return Outcome(
            "warning", found, "A full server refuses heartbeats, and scheduled commits wait. Raise maxmemory."
        )
    return ok(found)


def _persistence(info: ServerInfo) -> Outcome:
    fields = info.fields
    if fields.get("aof_enabled") and fields.get("aof_last_write_status", "ok") != "ok":
        return Outcome("danger", "the last write of the append-only file failed", "Make room on the server's disk.")
    if fields.get("rdb_last_bgsave_status", "ok") != "ok":
        return Outcome(
            "danger",
            "the last snapshot (RDB) failed",
            "By default the server then refuses all writes. Make room on its disk, or give it more memory.",
        )
    if info.forgets:
        return Outcome(
            "warning",
            "no append-only file",
            f"Fine for a coordinator, which loses one election. As backup_dir: {info.forgets}.",
        )
    return ok("an append-only file is kept. A power cut loses what its fsync policy allows, usually 1 s")


def _beat(worker_id: str, lease: float = 15.0) -> Heartbeat:
    return Heartbeat(worker_id=worker_id, campaign=True, floor=0, duration=lease)


def _elected(one: RedisCoordinator, other: RedisCoordinator) -> Outcome:
    """Perform each operation of a coordinator, and compare what the other sees."""
    first, second = one.heartbeat(_beat("one")), other.heartbeat(_beat("other"))
    if (first.holder, second.holder, second.term) != ("one", "one", first.term):
        return Outcome("danger", f"the lease of one was also granted to {second.holder}", _TWO_LEADERS)
    made = Announcement(term=first.term, worker_id="one", position=Position(1))
    announced = one.announce(made)
    other.notify(Notice(notice_id="notice", worker_id="other", reason="check", remaining=15.0))
    view = one.view()
    if not announced or other.view().announcement != made or len(view.notices) != 1 or len(one.members()) != 2:
        return Outcome("danger", "a record was not read as it was written", _NO_AGREEMENT)
    one.resign("one")
    third = other.heartbeat(_beat("other"))
    if third.holder != "other" or third.term <= first.term:
        return Outcome(
            "danger", f"a released lease was granted to {third.holder} under term {third.term}", _TWO_LEADERS
        )
    other.resign("other")
    for worker_id in ("one", "other"):
        one.leave(worker_id)
    return ok("one of two workers led, and the other one after it, under a higher term")


def _listed(coordinator: RedisCoordinator) -> Outcome:
    """List the runs, as commands do that name the server."""
    try:
        coordinator.runs()
    except BackupError as error:
        return Outcome("warning", str(error), "Commands that name the server fail. Name the backup directory there.")
    return ok("commands find the runs of this server")


def _expires(one: RedisCoordinator, other: RedisCoordinator) -> Outcome:
    """Take a short lease, and measure when the other sees it expire. The server's clock decides."""
    before = time.monotonic()
    one.heartbeat(_beat("one", _LEASE))
    after = time.monotonic()
    while other.view().holder is not None and time.monotonic() < before + 3 * _LEASE:
        threading.Event().wait(0.01)
    now = time.monotonic()
    one.leave("one")
    found = f"a lease of {duration(_LEASE)} expired after {duration(now - before)}"
    if now - before < _LEASE - _SLACK:
        return Outcome(
            "danger", found, "The server's clock runs fast or was set, so a leader loses its lease. Look at its clock."
        )
    if now - after > _LEASE + _SLACK + _TICK * _PART_OF_TICK:
        return Outcome("warning", found, "A worker takes over as late. Look at the server's clock, and at its load.")
    return ok(found)


def _round_trip(coordinator: RedisCoordinator) -> Outcome:
    durations = []
    for _ in range(_TRIPS):
        begun = time.perf_counter()
        coordinator.view()
        durations.append(time.perf_counter() - begun)
    durations.sort()
    middle, last = durations[_TRIPS // 2], durations[-1]
    found = f"p50 {duration(middle)}, slowest of {_TRIPS} {duration(last)}. A heartbeat is sent every {_TICK:g} s"
    if last > _TICK * _PART_OF_TICK:
        return Outcome(
            "warning", found, "A leader that gets no reply in time stands down. Use a server nearby, or longer timings."
        )
    return ok(found)


def _hints(one: RedisCoordinator, other: RedisCoordinator) -> Outcome:
    """Send hints until the subscription stands and one is received."""
    heard = threading.Event()
    unsubscribe = one.subscribe(lambda _: heard.set())
    end, reason = time.monotonic() + _HINT_WITHIN, "none came"
    try:
        while not heard.wait(0.05) and time.monotonic() < end:
            other.give_hint("appended")
    except BackupError as error:
        reason = str(error)
    finally:
        unsubscribe()
    if heard.is_set():
        return ok("a worker wakes when another has news")
    return Outcome(
        "warning",
        f"no hint was received ({reason})",
        f"All works, and news take up to {_TICK:g} s. Allow &distributed-backup:* and +@pubsub.",
    )
