"""Fits of several processes over a real server: the workers, their run, and the hosts that they are on."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from distributed_backup.checkpoints.format import parse_name
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.base import ClusterView
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.position import Position
from tests.support.jobs import Job
from tests.support.processes import PATIENCE, Child
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer, wait_for

SCENARIOS = "tests.integration.redis_fit_scenarios"
# In place of a batch to hold: the `on_train_end` of another callback.
TRAIN_END = (-1, -1)


PASSWORD = "correct-horse"


def calls_after(position: Position, uninterrupted: dict[str, Any]) -> int:
    """Return the number of calls from `position` to the end.

    There are 3 training batches of 2 and 2 validation batches of 1 in each epoch. After each training batch, the
    optimizer tries its candidate on the validation set.
    """
    before = 14 * position.epoch + 4 * min(position.batch, 3) + max(position.batch - 3, 0)
    return int(uninterrupted["calls"]) - before


def start_worker(
    stack: ExitStack, gates: Path, job: Job, *more: Any, how: str, held: Sequence[tuple[int, int]]
) -> Worker:
    """Start a worker that is held at the batches `held`. `how` is the scenario, `gates` a directory of its own."""
    gates.mkdir()
    child = Child(how, job, gates, held, *more, log=gates.with_suffix(".log"))
    return Worker(stack.enter_context(child), gates)


class Worker:
    """A worker's process.

    Args:
        child: The process.
        gates: The directory of its gates.
    """

    def __init__(self, child: Child, gates: Path) -> None:
        self.child = child
        self.gates = gates

    def wait_held(self, epoch: int, batch: int) -> None:
        """Wait until the calls of this batch are held."""
        assert self.child.expect("held") == (epoch, batch)

    def go_on(self) -> None:
        """Let the batch that is held go on."""
        [gate] = self.gates.iterdir()
        gate.unlink()

    def log(self, pattern: str) -> list[re.Match[str]]:
        """Where it has logged this."""
        return list(re.finditer(pattern, self.child.output()))

    def wait_logged(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """Wait for the first line that matches, and return the match."""

        def look() -> re.Match[str] | None:
            return next(iter(self.log(pattern)), None)

        try:
            return wait_for(look, f"{pattern!r} is logged", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.child.output()}") from None

    @property
    def restored(self) -> str:
        """The name of the checkpoint that it started from. "null" for a fresh start."""
        return self.wait_logged(r" restored worker=\S+ checkpoint=(\S+)")[1]

    @property
    def start(self) -> Position | None:
        """The position that it started from. None for a fresh start."""
        found = parse_name(self.restored)
        return None if found is None else found[1]

    @property
    def terms(self) -> list[int]:
        """The terms that it was elected for so far."""
        return [int(found[1]) for found in self.log(r" elected worker=\S+ term=(\d+)")]


class Run:
    """One training job: its directory, and its keys on the server.

    Args:
        directory: The run's directory.
        url: Of the server, seen from here.
    """

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.store = CheckpointStore(directory)
        self._url = url

    @property
    def newest(self) -> Position | None:
        header = self.store.newest_header()
        return None if header is None else header.position

    @property
    def terms(self) -> set[int]:
        """The terms that its checkpoints were committed under."""
        return {info.term for info in self.store.list()}

    def wait_saved(self, position: Position) -> None:
        """Wait until the newest checkpoint is at `position` or beyond."""
        wait_for(lambda: (self.newest or Position(0)) >= position, f"{position} is saved", PATIENCE)

    @contextmanager
    def coordinator(self) -> Iterator[RedisCoordinator]:
        """A look at the run's keys."""
        coordinator = RedisCoordinator(self._url)
        coordinator.open(self.store.read_run_id() or "", LeaseTimings())
        try:
            yield coordinator
        finally:
            coordinator.close()

    def view(self) -> ClusterView:
        with self.coordinator() as coordinator:
            return coordinator.view()

    def wait_announced(self, position: Position) -> str:
        """Wait until a checkpoint at `position` is announced, and return its name."""

        def look() -> str | None:
            announced = self.view().announcement
            return announced.checkpoint if announced is not None and announced.position == position else None

        return wait_for(look, f"{position} is announced", PATIENCE)

    def wait_heartbeat(self, position: Position, *, after: float) -> None:
        """Wait until a follower at `position` has sent a heartbeat later than `after`, by the monotonic clock."""
        with self.coordinator() as coordinator:

            def look() -> bool:
                members = [one for one in coordinator.members() if (one.role, one.position) == ("follower", position)]
                return any(one.age < time.monotonic() - after for one in members)

            wait_for(look, f"a heartbeat at {position}", PATIENCE)

    def wait_members(self, *roles: str) -> None:
        """Wait until the members have these roles."""
        with self.coordinator() as coordinator:
            wait_for(
                lambda: sorted(member.role for member in coordinator.members()) == sorted(roles),
                f"members are {roles}",
                PATIENCE,
            )


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _can_connect_namespaces() -> bool:
    """Whether this machine lets us make networks: needs root and iproute2."""
    if not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        return False
    name = f"db{secrets.token_hex(5)}"
    try:
        _run("unshare", "--net", "true")
        _run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        _run("ip", "link", "del", name)
    except subprocess.CalledProcessError:
        return False
    return True


type Start = Callable[..., Worker]


class ProxiedHosts:
    """Each worker reaches the server through a proxy of its own."""

    def __init__(self, server: RedisServer, start: Start, run: Run, stack: ExitStack) -> None:
        self._server, self._start, self._run, self._stack = server, start, run, stack
        self._proxies: dict[Worker, Proxy] = {}

    def start(self, **arguments: Any) -> Worker:
        proxy = self._stack.enter_context(Proxy(self._server.address))
        worker = self._start(self._run, proxy.url(), **arguments)
        self._proxies[worker] = proxy
        return worker

    def cut(self, worker: Worker) -> None:
        self._proxies[worker].black_hole()

    def heal(self, worker: Worker) -> None:
        self._proxies[worker].heal()


class Namespaces:
    """Each worker has a network of its own, connected to the server's by a cable that ends with the process."""

    def __init__(self, server: RedisServer, start: Start, run: Run, stack: ExitStack) -> None:
        self._server, self._start, self._run = server, start, run
        self._links: dict[Worker, str] = {}

    def start(self, **arguments: Any) -> Worker:
        link = f"db{secrets.token_hex(5)}"
        # One of the networks of 4 addresses in 198.18.0.0/15, which is for tests (RFC 2544).
        network = f"198.{18 + secrets.randbelow(2)}.{secrets.randbelow(256)}"
        first = 4 * (32 * len(self._links) + secrets.randbelow(32))
        url = f"redis://{network}.{first + 1}:{self._server.port}/0"
        worker = self._start(self._run, url, how="train_on_another_host", **arguments)
        self._links[worker] = link
        worker.child.expect("unconnected")
        pid = str(worker.child.pid)
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", pid)
        _run("ip", "addr", "add", f"{network}.{first + 1}/30", "dev", link)
        _run("ip", "link", "set", link, "up")
        for command in (f"addr add {network}.{first + 2}/30 dev eth0", "link set eth0 up"):
            _run("nsenter", "--target", pid, "--net", "ip", *command.split())
        worker.go_on()
        return worker

    def cut(self, worker: Worker) -> None:
        _run("ip", "link", "set", self._links[worker], "down")

    def heal(self, worker: Worker) -> None:
        _run("ip", "link", "set", self._links[worker], "up")


HOSTS: dict[str, Callable[..., Any]] = {"proxies": ProxiedHosts}
if _can_connect_namespaces():
    HOSTS["namespaces"] = Namespaces
