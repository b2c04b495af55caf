"""What no schema says of the manifests in deploy/: what the Job controller, this package and the server ask for.

Each check takes the objects of one kustomization and tells what is wrong with them, a line each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from distributed_backup.errors import ConfigError
from distributed_backup.training.settings import EnvironmentSettings
from tests.deploy.facts import (
    DEPLOY,
    callback_exit_code,
    instructions,
    is_command,
    job_variables,
    package_variables,
)
from tests.deploy.model import (
    LABEL,
    REFERENCE,
    Manifest,
    containers,
    environment,
    expanded,
    find,
    jobs,
    name_of,
    pods,
    walk,
)
from tests.support.job_manifest import CONTAINER_FIELDS, POD_FIELDS

type Problems = Iterator[str]

# Read by Python and valkey-cli; and BACKUP_ROOT, which others refer to, unless an overlay has them do without.
FOREIGN_VARIABLES = {"BACKUP_ROOT", "HOME", "REDISCLI_AUTH"}
# No others: backoffLimit counts the failures of all indexes together, maxFailedIndexes gives up on the rest,
# activeDeadlineSeconds counts the time without a node, and ttlSecondsAfterFinished takes away the logs.
JOB_FIELDS = {
    "backoffLimitPerIndex",
    "completionMode",
    "completions",
    "parallelism",
    "podFailurePolicy",
    "podReplacementPolicy",
    "suspend",
    "template",
}
# What a worker's pod and its container may have: what the stand-in for the Job controller reads, less what the server's
# has. No others: a probe may kill a long save, a preStop hook runs within the grace period, activeDeadlineSeconds ends
# the pod, and what is not known here may do worse.
WORKER_FIELDS = CONTAINER_FIELDS - {"args"}
# Who a worker is: its run is its Job, or the JobSet that makes this Job anew; its name is its pod's.
IDENTITY = {
    "DISTRIBUTED_BACKUP_RUN_ID": {
        "Job": "metadata.labels['batch.kubernetes.io/controller-uid']",
        "JobSet": "metadata.labels['jobset.sigs.k8s.io/jobset-uid']",
    },
    "DISTRIBUTED_BACKUP_WORKER_ID": {"Job": "metadata.name", "JobSet": "metadata.name"},
}
# Of each run its own: below the root of them all, or on a server, by the run's id.
DIRECTORIES = {"$(BACKUP_ROOT)/$(DISTRIBUTED_BACKUP_RUN_ID)", "$(DISTRIBUTED_BACKUP_COORDINATOR)"}
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "kb": 2**10, "mb": 2**20, "gb": 2**30}


# --------------------------------------------------------------------- the Job


def a_job_outlives_preemptions(manifests: list[Manifest]) -> Problems:
    """The fields and the rules that keep preemptions out of the backoff, and one pod per index at a time."""
    wanted = {"completionMode": "Indexed", "podReplacementPolicy": "Failed"}
    for where, spec in jobs(manifests):
        for field in sorted(spec.keys() - JOB_FIELDS):
            yield f"{where}: {field} ends the Job, or the run with it, before its time"
        for field, value in wanted.items():
            if spec.get(field) != value:
                yield f"{where}: {field} must be {value}"
        if spec["template"]["spec"].get("restartPolicy") != "Never":
            yield f"{where}: restartPolicy must be Never"
        if spec.get("backoffLimitPerIndex", 0) < 1:
            yield f"{where}: backoffLimitPerIndex must be at least 1"
        if spec.get("completions") != spec.get("parallelism"):
            yield f"{where}: parallelism must be completions: a worker that waits for its turn waits for ever"
        yield from _rules(where, spec)


def _rules(where: str, spec: Mapping[str, Any]) -> Problems:
    rules = spec.get("podFailurePolicy", {}).get("rules", [])
    # The first rule that matches decides, so nothing may stand before these two.
    first, second = [*rules[:2], {}, {}][:2]
    if len(rules) > 2:
        yield f"{where}: has {len(rules) - 2} more rules than it needs"
    if first != {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}:
        yield f"{where}: the first rule must ignore DisruptionTarget"
    codes = second.get("onExitCodes", {})
    if second.get("action") != "Ignore" or codes.get("operator") != "In":
        yield f"{where}: the second rule must ignore an exit code"
        return
    if codes.get("values") != [callback_exit_code()]:
        yield f"{where}: ignores exit codes {codes.get('values')}, BackupAndRestore leaves with {callback_exit_code()}"
    if codes.get("containerName") not in {item["name"] for item in spec["template"]["spec"]["containers"]}:
        yield f"{where}: the rule's containerName {codes.get('containerName')} is no container"


def what_is_suspended_has_a_queue(manifests: list[Manifest]) -> Problems:
    """Kueue resumes what it admits; else nobody does."""
    for item in manifests:
        if item.get("spec", {}).get("suspend") and "kueue.x-k8s.io/queue-name" not in item["metadata"]["labels"]:
            yield f"{name_of(item)}: is suspended, and in no queue"


def a_worker_has_nothing_that_is_not_known(manifests: list[Manifest]) -> Problems:
    """Fields that end pods, or change how they are told of their end; and Python that is not PID 1."""
    for each in (each for each in pods(manifests) if each.is_worker):
        for field in sorted(each.spec.keys() - POD_FIELDS):
            yield f"{each.where}: a worker's pod must have no {field}"
        if each.spec.get("shareProcessNamespace") is not True:
            yield f"{each.where}: shareProcessNamespace must be True: as PID 1, Python is deaf while it imports"
        for container in each.spec["containers"]:
            for field in sorted(container.keys() - WORKER_FIELDS):
                yield f"{each.where}: a worker must have no {field}"
            for port in container.get("ports", []):
                if set(port) != {"name", "containerPort"}:
                    yield f"{each.where}: port {port['name']} is more than a name and a number"


def a_run_is_its_job(manifests: list[Manifest]) -> Problems:
    """The same for all its pods, another for the next Job, and a directory of its own."""
    for each, container in containers(manifests):
        if each.is_worker:
            entries = {entry["name"]: entry for entry in container.get("env", [])}
            for name, paths in IDENTITY.items():
                wanted = paths[each.where.partition("/")[0]]
                if entries.get(name, {}).get("valueFrom") != {"fieldRef": {"fieldPath": wanted}}:
                    yield f"{each.where}: {name} must be {wanted}"
            if entries.get("BACKUP_DIR", {}).get("value") not in DIRECTORIES:
                yield f"{each.where}: BACKUP_DIR must be one of {', '.join(sorted(DIRECTORIES))}"


def the_grace_period_has_a_reserve(manifests: list[Manifest]) -> Problems:
    """Python hears of the signal later than the kubelet's clock starts, and its exit takes a moment too."""
    for each, container in containers(manifests):
        if each.is_worker:
            limit = each.spec.get("terminationGracePeriodSeconds", 30)
            told = environment(manifests, container).get("DISTRIBUTED_BACKUP_GRACE_PERIOD", "30")
            if not float(told) <= limit - 2:
                yield f"{each.where}: a grace period of {told} leaves no reserve below {limit} s"


# ------------------------------------------------------------ what they start


def commands_exist(manifests: list[Manifest]) -> Problems:
    """A script of ours that is in the image, a command of the CLI, or a program of the server's image."""
    image = instructions((DEPLOY / "Dockerfile").read_text())
    workdir = [text for name, text in image if name == "WORKDIR"][-1]
    copied = {word for name, text in image if name == "COPY" for word in text.split()}
    for each, container in containers(manifests):
        for command in _commands(container):
            match command:
                case ["python", script] if container.get("workingDir") != workdir:
                    yield f"{each.where}: {script} is in {workdir}, not in {container.get('workingDir')}"
                case ["python", script] if f"deploy/{script}" not in copied:
                    yield f"{each.where}: {script} is not in the image"
                case ["distributed-backup", *words] if not is_command(words):
                    yield f"{each.where}: there is no command {' '.join(command)}"
                case ["python" | "distributed-backup" | "valkey-server" | "valkey-cli", *_]:
                    pass
                case _:
                    yield f"{each.where}: {' '.join(command)} is neither Python's nor the server's"


def _commands(container: Mapping[str, Any]) -> Iterator[list[str]]:
    yield container.get("command", [])
    for path, value in walk(container):
        if path.endswith(".exec.command"):
            yield value


def variables_are_read(manifests: list[Manifest]) -> Problems:
    """A variable that nobody reads is a slip of the pen, and so is a value that the package refuses."""
    for each, container in containers(manifests):
        values = environment(manifests, container)
        referred = {name for value in _texts(container) for name in REFERENCE.findall(value)}
        read = package_variables() | job_variables() | FOREIGN_VARIABLES | referred
        for name in sorted(set(values) - read):
            yield f"{each.where}: nobody reads {name}"
        if each.is_worker:
            for name in sorted(job_variables() - set(values)):
                yield f"{each.where}: train.py reads {name}, which is not set"
            yield from _refused(each.where, values)


def _texts(container: Mapping[str, Any]) -> Iterator[str]:
    return (value for _, value in walk(container) if isinstance(value, str))


def _refused(where: str, values: Mapping[str, str]) -> Problems:
    try:
        EnvironmentSettings.read(values)
    except ConfigError as error:
        yield f"{where}: {error}"


def references_lead_somewhere(manifests: list[Manifest]) -> Problems:
    """$(NAME) only to a variable that stands above it in `env`; Secrets, ConfigMaps, claims and accounts that exist."""
    for each, container in containers(manifests):
        above: set[str] = set()
        for entry in container.get("env", []):
            for name in REFERENCE.findall(entry.get("value", "")):
                if name not in above:
                    yield f"{each.where}: $({name}) does not stand above {entry['name']} in env"
            above.add(entry["name"])
        for word in container.get("command", []) + container.get("args", []):
            for name in set(REFERENCE.findall(word)) - above:
                yield f"{each.where}: $({name}) is not in env"
    for each in pods(manifests):
        for path, value in walk(each.spec):
            yield from _missing(manifests, each.where, path.rpartition(".")[2], value)


def _missing(manifests: list[Manifest], where: str, field: str, value: Any) -> Problems:
    if field in {"configMapRef", "configMapKeyRef", "secretRef", "secretKeyRef"} and not value.get("optional"):
        kind = "ConfigMap" if field.startswith("configMap") else "Secret"
        found = find(manifests, kind, value["name"])
        if found is None or value.get("key", "") not in {"", *found.get("data", {})}:
            yield f"{where}: no {kind} {value['name']} {value.get('key', '')}".rstrip()
    if field == "claimName" and find(manifests, "PersistentVolumeClaim", value) is None:
        yield f"{where}: no PersistentVolumeClaim {value}"
    if field == "serviceAccountName" and find(manifests, "ServiceAccount", value) is None:
        yield f"{where}: no ServiceAccount {value}"


def the_coordinator_is_there(manifests: list[Manifest]) -> Problems:
    """The URL names a Service and its port; without one, no server is left, nor any hole for it in the network."""
    for each, container in containers(manifests):
        if each.is_worker:
            url = environment(manifests, container).get("DISTRIBUTED_BACKUP_COORDINATOR", "file:")
            host, port = (re.findall(r"@([^:/]+):(\d+)", url) or [("", "")])[0]
            service = find(manifests, "Service", host)
            ports = {str(item["port"]) for item in service["spec"]["ports"]} if service else set()
            if url.startswith("redis") and port not in ports:
                yield f"{each.where}: no Service for {host}:{port}"
            if url.startswith("file:") and "://" in expanded(manifests, container, "BACKUP_DIR"):
                yield f"{each.where}: a file lock can't elect over a bucket: name a server"
            for item in manifests:
                if url.startswith("file:") and "valkey" in name_of(item):
                    yield f"{name_of(item)}: is for a server that nobody uses"


# ----------------------------------------------------------------- the server


def the_server_keeps_what_it_is_told(manifests: list[Manifest]) -> Problems:
    """It appends to a file, asks for a password, and refuses writes rather than forget keys or be killed."""
    for each, container in containers(manifests):
        if each.labels.get(LABEL + "component") != "coordinator":
            continue
        words = container.get("args", [])
        told = dict(zip(words[::2], words[1::2], strict=False))
        for option, value in {"--appendonly": "yes", "--maxmemory-policy": "noeviction"}.items():
            if told.get(option) != value:
                yield f"{each.where}: {option} must be {value}"
        if not REFERENCE.fullmatch(told.get("--requirepass", "")):
            yield f"{each.where}: --requirepass must be $(NAME) of a variable from a Secret"
        if not 0 < 1.5 * _bytes(told.get("--maxmemory", "0")) <= _bytes(container["resources"]["limits"]["memory"]):
            yield f"{each.where}: --maxmemory leaves its container no room to rewrite the file"


def there_is_one_server(manifests: list[Manifest]) -> Problems:
    """The replicas of the StatefulSet know nothing of each other: each would have a leader of its own."""
    for item in manifests:
        if item["kind"] == "StatefulSet" and item["spec"].get("replicas", 1) != 1:
            yield f"{name_of(item)}: replicas must be 1"


def _bytes(quantity: str) -> int:
    number = re.match(r"\d+", quantity)
    return int(number[0]) * UNITS.get(quantity[number.end() :], 1) if number else 0


JOB_CHECKS = (
    a_job_outlives_preemptions,
    a_worker_has_nothing_that_is_not_known,
    a_run_is_its_job,
    what_is_suspended_has_a_queue,
    the_grace_period_has_a_reserve,
    commands_exist,
    variables_are_read,
    references_lead_somewhere,
    the_coordinator_is_there,
    the_server_keeps_what_it_is_told,
    there_is_one_server,
)
