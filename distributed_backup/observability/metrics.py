"""Metrics for Prometheus: what one process does in its runs, at an HTTP endpoint of its own.

Needs `prometheus-client` (the extra `metrics`), and is imported only where a port is set. The only label is `run`. Use
the scrape's `instance` for the worker: worker ids change at each start and would create unbounded series. Events
between joining and leaving are counted.

The limit: a process that is killed takes its counters with it, and a preempted one is seldom scraped again. The event
log keeps what must not be missed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, override

from distributed_backup.errors import ConfigError
from distributed_backup.observability.events import FINAL_KINDS, Event

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
    from prometheus_client.core import CounterMetricFamily
    from prometheus_client.registry import Collector
except ImportError:
    raise ConfigError(
        "$DISTRIBUTED_BACKUP_METRICS_PORT is set and there is no Prometheus client: "
        "pip install 'distributed-backup[metrics]', or unset it"
    ) from None

logger = logging.getLogger(__name__)

_LABELS: Final = ("run",)
# From a small state on a local disk to a large one in a distant bucket.
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What one worker has written into the journal."""

    answers: int = 0
    bytes: int = 0


class JournalCounters(Collector):
    """What all workers of this process have written into the journal, by run. Each scrape asks those that run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: dict[str, Recorded] = {}
        self._running: dict[Callable[[], Recorded], str] = {}

    def add(self, run: str, recorded: Callable[[], Recorded]) -> None:
        """Count what a worker writes. The run has its series from now on."""
        with self._lock:
            self._ended.setdefault(run, Recorded())
            self._running[recorded] = run

    def end(self, recorded: Callable[[], Recorded]) -> None:
        """Keep the last counts of a worker. May be called again."""
        with self._lock:
            if (run := self._running.pop(recorded, None)) is not None:
                self._ended[run] = _sum(self._ended[run], recorded())

    @override
    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the counters, for a scrape."""
        with self._lock:
            totals = dict(self._ended)
            for recorded, run in self._running.items():
                totals[run] = _sum(totals[run], recorded())
        answers = self._family("answers_recorded", "Answers of models that this worker wrote into the journal.")
        written = self._family("journal_bytes", "Bytes that this worker wrote into the journal.")
        for run, total in totals.items():
            answers.add_metric((run,), total.answers)
            written.add_metric((run,), total.bytes)
        yield answers
        yield written

    def _family(self, name: str, text: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"distributed_backup_{name}", text, labels=_LABELS)


def _sum(one: Recorded, other: Recorded) -> Recorded:
    return Recorded(answers=one.answers + other.answers, bytes=one.bytes + other.bytes)


class Metrics:
    """The metrics of one process, for all its runs."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        """Separate from the client's global registry, which is the user's."""
        self.leader = self._gauge("leader", "1 while this worker believes to lead.")
        self.lease = self._gauge("lease_remaining_seconds", "Until this worker stands down unless it renews.")
        self.term = self._gauge("term", "The term that this worker led under last; 0 if it never led.")
        self.elections = self._counter("elections_total", "Times that this worker was elected.")
        self.losses = self._counter("lease_losses_total", "Times that it lost the lease against its will.")
        self.reachable = self._gauge("coordinator_reachable", "1 if the coordinator has answered when last asked.")
        self.epochs = self._gauge("position_epochs", "Epochs completed.")
        self.batches = self._gauge("position_batches", "Batches completed in the current epoch.")
        self.commits = self._counter("commits_total", "Checkpoints that this worker committed.")
        self.seconds = Histogram(
            "distributed_backup_commit_duration_seconds",
            "From the start of a commit until it was durable.",
            _LABELS,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.bytes = self._counter("committed_bytes_total", "State that this worker committed.")
        self.committed_at = self._gauge(
            "last_commit_timestamp_seconds", "When this worker's last commit was durable; 0 if it made none."
        )
        self.failures = self._counter("commit_failures_total", "Commits that failed; each try counts.")
        self.notices = self._counter("notices_total", "Notices that this worker is going to be killed.")
        self.restores = self._counter("restores_total", "Checkpoints that this worker restored.")
        self.replayed = self._counter("answers_replayed_total", "Answers of models that came from the journal.")
        self.journal = JournalCounters()
        self.registry.register(self.journal)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"distributed_backup_{name}", text, _LABELS, registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"distributed_backup_{name}", text, _LABELS, registry=self.registry)


class WorkerMetrics:
    """Counts what one worker does. A sink of `Reporter`.

    `lease_left` returns the seconds until the worker stands down, 0 while it does not lead. `recorded` returns what it
    has written into the journal. Each scrape calls both.
    """

    def __init__(self, metrics: Metrics, *, lease_left: Callable[[], float], recorded: Callable[[], Recorded]) -> None:
        self._metrics = metrics
        self._lease_left = lease_left
        self._recorded = recorded
        self._run: str | None = None

    def emit(self, event: Event) -> None:
        """Count an event."""
        if event.kind == "joined":
            self._run = str(event.fields["run"])
            self._show(self._run)
        elif self._run is not None:
            self._count(event, self._run)
            if event.kind in FINAL_KINDS:
                self._stand_down()

    def _show(self, run: str) -> None:
        """Create all series at the start: a series that appears with its first event shows no increase."""
        for metric in vars(self._metrics).values():
            if isinstance(metric, Gauge | Counter | Histogram):
                metric.labels(run)
        self._metrics.reachable.labels(run).set(1)
        self._metrics.lease.labels(run).set_function(self._lease_left)
        self._metrics.leader.labels(run).set_function(lambda: self._lease_left() > 0)
        self._metrics.journal.add(run, self._recorded)

    def _count(self, event: Event, run: str) -> None:
        metrics, fields = self._metrics, event.fields
        match event.kind:
            case "elected":
                metrics.elections.labels(run).inc()
                metrics.term.labels(run).set(fields["term"])
            case "lost":
                metrics.losses.labels(run).inc()
            case "reachable" | "unreachable":
                metrics.reachable.labels(run).set(event.kind == "reachable")
            case "restored" | "progress":
                metrics.epochs.labels(run).set(fields["epoch"])
                metrics.batches.labels(run).set(fields["batch"])
                if event.kind == "restored" and fields["checkpoint"] is not None:
                    metrics.restores.labels(run).inc()
            case "committed":
                metrics.commits.labels(run).inc()
                metrics.seconds.labels(run).observe(fields["seconds"])
                metrics.bytes.labels(run).inc(fields["bytes"])
                metrics.committed_at.labels(run).set(event.at.timestamp())
            case "commit_failed":
                metrics.failures.labels(run).inc()
            case "notice":
                metrics.notices.labels(run).inc()
            case "replayed":
                metrics.replayed.labels(run).inc(fields["answers"])

    def close(self, timeout: float) -> None:  # noqa: ARG002 - a sink's signature; nothing here takes time
        """Show that the worker no longer leads, and keep its counts of the journal."""
        self._stand_down()
        self._metrics.journal.end(self._recorded)

    def _stand_down(self) -> None:
        if self._run is not None:
            self._metrics.lease.labels(self._run).set_function(lambda: 0.0)
            self._metrics.leader.labels(self._run).set_function(lambda: 0.0)


_lock = threading.Lock()
_endpoints: dict[tuple[int, int], Metrics] = {}
"""By process and port: the fits of one process share an endpoint. A forked child has the parent's memory, but not its
endpoint."""


def metrics_at(port: int) -> Metrics:
    """Return the metrics that this process shows at `port`, on all its addresses. The first call starts the endpoint.

    A port that is in use is a warning, and training goes on without metrics. Two workers of one machine need two ports.
    """
    key = (os.getpid(), port)
    with _lock:
        if key not in _endpoints:
            _endpoints[key] = metrics = Metrics()
            try:
                start_http_server(port, registry=metrics.registry)
            except OSError as error:
                logger.warning(
                    "no metrics: can't listen on port %d, training goes on: %s; set DISTRIBUTED_BACKUP_METRICS_PORT to "
                    "one that is free for each worker of this machine",
                    port,
                    error.strerror or error,
                )
        return _endpoints[key]
