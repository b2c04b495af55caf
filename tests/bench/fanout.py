"""Measure the delay of an announcement from one leader to N followers, and the load on their server.

Each follower is an elector with connections of its own, as in a worker. All followers share four light processes, so at
1000 followers the clients use most of two cores. Announced: from just before the call until the last follower has the
announcement from a heartbeat. The CPU of the server and of the followers in that time tells whose it is. Steady: the
server's counters over some ticks without events.
"""

from __future__ import annotations

import threading
from pathlib import Path
from statistics import median
from typing import Any, Final

from distributed_backup.clock import SystemClock
from distributed_backup.coordination.base import Announcement, ClusterView, Heartbeat
from distributed_backup.coordination.election import Candidate, Elector, LeaseLoss
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.position import Position
from tests.bench import results
from tests.bench.lease import Contender, Report, await_sigterm, contenders
from tests.bench.report import series, table
from tests.support.servers import RedisServer
from tests.support.terms import Terms

FOLLOWERS: Final = (1, 10, 100, 1000)
GOALS: Final = {1000: {"ours": 250.0}}
PROCESSES: Final = 4
ANNOUNCEMENTS: Final = 11
STEADY_SECONDS: Final = 10.0
# Longer than the default, so that no lease is lost while 1000 clients keep the machine busy. The tick is the default's.
TIMINGS: Final = LeaseTimings(duration=60.0, renew_deadline=40.0, retry_period=2.0)


class Crowd:
    """The followers of one process."""

    def __init__(self, report: Report, count: int) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._count = count
        self._joined: set[str] = set()
        self._seen: dict[Position, set[str]] = {}

    def saw(self, worker_id: str, view: ClusterView) -> None:
        now = SystemClock().now()
        with self._lock:
            if worker_id not in self._joined:
                self._joined.add(worker_id)
                if len(self._joined) == self._count:
                    self._report("joined")
            if view.announcement is not None:
                seen = self._seen.setdefault(view.announcement.position, set())
                if worker_id not in seen:
                    seen.add(worker_id)
                    if len(seen) == self._count:
                        self._report("seen", now)


class Follower:
    def __init__(self, crowd: Crowd, worker_id: str) -> None:
        self._crowd = crowd
        self._worker_id = worker_id

    def elected(self, term: int) -> None:
        raise AssertionError("the leader is alive")

    def lost(self, loss: LeaseLoss) -> None:
        raise AssertionError("it never led")

    def observed(self, view: ClusterView) -> None:
        self._crowd.saw(self._worker_id, view)


def follow(report: Report, url: str, name: str, count: int) -> None:
    """Run `count` followers in one process."""
    threading.stack_size(256 * 1024)
    crowd = Crowd(report, count)
    for number in range(count):
        coordinator = RedisCoordinator(url)
        coordinator.open("bench", TIMINGS)
        worker_id = f"{name}-{number}"
        elector = Elector(
            candidate=Candidate(worker_id=worker_id, timings=TIMINGS),
            coordinator=coordinator,
            clock=SystemClock(),
            listener=Follower(crowd, worker_id),
            terms=Terms(),
        )
        coordinator.subscribe(lambda hint, elector=elector: elector.wake() if hint == "announced" else None)  # type: ignore[misc]
        elector.start()
    await_sigterm()


def measure(server: RedisServer, count: int) -> tuple[list[str], list[float]]:
    leader = RedisCoordinator(server.url)
    leader.open("bench", TIMINGS)
    beat = Heartbeat(worker_id="leader", campaign=True, floor=0, duration=3600.0)
    term = leader.heartbeat(beat).term
    shares = [share for share in (len(range(index, count, PROCESSES)) for index in range(PROCESSES)) if share]
    with contenders() as crowd:
        crowd += [Contender(follow, server.url, f"crowd-{index}", share) for index, share in enumerate(shares)]
        for contender in crowd:
            contender.expect("joined")
        announced(leader, term, 0, crowd)
        first, spent_by_crowd = used(server), sum(contender.cpu() for contender in crowd)
        taken = [announced(leader, term, position, crowd) for position in range(1, ANNOUNCEMENTS)]
        last, spent_by_crowd = used(server), sum(contender.cpu() for contender in crowd) - spent_by_crowd
        before, began = used(server), SystemClock().now()
        threading.Event().wait(STEADY_SECONDS)
        after, seconds = used(server), SystemClock().now() - began
    # The followers have ended, otherwise one of them would lead now.
    leader.erase()
    leader.close()
    spent = {key: after[key] - before[key] for key in before}
    scripts, commands, cpu = spent["scripts"] / seconds, spent["commands"] / seconds, spent["cpu"] / seconds
    row = [
        str(count),
        f"{median(taken) * 1e3:.1f}",
        f"{max(taken) * 1e3:.1f}",
        f"{1e3 * (last['cpu'] - first['cpu']) / len(taken):.1f}",
        f"{1e3 * spent_by_crowd / len(taken):.1f}",
        f"{scripts:.1f}",
        f"{scripts * TIMINGS.retry_period / count:.2f}",
        f"{commands / count:.2f}",
        f"{100 * cpu:.2f}",
        f"{1e6 * cpu / count:.0f}",
    ]
    return row, taken


def announced(leader: RedisCoordinator, term: int, number: int, crowd: list[Contender]) -> float:
    """Return the seconds until the last follower has an announcement."""
    made = Announcement(term=term, worker_id="leader", position=Position(number + 1), checkpoint="c")
    began = SystemClock().now()
    assert leader.announce(made)
    return float(max(contender.expect("seen") for contender in crowd) - began)


def used(server: RedisServer) -> dict[str, Any]:
    """Return the server's counters."""
    with server.client() as client:
        cpu, stats = client.info("cpu"), client.info("commandstats")
        scripts = sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))
        return {
            "cpu": cpu["used_cpu_user"] + cpu["used_cpu_sys"],
            "scripts": scripts,
            "commands": client.info("stats")["total_commands_processed"],
        }


async def report(directory: Path) -> results.Report:
    with RedisServer(directory / "server", port=0, config={"maxclients": "10000"}) as server:
        found = {count: measure(server, count) for count in FOLLOWERS}
    head = [
        "followers",
        "announced, median, ms",
        "max, ms",
        "server CPU each, ms",
        "followers' CPU each, ms",
        "scripts/s",
        "scripts per worker and tick",
        "commands/s per worker, with those in scripts",
        "server CPU, %",
        "CPU per worker, µs/s",
    ]
    measured = [
        each
        for count, (_, taken) in found.items()
        for each in series(("announcement", f"{count} followers"), {"ours": taken}, GOALS.get(count, {}))
    ]
    rows = [row for row, _ in found.values()]
    return table("Announcement to the last follower, and the steady state (tick 2 s)", head, rows, measured)
