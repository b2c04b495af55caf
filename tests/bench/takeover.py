"""Measure SIGKILL of the leader to the next leader, against the lease and one tick.

The lease counts from the last renewal, which is up to a tick before the kill. So a take-over may take less time than
the lease lasts. The light processes use one server on loopback.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Final

from distributed_backup.coordination.timings import LeaseTimings
from tests.bench.lease import Contender, contenders, ours
from tests.bench.report import table
from tests.bench.results import Report
from tests.support.servers import RedisServer

ROUNDS: Final = {1.0: 12, 5.0: 5, 15.0: 3}


def timings_of(lease: float) -> LeaseTimings:
    """Return timings in the proportions of the defaults."""
    usual = LeaseTimings()
    scale = lease / usual.duration
    return LeaseTimings(
        duration=lease, renew_deadline=usual.renew_deadline * scale, retry_period=usual.retry_period * scale
    )


def measure(url: str, directory: Path, lease: float) -> list[float]:
    """Return the seconds of each take-over."""
    timings, taken = timings_of(lease), []
    with contenders() as line:
        line.append(Contender(ours, url, directory, timings))
        line[0].expect("leads")
        for _ in range(ROUNDS[lease]):
            line.append(Contender(ours, url, directory, timings))
            line[-1].expect("waits")
            killed = line[-2].kill()
            taken.append(line[-1].expect("leads") - killed)
    return taken


async def report(directory: Path) -> Report:
    rows = []
    with RedisServer(directory / "server", port=0) as server:
        for lease, rounds in ROUNDS.items():
            taken = measure(server.url, directory / f"run-{lease:g}", lease)
            limit = lease + timings_of(lease).retry_period
            ratio = max(taken) / limit
            rows.append(
                [
                    f"{lease:g}",
                    f"{timings_of(lease).retry_period:.2f}",
                    str(rounds),
                    f"{median(taken):.2f}",
                    f"{max(taken):.2f}",
                    f"{ratio:.2f} {'✓' if ratio <= 1 else '✗'}",
                ]
            )
    head = ["lease, s", "tick, s", "rounds", "median, s", "max, s", "max / (lease + tick)"]
    return table("SIGKILL of the leader to the next leader (Redis lease on loopback)", head, rows)
