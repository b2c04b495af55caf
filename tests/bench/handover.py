"""Measure SIGTERM of the leader to the next leader, beside three other locks.

Measured: from just before the signal is sent until the next holder has the lock. It includes the delivery of the
signal, the release, the wake-up and the acquisition, and for ours the claim of the term on the disk. Two light
processes use one server on loopback. Not measured: the save before the hand-over, which `durable` measures.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from typing import Final

from distributed_backup.coordination.timings import LeaseTimings
from tests.bench.lease import Contender, contenders, file_lock, ours, ours_on_disk, python_redis_lock, redis_py
from tests.bench.report import series, table
from tests.bench.results import Report
from tests.support.servers import RedisServer

ROUNDS: Final = 100
P50: Final = 20.0
TIMINGS: Final = LeaseTimings()


def measure(body: Callable[..., None], url: str, directory: Path) -> list[float]:
    """Return the milliseconds of each hand-over."""
    with contenders() as pair:
        for wanted in ("leads", "waits"):
            pair.append(Contender(body, url, directory, TIMINGS))
            pair[-1].expect(wanted)
        taken, pause = [], threading.Event()
        for number in range(ROUNDS):
            leader, follower = pair[number % 2], pair[1 - number % 2]
            # Let the follower begin to wait. A random pause samples all phases of a follower that polls.
            pause.wait(random.uniform(0.05, 0.15))
            sent = leader.terminate()
            taken.append((follower.expect("leads") - sent) * 1e3)
            leader.contend_again()
            leader.expect("waits")
        return taken


async def report(directory: Path) -> Report:
    rows = []
    kinds = {"ours": ours, "python-redis-lock": python_redis_lock, "redis-py Lock": redis_py}
    kinds |= {"ours with a file lock": ours_on_disk, "filelock": file_lock}
    taken_by = {}
    with RedisServer(directory / "server", port=0) as server:
        for name, body in kinds.items():
            taken = taken_by[name] = measure(body, server.url, directory / name.replace(" ", "-"))
            p50, p99 = quantiles(taken, n=100)[49], quantiles(taken, n=100)[98]
            rows.append([name, f"{p50:.1f}", f"{p99:.1f}", f"{max(taken):.1f}"])
    head = ["lock", "p50, ms", "p99, ms", "max, ms"]
    title = f"SIGTERM of the leader to the next leader ({ROUNDS} rounds, loopback; goals: p50 20 ms, p99 100 ms)"
    measured = series(("SIGTERM of the leader to the next", "two processes"), taken_by, {"ours": P50}, scale=1.0)
    return table(title, head, rows, measured)
