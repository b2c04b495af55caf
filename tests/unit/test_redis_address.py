"""URLs of Redis deployments: what they mean, and that nothing shows a password. No server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.cluster import RedisCluster
from redis.sentinel import Sentinel, SentinelConnectionPool

from distributed_backup.coordination import coordinator_from_url
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.errors import ConfigError
from distributed_backup.redis_client.address import RedisAddress
from distributed_backup.urls import REDIS_SCHEMES, is_redis_url, without_credentials


def settings_of(url: str) -> dict[str, Any]:
    """What a connection for `url` is made with."""
    pool = RedisAddress.of_url(url).connect({}).connection_pool
    return {"class": type(pool.make_connection()).__name__, **pool.connection_kwargs}


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("redis://host", {"class": "Connection", "host": "host", "port": 6379, "db": 0}),
        ("redis://host:7000/3", {"host": "host", "port": 7000, "db": 3}),
        ("redis://:pa%2Fss%40@host", {"host": "host", "password": "pa/ss@"}),
        ("redis://user:pass@host/1", {"username": "user", "password": "pass", "db": 1}),
        ("redis://[::1]:7000", {"host": "::1", "port": 7000}),
        ("redis://host?client_name=x", {"client_name": "x"}),
        ("rediss://host?ssl_ca_certs=/ca.pem", {"class": "SSLConnection", "ssl_ca_certs": "/ca.pem"}),
        ("unix:///run/redis.sock?db=2", {"class": "UnixDomainSocketConnection", "path": "/run/redis.sock", "db": 2}),
        ("unix://user:pass@/run/redis.sock", {"username": "user", "password": "pass"}),
    ],
)
def test_a_url_of_one_server_is_what_the_driver_makes_of_it(url: str, wanted: dict[str, Any]) -> None:
    """Host, database, credentials, TLS and options arrive."""
    assert wanted.items() <= settings_of(url).items()


@pytest.mark.parametrize(
    ("url", "hosts", "service", "db", "tls"),
    [
        ("redis+sentinel://a/main", [("a", 26379)], "main", 0, False),
        ("redis+sentinel://a:1,b:2,[::1]:3/main/4", [("a", 1), ("b", 2), ("::1", 3)], "main", 4, False),
        ("rediss+sentinel://a/main", [("a", 26379)], "main", 0, True),
    ],
)
def test_a_sentinel_url_names_the_sentinels_and_the_service(
    url: str, hosts: list[tuple[str, int]], service: str, db: int, tls: bool
) -> None:
    """Both kinds of connection have TLS, or none."""
    pool = RedisAddress.of_url(url).connect({}).connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    asked = [client.connection_pool for client in pool.sentinel_manager.sentinels]
    assert [(item.connection_kwargs["host"], item.connection_kwargs["port"]) for item in asked] == hosts
    assert (pool.service_name, pool.connection_kwargs["db"]) == (service, db)
    assert "SSL" in pool.connection_class.__name__ if tls else "SSL" not in pool.connection_class.__name__
    assert all(("SSL" in item.connection_class.__name__) is tls for item in asked)


def test_sentinels_have_credentials_of_their_own() -> None:
    """The part before the @ is for the primary. `sentinel_` options are for the sentinels, which often need none."""
    url = "redis+sentinel://user:secret@a/main?sentinel_password=other&sentinel_username=watcher"
    pool = RedisAddress.of_url(url).connect({}).connection_pool
    [sentinel] = pool.sentinel_manager.sentinels
    assert (pool.connection_kwargs["username"], pool.connection_kwargs["password"]) == ("user", "secret")
    theirs = sentinel.connection_pool.connection_kwargs
    assert (theirs["username"], theirs["password"]) == ("watcher", "other")


def test_a_relative_path_of_a_certificate_means_the_directory_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver reads the files again at each connection, when the script may have changed its working directory."""
    monkeypatch.chdir(tmp_path)
    address = RedisAddress.of_url("rediss+sentinel://a/main?ssl_ca_certs=ca.pem&sentinel_ssl_keyfile=key.pem")
    monkeypatch.chdir("/")
    pool = address.connect({}).connection_pool
    [sentinel] = pool.sentinel_manager.sentinels
    assert pool.connection_kwargs["ssl_ca_certs"] == str(tmp_path / "ca.pem")
    assert sentinel.connection_pool.connection_kwargs["ssl_keyfile"] == str(tmp_path / "key.pem")


def test_our_options_win_over_the_urls() -> None:
    """A time-out in the URL must not outlast the lease."""
    client = RedisAddress.of_url("redis://host?socket_timeout=600&decode_responses=no").connect({"socket_timeout": 2.0})
    assert client.connection_pool.connection_kwargs["socket_timeout"] == 2.0


WRONG = {
    "redis://": "a host is missing",
    "redis://host:port/0": "a port is a whole number",
    "redis://host:99999": "a port is a whole number",
    "redis://host/database": "the number of a database",
    "redis://host?foo=1": "there is no option 'foo'",
    "redis://host?socket_timeout=long": "wrong value of the option 'socket_timeout'",
    "redis://a,b": "one server has one host",
    "redis://host#part": "write a # in a password as %23",
    "unix://relative": "an absolute path",
    "redis+sentinel://a:26379": "ends with the name of the service",
    "redis+sentinel://a/main/db": "the number of a database",
    "redis+cluster://a/1": "no databases",
    "redis+cluster://a?ssl_ca_cert=x": "there is no option 'ssl_ca_cert'",
    "rediss+sentinel://a/main?ssl_ca_cert=x": "there is no option 'ssl_ca_cert'",
    "rediss+cluster://a?ssl_ca_cert=x": "there is no option 'ssl_ca_cert'",
    "redis://[::1": "can't be parsed",
    "http://host": "its scheme must be one of",
}


@pytest.mark.parametrize("url", sorted(WRONG))
def test_a_wrong_url_is_refused_with_what_is_wrong(url: str) -> None:
    """In one line, before anything is connected to."""
    with pytest.raises(ConfigError, match=re.escape(WRONG[url])) as caught:
        RedisCoordinator(url)
    assert "\n" not in str(caught.value)
    # What the standard library raised quotes the URL: it must not even hang on to ours.
    assert caught.value.__context__ is None


SECRET = "s3cr3t"
LOGINS = [
    "redis://:{}@host",
    "redis://user:{}@host:port",
    "redis://user:a/{}@host",
    "redis://user:a?{}@host",
    "redis://user:a#{}@host",
    "redis://user:{}?a@host",
    "redis://user:{}#a@host",
    "redis://user:{}\u2100@host",
    "redis://user:{}@[::1",
    "redis://host?password={}",
    "redis://host?ssl_password={}&foo=1",
    "redis://host?socket_timeout={}",
    "unix://:{}@/socket",
    "unix://:{}@relative",
    "redis+sentinel://:{}@host/main",
    "redis+sentinel://host/main?sentinel_password={}",
    "redis+cluster://user:{}@a:1,b:2",
    "redis://host/0?password=a@{}",
    "redis+sentinel://host/main?sentinel_password=a@{}",
    "redis+cluster://host?ssl_password={}&ssl_ca_cert=/typo",
    "redis+cluster://user:{}@a:1,b:2/x",
    "postgres://user:{}@host",
    "rediss+sentinel://user:{}@a:x/main",
    "redis:/:{}@host/0",
    "redis:{}@host",
    ":{}@host",
    "Redis://:{}@host",
]


@pytest.mark.parametrize("template", LOGINS)
def test_nothing_that_is_shown_of_a_url_holds_a_password(template: str) -> None:
    """Neither the repr of what it makes nor the error it is refused with, however it is written."""
    url = template.format(SECRET)
    try:
        shown = repr(coordinator_from_url(url))
    except ConfigError as error:
        shown = str(error)
    assert SECRET not in shown
    assert SECRET not in without_credentials(url)


def test_what_is_shown_of_a_url_still_says_where() -> None:
    """Host, port, database and service stay."""
    assert without_credentials("redis+sentinel://u:p@a:1,b:2/main/3?x=y") == "redis+sentinel://a:1,b:2/main/3"
    assert repr(RedisCoordinator("redis://u:p@host:7000/2")) == "RedisCoordinator('redis://host:7000/2')"


def test_all_schemes_make_a_coordinator() -> None:
    """And nothing is connected to: there is no such host."""
    for scheme in REDIS_SCHEMES:
        place = "/nowhere.sock" if scheme == "unix" else "nowhere.invalid/service"
        url = f"{scheme}://{place.removesuffix('/service') if 'sentinel' not in scheme else place}"
        assert is_redis_url(url)
        assert isinstance(coordinator_from_url(url), RedisCoordinator)


@pytest.mark.parametrize("text", ["file:", "/redis://x", "redis", "memory:", "http://redis://", "./unix:///x"])
def test_what_is_no_redis_url(text: str) -> None:
    """A directory may have any name."""
    assert not is_redis_url(text)


# ---------------------------------------------------------------- clients


def test_a_client_is_taken_for_its_settings() -> None:
    """Its credentials and its place are used, its pool and its time limits are not."""
    client = redis.Redis(host="host", port=7000, db=3, username="user", password=SECRET, socket_timeout=600)
    address = RedisAddress.of_client(client)
    made = address.connect({"socket_timeout": 2.0, "decode_responses": True})
    ours = made.connection_pool.connection_kwargs
    assert (ours["host"], ours["port"], ours["db"], ours["username"], ours["password"]) == (
        "host",
        7000,
        3,
        "user",
        SECRET,
    )
    assert ours["socket_timeout"] == 2.0
    assert made.connection_pool is not client.connection_pool
    assert client.connection_pool.connection_kwargs["socket_timeout"] == 600
    assert str(address) == "redis://host:7000"
    made.connection_pool.make_connection()


def test_a_client_of_sentinels_stays_one() -> None:
    """It must find the next primary too."""
    client = Sentinel([("a", 1), ("b", 2)], password=SECRET).master_for("main")
    address = RedisAddress.of_client(client)
    pool = address.connect({"socket_timeout": 2.0}).connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert (pool.service_name, pool.connection_kwargs["password"]) == ("main", SECRET)
    assert str(address) == "redis+sentinel://a:1,b:2/main"


@pytest.mark.parametrize("thing", [42, object(), redis.asyncio.Redis(), RedisCluster])
def test_what_is_no_client_is_refused(thing: Any) -> None:
    """An asyncio client would return coroutines that are never awaited."""
    with pytest.raises(ConfigError, match=r"must be a redis\.Redis, a URL or a Coordinator"):
        RedisCoordinator(thing)
