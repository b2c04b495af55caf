"""The manifests in deploy/ build, Kubernetes accepts them, and each overlay does what deploy/README.md promises."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import pytest

from distributed_backup.observability.metrics import Metrics
from tests.deploy.contract import problems
from tests.deploy.facts import DEPLOY
from tests.deploy.model import find
from tests.deploy.renderings import BUCKET, COMBINATIONS, COMPONENTS, OVERLAYS, at, get, kinds, put, render
from tests.deploy.schemas import NEWEST, OLDEST, schema_problems


def test_no_overlay_and_no_component_is_left_out() -> None:
    """The tests below run for each of them, except for the overlay `mine` that a user makes."""
    assert {path.name for path in (DEPLOY / "overlays").iterdir()} - {"mine"} == set(OVERLAYS)
    assert {path.name for path in (DEPLOY / "components").iterdir()} == COMPONENTS


@pytest.mark.parametrize("name", [*OVERLAYS, *COMBINATIONS])
def test_every_overlay_and_component_builds_and_keeps_the_contract(name: str) -> None:
    """It builds with kubectl, and it fits the schemas of the oldest and the newest Kubernetes."""
    manifests = render(name)
    assert [schema_problems(manifests, version) for version in (OLDEST, NEWEST)] == [[], []]
    assert problems(manifests) == []


def test_what_a_cluster_gets() -> None:
    """Each overlay for a cloud has all objects that a working job needs."""
    wanted = {
        "ConfigMap/train",
        "Job/train",
        "NetworkPolicy/default-deny",
        "NetworkPolicy/train-to-dns",
        "NetworkPolicy/train-to-internet",
        "NetworkPolicy/train-to-valkey",
        "NetworkPolicy/valkey-from-train",
        "PersistentVolumeClaim/backup",
        "PodDisruptionBudget/valkey",
        "Secret/valkey",
        "Service/valkey",
        "ServiceAccount/train",
        "ServiceAccount/valkey",
        "StatefulSet/valkey",
    }
    for name in ("aks-spot", "eks-spot", "gke-spot"):
        assert kinds(render(name)) - {"StorageClass/distributed-backup-nfs"} == wanted


ARCH = {"kubernetes.io/arch": "amd64"}
TAINTED = {"operator": "Equal", "effect": "NoSchedule"}
NFS_OPTIONS = ["acdirmin=1", "acdirmax=1", "lookupcache=positive"]
GKE, AKS = "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"
EKS, KARPENTER = "eks.amazonaws.com/capacityType", "karpenter.sh/capacity-type"


class Cloud(NamedTuple):
    """A cloud's documentation of its spot nodes, and of a volume that many nodes mount."""

    grace: int
    node_selector: dict[str, str]
    # One of these terms must match a spot node.
    terms: list[dict[str, Any]]
    taints: dict[str, str]
    # Matches every node that is not a spot node.
    others: list[dict[str, Any]]
    # None if the user makes the class.
    storage: dict[str, Any] | None


CLOUDS = {
    "gke-spot": Cloud(
        grace=15,
        node_selector={GKE: "true"},
        terms=[],
        taints={GKE: "true"},
        others=[{"key": GKE, "operator": "DoesNotExist"}],
        storage={"provisioner": "filestore.csi.storage.gke.io", "parameters": {"tier": "standard"}},
    ),
    "aks-spot": Cloud(
        grace=30,
        node_selector={AKS: "spot"},
        terms=[],
        taints={AKS: "spot"},
        others=[{"key": AKS, "operator": "NotIn", "values": ["spot"]}],
        storage={"provisioner": "file.csi.azure.com", "parameters": {"protocol": "nfs", "skuName": "Premium_LRS"}},
    ),
    "eks-spot": Cloud(
        grace=120,
        node_selector={},
        terms=[
            {"key": EKS, "operator": "In", "values": ["SPOT"]},
            {"key": KARPENTER, "operator": "In", "values": ["spot"]},
        ],
        taints={EKS: "SPOT", KARPENTER: "spot"},
        others=[
            {"key": EKS, "operator": "NotIn", "values": ["SPOT"]},
            {"key": KARPENTER, "operator": "NotIn", "values": ["spot"]},
        ],
        storage=None,
    ),
}


def node_terms(pods: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the terms of a required node affinity, each with its expressions."""
    required = (
        pods.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    )
    return [term["matchExpressions"] for term in required.get("nodeSelectorTerms", [])]


@pytest.mark.parametrize("name", CLOUDS)
def test_each_cloud_has_its_own_grace_and_its_server_stays_off_spot(name: str) -> None:
    """Workers run on spot nodes only, the server on others, and many nodes can mount the volume."""
    cloud, manifests = CLOUDS[name], render(name)
    worker = at(manifests, "Job/train", "spec.template.spec")
    assert worker["terminationGracePeriodSeconds"] == cloud.grace
    assert worker["nodeSelector"] == ARCH | cloud.node_selector
    assert node_terms(worker) == [[term] for term in cloud.terms]
    assert worker["tolerations"] == [{"key": key, "value": value, **TAINTED} for key, value in cloud.taints.items()]
    server = at(manifests, "StatefulSet/valkey", "spec.template.spec")
    assert node_terms(server) == [cloud.others]
    assert not server.keys() & {"nodeSelector", "tolerations"}
    claim = at(manifests, "PersistentVolumeClaim/backup", "spec")
    assert claim["accessModes"] == ["ReadWriteMany"]
    if cloud.storage is None:
        assert claim["storageClassName"] == "efs-sc"
    else:
        storage = at(manifests, f"StorageClass/{claim['storageClassName']}", "")
        assert {"provisioner": storage["provisioner"], "parameters": storage["parameters"]} == cloud.storage
        assert storage["mountOptions"] == NFS_OPTIONS


OF_THE_SERVER = {"app.kubernetes.io/name": "valkey", "app.kubernetes.io/component": "coordinator"}
# Values that are as valid as others: the overlay, the object, the path and the value.
CHOSEN: list[tuple[str, str, str, Any]] = [
    # Workers spread over nodes where there are several.
    ("gke-spot", "Job/train", "spec.template.spec.topologySpreadConstraints.0.whenUnsatisfiable", "ScheduleAnyway"),
    ("gke-spot", "Job/train", "spec.template.spec.topologySpreadConstraints.0.topologyKey", "kubernetes.io/hostname"),
    ("gke-spot", "Job/train", "spec.template.spec.containers.0.envFrom.1.secretRef.name", "language-model"),
    # Checkpoints for a kill without notice.
    ("gke-spot", "ConfigMap/train", "data.DISTRIBUTED_BACKUP_SAVE_FREQ", "epoch"),
    ("gke-spot", "ConfigMap/train", "data.DISTRIBUTED_BACKUP_STANDBY", "false"),
    ("preemption-only", "ConfigMap/train", "data.DISTRIBUTED_BACKUP_SAVE_FREQ", "false"),
    ("standby", "ConfigMap/train", "data.DISTRIBUTED_BACKUP_STANDBY", "true"),
    ("standby", "Job/train", "spec.completions", 2),
    # A drain of the server's node waits, and no drain waits for a worker.
    ("gke-spot", "PodDisruptionBudget/valkey", "spec.minAvailable", 1),
    ("gke-spot", "PodDisruptionBudget/valkey", "spec.unhealthyPodEvictionPolicy", "AlwaysAllow"),
    ("gke-spot", "PodDisruptionBudget/valkey", "spec.selector.matchLabels", OF_THE_SERVER),
    ("gke-spot", "StatefulSet/valkey", "spec.selector.matchLabels", OF_THE_SERVER),
    ("gke-spot", "StatefulSet/valkey", "spec.serviceName", "valkey"),
    # Replicas share no data: each would elect a leader of its own.
    ("gke-spot", "StatefulSet/valkey", "spec.replicas", 1),
    ("gke-spot", "Service/valkey", "spec.ports.0.port", 6379),
    # With -e, the exit code shows an error reply.
    (
        "gke-spot",
        "StatefulSet/valkey",
        "spec.template.spec.containers.0.readinessProbe.exec.command",
        ["valkey-cli", "-e", "ping"],
    ),
]


@pytest.mark.parametrize(("overlay", "where", "path", "value"), CHOSEN)
def test_each_chosen_value_is_there(overlay: str, where: str, path: str, value: Any) -> None:
    """Kubernetes would accept others, and each of these has its reason."""
    assert at(render(overlay), where, path) == value


def test_a_single_node_has_no_server_and_keeps_its_pods_together() -> None:
    """The lock is in the backup directory, and excludes processes of one node only."""
    manifests = render("single-node")
    assert not [name for name in kinds(manifests) if "valkey" in name]
    pods = at(manifests, "Job/train", "spec.template.spec")
    [term] = pods["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert "topologySpreadConstraints" not in pods
    assert at(manifests, "PersistentVolumeClaim/backup", "spec.accessModes") == ["ReadWriteOnce"]


@pytest.mark.parametrize("name", ["aks-spot", "eks-spot", "gke-spot"])
def test_the_server_starts_without_a_storage_class(name: str) -> None:
    """EKS has no default class, so a claim would wait without limit."""
    server = at(render(name), "StatefulSet/valkey", "spec")
    assert "volumeClaimTemplates" not in server
    assert at(render(name), "StatefulSet/valkey", "spec.template.spec.volumes.[data].emptyDir")


def test_a_bucket_takes_the_place_of_the_volume() -> None:
    """No volume is claimed or mounted, and pods reach the service that grants access to the bucket."""
    manifests = render("bucket")
    assert "PersistentVolumeClaim/backup" not in kinds(manifests)
    assert "backup" not in json.dumps(at(manifests, "Job/train", "spec.template.spec.volumes"))
    assert "NetworkPolicy/train-to-identity" in kinds(manifests)
    assert at(manifests, "ConfigMap/train", "data.BACKUP_ROOT") == BUCKET


def test_a_jobset_runs_the_same_job_and_is_the_run() -> None:
    """The JobSet replaces the Job, and the run's id survives a restart of the JobSet's Job."""
    manifests = render("jobset")
    assert find(manifests, "Job", "train") is None
    job = at(manifests, "JobSet/train", "spec.replicatedJobs.0.template.spec")
    env = "template.spec.containers.0.env.0.valueFrom.fieldRef.fieldPath"
    assert get(job, env) == "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"
    put(job, env, "metadata.labels['batch.kubernetes.io/controller-uid']")
    assert job == at(render("standby"), "Job/train", "spec")


@pytest.mark.parametrize(("name", "where"), [("kueue", "Job/train"), ("all", "JobSet/train")])
def test_kueue_gets_a_suspended_job_with_its_queue(name: str, where: str) -> None:
    """As Kueue documents: the label names the LocalQueue, and the job is created suspended."""
    manifests = render(name)
    assert at(manifests, where, "spec.suspend") is True
    queue = at(manifests, where, "metadata.labels")["kueue.x-k8s.io/queue-name"]
    assert find(manifests, "LocalQueue", queue) is not None


def test_prometheus_scrapes_the_port_that_workers_listen_on() -> None:
    """It may enter from the namespace `monitoring` only, with the label of its pods."""
    manifests = render("monitoring")
    port = at(manifests, "Job/train", "spec.template.spec.containers.0.ports")
    assert port == [{"name": "metrics", "containerPort": 9464}]
    assert at(manifests, "ConfigMap/train", "data.DISTRIBUTED_BACKUP_METRICS_PORT") == "9464"
    workers = {"matchLabels": {"app.kubernetes.io/name": "train", "app.kubernetes.io/component": "worker"}}
    assert at(manifests, "PodMonitor/train", "spec") == {
        "selector": workers,
        "podMetricsEndpoints": [{"port": "metrics", "interval": "10s"}],
    }
    prometheus = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
    }
    assert at(manifests, "NetworkPolicy/train-from-prometheus", "spec") == {
        "podSelector": workers,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [prometheus], "ports": [{"protocol": "TCP", "port": "metrics"}]}],
    }


def test_the_dashboard_queries_only_metrics_that_exist() -> None:
    """A counter has the suffix `_total` in Prometheus, and a histogram `_bucket`."""
    board = json.loads(at(render("monitoring"), "ConfigMap/train-dashboard", "data")["dashboard.json"])
    asked = set(re.findall(r"distributed_backup_\w+", json.dumps(board)))
    suffixes = {"counter": "_total", "histogram": "_bucket", "gauge": ""}
    known = {family.name + suffixes[family.type] for family in Metrics().registry.collect()}
    assert "distributed_backup_leader" in asked
    assert asked <= known
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
