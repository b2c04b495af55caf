"""The checks of the manifests report the mistakes that a change of an overlay may make, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.contract import problems
from tests.deploy.model import Manifest
from tests.deploy.renderings import at, put, remove, render
from tests.deploy.schemas import NEWEST, OLDEST, schema_problems

GONE: Any = object()


def broken(name: str, changes: dict[str, Any]) -> list[Manifest]:
    """Render an overlay and replace the value at each "Kind/name path", or remove it if the new one is GONE."""
    manifests = render(name)
    for key, new in changes.items():
        where, path = key.split()
        item = at(manifests, where, "")
        if new is GONE:
            remove(item, path)
        else:
            put(item, path, new)
    return manifests


JOB, POD, WORKER = "Job/train spec", "Job/train spec.template.spec", "Job/train spec.template.spec.containers.0"
SERVER_POD, SETTINGS = "StatefulSet/valkey spec.template.spec", "ConfigMap/train data"
SERVER, ENV = f"{SERVER_POD}.containers.0", f"{WORKER}.env"
CODE = f"{JOB}.podFailurePolicy.rules.1.onExitCodes.values"
DENY = "NetworkPolicy/train-default-deny spec"
DNS, INTERNET = "NetworkPolicy/train-to-dns spec.egress.0", "NetworkPolicy/train-to-internet spec.egress.0"
OUT, IN = "NetworkPolicy/train-to-valkey spec.egress.0", "NetworkPolicy/valkey-from-train spec.ingress.0"
NO_VOLUME = "which is on no volume that it may write to"
NO_PORT_53 = ["Job/train: can't reach TCP port 53", "Job/train: can't reach UDP port 53"]
NO_ENTRY = "StatefulSet/valkey: does not let Job/train in"
NO_SERVER = "Job/train: can't reach StatefulSet/valkey"
TOO_WIDE = ["Job/train: reaches TCP port 443 too widely"]

# The changes, and a part of each line that they lead to.
MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    # The Job: a preemption must not count as a failure, and no field may end the Job early.
    ({f"{JOB}.podReplacementPolicy": GONE}, ["podReplacementPolicy is None, must be Failed"]),
    ({f"{JOB}.backoffLimitPerIndex": GONE}, ["backoffLimitPerIndex is None, must be 10"]),
    ({f"{JOB}.activeDeadlineSeconds": 3600}, ["activeDeadlineSeconds is 3600, must be None"]),
    ({f"{JOB}.parallelism": 2}, ["parallelism must be completions"]),
    ({f"{JOB}.successPolicy": GONE}, ["successPolicy is None, must be"]),
    ({f"{POD}.restartPolicy": "OnFailure"}, ["restartPolicy is OnFailure, must be Never"]),
    ({CODE: [137]}, ["'values': [137]"]),
    # A second, unchanged apply.
    ({f"{JOB}.suspend": True}, ["Job/train: a controller changes suspend"]),
    ({"PersistentVolumeClaim/backup spec.volumeName": "pv-1"}, ["backup: a controller changes volumeName"]),
    # How a worker learns of its end.
    ({f"{POD}.terminationGracePeriodSeconds": 14}, ["a grace period of 13 s is less than 2 s below 14 s"]),
    ({f"{SETTINGS}.DISTRIBUTED_BACKUP_GRACE_PERIOD": GONE}, ["a grace period of 15 s is less than 2 s below 15 s"]),
    ({f"{POD}.shareProcessNamespace": GONE}, ["shareProcessNamespace is None, must be True"]),
    ({f"{WORKER}.livenessProbe": {"tcpSocket": {"port": 1}}}, ["a worker must have no livenessProbe"]),
    ({f"{WORKER}.command": ["sh", "-c", "python train.py"]}, ["command is ['sh', '-c', 'python train.py'], must be"]),
    # The run and its directory.
    (
        {f"{ENV}.[DISTRIBUTED_BACKUP_RUN_ID]": {"name": "DISTRIBUTED_BACKUP_RUN_ID", "value": "run-1"}},
        ["DISTRIBUTED_BACKUP_RUN_ID must be"],
    ),
    (
        {f"{ENV}.[DISTRIBUTED_BACKUP_WORKER_ID].valueFrom.fieldRef.fieldPath": "metadata.namespace"},
        ["WORKER_ID must be metadata.name", "not modelled"],
    ),
    ({f"{ENV}.[BACKUP_DIR].value": "$(BACKUP_ROOT)"}, ["BACKUP_DIR must be one of"]),
    ({f"{SETTINGS}.BACKUP_ROOT": "s3://bucket"}, ["the backups are in s3://bucket/1, and a volume is claimed"]),
    ({f"{SETTINGS}.BACKUP_ROOT": "/backups"}, [f"BACKUP_DIR is '/backups/1', {NO_VOLUME}"]),
    ({f"{ENV}.[HOME]": GONE}, [f"HOME is '', {NO_VOLUME}"]),
    # The environment.
    (
        {f"{SETTINGS}.DISTRIBUTED_BACKUP_GRACE": "13"},
        ["neither the package nor train.py reads DISTRIBUTED_BACKUP_GRACE"],
    ),
    ({f"{SETTINGS}.TRAIN_EPOCHS": GONE}, ["train.py reads TRAIN_EPOCHS, which is not set"]),
    ({f"{SETTINGS}.DISTRIBUTED_BACKUP_STANDBY": "maybe"}, ["DISTRIBUTED_BACKUP_STANDBY must be true or false"]),
    ({f"{ENV}.[VALKEY_PASSWORD]": GONE}, ["a value refers to VALKEY_PASSWORD, which must stand above it"]),
    ({f"{ENV}.[VALKEY_PASSWORD].valueFrom.secretKeyRef.key": "secret"}, ["has no key 'secret'"]),
    (
        {f"{ENV}.[VALKEY_PASSWORD]": {"name": "VALKEY_PASSWORD", "value": "x"}},
        ["VALKEY_PASSWORD must come from a Secret"],
    ),
    # The coordinator.
    ({f"{ENV}.[DISTRIBUTED_BACKUP_COORDINATOR].value": "redis://:hunter2@valkey:6379/0"}, ["the coordinator must be"]),
    ({f"{ENV}.[DISTRIBUTED_BACKUP_COORDINATOR]": GONE}, ["a file lock elects one leader on each node"]),
    (
        {f"{ENV}.[DISTRIBUTED_BACKUP_COORDINATOR]": GONE, f"{SETTINGS}.DISTRIBUTED_BACKUP_COORDINATOR": "memory:"},
        ["memory: elects each of several workers"],
    ),
    # References to other objects.
    ({f"{POD}.volumes.0.persistentVolumeClaim.claimName": "b"}, ["no PersistentVolumeClaim b"]),
    ({f"{POD}.volumes.1.name": "temporary"}, ["Job/train: no volume tmp"]),
    ({"ServiceAccount/train metadata.name": "trainer"}, ["no ServiceAccount train"]),
    ({"Service/valkey spec.selector": {"app": "valkey"}}, ["Service/valkey: the selector"]),
    ({"Service/valkey spec.ports.0.targetPort": "redis"}, ["Service/valkey: no port redis"]),
    ({f"{POD}.topologySpreadConstraints.0.labelSelector.matchLabels": {"app": "x"}}, ["Job/train: the selector"]),
    # Security.
    ({f"{POD}.securityContext.fsGroup": GONE}, ["Job/train pod: fsGroup is None, must be 10001"]),
    ({f"{WORKER}.securityContext.privileged": True}, ["Job/train container: privileged is True, must be None"]),
    ({f"{POD}.automountServiceAccountToken": GONE}, ["automountServiceAccountToken is None, must be False"]),
    ({f"{SERVER_POD}.hostNetwork": True}, ["StatefulSet/valkey: a pod must have no hostNetwork"]),
    ({f"{POD}.volumes.1": {"name": "tmp", "hostPath": {"path": "/tmp"}}}, ["volume tmp is a hostPath"]),
    ({f"{WORKER}.image": "train:latest"}, ["image train:latest is not pinned"]),
    ({f"{WORKER}.resources.limits.memory": GONE}, ["Job/train: no limits.memory"]),
    ({f"{SERVER}.args.11": "hunter2"}, ["StatefulSet/valkey: args must end in"]),
    # The network.
    ({f"{DENY}.podSelector": {}}, ["NetworkPolicy/train-default-deny: applies to pods of others"]),
    ({f"{DENY}.policyTypes": ["Egress"]}, ["Job/train: no policy denies its Ingress"]),
    ({"NetworkPolicy/valkey-from-train spec.policyTypes": ["Ingress"]}, ["valkey: no policy denies its Egress"]),
    ({f"{DNS}.to": [{"ipBlock": {"cidr": "169.254.20.10/32"}}]}, NO_PORT_53),
    ({f"{DNS}.ports.0.endPort": 65535}, ["reaches UDP port 65535 too widely"]),
    ({f"{INTERNET}.to.0.ipBlock.cidr": "0.0.0.0/1"}, ["can't reach TCP port 443"]),
    ({f"{INTERNET}.to.0.ipBlock.except.2": "169.254.128.0/17"}, TOO_WIDE),
    ({f"{INTERNET}.to": GONE}, TOO_WIDE),
    ({f"{OUT}.to": GONE}, ["reaches TCP port 6379 too widely", NO_SERVER]),
    ({f"{OUT}.to.0.podSelector": {}}, ["NetworkPolicy/train-to-valkey: names pods of others"]),
    ({f"{OUT}.ports.0.port": 6380}, [NO_SERVER]),
    ({f"{IN}.from": GONE}, ["NetworkPolicy/valkey-from-train: lets pods of others in", NO_ENTRY]),
    ({f"{IN}.from.0.namespaceSelector": {}}, [NO_ENTRY]),
]


@pytest.mark.parametrize(("changes", "wanted"), MISTAKES, ids=[" and ".join(changes) for changes, _ in MISTAKES])
def test_a_planted_mistake_is_the_only_one_reported(changes: dict[str, Any], wanted: list[str]) -> None:
    found = problems(broken("gke-spot", changes))
    assert len(found) == len(wanted), found
    for part, line in zip(wanted, found, strict=True):
        assert part in line


IDENTITY, MODEL = "NetworkPolicy/train-to-identity spec.egress", "NetworkPolicy/train-to-model"


@pytest.mark.parametrize(
    ("key", "new", "wanted"),
    [
        # The package would refuse it at the start of each pod.
        (f"{SETTINGS}.DISTRIBUTED_BACKUP_COORDINATOR", "file:", ["Job/train: a file lock can't elect over a bucket"]),
        (f"{IDENTITY}.1", GONE, ["Job/train: can't reach TCP port 988"]),
        (f"{IDENTITY}.0.to.1", GONE, ["Job/train: can't reach TCP port 80"]),
        (f"{IDENTITY}.0.to.0.ipBlock.cidr", "169.254.0.0/16", ["Job/train: reaches TCP port 80 too widely"]),
        (f"{SETTINGS}.BACKUP_ROOT", "/backup", [f"Job/train: BACKUP_DIR is '/backup/1', {NO_VOLUME}"]),
    ],
)
def test_a_planted_mistake_of_a_bucket_is_reported(key: str, new: Any, wanted: list[str]) -> None:
    """Without a volume, a pod must reach the service that grants it access, and no address beside it."""
    assert problems(broken("one-on-gke", {key: new})) == wanted


@pytest.mark.parametrize(
    ("key", "new", "wanted"),
    [
        ("JobSet/train spec.suspend", False, "JobSet/train: a controller changes suspend, and a second apply"),
        (f"{MODEL} spec.egress.0.to.0.namespaceSelector", {}, f"{MODEL}: names pods of others"),
    ],
)
def test_a_planted_mistake_of_a_component_is_reported(key: str, new: Any, wanted: str) -> None:
    [found] = problems(broken("all", {key: new}))
    assert found.startswith(wanted)


@pytest.mark.parametrize(
    ("key", "new", "wanted"),
    [
        ("JobSet/train spec.suspend", True, "suspend"),
        ("JobSet/train spec.replicatedJobs.0.template.spec.completionsMode", "Indexed", "completionsMode"),
        ("LocalQueue/train spec", {"queue": "default"}, "clusterQueue"),
        ("LocalQueue/train apiVersion", "kueue.x-k8s.io/v1", "LocalQueue"),
        ("PodMonitor/train spec.podMetricsEndpoints.0.scrapeInterval", "10s", "scrapeInterval"),
        ("StatefulSet/valkey spec.replicas", "1", "integer"),
    ],
)
def test_the_schemas_refuse_unknown_fields_and_wrong_types(key: str, new: Any, wanted: str) -> None:
    for version in (OLDEST, NEWEST):
        [problem] = schema_problems(broken("all", {key: new}), version)
        assert problem.startswith(key.split(maxsplit=1)[0])
        assert wanted in problem
