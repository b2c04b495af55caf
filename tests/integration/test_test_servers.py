"""The servers and the proxy that other tests rely on do what they say, seen with a real client.

Every fault is checked to have happened, not only to have been asked for.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support import buckets, servers
from tests.support.proxy import Proxy
from tests.support.servers import PATIENCE, Cluster, RedisServer, Replicated, binaries, wait_for

BINARIES = pytest.mark.parametrize("binary", binaries().values(), ids=binaries().keys())
PORTS = pytest.mark.parametrize("port", [None, 0], ids=["socket", "tcp"])

# Long enough for a live server on a noisy machine, short enough to wait for a silent one.
IMPATIENCE = 1.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "server", port=0) as server:
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(server.address) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[redis.Redis]:
    with connect(proxy.url()) as client:
        client.ping()
        yield client


def connect(url: str, timeout: float = PATIENCE, **options: str) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        **options,
    )


@BINARIES
@PORTS
def test_a_restarted_server_is_empty_and_at_the_same_address(tmp_path: Path, binary: Path, port: int | None) -> None:
    """A kill loses everything, and clients find the server where it was."""
    with RedisServer(tmp_path, binary=binary, port=port) as server:
        client, url, pid = server.client(), server.url, server.pid
        client.set("key", "value")
        server.restart()
        assert server.url == url
        assert server.pid != pid
        assert client.get("key") is None


@BINARIES
@PORTS
def test_a_stopped_server_is_gone_and_starts_again(tmp_path: Path, binary: Path, port: int | None) -> None:
    """After `kill` no server answers and no socket is left. `start` brings the server back."""
    with RedisServer(tmp_path, binary=binary, port=port) as server:
        client = server.client()
        server.stop()
        assert not server.running
        assert port == 0 or not Path(str(server.address)).exists()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        server.start()
        assert client.ping()


@BINARIES
@PORTS
def test_a_paused_server_keeps_its_clients_waiting(tmp_path: Path, binary: Path, port: int | None) -> None:
    """A client of a paused server times out. When the server resumes, it still has its data."""
    with RedisServer(tmp_path, binary=binary, port=port) as server:
        server.client().set("key", "value")
        client = server.client(socket_timeout=IMPATIENCE)
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.get("key")
        server.resume()
        assert server.client().get("key") == "value"
        server.pause()  # and a paused one can be stopped


@BINARIES
def test_a_password_is_part_of_the_url(tmp_path: Path, binary: Path) -> None:
    """The server's client and URL log in where a password is configured. Others are refused."""
    with RedisServer(tmp_path, binary=binary, port=0, config={"requirepass": "secret"}) as server:
        assert server.client().ping()
        with connect(server.url.replace(":secret@", "")) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_a_taken_port_is_not_used(tmp_path: Path, server: RedisServer) -> None:
    """A server with a port that is taken fails and shows its log."""
    with pytest.raises(AssertionError, match="Address already in use"):
        RedisServer(tmp_path / "other", port=server.port).start()


def test_no_port_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two tests have seeded the global generator alike, and in two of pytest's processes."""
    given: dict[str, set[int]] = {}
    state = random.getstate()
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    for worker in ("gw0", "gw1"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        ports = []
        for _ in range(100):
            random.setstate(state)
            ports.append(servers.free_port())
        given[worker] = set(ports)
        assert len(given[worker]) == 100
    assert given["gw0"].isdisjoint(given["gw1"])
    assert {port % 2 for port in given["gw0"]} == {0}


def test_another_port_is_picked_where_the_first_was_taken(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A free port that is taken before the server gets it is replaced by another."""
    picks = [server.port, servers.free_port()]
    monkeypatch.setattr(servers, "free_port", lambda: picks.pop(0))
    with RedisServer(tmp_path / "other", port=0) as other:
        assert not picks
        assert other.port != server.port


def test_a_server_dies_with_a_killed_test_process(tmp_path: Path) -> None:
    """A SIGKILL of the process that started a server ends the server as well."""
    program = (
        "import sys, pathlib, tests.support.servers as servers\n"
        "server = servers.RedisServer(pathlib.Path(sys.argv[1]), port=0)\n"
        "server.start()\n"
        "print(server.port, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        with connect(f"redis://127.0.0.1:{port}") as client:
            assert client.ping()
            os.kill(child.pid, signal.SIGKILL)
            wait_for(lambda: _refuses(port), "the server is gone")


def test_sentinels_promote_a_replica_which_has_the_data(tmp_path: Path) -> None:
    """A killed primary is replaced, twice, by one that holds what was replicated."""
    with Replicated(tmp_path) as group:
        first = group.primary()
        assert len(group.replicas()) == 2
        _replicate(first, replicas=2)
        second = group.fail_over()
        assert not first.running
        assert second is group.primary() is not first
        assert second.client().get("key") == "replicated"
        assert group.fail_over() not in (first, second)


def test_sentinels_promote_a_stale_replica(tmp_path: Path) -> None:
    """A write to a primary whose replicas were detached is acknowledged, and gone after the failover."""
    with Replicated(tmp_path) as group:
        _replicate(group.primary(), replicas=2)
        primary = group.primary().client()
        group.detach_replicas()
        assert primary.set("key", "lost")
        assert primary.get("key") == "lost"
        assert group.fail_over().client().get("key") == "replicated"


def test_a_cluster_replaces_a_killed_master(tmp_path: Path) -> None:
    """The replica takes over with the data, but without the writes since it was detached."""
    with Cluster(tmp_path) as cluster:
        with redis.RedisCluster.from_url(cluster.servers[0].url, decode_responses=True) as client:
            client.set("key", "from any node")
        old = cluster.master_of("key")
        assert old.client().get("key") == "from any node"
        _replicate(old, replicas=1)
        cluster.detach_replicas("key")
        assert old.client().set("key", "lost")
        new = cluster.fail_over("key")
        assert not old.running
        assert new is cluster.master_of("key") is not old
        assert new.client().get("key") == "replicated"


@PORTS
def test_a_proxy_forwards(tmp_path: Path, port: int | None) -> None:
    """Without a fault a client does not notice the proxy, whatever the size."""
    with RedisServer(tmp_path, port=port) as server, Proxy(server.address) as proxy, connect(proxy.url(1)) as client:
        client.set("key", "x" * 1_000_000)
        assert client.get("key") == "x" * 1_000_000
        assert server.client(db=1).exists("key")
        assert proxy.connections == 1
        before = proxy.requests
        client.ping()
        assert proxy.requests == before + 1


def test_a_dropped_reply_hides_that_the_request_was_executed(
    server: RedisServer, proxy: Proxy, client: redis.Redis
) -> None:
    """An INCR whose reply is dropped is executed once, and its client sees an error."""
    proxy.drop_replies(2, containing=b"INCR")
    assert client.ping()
    assert proxy.dropped == 0
    for count in (1, 2):
        with pytest.raises(redis.ConnectionError):
            client.incr("key")
        proxy.wait_dropped(count)
    assert server.client().get("key") == "2"
    assert client.incr("key") == 3
    assert proxy.dropped == 2


def test_a_delay_slows_both_ways(proxy: Proxy, client: redis.Redis) -> None:
    """A client with a timeout below the delay times out. One with a longer timeout gets its reply."""
    proxy.delay(IMPATIENCE)
    with connect(proxy.url(), IMPATIENCE) as impatient, pytest.raises(redis.TimeoutError):
        impatient.ping()
    proxy.heal()
    proxy.delay(IMPATIENCE, "replies")
    start = time.monotonic()
    assert client.ping()
    assert time.monotonic() - start >= IMPATIENCE


def test_a_cut_resets_the_current_connections_only(proxy: Proxy, client: redis.Redis) -> None:
    """A connected client reads a reset. An idle client of redis-py connects again without an error."""
    before = client.client_id()
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as idle:
        wait_for(lambda: proxy.connections == 2, "both are connected")
        proxy.cut()
        assert proxy.connections == 0
        with pytest.raises(ConnectionResetError):
            idle.recv(1)
    assert client.client_id() != before


def test_a_cut_interrupts_a_request(server: RedisServer, proxy: Proxy, client: redis.Redis) -> None:
    """A client that waits for a reply gets an error. Its request was executed."""
    proxy.black_hole("replies")
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(client.incr, "key")
        proxy.wait_held()
        assert not waiting.done()
        proxy.cut()
        with pytest.raises(redis.ConnectionError):
            waiting.result(PATIENCE)
    assert server.client().get("key") == "1"


def test_a_black_hole_swallows_requests(server: RedisServer, proxy: Proxy, client: redis.Redis) -> None:
    """Old and new clients are connected and time out. Their requests never arrive, not even after the proxy healed."""
    with connect(proxy.url(), IMPATIENCE) as old, connect(proxy.url(), IMPATIENCE) as new:
        old.ping()
        proxy.black_hole()
        for victim in (old, new):
            with pytest.raises(redis.TimeoutError):
                victim.incr("key")
        proxy.wait_held(2)
        proxy.heal()
        assert client.ping()
        assert server.client().get("key") is None


def test_a_black_hole_of_replies_lets_requests_through(server: RedisServer, proxy: Proxy) -> None:
    """A one-sided black hole: the request is executed, its client times out."""
    with connect(proxy.url(), IMPATIENCE) as client:
        client.ping()
        proxy.black_hole("replies")
        with pytest.raises(redis.TimeoutError):
            client.incr("key")
        proxy.wait_held()
        assert server.client().get("key") == "1"


def test_a_held_request_may_be_delivered_late(server: RedisServer, proxy: Proxy) -> None:
    """A request that its client has given up on is still executed when the partition ends."""
    with connect(proxy.url(), IMPATIENCE) as client:
        client.ping()
        proxy.black_hole("requests")
        with pytest.raises(redis.TimeoutError):
            client.incr("key")
        proxy.wait_held()
    assert server.client().get("key") is None
    proxy.heal(deliver=True)
    assert wait_for(lambda: server.client().get("key"), "the request arrives") == "1"


def test_a_half_closed_connection_still_takes_requests(server: RedisServer, proxy: Proxy, client: redis.Redis) -> None:
    """A client reads an end, yet its later writes are executed. An idle client of redis-py connects again."""
    before = client.client_id()
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as half:
        half.sendall(b"*1\r\n$4\r\nPING\r\n")
        assert half.recv(64) == b"+PONG\r\n"
        proxy.half_close()
        assert half.recv(64) == b""
        half.sendall(b"*2\r\n$4\r\nINCR\r\n$3\r\nkey\r\n")
        wait_for(lambda: server.client().get("key") == "1", "the request was executed")
    assert client.client_id() != before


def test_a_refusing_proxy_heals_on_the_same_port(proxy: Proxy, client: redis.Redis) -> None:
    """New connections are refused, the current one is served. After the proxy healed, the port is the same."""
    port = proxy.port
    proxy.refuse()
    assert _refuses(port)
    assert client.ping()
    with connect(proxy.url()) as other:
        with pytest.raises(redis.ConnectionError):
            other.ping()
        proxy.heal()
        assert proxy.port == port
        assert other.ping()


def test_a_proxy_before_a_dead_server_resets_its_clients(
    server: RedisServer, proxy: Proxy, client: redis.Redis
) -> None:
    """A killed server is an error to a client behind a proxy, and is found again at its restart."""
    server.kill()
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            client.ping()
    server.start()
    assert client.ping()


def test_a_proxy_speaks_tls(server: RedisServer, tmp_path: Path) -> None:
    """A client that trusts the authority is served, faults included. Other clients are refused."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    with Proxy(server.address, tls=context) as proxy:
        assert proxy.url().startswith("rediss://")
        with connect(proxy.url()) as stranger, pytest.raises(redis.ConnectionError):
            stranger.ping()
        with connect(proxy.url(), ssl_ca_certs=str(tmp_path / "authority.pem")) as client:
            client.set("key", "x" * 1_000_000)
            assert client.get("key") == "x" * 1_000_000
            proxy.drop_replies(containing=b"INCR")
            with pytest.raises(redis.ConnectionError):
                client.incr("count")
            proxy.wait_dropped()
            for fault in (proxy.cut, proxy.half_close):
                before = client.client_id()
                fault()
                assert client.client_id() != before
            assert client.get("count") == "1"


def test_a_closed_proxy_leaves_nothing(server: RedisServer) -> None:
    """No thread, no connection, no listener: also with clients connected and in a black hole."""
    with Proxy(server.address) as proxy, connect(proxy.url()) as client:
        client.ping()
        proxy.black_hole()
        with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE):
            proxy.wait_held()
            assert f"proxy-{proxy.port}" in {thread.name for thread in threading.enumerate()}
            proxy.close()
            assert f"proxy-{proxy.port}" not in {thread.name for thread in threading.enumerate()}
            assert _refuses(proxy.port)
            with pytest.raises(redis.ConnectionError):
                client.ping()


def _replicate(server: RedisServer, *, replicas: int) -> None:
    with server.client(single_connection_client=True) as client:  # WAIT is about the writes of its own connection
        client.set("key", "replicated")
        assert client.wait(replicas, int(PATIENCE * 1000)) == replicas


def _refuses(port: int | None) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_conditional_writes_are_served_one_at_a_time() -> None:
    """As S3 does. With moto alone, two clients may both make the same object."""
    server, inside, most = buckets.S3Server(), [0], [0]
    together = threading.Barrier(2)

    def application(environ: dict[str, Any], start: Any) -> list[bytes]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        with suppress(threading.BrokenBarrierError):
            together.wait(0.2)
        inside[0] -= 1
        return []

    server._app = application
    request = {"REQUEST_METHOD": "PUT", "PATH_INFO": "/bucket/name", "HTTP_IF_NONE_MATCH": "*"}
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: server._serve(request, None), range(2)))  # type: ignore[arg-type]
    finally:
        server.close()
    assert most == [1]
