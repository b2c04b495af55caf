"""What a Redis driver or server says, in words that say what to do.

One line each, without stack and secrets. Unreachable and unable-just-now are `CoordinatorUnavailableError`; what
trying again can't cure is a `ConfigError`, if it is so from the first contact: later it is more likely a server in the
midst of a change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import redis
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterCrossSlotError,
    ClusterError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
)
from redis.sentinel import MasterNotFoundError

from distributed_backup.errors import BackupError, ConfigError, CoordinatorUnavailableError


@dataclass(frozen=True, slots=True)
class _Meaning:
    """Errors that mean one thing: of these kinds, or with one of these texts in them.

    Args:
        sentence: What to say.
        kinds: Classes of the driver.
        texts: What servers say where the driver has no class for it.
        final: Whether trying again is vain.
    """

    sentence: str
    kinds: tuple[type[Exception], ...] = ()
    texts: tuple[str, ...] = ()
    final: bool = False

    def fits(self, error: Exception, said: str) -> bool:
        """Whether `error` is one of them."""
        return isinstance(error, self.kinds) or any(text in said for text in self.texts)


_RIGHTS: Final = (
    "~distributed-backup:* &distributed-backup:* +@read +@write +@scripting +@connection +@pubsub +info +time"
)
# In order: the first that fits counts, and the last fits all.
_MEANINGS: Final = (
    _Meaning(
        "{where} refused the user name or password: {text}", (AuthenticationError,), ("WRONGPASS", "NOAUTH"), final=True
    ),
    _Meaning(
        "the user at {where} may not do what is needed: {text}; allow " + _RIGHTS,
        (NoPermissionError,),
        ("NOPERM", "can't run this command", "ACL failure in script"),
        final=True,
    ),
    _Meaning(
        "the certificate of {where} can't be verified: {text}; name its authority with ?ssl_ca_certs=/path/to/ca.pem",
        texts=("CERTIFICATE_VERIFY_FAILED",),
        final=True,
    ),
    # MOVED is one of the first kind.
    _Meaning(
        "{where} is one node of a Redis Cluster: use redis+cluster:// in place of redis://",
        (AskError, ClusterCrossSlotError),
        final=True,
    ),
    _Meaning("{where} has no such database: {text}", texts=("DB index is out of range",), final=True),
    _Meaning(
        "{where} does not name a sentinel: use redis:// in place of redis+sentinel:// for a server",
        texts=("unknown command 'SENTINEL'", "unknown command `SENTINEL`"),
        final=True,
    ),
    _Meaning(
        "{where} is not a Redis Cluster: use redis:// in place of redis+cluster://",
        texts=("Cluster mode is not enabled",),
        final=True,
    ),
    # Its text is not shown: some versions of the driver put credentials into it.
    _Meaning("the sentinels of {where} know no primary of that name, or none can be reached", (MasterNotFoundError,)),
    _Meaning(
        "{where} is a read-only replica: name the primary, or use redis+sentinel://", (ReadOnlyError,), ("READONLY",)
    ),
    _Meaning(
        "{where} is out of memory: raise its maxmemory; nothing is granted or kept until then",
        (OutOfMemoryError,),
        ("OOM command not allowed",),
    ),
    _Meaning("{where} is busy with somebody's script: {text}", texts=("BUSY ", "SCRIPT KILL")),
    _Meaning("{where} can't serve the run's keys just now: {text}", (ClusterError, RedisClusterException)),
    _Meaning("{where} did not answer within {limit:g} s", (redis.TimeoutError, TimeoutError)),
    _Meaning("can't reach {where}: {text}", (redis.ConnectionError, OSError)),
    _Meaning("{where} answered with an error: {text}", (Exception,)),
)


def translate(error: Exception, *, where: str, limit: float, reached: bool) -> BackupError:
    """The error of this package for one of the driver's.

    Args:
        error: What the driver raised.
        where: The server, without credentials.
        limit: Seconds that a step of a call may take.
        reached: Whether the server has ever answered as it should.
    """
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    meaning = next(meaning for meaning in _MEANINGS if meaning.fits(error, said))
    message = meaning.sentence.format(where=where, limit=limit, text=said)
    return ConfigError(message) if meaning.final and not reached else CoordinatorUnavailableError(message)
