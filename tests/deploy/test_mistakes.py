"""Each check of the manifests in deploy/ finds the mistake it is for, and takes nothing else for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.deploy.job_checks import JOB_CHECKS
from tests.deploy.model import Manifest, name_of
from tests.deploy.network_checks import NETWORK_CHECKS
from tests.deploy.pod_checks import POD_CHECKS
from tests.deploy.renderings import at, kustomized, put, remove, render, without_suffix
from tests.deploy.schemas import NEWEST, OLDEST, schema_problems

GONE: Any = object()


def problems(manifests: list[Manifest]) -> list[str]:
    return [
        without_suffix(problem) for check in (*JOB_CHECKS, *NETWORK_CHECKS, *POD_CHECKS) for problem in check(manifests)
    ]


def broken(manifests: list[Manifest], changes: dict[str, Any]) -> list[Manifest]:
    """With one or more values replaced, or removed where the new one is GONE; the keys are "Kind/name path"."""
    for key, new in changes.items():
        where, path = key.split()
        item = at(manifests, where, "")
        if new is GONE:
            remove(item, path)
        else:
            put(item, path, new)
    return manifests


JOB, POD, WORKER = "Job/train spec", "Job/train spec.template.spec", "Job/train spec.template.spec.containers.0"
SETTINGS = "ConfigMap/train data"
SERVER = "StatefulSet/valkey spec.template.spec.containers.0"
RULES = f"{JOB}.podFailurePolicy.rules"
URL = f"{WORKER}.env.[DISTRIBUTED_BACKUP_COORDINATOR]"
PASSWORD = f"{WORKER}.env.[VALKEY_PASSWORD]"
NOWHERE = "which no volume lets it write to"
DNS, INTERNET = "NetworkPolicy/train-to-dns spec.egress.0", "NetworkPolicy/train-to-internet spec.egress.0"
TO_SERVER, INTO_SERVER = "NetworkPolicy/train-to-valkey spec.egress.0", "NetworkPolicy/valkey-from-train spec.ingress.0"
KUBE = {"kubernetes.io/metadata.name": "kube-system"}
EVERY_PORT = ["NetworkPolicy/train-to-dns: is for ports that nobody needs"]
TOO_WIDE = "to addresses that nobody needs"
TOO_OPEN = [f"NetworkPolicy/train-to-internet: opens port 443 {TOO_WIDE}"]
NO_MODELS = ["Job/train: may not reach TCP port 443"]
NO_NAMES = ["Job/train: may not reach UDP port 53", "Job/train: may not reach TCP port 53"]
NO_GROUP = "securityContext.fsGroup must be runAsGroup: else volumes are root's"
IGNORED = [
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    {"action": "Ignore", "onExitCodes": {"containerName": "train", "operator": "In", "values": [143]}},
]
MORE_RULES = "Job/train: has 1 more rules than it needs"
DEAF = "Job/train: shareProcessNamespace must be True: as PID 1, Python is deaf while it imports"
PLACES = "$(BACKUP_ROOT)/$(DISTRIBUTED_BACKUP_RUN_ID), $(DISTRIBUTED_BACKUP_COORDINATOR)"
NO_RUN = f"Job/train: BACKUP_DIR must be one of {PLACES}"
EARLY = "ends the Job, or the run with it, before its time"
OF_WORKERS = {"app.kubernetes.io/name": "train", "app.kubernetes.io/component": "worker"}

MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    ({f"{JOB}.completionMode": "NonIndexed"}, ["Job/train: completionMode must be Indexed"]),
    ({f"{JOB}.podReplacementPolicy": GONE}, ["Job/train: podReplacementPolicy must be Failed"]),
    ({f"{POD}.restartPolicy": "OnFailure"}, ["Job/train: restartPolicy must be Never"]),
    ({f"{JOB}.backoffLimitPerIndex": GONE}, ["Job/train: backoffLimitPerIndex must be at least 1"]),
    (
        {f"{JOB}.parallelism": 2},
        ["Job/train: parallelism must be completions: a worker that waits for its turn waits for ever"],
    ),
    ({f"{JOB}.backoffLimit": 0}, [f"Job/train: backoffLimit {EARLY}"]),
    ({f"{JOB}.maxFailedIndexes": 0}, [f"Job/train: maxFailedIndexes {EARLY}"]),
    ({f"{JOB}.ttlSecondsAfterFinished": 0}, [f"Job/train: ttlSecondsAfterFinished {EARLY}"]),
    ({f"{JOB}.activeDeadlineSeconds": 3600}, [f"Job/train: activeDeadlineSeconds {EARLY}"]),
    ({f"{JOB}.suspend": True}, ["Job/train: is suspended, and in no queue"]),
    ({"StatefulSet/valkey spec.replicas": 2}, ["StatefulSet/valkey: replicas must be 1"]),
    ({f"{RULES}.0.action": "Count"}, ["Job/train: the first rule must ignore DisruptionTarget"]),
    ({f"{RULES}.0.onPodConditions.0.status": "False"}, ["Job/train: the first rule must ignore DisruptionTarget"]),
    ({f"{RULES}.1.action": "Count"}, ["Job/train: the second rule must ignore an exit code"]),
    ({f"{RULES}.1": GONE}, ["Job/train: the second rule must ignore an exit code"]),
    (
        {f"{RULES}.1.onExitCodes.values": [137]},
        ["Job/train: ignores exit codes [137], BackupAndRestore leaves with 143"],
    ),
    (
        {f"{RULES}.1.onExitCodes.containerName": "main"},
        ["Job/train: the rule's containerName main is no container"],
    ),
    (
        {f"{POD}.terminationGracePeriodSeconds": 14},
        ["Job/train: a grace period of 13 leaves no reserve below 14 s"],
    ),
    (
        {f"{SETTINGS}.DISTRIBUTED_BACKUP_GRACE_PERIOD": GONE},
        ["Job/train: a grace period of 30 leaves no reserve below 15 s"],
    ),
    ({f"{WORKER}.livenessProbe": {"tcpSocket": {"port": 1}}}, ["Job/train: a worker must have no livenessProbe"]),
    ({f"{WORKER}.lifecycle": {"preStop": {}}}, ["Job/train: a worker must have no lifecycle"]),
    ({RULES: [*IGNORED, {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}}]}, [MORE_RULES]),
    ({f"{POD}.activeDeadlineSeconds": 60}, ["Job/train: a worker's pod must have no activeDeadlineSeconds"]),
    ({f"{POD}.initContainers": []}, ["Job/train: a worker's pod must have no initContainers"]),
    ({f"{WORKER}.args": ["--fast"]}, ["Job/train: a worker must have no args"]),
    ({f"{POD}.shareProcessNamespace": False}, [DEAF]),
    ({f"{POD}.shareProcessNamespace": GONE}, [DEAF]),
    (
        {f"{WORKER}.env.[DISTRIBUTED_BACKUP_WORKER_ID].valueFrom.fieldRef.fieldPath": "metadata.namespace"},
        ["Job/train: DISTRIBUTED_BACKUP_WORKER_ID must be metadata.name"],
    ),
    (
        {f"{WORKER}.env.[DISTRIBUTED_BACKUP_RUN_ID]": {"name": "DISTRIBUTED_BACKUP_RUN_ID", "value": "run-1"}},
        [
            "Job/train: DISTRIBUTED_BACKUP_RUN_ID must be metadata.labels['batch.kubernetes.io/controller-uid']",
        ],
    ),
    ({f"{WORKER}.env.[BACKUP_DIR].value": "$(BACKUP_ROOT)"}, [NO_RUN]),
    ({f"{WORKER}.env.[BACKUP_DIR].value": "/var/backup"}, [NO_RUN, f"Job/train: BACKUP_DIR is /var/backup, {NOWHERE}"]),
    (
        {f"{SETTINGS}.BACKUP_ROOT": "s3://bucket"},
        ["Job/train: waits for a volume, and its backups are elsewhere"],
    ),
    (
        {f"{WORKER}.command": ["sh", "-c", "python train.py"]},
        ["Job/train: sh -c python train.py is neither Python's nor the server's"],
    ),
    ({f"{WORKER}.command": GONE}, ["Job/train:  is neither Python's nor the server's"]),
    ({f"{WORKER}.command.1": "fit.py"}, ["Job/train: fit.py is not in the image"]),
    ({f"{WORKER}.workingDir": "/srv"}, ["Job/train: train.py is in /app, not in /srv"]),
    (
        {f"{WORKER}.command": ["distributed-backup", "state", "/backup"]},
        ["Job/train: there is no command distributed-backup state /backup"],
    ),
    (
        {f"{WORKER}.command": ["distributed-backup", "status", "/backup", "--jason"]},
        ["Job/train: there is no command distributed-backup status /backup --jason"],
    ),
    (
        {f"{SERVER}.readinessProbe.exec.command": ["redis-cli", "ping"]},
        ["StatefulSet/valkey: redis-cli ping is neither Python's nor the server's"],
    ),
    ({f"{SETTINGS}.DISTRIBUTED_BACKUP_GRACE": "13"}, ["Job/train: nobody reads DISTRIBUTED_BACKUP_GRACE"]),
    ({f"{SETTINGS}.TRAIN_EPOCHS": GONE}, ["Job/train: train.py reads TRAIN_EPOCHS, which is not set"]),
    (
        {f"{SETTINGS}.DISTRIBUTED_BACKUP_STANDBY": "maybe"},
        ["Job/train: $DISTRIBUTED_BACKUP_STANDBY must be true or false, got 'maybe'"],
    ),
    (
        {f"{WORKER}.env.[BACKUP_DIR].value": "$(BACKUP_ROOT)/$(DISTRIBUTED_BACKUP_RUN)"},
        [NO_RUN, "Job/train: $(DISTRIBUTED_BACKUP_RUN) does not stand above BACKUP_DIR in env"],
    ),
    (
        {f"{SERVER}.args.11": "$(PASSWORD)"},
        ["StatefulSet/valkey: $(PASSWORD) is not in env"],
    ),
    ({f"{PASSWORD}.valueFrom.secretKeyRef.key": "secret"}, ["Job/train: no Secret valkey secret"]),
    (
        {f"{WORKER}.env.[BACKUP_ROOT].valueFrom.configMapKeyRef.name": "other"},
        [
            "Job/train: no ConfigMap other BACKUP_ROOT",
            f"Job/train: BACKUP_DIR is configMapKeyRef/fieldRef, {NOWHERE}",
        ],
    ),
    ({f"{POD}.volumes.0.persistentVolumeClaim.claimName": "b"}, ["Job/train: no PersistentVolumeClaim b"]),
    ({f"{POD}.serviceAccountName": "default"}, ["Job/train: no ServiceAccount default"]),
    ({f"{URL}.value": "redis://:$(VALKEY_PASSWORD)@redis:6379/0"}, ["Job/train: no Service for redis:6379"]),
    ({"Service/valkey spec.ports.0.port": 6380}, ["Job/train: no Service for valkey:6379"]),
    ({f"{SERVER}.args.3": "no"}, ["StatefulSet/valkey: --appendonly must be yes"]),
    ({f"{SERVER}.args.9": "allkeys-lru"}, ["StatefulSet/valkey: --maxmemory-policy must be noeviction"]),
    (
        {f"{SERVER}.args.7": "250mb"},
        ["StatefulSet/valkey: --maxmemory leaves its container no room to rewrite the file"],
    ),
    (
        {f"{SERVER}.args.11": "hunter2"},
        [
            "StatefulSet/valkey: --requirepass must be $(NAME) of a variable from a Secret",
            "StatefulSet/valkey: the value of --requirepass is written out",
        ],
    ),
    (
        {f"{POD}.securityContext.runAsNonRoot": False},
        ["Job/train: securityContext.runAsNonRoot must be True"],
    ),
    (
        {f"{POD}.securityContext.runAsUser": 0},
        ["Job/train: securityContext.runAsUser must be the number of a user who is not root"],
    ),
    (
        {f"{POD}.securityContext.seccompProfile": {"type": "Unconfined"}},
        ["Job/train: securityContext.seccompProfile must be {'type': 'RuntimeDefault'}"],
    ),
    ({f"{POD}.automountServiceAccountToken": GONE}, ["Job/train: automountServiceAccountToken must be false"]),
    (
        {"StatefulSet/valkey spec.template.spec.hostNetwork": True},
        ["StatefulSet/valkey: hostNetwork is not restricted"],
    ),
    (
        {f"{POD}.volumes.1": {"name": "tmp", "hostPath": {"path": "/tmp"}}},
        ["Job/train: volume tmp is a hostPath", f"Job/train: HOME is /tmp, {NOWHERE}"],
    ),
    (
        {f"{WORKER}.securityContext.allowPrivilegeEscalation": GONE},
        ["Job/train: securityContext.allowPrivilegeEscalation of train must be False"],
    ),
    (
        {f"{WORKER}.securityContext.capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}},
        ["Job/train: securityContext.capabilities of train must be {'drop': ['ALL']}"],
    ),
    (
        {f"{SERVER}.securityContext.readOnlyRootFilesystem": False},
        ["StatefulSet/valkey: securityContext.readOnlyRootFilesystem of valkey must be True"],
    ),
    ({f"{SETTINGS}.TRAIN_MODEL": "http://me:hunter2@models/v1"}, ["ConfigMap/train: TRAIN_MODEL is a secret"]),
    (
        {f"{SETTINGS}.OPENAI_API_KEY": "sk-1"},
        ["Job/train: nobody reads OPENAI_API_KEY", "ConfigMap/train: OPENAI_API_KEY is a secret"],
    ),
    ({PASSWORD: {"name": "VALKEY_PASSWORD", "value": "hunter2"}}, ["Job/train: VALKEY_PASSWORD is written out"]),
    (
        {f"{URL}.value": "redis://:hunter2@valkey:6379/0?password=$(VALKEY_PASSWORD)"},
        ["Job/train: DISTRIBUTED_BACKUP_COORDINATOR is written out"],
    ),
    *(
        ({f"{WORKER}.securityContext.{field}": value}, [f"Job/train: train must have no securityContext.{field}"])
        for field, value in {
            "privileged": True,
            "runAsNonRoot": False,
            "runAsUser": 0,
            "seccompProfile": {"type": "Unconfined"},
        }.items()
    ),
    ({f"{WORKER}.image": "train:latest"}, ["Job/train: image train:latest is not pinned"]),
    ({f"{WORKER}.image": "registry:5000/train"}, ["Job/train: image registry:5000/train is not pinned"]),
    ({f"{WORKER}.resources.limits.memory": GONE}, ["Job/train: no limits.memory"]),
    (
        {"NetworkPolicy/default-deny spec.podSelector": {}},
        ["NetworkPolicy: denies traffic to pods of others"],
    ),
    (
        {"NetworkPolicy/default-deny spec.policyTypes": ["Ingress"]},
        ["Job/train: no policy denies its traffic", "StatefulSet/valkey: no policy denies its traffic"],
    ),
    (
        {"NetworkPolicy/train-to-valkey spec.egress.0.to.0.podSelector": {"matchLabels": {"app": "valkey"}}},
        [
            "Job/train: may not reach StatefulSet/valkey",
            "NetworkPolicy/train-to-valkey: egress.0.to.0.podSelector finds no pod",
        ],
    ),
    ({"Service/valkey spec.selector": {"app": "valkey"}}, ["Service/valkey: selector finds no pod"]),
    (
        {f"{POD}.topologySpreadConstraints.0.labelSelector": {"matchLabels": {"app": "train"}}},
        ["Job/train: template.spec.topologySpreadConstraints.0.labelSelector finds no pod"],
    ),
    (
        {"PodDisruptionBudget/valkey spec.selector.matchLabels": OF_WORKERS},
        ["PodDisruptionBudget/valkey: holds up evictions of Job/train"],
    ),
    (
        {"StatefulSet/valkey spec.selector.matchLabels": OF_WORKERS},
        ["StatefulSet/valkey: selects pods of others"],
    ),
    (
        {f"{WORKER}.volumeMounts.1.name": "temp"},
        ["Job/train: no volume temp", "Job/train: nobody mounts tmp", f"Job/train: HOME is /tmp, {NOWHERE}"],
    ),
    ({"Service/valkey spec.ports.0.targetPort": "redis"}, ["Service/valkey: no port redis"]),
    (
        {"NetworkPolicy/valkey-from-train spec.ingress.0.ports.0.port": "redis"},
        [
            "StatefulSet/valkey: does not let Job/train in",
            "NetworkPolicy/valkey-from-train: no port redis",
        ],
    ),
    (
        {"NetworkPolicy/train-to-valkey spec.egress.0.ports.0.port": 6380},
        ["Job/train: may not reach StatefulSet/valkey"],
    ),
    (
        {
            f"{DNS}.to": [
                {"podSelector": {"matchLabels": {"k8s-app": "dns"}}, "namespaceSelector": {"matchLabels": KUBE}}
            ]
        },
        NO_NAMES,
    ),
    ({f"{DNS}.to": [{"ipBlock": {"cidr": "169.254.20.10/32"}}]}, NO_NAMES),
    ({f"{DNS}.ports": []}, EVERY_PORT),
    ({f"{DNS}.ports": GONE}, EVERY_PORT),
    ({f"{DNS}.ports.0.endPort": 65535}, ["Job/train: may not reach UDP port 53", *EVERY_PORT]),
    ({f"{INTERNET}.to.0.ipBlock.cidr": "0.0.0.0/1"}, NO_MODELS),
    ({f"{INTERNET}.to.1": GONE}, NO_MODELS),
    ({f"{INTERNET}.to.0.ipBlock.except.3": "172.0.0.0/8"}, NO_MODELS),
    ({"NetworkPolicy/train-to-internet spec.policyTypes": ["Ingress"]}, NO_MODELS),
    ({f"{INTERNET}.to.0.ipBlock.except": GONE}, TOO_OPEN),
    ({f"{INTERNET}.to.0.ipBlock.except.2": GONE}, TOO_OPEN),
    ({f"{INTERNET}.to.1.ipBlock.except": GONE}, TOO_OPEN),
    ({f"{INTERNET}.to.1.ipBlock.except.1": GONE}, TOO_OPEN),
    ({f"{INTERNET}.to.0.ipBlock.except.2": "169.254.128.0/17"}, TOO_OPEN),
    ({f"{INTERNET}.to": GONE}, TOO_OPEN),
    (
        {f"{TO_SERVER}.to": GONE},
        [
            f"NetworkPolicy/train-to-valkey: opens port 6379 {TOO_WIDE}",
            "Job/train: may not reach StatefulSet/valkey",
        ],
    ),
    ({f"{TO_SERVER}.to.0.podSelector": {}}, ["NetworkPolicy/train-to-valkey: is for pods of others"]),
    ({f"{INTO_SERVER}.from.0.podSelector": {}}, ["NetworkPolicy/valkey-from-train: is for pods of others"]),
    (
        {f"{INTO_SERVER}.from": GONE},
        [
            "StatefulSet/valkey: does not let Job/train in",
            "NetworkPolicy/valkey-from-train: lets everyone in",
        ],
    ),
    (
        {f"{INTO_SERVER}.from.0.namespaceSelector": {}},
        [
            "StatefulSet/valkey: does not let Job/train in",
            "NetworkPolicy/valkey-from-train: is for pods of others",
        ],
    ),
    (
        {f"{INTO_SERVER}.from.0": {"ipBlock": {"cidr": "0.0.0.0/0"}}},
        [
            "StatefulSet/valkey: does not let Job/train in",
            "NetworkPolicy/valkey-from-train: lets addresses in",
        ],
    ),
    ({f"{WORKER}.env.[HOME].value": "/home/train"}, [f"Job/train: HOME is /home/train, {NOWHERE}"]),
    ({f"{WORKER}.env.[HOME]": GONE}, [f"Job/train: HOME is not set, {NOWHERE}"]),
    ({f"{SETTINGS}.BACKUP_ROOT": "/backups"}, [f"Job/train: BACKUP_DIR is /backups/fieldRef, {NOWHERE}"]),
    ({f"{WORKER}.volumeMounts.0.readOnly": True}, [f"Job/train: BACKUP_DIR is /backup/fieldRef, {NOWHERE}"]),
    (
        {f"{POD}.volumes.0.persistentVolumeClaim.readOnly": True},
        [f"Job/train: BACKUP_DIR is /backup/fieldRef, {NOWHERE}"],
    ),
    ({f"{SERVER}.args.1": "/var/lib/valkey"}, [f"StatefulSet/valkey: --dir is /var/lib/valkey, {NOWHERE}"]),
    ({f"{POD}.securityContext.fsGroup": GONE}, [f"Job/train: {NO_GROUP}"]),
    (
        {"StatefulSet/valkey spec.template.spec.securityContext.fsGroup": 999},
        [f"StatefulSet/valkey: {NO_GROUP}"],
    ),
    (
        {"NetworkPolicy/train-to-dns spec.egress.0.ports.0.protocol": "SCTP"},
        ["Job/train: may not reach UDP port 53"],
    ),
    (
        {"NetworkPolicy/train-to-internet spec.egress.0.ports.0.port": 80},
        [
            "Job/train: may not reach TCP port 443",
            "NetworkPolicy/train-to-internet: opens port 80 to addresses that nobody needs",
        ],
    ),
    (
        {f"{WORKER}.ports": [{"name": "metrics", "containerPort": 9464}]},
        [
            "Job/train: its metrics may not be scraped",
            "Job/train: listens on None, and port metrics is {'9464'}",
        ],
    ),
    (
        {"NetworkPolicy/valkey-from-train metadata.namespace": "elsewhere"},
        ["in more than one namespace: , elsewhere"],
    ),
    (
        {f"{SETTINGS}.DISTRIBUTED_BACKUP_METRICS_PORT": "9464"},
        ["Job/train: listens on 9464, and port metrics is None"],
    ),
    (
        {"PersistentVolumeClaim/backup metadata.labels": {}},
        [
            f"PersistentVolumeClaim/backup: no label app.kubernetes.io/{label}"
            for label in ("name", "component", "part-of")
        ],
    ),
    (
        {"PodDisruptionBudget/valkey metadata.name": "Valkey_1"},
        ["PodDisruptionBudget/Valkey_1: the name is no DNS label"],
    ),
]


@pytest.mark.parametrize(("changes", "wanted"), MISTAKES, ids=[" and ".join(changes) for changes, _ in MISTAKES])
def test_a_planted_mistake_is_found(changes: dict[str, Any], wanted: list[str]) -> None:
    """That one, and nothing besides."""
    assert problems(broken(render("gke-spot"), changes)) == wanted


def test_a_planted_mistake_of_monitoring_is_found() -> None:
    """Prometheus must get in, to a port that is that and nothing more."""
    policy = "NetworkPolicy/train-from-prometheus spec"
    closed = ["Job/train: its metrics may not be scraped"]
    mistakes: list[dict[str, Any]] = [
        {f"{policy}.policyTypes": ["Egress"]},
        {f"{policy}.podSelector.matchLabels": {"app": "train"}},
    ]
    for changes in mistakes:
        assert closed[0] in problems(broken(render("monitoring"), changes))
    assert problems(broken(render("monitoring"), {f"{WORKER}.ports.0.hostPort": 9464})) == [
        "Job/train: port metrics is more than a name and a number"
    ]


def test_a_file_lock_over_a_bucket_is_found() -> None:
    """The package would refuse it at the start of each pod."""
    changes = {f"{SETTINGS}.BACKUP_ROOT": "s3://bucket"}
    assert problems(broken(render("single-node"), changes)) == [
        "Job/train: a file lock can't elect over a bucket: name a server",
        "Job/train: waits for a volume, and its backups are elsewhere",
    ]


IDENTITY = "NetworkPolicy/train-to-identity spec.egress"


@pytest.mark.parametrize(
    ("key", "new", "wanted"),
    [
        (IDENTITY, [], ["Job/train: may not reach TCP port 988", "Job/train: may not reach TCP port 80"]),
        (f"{IDENTITY}.1", GONE, ["Job/train: may not reach TCP port 988"]),
        (f"{IDENTITY}.0.to.1", GONE, ["Job/train: may not reach TCP port 80"]),
        (f"{IDENTITY}.0.to", [], [f"NetworkPolicy/train-to-identity: opens port 80 {TOO_WIDE}"]),
        (
            f"{IDENTITY}.0.to.0.ipBlock.cidr",
            "169.254.0.0/16",
            [f"NetworkPolicy/train-to-identity: opens port 80 {TOO_WIDE}"],
        ),
        (f"{SETTINGS}.BACKUP_ROOT", "/backup", [f"Job/train: BACKUP_DIR is /backup/fieldRef, {NOWHERE}"]),
    ],
)
def test_a_planted_mistake_of_a_bucket_is_found(key: str, new: Any, wanted: list[str]) -> None:
    """Without a volume, what gives a pod its rights must be reached, and nothing else at such addresses."""
    assert problems(broken(render("bucket"), {key: new})) == wanted


def test_a_server_that_nobody_uses_is_found() -> None:
    """Where a file lock elects."""
    [account] = [item for item in render("gke-spot") if name_of(item) == "ServiceAccount/valkey"]
    assert problems([*render("single-node"), account]) == ["ServiceAccount/valkey: is for a server that nobody uses"]


@pytest.mark.parametrize(
    ("key", "new", "wanted"),
    [
        ("JobSet/train spec.replicatedJobs.0.template.spec.completionsMode", "Indexed", "completionsMode"),
        ("JobSet/train spec.replicas", 2, "replicas"),
        ("LocalQueue/train spec", {"queue": "default"}, "clusterQueue"),
        ("LocalQueue/train apiVersion", "kueue.x-k8s.io/v1", "LocalQueue"),
        ("NetworkPolicy/train-to-dns spec.egress.0.ports.0.port", [53], "53"),
        ("PodMonitor/train spec.podMetricsEndpoints.0.scrapeInterval", "10s", "scrapeInterval"),
        ("ServiceAccount/train automountServiceAccountToken", "false", "boolean"),
        ("StatefulSet/valkey spec.replicas", "1", "integer"),
    ],
)
def test_what_kubernetes_would_refuse_is_found(key: str, new: Any, wanted: str) -> None:
    """By the schemas: fields that do not exist, and values of the wrong type."""
    for version in (OLDEST, NEWEST):
        [problem] = schema_problems(broken(render("all"), {key: new}), version)
        assert problem.startswith(key.split(maxsplit=1)[0])
        assert wanted in problem


def test_what_does_not_build_is_found(tmp_path: Path) -> None:
    """A file that is not there."""
    (tmp_path / "kustomization.yaml").write_text("resources: [job.yaml]")
    with pytest.raises(AssertionError, match=r"job\.yaml"):
        kustomized(tmp_path)
