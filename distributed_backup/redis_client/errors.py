"""Translate errors of the Redis driver and server into one line that says what to do.

A server that can't be reached, or can't serve a call at the moment, is a `CoordinatorUnavailableError`. An error that a
retry can't cure is a `ConfigError` if it comes at the first contact. Later, it more likely comes from a server that is
being changed, and a retry may help.
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
    """Errors with one meaning: of one of `kinds`, or with one of `texts` in the message.

    Args:
        sentence: The message to raise.
        kinds: Classes of the driver.
        texts: Messages of servers for which the driver has no class.
        final: Whether a retry can't help.
    """

    sentence: str
    kinds: tuple[type[Exception], ...] = ()
    texts: tuple[str, ...] = ()
    final: bool = False

    def fits(self, error: Exception, said: str) -> bool:
        """Return whether `error` has this meaning."""
        return isinstance(error, self.kinds) or any(text in said for text in self.texts)


_RIGHTS: Final = (
    "~distributed-backup:* &distributed-backup:* +@read +@write +@scripting +@connection +@pubsub +info +time"
)
# The first that fits counts. The last fits all errors.
_MEANINGS: Final = (
    _Meaning(
        "{where} refused the user name or password: {text}", (AuthenticationError,), ("WRONGPASS", "NOAUTH"), final=True
    ),
    _Meaning(
        "the user at {where} may not do what is needed ({text}): allow " + _RIGHTS,
        (NoPermissionError,),
        ("NOPERM", "can't run this command", "ACL failure in script"),
        final=True,
    ),
    _Meaning(
        "the certificate of {where} can't be verified ({text}): name its authority with ?ssl_ca_certs=/path/to/ca.pem",
        texts=("CERTIFICATE_VERIFY_FAILED",),
        final=True,
    ),
    # MOVED is an AskError.
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
    # Its text is left out: some versions of the driver put credentials into it.
    _Meaning("the sentinels of {where} know no primary of that name, or none can be reached", (MasterNotFoundError,)),
    _Meaning(
        "{where} is a read-only replica: name the primary, or use redis+sentinel://", (ReadOnlyError,), ("READONLY",)
    ),
    _Meaning(
        "{where} is out of memory and refuses writes: raise its maxmemory",
        (OutOfMemoryError,),
        ("OOM command not allowed",),
    ),
    _Meaning("{where} is busy with another client's script: {text}", texts=("BUSY ", "SCRIPT KILL")),
    _Meaning("{where} can't serve the run's keys at the moment: {text}", (ClusterError, RedisClusterException)),
    # Another thread has closed the client, as at the end of a fit.
    _Meaning(
        "this process has closed its connection to {where}, during a call",
        texts=("operation on closed file", "Bad file descriptor", "'NoneType' object has no attribute"),
    ),
    _Meaning("{where} did not answer within {limit:g} s", (redis.TimeoutError, TimeoutError)),
    _Meaning("can't reach {where}: {text}", (redis.ConnectionError, OSError)),
    _Meaning("{where} answered with an error: {text}", (Exception,)),
)


def translate(error: Exception, *, where: str, limit: float, reached: bool) -> BackupError:
    """Return the error of this package for one that the driver raised.

    `where` names the server without credentials, `limit` is the timeout of a step in seconds, and `reached` says
    whether a call has ever succeeded.
    """
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    meaning = next(meaning for meaning in _MEANINGS if meaning.fits(error, said))
    message = meaning.sentence.format(where=where, limit=limit, text=said)
    return ConfigError(message) if meaning.final and not reached else CoordinatorUnavailableError(message)
