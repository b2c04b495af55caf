"""The manifests in deploy/: they build, Kubernetes accepts them, and they say what each of them is for."""

from __future__ import annotations

import json
import re

import pytest

from distributed_backup.metrics import Metrics
from tests.unit.deploy_facts import DEPLOY
from tests.unit.deploy_job_checks import JOB_CHECKS
from tests.unit.deploy_model import find
from tests.unit.deploy_network_checks import NETWORK_CHECKS
from tests.unit.deploy_pod_checks import POD_CHECKS
from tests.unit.deploy_renderings import BUCKET, COMBINATIONS, OVERLAYS, at, get, kinds, put, render
from tests.unit.deploy_schemas import NEWEST, OLDEST, schema_problems


def test_no_overlay_and_no_component_is_left_out() -> None:
    """Else the checks below would pass it over."""
    assert {path.name for path in (DEPLOY / "overlays").iterdir()} == set(OVERLAYS)
    assert {path.name for path in (DEPLOY / "components").iterdir()} == set(COMBINATIONS) - {"all"}


@pytest.mark.parametrize("name", [*OVERLAYS, *COMBINATIONS])
def test_every_overlay_and_component_builds_and_nothing_is_wrong_with_it(name: str) -> None:
    """With kubectl; by the schemas of the oldest and the newest Kubernetes, and by checks of our own."""
    manifests = render(name)
    assert [schema_problems(manifests, version) for version in (OLDEST, NEWEST)] == [[], []]
    assert [problem for check in (*JOB_CHECKS, *NETWORK_CHECKS, *POD_CHECKS) for problem in check(manifests)] == []


def test_what_a_cluster_gets() -> None:
    """All that a working job needs comes with each of the overlays for a cloud."""
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


@pytest.mark.parametrize(("name", "seconds"), [("gke-spot", 15), ("aks-spot", 30), ("eks-spot", 120)])
def test_each_cloud_has_its_own_grace_and_its_server_stays_off_spot(name: str, seconds: int) -> None:
    """Workers only on spot nodes, whose label the server avoids; a class of storage that many nodes can mount."""
    manifests = render(name)
    worker = at(manifests, "Job/train", "spec.template.spec")
    assert worker["terminationGracePeriodSeconds"] == seconds
    server = at(manifests, "StatefulSet/valkey", "spec.template.spec")
    spot = re.findall(r"[a-z.]+/[A-Za-z-]*(?:spot|capacity|priority)[A-Za-z-]*", json.dumps(worker.get("nodeSelector")))
    spot += re.findall(r'"key": "([^"]+)", "operator": "In"', json.dumps(worker.get("affinity")))
    avoided = re.findall(r'"key": "([^"]+)", "operator": "(?:NotIn|DoesNotExist)"', json.dumps(server["affinity"]))
    assert spot
    assert set(spot) == set(avoided) == {item["key"] for item in worker["tolerations"]}
    claim = at(manifests, "PersistentVolumeClaim/backup", "spec")
    assert claim["accessModes"] == ["ReadWriteMany"]
    assert claim["storageClassName"] == "efs-sc" or f"StorageClass/{claim['storageClassName']}" in kinds(manifests)


def test_a_single_node_has_no_server_and_keeps_its_pods_together() -> None:
    """The lock is in the backup directory, and works on one node only."""
    manifests = render("single-node")
    assert not [name for name in kinds(manifests) if "valkey" in name]
    pods = at(manifests, "Job/train", "spec.template.spec")
    assert "podAffinity" in pods["affinity"]
    assert "topologySpreadConstraints" not in pods
    assert at(manifests, "PersistentVolumeClaim/backup", "spec.accessModes") == ["ReadWriteOnce"]


@pytest.mark.parametrize("name", ["aks-spot", "eks-spot", "gke-spot"])
def test_the_server_starts_without_a_storage_class(name: str) -> None:
    """EKS has no default one: a claim would wait for ever."""
    server = at(render(name), "StatefulSet/valkey", "spec")
    assert "volumeClaimTemplates" not in server
    assert at(render(name), "StatefulSet/valkey", "spec.template.spec.volumes.[data].emptyDir")


def test_the_other_overlays_set_what_they_are_for() -> None:
    """One variable each."""
    assert at(render("preemption-only"), "ConfigMap/train", "data.DISTRIBUTED_BACKUP_SAVE_FREQ") == "false"
    assert at(render("standby"), "ConfigMap/train", "data.DISTRIBUTED_BACKUP_STANDBY") == "true"


def test_a_bucket_takes_the_place_of_the_volume() -> None:
    """Nothing is claimed, nothing mounted; what gives a pod its right to the bucket can be reached."""
    manifests = render("bucket")
    assert "PersistentVolumeClaim/backup" not in kinds(manifests)
    assert "backup" not in json.dumps(at(manifests, "Job/train", "spec.template.spec.volumes"))
    assert "NetworkPolicy/train-to-identity" in kinds(manifests)
    assert at(manifests, "ConfigMap/train", "data.BACKUP_ROOT") == BUCKET


def test_a_jobset_runs_the_same_job_and_is_the_run() -> None:
    """The Job itself is gone, and the run's id survives a restart of the JobSet's Job."""
    manifests = render("jobset")
    assert find(manifests, "Job", "train") is None
    job = at(manifests, "JobSet/train", "spec.replicatedJobs.0.template.spec")
    env = "template.spec.containers.0.env.0.valueFrom.fieldRef.fieldPath"
    assert get(job, env) == "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"
    put(job, env, "metadata.labels['batch.kubernetes.io/controller-uid']")
    assert job == at(render("standby"), "Job/train", "spec")


@pytest.mark.parametrize(("name", "where"), [("kueue", "Job/train"), ("all", "JobSet/train")])
def test_kueue_gets_a_suspended_job_with_its_queue(name: str, where: str) -> None:
    """Of Kueue's documentation: the label names the LocalQueue, and the job is created suspended."""
    manifests = render(name)
    assert at(manifests, where, "spec.suspend") is True
    queue = at(manifests, where, "metadata.labels")["kueue.x-k8s.io/queue-name"]
    assert find(manifests, "LocalQueue", queue) is not None


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    """By the names under which Prometheus has them."""
    board = json.loads(at(render("monitoring"), "ConfigMap/train-dashboard", "data")["dashboard.json"])
    asked = set(re.findall(r"distributed_backup_\w+", json.dumps(board)))
    suffixes = {"counter": "_total", "histogram": "_bucket", "gauge": ""}
    known = {family.name + suffixes[family.type] for family in Metrics().registry.collect()}
    assert "distributed_backup_leader" in asked
    assert asked <= known
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
