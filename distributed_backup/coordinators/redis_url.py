"""Where a Redis or Valkey deployment is: the URL, taken apart.

    redis://[[user]:password@]host[:port][/db][?option=value…]        one server; rediss:// with TLS
    unix://[[user]:password@]/path/to/socket[?db=N]                   one server on this machine
    redis+sentinel://[…@]host[:port][,host[:port]…]/service[/db]      the primary that these sentinels name
    redis+cluster://[…@]host[:port][,host[:port]…]                    Redis Cluster, from any of its nodes

rediss+sentinel:// and rediss+cluster:// with TLS. Options are those of redis-py's `from_url` that are about how to
connect: `ssl_ca_certs`, `ssl_certfile`, `sentinel_password`, …. What is shown of a URL never holds credentials: neither
the part before the @ nor the options.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import parse_url
from redis.sentinel import Sentinel, SentinelConnectionPool

from distributed_backup.coordinators.urls import REDIS_SCHEMES, without_credentials
from distributed_backup.errors import ConfigError

_SENTINEL_PREFIX: Final = "sentinel_"
_SENTINEL_PORT: Final = 26379
_REDIS_PORT: Final = 6379


class _WrongUrlError(ValueError):
    """Says what is wrong without quoting from the URL."""


class RedisAddress:
    """Where a deployment is, and how to make a client for it.

    Args:
        shown: The address without credentials.
        connect: Makes a client from options that win over the URL's.
    """

    def __init__(self, shown: str, connect: Callable[[dict[str, Any]], Any]) -> None:
        self._shown = shown
        self.connect = connect

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"RedisAddress({self._shown!r})"

    @classmethod
    def of_url(cls, url: str) -> RedisAddress:
        """The address that a URL names.

        Raises:
            ConfigError: It is no such URL; the message shows it without credentials.
        """
        shown = without_credentials(url)
        try:
            address = cls(shown, _connector(url))
            client = address.connect({"protocol": 2}) if "cluster" not in urlsplit(url).scheme else None
            if client is not None:
                # Options that redis-py does not know show only when a connection is made.
                client.connection_pool.make_connection()
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{shown} can't be used as the URL of a Redis server: {_harmless(error)}") from None
        return address

    @classmethod
    def of_client(cls, client: Any) -> RedisAddress:
        """The address that a client of redis-py talks to; its connections are not used, its limits not changed.

        Raises:
            ConfigError: It is no `redis.Redis`.
        """
        if not isinstance(client, redis.Redis):
            raise ConfigError(
                f"coordinator must be a redis.Redis, a URL or a Coordinator, got a {type(client).__module__}."
                f"{type(client).__qualname__}"
            )
        pool = client.connection_pool
        settings = {key: value for key, value in pool.connection_kwargs.items() if key not in _LEFT_OUT}
        if isinstance(pool, SentinelConnectionPool):
            service, manager = pool.service_name, pool.sentinel_manager
            hosts = ",".join(
                f"{node.connection_pool.connection_kwargs['host']}:{node.connection_pool.connection_kwargs['port']}"
                for node in manager.sentinels
            )
            return cls(
                f"redis+sentinel://{hosts}/{service}",
                lambda options: redis.Redis.from_pool(
                    SentinelConnectionPool(
                        service,
                        manager,
                        **{**settings, **options, "connection_class": pool.connection_class},
                    )
                ),
            )
        place = settings.get("path") or f"{settings.get('host', 'localhost')}:{settings.get('port', _REDIS_PORT)}"
        scheme = "unix" if "path" in settings else "redis"
        return cls(
            f"{scheme}://{place}",
            lambda options: redis.Redis.from_pool(
                redis.ConnectionPool(**{**settings, **options, "connection_class": pool.connection_class})
            ),
        )


# What one pool's connections share, and another pool makes anew; and a way to have more retries than ours.
_LEFT_OUT: Final = {
    "retry_on_timeout",
    "connection_pool",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "oss_cluster_maint_notifications_handler",
    "event_dispatcher",
    "credential_provider_listener",
}


def _connector(url: str) -> Callable[[dict[str, Any]], Any]:
    parts = urlsplit(url)
    if parts.scheme not in REDIS_SCHEMES:
        raise _WrongUrlError("its scheme must be one of " + ", ".join(REDIS_SCHEMES))
    if parts.fragment:
        raise _WrongUrlError("nothing is named by what follows a #; in a password write it as %23")
    kind = parts.scheme.partition("+")[2]
    credentials, _, place = parts.netloc.rpartition("@")
    login = f"{credentials}@" if credentials else ""
    query = f"?{parts.query}" if parts.query else ""
    if not kind:
        if parts.scheme == "unix":
            if not parts.path.startswith("/") or place:
                raise _WrongUrlError("a socket is named by an absolute path: unix:///path")
            settings = _parsed(f"unix://{login}{parts.path}{query}")
        else:
            [(host, port)] = _hosts(place, _REDIS_PORT, at_most=1)
            settings = _parsed(f"{parts.scheme}://{login}{_bracketed(host)}:{port}/{_db(parts.path)}{query}")
        return lambda options: redis.Redis.from_pool(redis.ConnectionPool(**{**settings, **options}))
    scheme = parts.scheme.partition("+")[0]
    tls = {"ssl": True} if scheme == "rediss" else {}
    settings = {**_parsed(f"{scheme}://{login}localhost{query}"), **tls}
    settings = {key: value for key, value in settings.items() if key not in {"connection_class", "host", "port"}}
    if kind == "cluster":
        if parts.path.strip("/"):
            raise _WrongUrlError("a cluster has no databases")
        nodes = _hosts(place, _REDIS_PORT)
        return lambda options: RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in nodes], **{**settings, **options}
        )
    service, _, db = parts.path.strip("/").partition("/")
    if not service:
        raise _WrongUrlError("a sentinel's URL ends with the name of the service: redis+sentinel://host:26379/service")
    return _sentinel_connector(_hosts(place, _SENTINEL_PORT), unquote(service), {**settings, "db": _db(db)}, tls)


def _parsed(url: str) -> dict[str, Any]:
    return {key: value for key, value in parse_url(url).items() if key not in _LEFT_OUT}


def _sentinel_connector(
    hosts: list[tuple[str, int]], service: str, settings: dict[str, Any], tls: dict[str, Any]
) -> Callable[[dict[str, Any]], Any]:
    prefix = len(_SENTINEL_PREFIX)
    own = {key[prefix:]: value for key, value in settings.items() if key.startswith(_SENTINEL_PREFIX)}
    shared = {key: value for key, value in settings.items() if key.startswith("ssl")}
    settings = {key: value for key, value in settings.items() if not key.startswith(_SENTINEL_PREFIX)}

    def connect(options: dict[str, Any]) -> redis.Redis:
        manager = Sentinel(hosts, sentinel_kwargs={**shared, **tls, **own, **options})
        return cast_redis(manager.master_for(service, **{**settings, **options}))

    return connect


def cast_redis(client: Any) -> redis.Redis:
    """`master_for` is annotated as the most general client."""
    assert isinstance(client, redis.Redis)
    return client


def _hosts(place: str, default_port: int, at_most: int | None = None) -> list[tuple[str, int]]:
    found = []
    for item in place.split(","):
        parts = urlsplit(f"//{item}")
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            raise _WrongUrlError("a port is a whole number up to 65535") from None
        if not host:
            raise _WrongUrlError("a host is missing")
        found.append((unquote(host), port or default_port))
    if at_most is not None and len(found) > at_most:
        raise _WrongUrlError("one server has one host: use redis+sentinel:// or redis+cluster:// for more")
    return found


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _db(path: str) -> int:
    text = path.strip("/")
    if text and not text.isdecimal():
        raise _WrongUrlError("what follows the host is the number of a database")
    return int(text or 0)


def _harmless(error: Exception) -> str:
    """What is wrong with a URL, without quoting from it: the standard library's errors do."""
    if isinstance(error, _WrongUrlError):
        return str(error)
    unknown = re.search(r"unexpected keyword argument ('\w+')", str(error))
    invalid = re.fullmatch(r"Invalid value for ('\w+') in connection URL\.", str(error))
    if unknown is not None:
        return f"there is no option {unknown[1]}"
    return f"wrong value of the option {invalid[1]}" if invalid is not None else "it can't be taken apart"
