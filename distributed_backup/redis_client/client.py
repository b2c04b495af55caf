"""Call a Redis or Valkey server, one command or script at a time.

Each step of a call has a time limit, a fraction of the lease. A call whose connection was dropped is repeated once on
another connection, so each script must be repeatable. The driver's own, longer retries are off. Driver errors become
one line that says what failed and where, without user names and passwords.

The duration of a call has no exact limit. Connecting takes several round trips, each within the limit. A cluster client
asks one node after the other where several hang.
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
from distributed_backup.redis_client.server_info import ServerInfo

if TYPE_CHECKING:
    from redis.client import PubSub

logger = logging.getLogger(__name__)

# The driver's own errors, and those it raises on a reply that no Redis sends.
_DRIVER_ERRORS: Final = (
    RedisError,
    RedisClusterException,
    OSError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    OverflowError,
    RecursionError,
)


class RedisDriver(Protocol):
    """The methods of `redis.Redis` and `redis.RedisCluster` that are used."""

    def evalsha(self, sha: str, numkeys: int, *keys_and_args: Any) -> Any:
        """Run a script that is in the server's cache."""

    def eval(self, script: str, numkeys: int, *keys_and_args: Any) -> Any:
        """Run a script."""

    def execute_command(self, *arguments: Any) -> Any:
        """Run a command."""

    def scan_iter(self, match: str, count: int) -> Iterator[str]:
        """Iterate over names of keys."""

    def pubsub(self) -> PubSub:
        """Return a subscription."""

    def close(self) -> None:
        """Close all connections."""


@cache
def _sha(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class RedisClient:
    """Calls one server, or one deployment with a primary. Connects at the first call.

    `limit` is in seconds and bounds each step of a call. Replies are text, or bytes if `text` is False.
    """

    def __init__(self, address: RedisAddress, limit: float, *, text: bool = True) -> None:
        self._address = address
        self._limit = limit
        self._text = text
        self._lock = threading.Lock()
        self._client: RedisDriver | None = None
        self._checked = False
        # Whether a call has ever succeeded. A refusal after that may be temporary.
        self._reached = False

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:
        """Run a script and return its result.

        Raises:
            CoordinatorUnavailableError: The server can't be reached, or can't serve the call at the moment.
            ConfigError: The server refused the first call, and a retry can't help.
        """
        with self._translated():
            client = self._connected()
            try:
                reply = client.evalsha(_sha(script), len(keys), *keys, *arguments)
            except NoScriptError:
                # Its first use here, SCRIPT FLUSH, a restart or another primary. `register_script` of the driver would
                # send SCRIPT LOAD to all primaries of a cluster, and fail if one of them is down.
                reply = client.eval(script, len(keys), *keys, *arguments)
            self._reached = True
            return reply

    def command(self, *arguments: str | bytes) -> Any:
        """Run one repeatable command and return its result. Raises as `run` does."""
        with self._translated():
            reply = self._connected().execute_command(*arguments)
            self._reached = True
            return reply

    def info(self) -> ServerInfo | None:
        """Return what the server says of itself. None if its user may not ask. Raises as `run` does."""
        with self._translated():
            try:
                return _server_info(self._connected(), self._address)
            except NoPermissionError:
                return None

    def find(self, pattern: str) -> tuple[str, ...]:
        """Return the keys that match a pattern of SCAN, sorted. Raises as `run` does."""
        with self._translated():
            return tuple(sorted(set(self._connected().scan_iter(match=pattern, count=1000))))

    @contextmanager
    def subscription(self) -> Iterator[PubSub]:
        """Yield a subscription. Raises as `run` does, for errors in the caller's block too."""
        with self._translated():
            subscription = self._connected().pubsub()
            try:
                yield subscription
            finally:
                with suppress(RedisError, OSError):
                    subscription.close()

    def close(self) -> None:
        """Close all connections. The next call opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            with suppress(RedisError, OSError):
                client.close()

    def _connected(self) -> RedisDriver:
        with self._lock:
            if self._client is None:
                # The driver draws the node of a cluster that it asks.
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
            # One retry on a new connection: the server may have closed an idle one. No retry after a timeout.
            "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            "retry_on_error": [],
            "health_check_interval": 0,
            "decode_responses": self._text,
            # The oldest supported servers speak it, and nothing here needs a newer one.
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
                # The server is no longer the primary. A new connection may lead to the new primary.
                self.close()
            raise translate(error, where=str(self._address), limit=self._limit, reached=self._reached) from None


def check_server(client: Any, address: RedisAddress) -> None:
    """Warn about dangerous settings of a server. Called once for each client.

    Raises:
        ConfigError: The server is too old.
    """
    try:
        info = _server_info(client, address)
    except NoPermissionError:
        logger.warning("can't check the server at %s: its user may not run INFO", address)
        return
    if problem := info.is_too_old:
        raise ConfigError(problem)
    for problem in (info.may_evict, info.is_replica):
        if problem:
            logger.warning("%s", problem)


def _server_info(client: Any, address: RedisAddress) -> ServerInfo:
    """Return the reply to INFO, from one primary of a cluster."""
    # Before version 7, RANDOM of the driver may be a replica.
    options = {"target_nodes": RedisCluster.DEFAULT_NODE} if isinstance(client, RedisCluster) else {}
    return ServerInfo(str(address), cast(dict[str, Any], client.info(**options)))
