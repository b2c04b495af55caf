"""The metrics, as a Prometheus would see them: over a real scrape of a real endpoint."""

from __future__ import annotations

import importlib
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from distributed_backup.checkpoints.journal_format import Answer, Boundary
from distributed_backup.errors import ConfigError
from distributed_backup.observability import metrics
from distributed_backup.observability.events import Event, Kind
from distributed_backup.observability.metrics import Metrics, Recorded, WorkerMetrics, metrics_at
from distributed_backup.observability.reporter import Reporter
from distributed_backup.position import Position
from distributed_backup.training.environment import EnvironmentSettings
from tests.support.internals import context_of, saver_of
from tests.support.servers import free_port
from tests.support.team import PATIENCE, Team, snapshot

START = datetime(2026, 11, 23, 10, tzinfo=UTC)
PREFIX = "distributed_backup_"


class Endpoint:
    """The metrics of one worker of one run, at a port."""

    def __init__(self, port: int, run: str) -> None:
        self.port = port
        self.run = run
        self.lease_left = 0.0
        self.recorded = Recorded()
        self.sink = self.another()

    def another(self) -> WorkerMetrics:
        return WorkerMetrics(metrics_at(self.port), lease_left=lambda: self.lease_left, recorded=lambda: self.recorded)

    def emit(self, kind: Kind, **fields: Any) -> None:
        self.sink.emit(Event(at=START + timedelta(seconds=2.5), worker="w", kind=kind, fields=fields))

    def join(self, run: str | None = None) -> None:
        self.emit("joined", run=run or self.run, standby=False)

    def text(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=PATIENCE) as answer:
            return str(answer.read().decode())

    def scrape(self, run: str | None = None) -> dict[str, float]:
        """Return the samples of a run by name, without the prefix, and buckets by their bound."""
        found = {}
        for family in text_string_to_metric_families(self.text()):
            for sample in family.samples:
                labels = dict(sample.labels)
                if labels.pop("run") == (run or self.run) and not sample.name.endswith("_created"):
                    bound = f"{{{labels.pop('le')}}}" if "le" in labels else ""
                    assert labels == {}, "one label: more would make ever new series"
                    found[sample.name.removeprefix(PREFIX) + bound] = sample.value
        return found


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A free port with one endpoint for the module, because stopping an endpoint takes half a second."""
    servers = []

    def started(*arguments: Any, **keywords: Any) -> Any:
        servers.append(start_http_server(*arguments, **keywords))
        return servers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "start_http_server", started)
        patch.setattr(metrics, "_endpoints", {})
        yield free_port()
    [(server, thread)] = servers
    server.shutdown()
    server.server_close()
    thread.join(PATIENCE)


@pytest.fixture
def endpoint(port: int, request: pytest.FixtureRequest) -> Endpoint:
    return Endpoint(port, run=request.node.name)


# ---------------------------------------------------------------- what is shown

ZERO = {
    "leader",
    "lease_remaining_seconds",
    "term",
    "elections_total",
    "lease_losses_total",
    "position_epochs",
    "position_batches",
    "commits_total",
    "commit_duration_seconds_count",
    "commit_duration_seconds_sum",
    "committed_bytes_total",
    "last_commit_timestamp_seconds",
    "commit_failures_total",
    "notices_total",
    "restores_total",
    "answers_recorded_total",
    "answers_replayed_total",
    "journal_bytes_total",
}


def test_every_series_is_there_from_the_start(endpoint: Endpoint) -> None:
    """All series of a run appear when the worker joins, at zero except `coordinator_reachable`."""
    assert endpoint.scrape() == {}
    endpoint.join()
    shown = {name: value for name, value in endpoint.scrape().items() if "{" not in name}
    assert shown == {**dict.fromkeys(ZERO, 0.0), "coordinator_reachable": 1.0}


@pytest.mark.parametrize(
    ("kind", "fields", "changed"),
    [
        ("elected", {"term": 7}, {"elections_total": 1, "term": 7}),
        ("lost", {"term": 7, "reason": "x"}, {"lease_losses_total": 1}),
        ("resigned", {"term": 7}, {}),
        ("unreachable", {"reason": "x"}, {"coordinator_reachable": 0}),
        ("reachable", {}, {"coordinator_reachable": 1}),
        ("restored", {"checkpoint": "c", "epoch": 2, "batch": 3}, {"restores_total": 1, "position_epochs": 2}),
        ("restored", {"checkpoint": None, "epoch": 0, "batch": 0}, {"restores_total": 0}),
        ("progress", {"epoch": 2, "batch": 3}, {"position_epochs": 2, "position_batches": 3, "restores_total": 0}),
        ("commit_failed", {"reason": "x"}, {"commit_failures_total": 1, "commits_total": 0}),
        ("commit_recovered", {}, {"commit_failures_total": 0}),
        ("notice", {"reason": "SIGTERM", "remaining": 30.0}, {"notices_total": 1}),
        ("replayed", {"answers": 12, "epoch": 2, "batch": 3}, {"answers_replayed_total": 12, "restores_total": 0}),
    ],
)
def test_an_event_is_counted(endpoint: Endpoint, kind: Kind, fields: dict[str, Any], changed: dict[str, float]) -> None:
    """An event changes the series that belong to its kind."""
    endpoint.join()
    endpoint.emit(kind, **fields)
    assert changed.items() <= endpoint.scrape().items()


def test_a_commit_is_counted_timed_and_measured(endpoint: Endpoint) -> None:
    """A commit adds to the commits, to its bucket of seconds and to the bytes, and sets the time of the last commit."""
    endpoint.join()
    for seconds in (0.003, 0.2):
        endpoint.emit("committed", checkpoint="c", term=1, epoch=1, batch=0, bytes=1000, seconds=seconds)
    shown = endpoint.scrape()
    assert (shown["commits_total"], shown["commit_duration_seconds_count"]) == (2, 2)
    assert shown["commit_duration_seconds_sum"] == pytest.approx(0.203)
    assert (shown["commit_duration_seconds_bucket{0.0025}"], shown["commit_duration_seconds_bucket{0.005}"]) == (0, 1)
    assert (shown["commit_duration_seconds_bucket{0.1}"], shown["commit_duration_seconds_bucket{0.25}"]) == (1, 2)
    assert shown["committed_bytes_total"] == 2000
    assert shown["last_commit_timestamp_seconds"] == START.timestamp() + 2.5


def test_the_lease_is_looked_at_when_it_is_asked_for(endpoint: Endpoint) -> None:
    """Each scrape reads the time left of the lease, so that the lease of a stalled worker runs out."""
    endpoint.join()
    for left, leads in ((8.5, 1), (0.25, 1), (0.0, 0)):
        endpoint.lease_left = left
        shown = endpoint.scrape()
        assert (shown["lease_remaining_seconds"], shown["leader"]) == (left, leads)


def test_the_journal_is_looked_at_when_it_is_asked_for(endpoint: Endpoint) -> None:
    """Each scrape reads what the worker has written. Its last counts stay, and a second fit of the run adds to them."""
    endpoint.join()
    for answers in (3, 5):
        endpoint.recorded = Recorded(answers=answers, bytes=100 * answers)
        assert written(endpoint) == (answers, 100 * answers)
    endpoint.emit("finished", epoch=1, batch=0)
    endpoint.sink.close(1.0)
    endpoint.recorded = Recorded(answers=1, bytes=10)
    assert written(endpoint) == (5, 500)
    endpoint.sink = endpoint.another()
    endpoint.join()
    assert written(endpoint) == (6, 510)


def written(endpoint: Endpoint) -> tuple[float, float]:
    shown = endpoint.scrape()
    return shown["answers_recorded_total"], shown["journal_bytes_total"]


@pytest.mark.parametrize("has_final_event", [True, False])
def test_a_worker_that_has_left_leads_no_more(endpoint: Endpoint, has_final_event: bool) -> None:
    """A worker that has left shows no lease and no leadership, and still shows its last term."""
    endpoint.join()
    endpoint.lease_left = 8.5
    endpoint.emit("elected", term=7)
    if has_final_event:
        endpoint.emit("left")
    else:
        endpoint.sink.close(1.0)
    shown = endpoint.scrape()
    assert (shown["lease_remaining_seconds"], shown["leader"], shown["term"]) == (0, 0, 7)


def test_a_worker_over_a_whole_fit(endpoint: Endpoint, team: Team) -> None:
    """A worker with its threads shows restore, leadership, commit and position, and no leadership after the fit."""
    team.commit(1)

    def reporter(worker_id: str) -> Reporter:
        return Reporter(
            worker_id, WorkerMetrics(metrics_at(endpoint.port), lease_left=lambda: worker.lease_left, recorded=Recorded)
        )

    team.reporter = reporter
    worker = team.started("a", delete_checkpoint=False)
    run = context_of(worker).store.open_run()
    worker.boundary(snapshot(2), due=True)
    assert saver_of(worker).drain(PATIENCE)
    shown = endpoint.scrape(run)
    assert (shown["leader"], shown["term"], shown["restores_total"], shown["commits_total"]) == (1, 2, 1, 1)
    assert (shown["position_epochs"], shown["committed_bytes_total"]) == (2, len(snapshot(2).body))
    assert 9.0 < shown["lease_remaining_seconds"] <= 10.0
    team.result(team.begin(worker.finish))
    assert endpoint.scrape(run)["leader"] == 0


def test_answers_are_counted_when_they_are_durable(endpoint: Endpoint, team: Team) -> None:
    """Records of other kinds are not, and neither are those of a worker that may not write."""
    worker, other = team.started("a"), team.started("b")
    for each in (worker, other):
        each.journal.begin_at(Boundary(position=Position(1), digests={}))
        each.journal.boundary(Position(1, 1), dict, due=False)
        for number in range(3):
            is_durable = threading.Event()
            each.journal.append(Answer(key="key", number=number, value=b'{"text":1}'), is_durable.set)
            assert is_durable.wait(PATIENCE)
    assert (worker.journal.answers, other.journal.answers) == (3, 0)
    assert worker.journal.bytes > 3 * len(b'{"text":1}')
    endpoint.join()
    endpoint.recorded = Recorded(answers=worker.journal.answers, bytes=worker.journal.bytes)
    assert written(endpoint) == (3, worker.journal.bytes)


# ---------------------------------------------------------------- the endpoint


def test_one_endpoint_serves_all_fits_of_a_process(endpoint: Endpoint) -> None:
    """Fits of one process share an endpoint: a second fit continues its run's counters, and another run has its own."""
    for run in ("one", "one", "other"):
        endpoint.sink = endpoint.another()
        endpoint.join(run)
        endpoint.emit("elected", term=1)
        endpoint.emit("finished", epoch=1, batch=0)
    assert endpoint.scrape("one")["elections_total"] == 2
    assert endpoint.scrape("other")["elections_total"] == 1


def test_a_forked_child_does_not_count_for_its_parent(endpoint: Endpoint) -> None:
    """A forked child gets metrics of its own, because the parent's endpoint can't show the child's counts."""
    ours = metrics_at(endpoint.port)
    child = os.fork()
    if child == 0:
        os._exit(int(metrics_at(endpoint.port) is ours))
    assert os.waitpid(child, 0)[1] == 0
    assert metrics_at(endpoint.port) is ours


def test_a_port_in_use_is_one_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A port in use is logged as one warning, and the worker's events are still accepted."""
    monkeypatch.setattr(metrics, "_endpoints", {})
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        for _ in range(2):
            sink = WorkerMetrics(metrics_at(port), lease_left=lambda: 0.0, recorded=Recorded)
            sink.emit(Event(at=START, worker="w", kind="joined", fields={"run": "r", "standby": False}))
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert re.search(rf"no metrics: can't listen on port {port}, .*Address already in use; set .*", record.getMessage())


def test_the_clients_global_registry_is_left_alone(endpoint: Endpoint) -> None:
    """The client's global registry has none of our metrics, and our endpoint shows only our metrics."""
    endpoint.join()
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith(PREFIX)]
    assert all(family.name.startswith(PREFIX) for family in text_string_to_metric_families(endpoint.text()))


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the metrics without the Prometheus client raises a ConfigError that names the extra."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "distributed_backup.observability.metrics")
    with pytest.raises(ConfigError, match=r"METRICS_PORT is set .* pip install 'distributed-backup\[metrics\]'"):
        importlib.import_module("distributed_backup.observability.metrics")


def test_without_metrics_the_client_is_not_loaded() -> None:
    """Importing the worker, the event log and the commands does not load the Prometheus client."""
    code = (
        "import sys, distributed_backup.worker.worker, distributed_backup.cli.app\n"
        "import distributed_backup.observability.event_log\n"
        "print('prometheus_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("text", ["9464", " 1 ", "65535"])
def test_the_port_is_read_from_the_environment(text: str) -> None:
    """The port is read from the environment, and a blank variable means no port."""
    assert EnvironmentSettings.read({"DISTRIBUTED_BACKUP_METRICS_PORT": text}).metrics_port == int(text)
    assert EnvironmentSettings.read({"DISTRIBUTED_BACKUP_METRICS_PORT": " "}).metrics_port is None


@pytest.mark.parametrize("text", ["0", "65536", "-1", "9464.0", "http", "²", "9" * 5000, "tcp://10.0.0.7:9464"])
def test_what_is_no_port_is_refused(text: str) -> None:
    """A value that is no port, such as the URL that Kubernetes sets for a service, raises a ConfigError."""
    with pytest.raises(ConfigError, match=r"^\$DISTRIBUTED_BACKUP_METRICS_PORT must be a port, .* got "):
        EnvironmentSettings.read({"DISTRIBUTED_BACKUP_METRICS_PORT": text})


# ---------------------------------------------------------------- names

BASE_UNITS = ("seconds", "bytes", "epochs", "batches")
NO_UNIT = {"leader", "term", "coordinator_reachable"}


def families() -> dict[str, str]:
    """The types of all metrics, by the name they are documented under."""
    types = {"counter": "_total"}
    return {family.name + types.get(family.type, ""): family.type for family in Metrics().registry.collect()}


@pytest.mark.parametrize(("name", "kind"), families().items())
def test_a_name_keeps_to_the_conventions(name: str, kind: str) -> None:
    """A metric's name has the prefix and a base unit in the plural, and only counters end in `_total`.

    See https://prometheus.io/docs/practices/naming/ and the linter of promtool.
    """
    assert re.fullmatch(r"distributed_backup(_[a-z]+)+", name)
    assert name.endswith("_total") == (kind == "counter")
    assert not re.search(
        r"_(count|sum|bucket|info|created|counter|gauge|histogram|milliseconds|ms|kilobytes|mb)(_|$)", name
    )
    if kind != "counter":
        assert name.endswith(BASE_UNITS) or name.removeprefix(PREFIX) in NO_UNIT
    assert kind in {"counter", "gauge", "histogram"}


def test_every_metric_is_explained() -> None:
    """The help of every metric is a sentence."""
    for family in Metrics().registry.collect():
        assert re.fullmatch(r"[A-Z0-9].{15,}\.", family.documentation)


def test_the_documents_list_every_metric() -> None:
    """OPERATIONS.md lists each metric with its type, and no other metric."""
    text = (Path(__file__).parents[2] / "deploy" / "OPERATIONS.md").read_text()
    listed = dict(re.findall(r"^\| `(distributed_backup_[a-z_]+)` \| (\w+) \|", text, re.MULTILINE))
    assert listed == families()
