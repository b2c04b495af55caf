"""Do things to a run from outside its workers: to its server, network, disk and files. Imports no synalinks.

Each function returns whether it has hit: whether a connection was cut, a reply lost, a file damaged.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distributed_backup.checkpoints.format import checkpoints_among
from distributed_backup.storage.base import PARTIAL
from tests.chaos.history import Fault
from tests.chaos.places import Places
from tests.chaos.plan import How, Kill, Place
from tests.support.buckets import Fault as BucketFault
from tests.support.buckets import reply_lost, unavailable
from tests.support.proxy import Proxy
from tests.support.servers import wait_for

# A delay in each direction, shorter and longer than the deadline of the lease in `life`.
_DELAYS: Final = (0.1, 1.5)
_REQUESTS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a fault is aimed at: a run, its servers, and the connection of one worker. `kill_all` kills all workers."""

    place: Place
    places: Places
    proxy: Proxy | None
    kill_all: Callable[[], None]

    @property
    def directory(self) -> Path:
        return Path(self.place.backup_dir)


def inject(kill: Kill, target: Target) -> Fault:
    """Do it, and undo it if it has an end. Return whether it has hit."""
    at = time.monotonic()
    hit = _FAULTS[kill.how](kill, target)
    detail = f"{kill.detail} {hit}" if isinstance(hit, str) else kill.detail
    return Fault(kind=kill.how, at=at, until=time.monotonic(), is_hit=bool(hit), detail=detail)


def _for(seconds: float) -> None:
    threading.Event().wait(seconds)


# ---------------------------------------------------------------- network and server


def _flush(_: Kill, target: Target) -> bool:
    assert target.places.server is not None
    target.places.server.ask("FLUSHALL")
    return True


def _restart(kill: Kill, target: Target) -> bool:
    """Kill the server, and start it again with its data after `seconds`."""
    server = target.places.server
    assert server is not None
    if not server.running:
        return False
    server.kill()
    _for(kill.seconds)
    server.start()
    wait_for(lambda: server.ask("PING"), "the server has loaded its data")
    return True


def _delay(kill: Kill, target: Target) -> bool:
    proxy = _proxy(target)
    before = proxy.requests
    proxy.delay(_DELAYS[kill.seconds > 1.0])
    _for(kill.seconds)
    proxy.heal()
    return proxy.requests > before


def _cut(kill: Kill, target: Target) -> bool:
    """Reset all connections, and refuse new ones."""
    proxy = _proxy(target)
    count = proxy.connections
    proxy.refuse()
    proxy.cut()
    _for(kill.seconds)
    proxy.heal()
    return count > 0


def _half_open(kill: Kill, target: Target) -> bool:
    """Let data run into nothing, in both directions or in that of the replies. It is lost, or comes late."""
    proxy = _proxy(target)
    before = proxy.held
    proxy.black_hole(*(("replies",) if kill.count % 2 else ()))
    _for(kill.seconds)
    proxy.heal(deliver=kill.count % 3 == 0)
    return proxy.held > before


def _lost_reply(kill: Kill, target: Target) -> bool:
    """Have the server carry out some requests, and reset the connection in place of their replies."""
    proxy = _proxy(target)
    before = proxy.dropped
    proxy.drop_replies(1 + kill.count % _REQUESTS)
    _for(kill.seconds)
    proxy.heal()
    return proxy.dropped > before


def _proxy(target: Target) -> Proxy:
    assert target.proxy is not None
    return target.proxy


# ---------------------------------------------------------------- bucket


def _bucket(fault: BucketFault) -> Callable[[Kill, Target], bool]:
    def inject_fault(kill: Kill, target: Target) -> bool:
        bucket = target.places.bucket
        assert bucket is not None
        before = bucket.injected
        bucket.next("PUT", fault, times=1 + kill.count % _REQUESTS)
        _for(kill.seconds)
        bucket.mend()
        return bucket.injected > before

    return inject_fault


# ---------------------------------------------------------------- disk


def _fill(kill: Kill, target: Target) -> bool:
    """Let writes fail. The workers note which, and that is what counts."""
    flag = Path(str(target.place.full))
    flag.touch()
    _for(kill.seconds)
    flag.unlink(missing_ok=True)
    return True


def _damage(kill: Kill, target: Target) -> str:
    """Damage the newest checkpoint, or the journal. A checkpoint is mended after a while, as from a copy.

    "killed": kill all workers then, so that each one starts with the damaged file.

    Return the name of the file, "" if there is none.
    """
    what, how = kill.detail.split()
    try:
        path = _newest(target.directory, what)
        if path is None:
            return ""
        raw = path.read_bytes()
        if not raw:
            return ""  # emptied before
        # In place: a new file would come back where it was removed.
        with open(path, "r+b") as file:
            _spoil(file.fileno(), raw, how)
    except FileNotFoundError:
        return ""
    if what.endswith("killed"):
        target.kill_all()
    _for(kill.seconds)
    if what != "journal":
        # A commit may have removed it since.
        with suppress(FileNotFoundError), open(path, "r+b") as file:
            file.write(raw)
            file.truncate()
    return path.name


def _newest(directory: Path, what: str) -> Path | None:
    names = [path.name for path in directory.iterdir()]
    segments = sorted((name for name in names if name.endswith(".journal")), reverse=True)
    found = segments if what == "journal" else checkpoints_among(names)
    return directory / found[0] if found else None


def _spoil(descriptor: int, raw: bytes, how: str) -> None:
    if how == "flipped":
        at = len(raw) // 2
        os.pwrite(descriptor, bytes([raw[at] ^ 1]), at)
    else:
        os.ftruncate(descriptor, 0 if how == "emptied" else len(raw) // 2)


def _leave_a_part(_: Kill, target: Target) -> str:
    """Leave what a writer leaves that dies while it stages a checkpoint: a part. Return its name."""
    with suppress(FileNotFoundError):
        path = _newest(target.directory, "checkpoint")
        if path is not None:
            part = target.directory / f"{PARTIAL}{path.name}-0123abcd"
            part.write_bytes(path.read_bytes()[:100])
            return part.name
    return ""


_FAULTS: Final[dict[How, Callable[[Kill, Target], bool | str]]] = {
    "FLUSHALL": _flush,
    "server restart": _restart,
    "delay": _delay,
    "cut": _cut,
    "half-open": _half_open,
    "lost reply": _lost_reply,
    "store busy": _bucket(unavailable),
    "store reply lost": _bucket(reply_lost),
    "disk full": _fill,
    "damage": _damage,
    "leftover": _leave_a_part,
}
