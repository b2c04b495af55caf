"""The way to a Redis or Valkey server: from a URL or a client to one call at a time.

Every call has a time limit that is a fraction of the lease, and is repeated once on another connection if the one it
had was dropped: so each script must bear to be repeated, and the client's own, longer retries are switched off. Driver
errors end here: they leave as one line that says what is wrong and where, without user names and passwords. It can't
bound a call exactly: to connect is several round trips, each within the limit, and a client of a cluster asks one node
after the other where all of them hang.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import NoPermissionError, NoScriptError, ReadOnlyError, RedisClusterException, RedisError
from redis.retry import Retry

from distributed_backup.errors import BackupError, ConfigError
from distributed_backup.randomness import isolate_rng
from distributed_backup.redis_client.address import RedisAddress
from distributed_backup.redis_client.errors import translate

if TYPE_CHECKING:
    from redis.client import PubSub

logger = logging.getLogger(__name__)

_OLDEST_VERSION: Final = (6, 2)
# The driver's own, and what it makes of a reply that no Redis sends.
_DRIVER_ERRORS: Final = (
    RedisError,
    RedisClusterException,
    OSError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
)


class RedisDriver(Protocol):
    """What is used of `redis.Redis` and of `redis.RedisCluster`."""

    def evalsha(self, sha: str, numkeys: int, *keys_and_args: Any) -> Any:
        """Run a script that the server knows."""

    def eval(self, script: str, numkeys: int, *keys_and_args: Any) -> Any:
        """Run a script."""

    def execute_command(self, *arguments: Any) -> Any:
        """Run a command."""

    def scan_iter(self, match: str, count: int) -> Iterator[str]:
        """Names of keys."""

    def pubsub(self) -> PubSub:
        """A subscription."""

    def close(self) -> None:
        """Close all connections."""


@cache
def _sha(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class RedisClient:
    """Calls scripts on one server, or one deployment with a primary.

    Connects at the first call.

    Args:
        address: Where it is and how to connect.
        limit: Seconds that each step of a call may take.
        text: Whether what is read is text; else it is bytes.
    """

    def __init__(self, address: RedisAddress, limit: float, *, text: bool = True) -> None:
        self._address = address
        self._limit = limit
        self._text = text
        self._lock = threading.Lock()
        self._client: RedisDriver | None = None
        self._checked = False
        # Whether it has ever done what was asked: what is refused from then on may be granted again.
        self._reached = False

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:
        """Run a script; what it returned.

        Raises:
            CoordinatorUnavailableError: The server can't be reached, or can't do it just now.
            ConfigError: It refused at the first contact, and always will.
        """
        with self._translated():
            client = self._connected()
            try:
                told = client.evalsha(_sha(script), len(keys), *keys, *arguments)
            except NoScriptError:
                # Its first use here, SCRIPT FLUSH, a restart or another primary. `register_script` of the driver would
                # send SCRIPT LOAD to all primaries of a cluster, and fail if one of them is down.
                told = client.eval(script, len(keys), *keys, *arguments)
            self._reached = True
            return told

    def command(self, *arguments: str | bytes) -> Any:
        """Run one command that may be repeated; what it returned; raises as `run` does."""
        with self._translated():
            told = self._connected().execute_command(*arguments)
            self._reached = True
            return told

    def persists(self) -> bool:
        """Whether the server keeps an append-only file, or does not tell; raises as `run` does."""
        with self._translated():
            try:
                return bool(_server_info(self._connected()).get("aof_enabled", True))
            except NoPermissionError:
                return True

    def find(self, pattern: str) -> tuple[str, ...]:
        """The keys that match a pattern of SCAN, sorted; raises as `run` does."""
        with self._translated():
            return tuple(sorted(set(self._connected().scan_iter(match=pattern, count=1000))))

    @contextmanager
    def subscription(self) -> Iterator[PubSub]:
        """A connection to subscribe with; raises as `run` does, also for what the caller does with it."""
        with self._translated():
            subscription = self._connected().pubsub()
            try:
                yield subscription
            finally:
                with suppress(RedisError, OSError):
                    subscription.close()

    def close(self) -> None:
        """Close all connections; the next call opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            with suppress(RedisError, OSError):
                client.close()

    def _connected(self) -> RedisDriver:
        with self._lock:
            if self._client is None:
                # Which node of a cluster is asked, is drawn.
                isolate_rng("redis")
                self._client = cast(RedisDriver, self._address.connect(self._options()))
            client = self._client
            if not self._checked:
                check_server(client, self._address)
                self._checked = True
        return client

    def _options(self) -> dict[str, Any]:
        return {
            "socket_timeout": self._limit,
            "socket_connect_timeout": self._limit,
            # One more try, at once, on a new connection: the server may have closed an idle one. Not after a time-out.
            "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            "retry_on_error": [],
            "health_check_interval": 0,
            "decode_responses": self._text,
            # Nothing here needs more, and the oldest servers speak it.
            "protocol": 2,
        }

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except BackupError:
            raise
        except _DRIVER_ERRORS as error:
            if isinstance(error, ReadOnlyError) or "READONLY" in str(error):
                # What was the primary is one no more; the address may lead to another by now.
                self.close()
            raise translate(error, where=str(self._address), limit=self._limit, reached=self._reached) from None


def check_server(client: Any, address: RedisAddress) -> None:
    """Log what is dangerous about a server; done at the first contact.

    Raises:
        ConfigError: It is too old.
    """
    try:
        info = _server_info(client)
    except NoPermissionError:
        logger.warning("can't check the server at %s: its user may not run INFO", address)
        return
    version = str(info.get("redis_version", ""))
    if _numbers(version) < _OLDEST_VERSION:
        raise ConfigError(f"the server at {address} is version {version or 'unknown'}: Redis 6.2 or Valkey is needed")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        logger.warning(
            "the server at %s may evict the lease of a run when its memory is full: set its maxmemory-policy, now %s, "
            "to noeviction",
            address,
            policy,
        )
    if info.get("role") == "slave":
        logger.warning("the server at %s is a replica: nobody can lead through it; name the primary", address)


def _server_info(client: Any) -> dict[str, Any]:
    """What a server says of itself, one of them if there are many."""
    options = {"target_nodes": RedisCluster.RANDOM} if isinstance(client, RedisCluster) else {}
    return cast(dict[str, Any], client.info(**options))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
