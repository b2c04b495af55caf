"""The manifests in deploy/ build, Kubernetes accepts them, and each overlay does what deploy/README.md promises."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from distributed_backup.observability.metrics import Metrics
from tests.deploy.contract import problems
from tests.deploy.facts import DEPLOY, ROOT
from tests.deploy.model import find
from tests.deploy.renderings import (
    BUCKET,
    COMBINATIONS,
    COMPONENTS,
    OVERLAYS,
    PASSWORD,
    at,
    build,
    get,
    kinds,
    parsed,
    put,
    render,
    server,
    with_server,
)
from tests.deploy.schemas import NEWEST, OLDEST, schema_problems


def test_no_overlay_and_no_component_is_left_out() -> None:
    """The tests below run for each of them, except for the overlay `mine` that a user makes."""
    assert {path.name for path in (DEPLOY / "overlays").iterdir()} - {"mine"} == set(OVERLAYS)
    assert {path.name for path in (DEPLOY / "components").iterdir()} == COMPONENTS


@pytest.mark.parametrize("name", [*OVERLAYS, *COMBINATIONS])
def test_every_overlay_and_component_builds_and_keeps_the_contract(name: str) -> None:
    """It fits the schemas of the oldest and the newest Kubernetes. A second build has the same names and values."""
    manifests = render(name)
    assert with_server(parsed(build(name))) == manifests
    assert [schema_problems(manifests, version) for version in (OLDEST, NEWEST)] == [[], []]
    assert problems(manifests) == []


SERVER = {f"{kind}/valkey" for kind in ("Secret", "Service", "ServiceAccount", "StatefulSet")}
SERVER |= {"NetworkPolicy/valkey-from-train"}
ONE_WORKER = {
    "ConfigMap/train",
    "Job/train",
    "NetworkPolicy/train-default-deny",
    "NetworkPolicy/train-to-dns",
    "NetworkPolicy/train-to-internet",
    "PersistentVolumeClaim/backup",
    "ServiceAccount/train",
}


def test_what_a_cluster_gets() -> None:
    """One worker needs no server. The server is applied apart from the Job, and has no object in common with it."""
    assert kinds(parsed(server(PASSWORD))) == SERVER
    assert kinds(render("one-worker")) == kinds(render("single-node")) == ONE_WORKER
    for name in ("aks-spot", "eks-spot", "gke-spot"):
        several = ONE_WORKER | {"NetworkPolicy/train-to-valkey"} | SERVER
        assert kinds(render(name)) - {"StorageClass/distributed-backup-nfs"} == several


def test_the_password_is_of_the_users_making_and_changes_no_name() -> None:
    """The error names the missing file, git ignores it, and the Job finds the Secret with any password."""
    with pytest.raises(AssertionError, match=r"password\.env: no such file"):
        server(None)
    assert "deploy/server/password.env" in (ROOT / ".gitignore").read_text().splitlines()
    assert {item["metadata"]["name"] for item in parsed(server("another"))} == {"valkey", "valkey-from-train"}


GKE, AKS = "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"
EKS, KARPENTER = "eks.amazonaws.com/capacityType", "karpenter.sh/capacity-type"
# The label of a cloud's spot nodes, by the clouds' documentation. The taint, where there is one, is the same.
SPOT = {"aks": [(AKS, "spot")], "eks": [(EKS, "SPOT"), (KARPENTER, "spot")], "gke": [(GKE, "true")]}
OTHERS = [("kubernetes.io/os", "linux"), (EKS, "ON_DEMAND"), (KARPENTER, "on-demand")]
# Seconds that a reclaimed node gives its pods.
GRACE = {"aks": 30, "eks": 120, "gke": 15}
# The parameters of each cloud's storage class that the package relies on.
CLASSES = {
    "aks": {"protocol": "nfs"},
    "eks": {"provisioningMode": "efs-ap", "uid": "10001", "gid": "10001"},
    "gke": {"tier": "standard"},
}


def runs_on(pods: dict[str, Any], label: tuple[str, str]) -> bool:
    """Return whether pods may run on an amd64 node that has this label."""
    labels = {"kubernetes.io/arch": "amd64", label[0]: label[1]}
    affinity = pods.get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {"nodeSelectorTerms": []})
    terms = [term["matchExpressions"] for term in required["nodeSelectorTerms"]]
    selected = pods.get("nodeSelector", {}).items() <= labels.items()
    return selected and (not terms or any(all(_matches(item, labels) for item in term) for term in terms))


def _matches(expression: dict[str, Any], labels: dict[str, str]) -> bool:
    found = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return found in expression["values"]
        case "NotIn":
            return found not in expression["values"]
        case operator:
            assert operator == "DoesNotExist"
            return found is None


@pytest.mark.parametrize("name", SPOT)
def test_workers_run_on_the_spot_nodes_of_each_cloud(name: str) -> None:
    """One worker and three: on no other node, with the grace period of that cloud, and in spite of a taint."""
    for overlay in (f"{name}-spot", f"one-on-{name}"):
        worker = at(render(overlay), "Job/train", "spec.template.spec")
        assert worker["terminationGracePeriodSeconds"] == GRACE[name]
        assert all(runs_on(worker, label) for label in SPOT[name])
        assert not any(runs_on(worker, label) for label in OTHERS)
        assert worker["nodeSelector"]["kubernetes.io/arch"] == "amd64"
        assert [(item["key"], item["value"]) for item in worker["tolerations"]] == SPOT[name]


def test_the_server_runs_on_all_other_nodes() -> None:
    pods = at(parsed(server(PASSWORD)), "StatefulSet/valkey", "spec.template.spec")
    assert not any(runs_on(pods, label) for labels in SPOT.values() for label in labels)
    assert all(runs_on(pods, label) for label in OTHERS)


@pytest.mark.parametrize("name", CLASSES)
def test_many_nodes_of_each_cloud_can_mount_the_volume(name: str) -> None:
    """Its class is a file of the overlay. That for EKS is applied by itself, because its file system is the user's."""
    claim = at(render(f"{name}-spot"), "PersistentVolumeClaim/backup", "spec")
    [found] = parsed((DEPLOY / "overlays" / f"{name}-spot" / "storageclass.yaml").read_text())
    assert schema_problems([found], OLDEST) == []
    assert claim["accessModes"] == ["ReadWriteMany"]
    assert claim["storageClassName"] == found["metadata"]["name"]
    assert CLASSES[name].items() <= found["parameters"].items()
    assert found["mountOptions"] == ["acdirmin=1", "acdirmax=1", "lookupcache=positive"]
    # The smallest share.
    assert name == "eks" or claim["resources"]["requests"]["storage"] == "100Gi"


SPREAD = "spec.template.spec.topologySpreadConstraints"
# Values that are as valid as others: the overlay, the object, the path and the value.
CHOSEN: list[tuple[str, str, str, Any]] = [
    ("one-worker", "Job/train", "spec.completions", 1),
    ("one-worker", "PersistentVolumeClaim/backup", "spec.accessModes", ["ReadWriteOnce"]),
    ("one-worker", "ConfigMap/train", "data.DISTRIBUTED_BACKUP_COORDINATOR", "file:"),
    ("single-node", "PersistentVolumeClaim/backup", "spec.accessModes", ["ReadWriteOnce"]),
    # Workers spread over zones and nodes where there are several.
    ("gke-spot", "Job/train", f"{SPREAD}.0.topologyKey", "topology.kubernetes.io/zone"),
    ("gke-spot", "Job/train", f"{SPREAD}.0.whenUnsatisfiable", "ScheduleAnyway"),
    ("gke-spot", "Job/train", f"{SPREAD}.1.topologyKey", "kubernetes.io/hostname"),
    ("gke-spot", "Job/train", f"{SPREAD}.1.whenUnsatisfiable", "ScheduleAnyway"),
    ("gke-spot", "Job/train", "spec.completions", 3),
    ("preemption-only", "ConfigMap/train", "data.DISTRIBUTED_BACKUP_SAVE_FREQ", "false"),
    ("standby", "ConfigMap/train", "data.DISTRIBUTED_BACKUP_STANDBY", "true"),
    ("standby", "Job/train", "spec.completions", 2),
    # Replicas share no data: each would elect a leader of its own.
    ("gke-spot", "StatefulSet/valkey", "spec.replicas", 1),
    # A full server reports an error instead of evicting the lease.
    ("gke-spot", "StatefulSet/valkey", "spec.template.spec.containers.0.args.9", "noeviction"),
    # EKS has no default class, so a claim would wait without limit.
    ("gke-spot", "StatefulSet/valkey", "spec.template.spec.volumes.[data].emptyDir", {"sizeLimit": "1Gi"}),
]


@pytest.mark.parametrize(("overlay", "where", "path", "value"), CHOSEN)
def test_each_chosen_value_is_there(overlay: str, where: str, path: str, value: Any) -> None:
    """Kubernetes would accept others, and each of these has its reason."""
    assert at(render(overlay), where, path) == value


def test_a_single_node_keeps_its_pods_together() -> None:
    """The lock excludes processes of one node only."""
    affinity = at(render("single-node"), "Job/train", "spec.template.spec.affinity.podAffinity")
    [term] = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"


def test_a_bucket_takes_the_place_of_the_volume() -> None:
    """No volume is claimed or mounted, and pods reach the service that grants access to the bucket."""
    manifests = render("bucket")
    assert "PersistentVolumeClaim/backup" not in kinds(manifests)
    assert "backup" not in json.dumps(at(manifests, "Job/train", "spec.template.spec.volumes"))
    assert "NetworkPolicy/train-to-identity" in kinds(manifests)
    assert at(manifests, "ConfigMap/train", "data.BACKUP_ROOT") == BUCKET


def test_a_server_that_keeps_the_checkpoints_has_a_disk() -> None:
    """It outlives the pod, and workers name the server as their directory."""
    manifests = parsed(server(PASSWORD, "server-with-disk"))
    assert [schema_problems(manifests, version) for version in (OLDEST, NEWEST)] == [[], []]
    spec = at(manifests, "StatefulSet/valkey", "spec")
    assert not spec["template"]["spec"].get("volumes")
    assert [claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]] == ["data"]
    directory = at(render("in-redis"), "Job/train", "spec.template.spec.containers.0.env.[BACKUP_DIR].value")
    assert directory == "$(DISTRIBUTED_BACKUP_COORDINATOR)"


def test_a_jobset_runs_the_same_job_and_is_the_run() -> None:
    """The JobSet replaces the Job, and the run's id survives a restart of the JobSet's Job."""
    manifests = render("jobset")
    assert find(manifests, "Job", "train") is None
    job = at(manifests, "JobSet/train", "spec.replicatedJobs.0.template.spec")
    env = "template.spec.containers.0.env.0.valueFrom.fieldRef.fieldPath"
    assert get(job, env) == "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"
    put(job, env, "metadata.labels['batch.kubernetes.io/controller-uid']")
    assert job == at(render("single-node"), "Job/train", "spec")


@pytest.mark.parametrize(("name", "where"), [("kueue", "Job/train"), ("all", "JobSet/train")])
def test_kueue_finds_the_queue_of_a_job(name: str, where: str) -> None:
    """As Kueue documents: the label names the LocalQueue. The contract keeps `suspend` for Kueue."""
    manifests = render(name)
    queue = at(manifests, where, "metadata.labels")["kueue.x-k8s.io/queue-name"]
    assert find(manifests, "LocalQueue", queue) is not None


def test_model_servers_are_reached_in_their_namespace() -> None:
    """At the ports of vLLM, Ollama and the LiteLLM proxy."""
    [rule] = at(render("one-on-aks"), "NetworkPolicy/train-to-model", "spec.egress")
    assert rule["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "models"}}}]
    assert rule["ports"] == [{"protocol": "TCP", "port": port} for port in (8000, 11434, 4000)]


def test_prometheus_scrapes_the_port_that_workers_listen_on() -> None:
    """It may enter from the namespace `monitoring` only, with the label of its pods."""
    manifests = render("monitoring")
    port = at(manifests, "Job/train", "spec.template.spec.containers.0.ports")
    assert port == [{"name": "metrics", "containerPort": 9464}]
    assert at(manifests, "ConfigMap/train", "data.DISTRIBUTED_BACKUP_METRICS_PORT") == "9464"
    [endpoint] = at(manifests, "PodMonitor/train", "spec.podMetricsEndpoints")
    [rule] = at(manifests, "NetworkPolicy/train-from-prometheus", "spec.ingress")
    assert endpoint["port"] == rule["ports"][0]["port"] == "metrics"
    prometheus = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
    }
    assert rule["from"] == [prometheus]


def test_the_dashboard_queries_only_metrics_that_exist() -> None:
    """A counter has the suffix `_total` in Prometheus, and a histogram `_bucket`."""
    board = json.loads(at(render("monitoring"), "ConfigMap/train-dashboard", "data")["dashboard.json"])
    asked = set(re.findall(r"distributed_backup_\w+", json.dumps(board)))
    suffixes = {"counter": "_total", "histogram": "_bucket", "gauge": ""}
    known = {family.name + suffixes[family.type] for family in Metrics().registry.collect()}
    assert "distributed_backup_leader" in asked
    assert asked <= known
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
