"""Check what this package asks of its manifests, and no schema knows.

`problems` takes the objects of one kustomization and returns a line for each breach. The rules are those that
deploy/README.md states: exit code, grace period, run id, environment, security, and references between objects.
`network` has the rules of the network policies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from distributed_backup.errors import ConfigError
from distributed_backup.training.environment import EnvironmentSettings
from tests.deploy.facts import PINNED, callback_exit_code, job_variables, package_variables
from tests.deploy.model import Manifest, Pods, find, jobs, name_of, pods, selects, walk
from tests.deploy.network import network_problems
from tests.support.job_manifest import CONTAINER_FIELDS, POD_FIELDS, ManifestError, PodFields, Rendering

type Problems = Iterator[str]

# Fields that a controller changes. An unchanged apply would change them back, and an applied `suspend` stops the run.
CHANGED_BY_OTHERS = {"Job": {"suspend"}, "JobSet": {"suspend"}, "PersistentVolumeClaim": {"volumeName"}}
# Every field of a Job, except `template`, `completions` and `parallelism`. Others would end it too early:
# `backoffLimit` counts the failures of all indexes, and `activeDeadlineSeconds` the time without a node.
JOB = {
    "completionMode": "Indexed",
    # Otherwise a committed final state waits for the workers without a node.
    "successPolicy": {"rules": [{"succeededCount": 1}]},
    "podReplacementPolicy": "Failed",
    "backoffLimitPerIndex": 10,
    "podFailurePolicy": {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {
                "action": "Ignore",
                "onExitCodes": {"containerName": "train", "operator": "In", "values": [callback_exit_code()]},
            },
        ]
    },
}
WORKER_POD = {"restartPolicy": "Never", "serviceAccountName": "train", "shareProcessNamespace": True}
WORKER = {"command": ["python", "train.py"], "workingDir": "/app"}
# The password does not stand in the command line as text.
SERVER_ARGS = ["--requirepass", "$(VALKEY_PASSWORD)"]
# The restricted Pod Security Standard. `fsGroup` is the group of the user, otherwise root owns the volumes.
ANY_POD = {"automountServiceAccountToken": False, "enableServiceLinks": False}
POD_SECURITY = {
    "runAsNonRoot": True,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
WORKER_USER = {"runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
# The user of Valkey's image.
SERVER_USER = {"runAsUser": 999, "runAsGroup": 1000, "fsGroup": 1000}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
VOLUMES = {"name", "emptyDir", "persistentVolumeClaim"}

# A run is its Job, or the JobSet that creates the Job again. A worker is its pod.
RUN_ID = {
    "Job": "metadata.labels['batch.kubernetes.io/controller-uid']",
    "JobSet": "metadata.labels['jobset.sigs.k8s.io/jobset-uid']",
}
# Each run has its own: below the root of all runs, or on a server, where keys begin with the run's id.
DIRECTORIES = {"$(BACKUP_ROOT)/$(DISTRIBUTED_BACKUP_RUN_ID)", "$(DISTRIBUTED_BACKUP_COORDINATOR)"}
URL = "redis://:$(VALKEY_PASSWORD)@valkey:6379/0"
# Read by Python, by valkey-cli, or by other variables.
FOREIGN_VARIABLES = {"BACKUP_ROOT", "HOME", "REDISCLI_AUTH", "VALKEY_PASSWORD"}
# Seconds: the kubelet's clock starts before Python sees the signal, and Python's exit takes time too.
RESERVE = 2.0


def problems(manifests: list[Manifest]) -> list[str]:
    """Return every breach of the contract, a line each."""
    found: list[str] = []
    for where, spec in jobs(manifests):
        found += _of_a_job(where, spec)
    for each in pods(manifests):
        found += _of_a_pod(each)
        found += _of_a_worker(each) if each.is_worker else _of_the_server(each)
        found += _of_the_environment(manifests, each)
    for item in manifests:
        for field in item.get("spec", {}).keys() & CHANGED_BY_OTHERS.get(item["kind"], set()):
            found.append(f"{name_of(item)}: a controller changes {field}, and a second apply would undo that")
    return [*found, *_of_references(manifests), *network_problems(manifests)]


def _differences(where: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Problems:
    for field in sorted(found.keys() | wanted.keys()):
        if found.get(field) != wanted.get(field):
            yield f"{where}: {field} is {found.get(field)}, must be {wanted.get(field)}"


def _part(value: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value[field] for field in fields if field in value}


def _of_a_job(where: str, spec: Mapping[str, Any]) -> Problems:
    free = {"completions", "parallelism", "template", *CHANGED_BY_OTHERS["Job"]}
    yield from _differences(where, {field: spec[field] for field in spec.keys() - free}, JOB)
    if spec["completions"] != spec["parallelism"]:
        yield f"{where}: parallelism must be completions, otherwise some workers never start"


def _of_a_pod(each: Pods) -> Problems:
    user = WORKER_USER if each.is_worker else SERVER_USER
    yield from _differences(each.where, _part(each.spec, ANY_POD), ANY_POD)
    yield from _differences(f"{each.where} pod", each.spec["securityContext"], POD_SECURITY | user)
    yield from _differences(f"{each.where} container", each.container["securityContext"], CONTAINER_SECURITY)
    for entry in each.container.get("env", []):
        if entry["name"].endswith("PASSWORD") and "secretKeyRef" not in entry.get("valueFrom", {}):
            yield f"{each.where}: {entry['name']} must come from a Secret"
    for field in sorted(each.spec.keys() & {"hostIPC", "hostNetwork", "hostPID"}):
        yield f"{each.where}: a pod must have no {field}"
    for volume in each.spec.get("volumes", []):
        for kind in volume.keys() - VOLUMES:
            yield f"{each.where}: volume {volume['name']} is a {kind}"
    if not PINNED.fullmatch(each.container["image"]):
        yield f"{each.where}: image {each.container['image']} is not pinned"
    for kind, name in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
        if name not in each.container["resources"].get(kind, {}):
            yield f"{each.where}: no {kind}.{name}"


def _of_a_worker(each: Pods) -> Problems:
    yield from _differences(each.where, _part(each.spec, WORKER_POD), WORKER_POD)
    yield from _differences(each.where, _part(each.container, WORKER), WORKER)
    # A probe may kill a long save, and a preStop hook uses up the grace period.
    for field in sorted(each.spec.keys() - POD_FIELDS | each.container.keys() - CONTAINER_FIELDS):
        yield f"{each.where}: a worker must have no {field}"
    entries = {entry["name"]: entry for entry in each.container["env"]}
    wanted = {
        "DISTRIBUTED_BACKUP_RUN_ID": RUN_ID[each.where.partition("/")[0]],
        "DISTRIBUTED_BACKUP_WORKER_ID": "metadata.name",
    }
    for name, path in wanted.items():
        if entries.get(name, {}).get("valueFrom") != {"fieldRef": {"fieldPath": path}}:
            yield f"{each.where}: {name} must be {path}"
    if entries["BACKUP_DIR"]["value"] not in DIRECTORIES:
        yield f"{each.where}: BACKUP_DIR must be one of {', '.join(sorted(DIRECTORIES))}"
    # Without this variable, that of the ConfigMap counts.
    if entries.get("DISTRIBUTED_BACKUP_COORDINATOR", {}).get("value", URL) != URL:
        yield f"{each.where}: the coordinator must be {URL}"


def _of_the_server(each: Pods) -> Problems:
    if each.container["args"][-2:] != SERVER_ARGS:
        yield f"{each.where}: args must end in {SERVER_ARGS}"


def _of_the_environment(manifests: list[Manifest], each: Pods) -> Problems:
    fields = PodFields(
        name="pod", labels={"batch.kubernetes.io/controller-uid": "1", "jobset.sigs.k8s.io/jobset-uid": "1"}
    )
    try:
        started = Rendering(manifests).container(each.spec, fields, str)
        if each.is_worker:
            EnvironmentSettings.read(started.environment)
    except (ConfigError, ManifestError) as error:
        yield f"{each.where}: {error}"
        return
    values = started.environment
    for name in sorted(
        {name for text in (*started.command, *values.values()) for name in re.findall(r"\$\((\w+)\)", text)}
    ):
        yield f"{each.where}: a value refers to {name}, which must stand above it in env"
    for name in sorted(values.keys() - package_variables() - job_variables() - FOREIGN_VARIABLES):
        yield f"{each.where}: neither the package nor train.py reads {name}"
    if each.is_worker:
        for name in sorted(job_variables() - values.keys()):
            yield f"{each.where}: train.py reads {name}, which is not set"
        yield from _of_the_grace_period(each, values)
        yield from _of_the_coordinator(each, values["DISTRIBUTED_BACKUP_COORDINATOR"])
        yield from _of_the_directories(each, values)


def _of_the_grace_period(each: Pods, values: Mapping[str, str]) -> Problems:
    limit = each.spec["terminationGracePeriodSeconds"]
    grace = float(values.get("DISTRIBUTED_BACKUP_GRACE_PERIOD", limit))
    if grace > limit - RESERVE:
        yield f"{each.where}: a grace period of {grace:g} s is less than {RESERVE:g} s below {limit} s"


def _of_the_coordinator(each: Pods, coordinator: str) -> Problems:
    if each.replicas > 1 and coordinator == "memory:":
        yield f"{each.where}: memory: elects each of several workers"
    if each.replicas > 1 and coordinator == "file:" and "podAffinity" not in each.spec.get("affinity", {}):
        yield f"{each.where}: a file lock elects one leader on each node"


def _of_the_directories(each: Pods, values: Mapping[str, str]) -> Problems:
    """The image is read-only, so a path that is written to needs a volume."""
    mounts = [mount["mountPath"] for mount in each.container["volumeMounts"] if not mount.get("readOnly")]
    directories = {name: values.get(name, "") for name in ("HOME", "BACKUP_DIR")}
    if "://" in directories["BACKUP_DIR"]:
        if any("persistentVolumeClaim" in volume for volume in each.spec["volumes"]):
            yield f"{each.where}: the backups are in {directories['BACKUP_DIR']}, and a volume is claimed"
        if values["DISTRIBUTED_BACKUP_COORDINATOR"] == "file:":
            yield f"{each.where}: a file lock can't elect over a bucket"
        del directories["BACKUP_DIR"]
    for name, path in directories.items():
        if not any(f"{path}/".startswith(f"{mount}/") for mount in mounts):
            yield f"{each.where}: {name} is {path!r}, which is on no volume that it may write to"


def _of_references(manifests: list[Manifest]) -> Problems:
    """Volumes, selectors, ports, claims and accounts: no schema knows whether a name leads anywhere."""
    found = pods(manifests)
    for each in found:
        volumes = {volume["name"] for volume in each.spec.get("volumes", [])}
        for name in sorted({mount["name"] for mount in each.container["volumeMounts"]} - volumes):
            yield f"{each.where}: no volume {name}"
    named = [("ServiceAccount", each.where, each.spec["serviceAccountName"]) for each in found]
    for each in found:
        for volume in each.spec.get("volumes", []):
            if "persistentVolumeClaim" in volume:
                named.append(("PersistentVolumeClaim", each.where, volume["persistentVolumeClaim"]["claimName"]))
    yield from (f"{where}: no {kind} {name}" for kind, where, name in named if find(manifests, kind, name) is None)
    ports = {port["name"] for each in found for port in each.container.get("ports", [])}
    for item in manifests:
        for path, value in walk(item.get("spec", {})):
            field = path.rpartition(".")[2]
            if field in {"port", "targetPort"} and isinstance(value, str) and value not in ports:
                yield f"{name_of(item)}: no port {value}"
            # A selector beside a namespaceSelector is for pods of other namespaces.
            for selector in _selectors(item["kind"], field, value):
                if not any(selects(selector, each.labels) for each in found):
                    yield f"{name_of(item)}: the selector {selector} matches no pod"


def _selectors(kind: str, field: str, value: Any) -> Iterator[Mapping[str, Any]]:
    if kind == "Service" and field == "selector":
        yield {"matchLabels": value}
    elif isinstance(value, dict) and "namespaceSelector" not in value and kind != "Service":
        yield from (value[name] for name in value.keys() & {"selector", "podSelector", "labelSelector"})
