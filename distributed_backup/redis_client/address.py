"""Parse the URL of a Redis or Valkey deployment.

    redis://[[user]:password@]host[:port][/db][?option=value…]        one server, rediss:// with TLS
    unix://[[user]:password@]/path/to/socket[?db=N]                   one server on this machine
    redis+sentinel://[…@]host[:port][,host[:port]…]/service[/db]      the primary that these sentinels name
    redis+cluster://[…@]host[:port][,host[:port]…]                    Redis Cluster, from any of its nodes

rediss+sentinel:// and rediss+cluster:// use TLS. Options are those of redis-py's `from_url` that say how to connect:
`ssl_ca_certs`, `ssl_certfile`, `sentinel_password`, and so on. Messages show a URL without credentials: the part before
the @ and the options are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import parse_url
from redis.exceptions import RedisError
from redis.sentinel import Sentinel, SentinelConnectionPool

from distributed_backup.checks import MAX_PLACE, checked_path, shown
from distributed_backup.errors import ConfigError
from distributed_backup.urls import REDIS_SCHEMES, without_credentials

_SENTINEL_PREFIX: Final = "sentinel_"
# Options whose values are paths, also with the prefix.
_FILES: Final = ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_ca_path")
_SENTINEL_PORT: Final = 26379
_REDIS_PORT: Final = 6379
# Each one takes a client.
_MAX_HOSTS: Final = 16


class _WrongUrlError(ValueError):
    """An error whose message quotes nothing from the URL."""


class RedisAddress:
    """The address of a deployment without credentials, and a function that makes a client for it.

    `connect` takes options, which override those of the URL.
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
        """Return the address that a URL names.

        Raises:
            ConfigError: The URL is malformed. The message shows it without credentials.
        """
        if len(url) > MAX_PLACE:
            raise ConfigError(f"the URL of a Redis server has {len(url)} characters, and at most {MAX_PLACE} are read")
        shown, problem = without_credentials(url), ""
        try:
            connector = _connector(url)
        except (RedisError, ValueError, TypeError, AttributeError) as error:
            problem = _redacted_reason(error)
        if problem:
            # Raised outside of the handler: the error that quotes the URL must not become the context of ours.
            raise ConfigError(f"{shown} can't be used as the URL of a Redis server: {problem}")
        return cls(shown, connector)

    @classmethod
    def of_client(cls, client: Any) -> RedisAddress:
        """Return the address of a redis-py client, from its settings. Its connections and limits stay its own.

        Raises:
            ConfigError: The client is no `redis.Redis`.
        """
        if not isinstance(client, redis.Redis):
            # The type and not the value, which may hold a password.
            kind = type(client)
            got = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
            raise ConfigError(
                "coordinator must be a redis.Redis, a URL or a Coordinator, got "
                f"{shown(client) if isinstance(client, int | float) else 'a value'} of type {got}"
            )
        pool = client.connection_pool
        if isinstance(pool, SentinelConnectionPool):
            return cls(*_sentinels_of(pool))
        settings = {key: value for key, value in _settings_of(pool).items() if key != "ssl"}
        place = settings.get("path") or f"{settings.get('host', 'localhost')}:{settings.get('port', _REDIS_PORT)}"
        scheme = "unix" if "path" in settings else "redis"
        return cls(f"{scheme}://{place}", _to_server({**settings, "connection_class": pool.connection_class}))


# Settings that belong to one pool: another pool makes its own. `retry_on_timeout` would add retries to ours.
_UNSHARED_SETTINGS: Final = {
    "retry_on_timeout",
    "connection_pool",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "oss_cluster_maint_notifications_handler",
    "event_dispatcher",
    "credential_provider_listener",
}


Connector = Callable[[dict[str, Any]], Any]


def _connector(url: str) -> Connector:
    parts = urlsplit(url)
    if parts.scheme not in REDIS_SCHEMES:
        raise _WrongUrlError("its scheme must be one of " + ", ".join(REDIS_SCHEMES))
    if parts.fragment:
        raise _WrongUrlError("it has a part after a #: write a # in a password as %23")
    scheme, _, kind = parts.scheme.partition("+")
    login, at, place = parts.netloc.rpartition("@")
    query = f"?{parts.query}" if parts.query else ""
    if scheme == "unix":
        if not parts.path.startswith("/") or place:
            raise _WrongUrlError("a socket is named by an absolute path: unix:///path")
        return _to_server(_parsed(f"unix://{login}{at}{parts.path}{query}"))
    if not kind:
        [(host, port)] = _hosts(place, _REDIS_PORT, at_most=1)
        host = f"[{host}]" if ":" in host else host
        return _to_server(_parsed(f"{scheme}://{login}{at}{host}:{port}/{_db(parts.path)}{query}"))
    settings = _parsed(f"{scheme}://{login}{at}localhost{query}")
    # The hosts are parsed separately. All other settings apply to each of them.
    settings = {key: value for key, value in settings.items() if key not in {"connection_class", "host", "port"}}
    if scheme == "rediss":
        settings["ssl"] = True
    return _to_cluster(place, parts.path, settings) if kind == "cluster" else _to_sentinels(place, parts.path, settings)


def _to_cluster(place: str, path: str, settings: dict[str, Any]) -> Connector:
    if path.strip("/"):
        raise _WrongUrlError("a cluster has no databases")
    nodes = [ClusterNode(host, port) for host, port in _hosts(place, _REDIS_PORT)]
    plain = {key: value for key, value in settings.items() if key != "ssl"}
    kind = redis.SSLConnection if settings.get("ssl") else redis.Connection
    _to_server({**plain, "connection_class": kind})  # raises on unknown options
    return lambda options: RedisCluster(startup_nodes=nodes, **{**settings, **options})


def _to_sentinels(place: str, path: str, settings: dict[str, Any]) -> Connector:
    service, _, db = path.strip("/").partition("/")
    if not service:
        raise _WrongUrlError("a sentinel's URL ends with the name of the service: redis+sentinel://host:26379/service")
    watching = {key: value for key, value in settings.items() if key.startswith("ssl")}
    for key in [key for key in settings if key.startswith(_SENTINEL_PREFIX)]:
        watching[key.removeprefix(_SENTINEL_PREFIX)] = settings.pop(key)
    return _to_primary(_hosts(place, _SENTINEL_PORT), unquote(service), {**settings, "db": _db(db)}, watching)


def _parsed(url: str) -> dict[str, Any]:
    settings = {key: value for key, value in parse_url(url).items() if key not in _UNSHARED_SETTINGS}
    # The driver reads these files each time it connects.
    files = {key: str(checked_path(key, value)) for key, value in settings.items() if key.endswith(_FILES) and value}
    return {**settings, **files}


def _settings_of(pool: redis.ConnectionPool) -> dict[str, Any]:
    settings = {key: value for key, value in pool.connection_kwargs.items() if key not in _UNSHARED_SETTINGS}
    return {**settings, "ssl": True} if issubclass(pool.connection_class, redis.SSLConnection) else settings


def _sentinels_of(pool: SentinelConnectionPool) -> tuple[str, Connector]:
    """Return the address of a primary's pool without credentials, and a function that makes another client for it."""
    asked = [_settings_of(sentinel.connection_pool) for sentinel in pool.sentinel_manager.sentinels]
    hosts = [(settings.pop("host"), settings.pop("port")) for settings in asked]
    shown = ",".join(f"{host}:{port}" for host, port in hosts)
    # A sentinel's client takes fewer settings than its connections have.
    watching = {key: value for key, value in asked[0].items() if key in {"username", "password"} or "ssl" in key}
    connector = _to_primary(hosts, pool.service_name, _settings_of(pool), watching)
    return f"redis+sentinel://{shown}/{pool.service_name}", connector


def _to_server(settings: dict[str, Any]) -> Connector:
    def connect(options: dict[str, Any]) -> Any:
        return redis.Redis.from_pool(redis.ConnectionPool(**{**settings, **options}))

    # The driver raises on unknown options only when it makes a connection.
    connect({}).connection_pool.make_connection()
    return connect


def _to_primary(
    hosts: list[tuple[str, int]], service: str, settings: dict[str, Any], watching: dict[str, Any]
) -> Connector:
    """Return a function that connects to the primary with `settings`, and to the sentinels with `watching`."""

    def connect(options: dict[str, Any]) -> Any:
        manager = Sentinel(hosts, sentinel_kwargs={**watching, **options})
        return manager.master_for(service, **{**settings, **options})

    connect({}).connection_pool.make_connection()
    return connect


def _hosts(place: str, default_port: int, at_most: int | None = None) -> list[tuple[str, int]]:
    found = []
    if place.count(",") >= _MAX_HOSTS:
        raise _WrongUrlError(f"it has more than {_MAX_HOSTS} hosts")
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


def _db(path: str) -> int:
    text = path.strip("/")
    if text and not text.isdecimal():
        raise _WrongUrlError("the part after the host must be the number of a database")
    return int(text or 0)


def _redacted_reason(error: Exception) -> str:
    """Return what is wrong with a URL. Errors of the standard library quote it and are replaced."""
    if isinstance(error, _WrongUrlError):
        return str(error)
    unknown = re.search(r"unexpected keyword argument ('\w+')", str(error))
    invalid = re.fullmatch(r"Invalid value for ('\w+') in connection URL\.", str(error))
    if unknown is not None:
        return f"there is no option {unknown[1]}"
    return f"wrong value of the option {invalid[1]}" if invalid is not None else "it can't be parsed"
