"""What no schema says of the manifests in deploy/: safety, names, and that one thing finds the other.

Each check takes the objects of one kustomization and tells what is wrong with them, a line each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from tests.deploy.model import LABEL, Manifest, Pods, containers, environment, expanded, name_of, pods, walk

type Problems = Iterator[str]

# The volumes that the restricted standard allows.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
POD_SECURITY = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
SECRET = re.compile(r"password|passwd|secret|token|api_?key|credential|requirepass", re.IGNORECASE)
# user:password@ in a URL, unless the password is a reference.
CREDENTIALS = re.compile(r"://[^/@\s]*:(?!\$\()[^/@\s]+@")
ONLY_A_REFERENCE = re.compile(r"\$\([A-Za-z_][A-Za-z0-9_]*\)")
# host[:port]/path:tag or @digest; a tag that tells a version has a digit in it.
PINNED = re.compile(r"[^@\s]+(:(?=[\w.-]*\d)[\w][\w.-]*|@sha256:[0-9a-f]{64})")
DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


# -------------------------------------------------------------------- safety


def pods_are_restricted(manifests: list[Manifest]) -> Problems:
    """What the restricted Pod Security Standard asks for; and no token, no writing to the image, a user's number."""
    for each in pods(manifests):
        context = each.spec.get("securityContext", {})
        for field, value in POD_SECURITY.items():
            if context.get(field) != value:
                yield f"{each.where}: securityContext.{field} must be {value}"
        if not context.get("runAsUser"):
            yield f"{each.where}: securityContext.runAsUser must be the number of a user who is not root"
        if not context.get("fsGroup") or context["fsGroup"] != context.get("runAsGroup"):
            yield f"{each.where}: securityContext.fsGroup must be runAsGroup: else volumes are root's"
        if each.spec.get("automountServiceAccountToken") is not False:
            yield f"{each.where}: automountServiceAccountToken must be false"
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if each.spec.get(field):
                yield f"{each.where}: {field} is not restricted"
        for volume in each.spec.get("volumes", []):
            for kind in volume.keys() - {"name"} - VOLUMES:
                yield f"{each.where}: volume {volume['name']} is a {kind}"
    for each, container in containers(manifests):
        context = container.get("securityContext", {})
        for field, value in CONTAINER_SECURITY.items():
            if context.get(field) != value:
                yield f"{each.where}: securityContext.{field} of {container['name']} must be {value}"
        # Any other would override the pod's.
        for field in sorted(context.keys() - CONTAINER_SECURITY):
            yield f"{each.where}: {container['name']} must have no securityContext.{field}"


def no_secret_is_written_out(manifests: list[Manifest]) -> Problems:
    """Secrets are in Secrets: not in ConfigMaps, the environment, or arguments."""
    for item in manifests:
        for name, value in item.get("data", {}).items() if item["kind"] == "ConfigMap" else ():
            if (SECRET.search(name) and value) or CREDENTIALS.search(value):
                yield f"{name_of(item)}: {name} is a secret"
    for each, container in containers(manifests):
        for entry in container.get("env", []):
            value = entry.get("value", "")
            named = SECRET.search(entry["name"]) and value and not ONLY_A_REFERENCE.fullmatch(value)
            if named or CREDENTIALS.search(value):
                yield f"{each.where}: {entry['name']} is written out"
        words = container.get("command", []) + container.get("args", [])
        for option, value in pairwise(words):
            if SECRET.search(option) and not ONLY_A_REFERENCE.fullmatch(value):
                yield f"{each.where}: the value of {option} is written out"


def images_are_pinned(manifests: list[Manifest]) -> Problems:
    """By a version or a digest: `latest` is another image tomorrow."""
    for each, container in containers(manifests):
        if not PINNED.fullmatch(container["image"]):
            yield f"{each.where}: image {container['image']} is not pinned"


def resources_are_set(manifests: list[Manifest]) -> Problems:
    """Requests, for the scheduler; a limit of memory, so that a leak ends this pod and not its neighbours."""
    for each, container in containers(manifests):
        resources = container.get("resources", {})
        for kind, name in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
            if name not in resources.get(kind, {}):
                yield f"{each.where}: no {kind}.{name}"


# --------------------------------------------- that one thing finds the other


def selects(selector: Mapping[str, Any], each: Pods) -> bool:
    """Whether a selector of labels is for these pods."""
    for entry in selector.get("matchExpressions", []):
        if entry["operator"] != "In" or each.labels.get(entry["key"]) not in entry["values"]:
            return False
    wanted: Mapping[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= each.labels.items()


def selectors_find_pods(manifests: list[Manifest]) -> Problems:
    """Each selector that is about pods of this namespace finds some; that of the budget, none of the workers."""
    found = pods(manifests)
    for item in manifests:
        for path, selector in _selectors(item):
            if not any(selects(selector, each) for each in found):
                yield f"{name_of(item)}: {path} finds no pod"
        if item["kind"] == "PodDisruptionBudget":
            for each in found:
                if each.is_worker and selects(item["spec"]["selector"], each):
                    yield f"{name_of(item)}: holds up evictions of {each.where}"
    for each in found:
        if each.where.startswith("StatefulSet") and not selects(_own_selector(manifests, each), each):
            yield f"{each.where}: selects pods of others"


def _own_selector(manifests: list[Manifest], each: Pods) -> Mapping[str, Any]:
    [selector] = [item["spec"]["selector"] for item in manifests if name_of(item) == each.where]
    return dict(selector)


def _selectors(item: Manifest) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if item["kind"] == "Service":
        yield "selector", {"matchLabels": item["spec"]["selector"]}
        return
    for path, value in walk(item.get("spec", {})):
        # Where a namespace is selected too, the pods are those of others.
        if isinstance(value, dict) and "namespaceSelector" not in value:
            for field in value.keys() & {"selector", "podSelector", "labelSelector"}:
                yield f"{path}.{field}".lstrip("."), value[field]


def volumes_match(manifests: list[Manifest]) -> Problems:
    """Each mount has its volume, and each volume its mount."""
    for each in pods(manifests):
        there = {volume["name"] for volume in each.spec.get("volumes", [])} | each.claims
        used = {mount["name"] for item in each.spec["containers"] for mount in item.get("volumeMounts", [])}
        for name in sorted(used - there):
            yield f"{each.where}: no volume {name}"
        for name in sorted(there - used):
            yield f"{each.where}: nobody mounts {name}"


def what_is_written_has_a_volume(manifests: list[Manifest]) -> Problems:
    """The home, the backup (a path, or a URL), and the server's directory: the image can't be written to."""
    for each, container in containers(manifests):
        told = dict(pairwise(container.get("args", [])))
        if each.is_worker:
            written = {name: expanded(manifests, container, name) for name in ("HOME", "BACKUP_DIR")}
            if "://" in written["BACKUP_DIR"] and any("persistentVolumeClaim" in item for item in each.spec["volumes"]):
                yield f"{each.where}: waits for a volume, and its backups are elsewhere"
        else:
            written = {"--dir": told.get("--dir", "")}
        for name, path in written.items():
            if "://" not in path and not any(
                path == at or path.startswith(f"{at}/") for at in _writable(each, container)
            ):
                yield f"{each.where}: {name} is {path or 'not set'}, which no volume lets it write to"


def _writable(each: Pods, container: Mapping[str, Any]) -> list[str]:
    """Where volumes are mounted that may be written to."""
    kinds = {"emptyDir", "ephemeral", "persistentVolumeClaim"}
    volumes = {
        item["name"] for item in each.spec.get("volumes", []) for kind in kinds & item.keys() if _open(item[kind])
    }
    mounts = [mount for mount in container.get("volumeMounts", []) if _open(mount)]
    return [mount["mountPath"].rstrip("/") for mount in mounts if mount["name"] in volumes | each.claims]


def _open(value: Mapping[str, Any]) -> bool:
    return not value.get("readOnly")


def ports_have_names(manifests: list[Manifest]) -> Problems:
    """A port that is named by a Service, a policy, a probe or a PodMonitor is one of the pods that are meant."""
    there = {port["name"] for _, container in containers(manifests) for port in container.get("ports", [])}
    for item in manifests:
        for path, value in walk(item.get("spec", {})):
            if path.rpartition(".")[2] in {"port", "targetPort"} and isinstance(value, str) and value not in there:
                yield f"{name_of(item)}: no port {value}"


def metrics_are_where_they_are_scraped(manifests: list[Manifest]) -> Problems:
    """The port that the package listens on is the one that is named `metrics`."""
    for each, container in containers(manifests):
        told = environment(manifests, container).get("DISTRIBUTED_BACKUP_METRICS_PORT")
        named = {str(port["containerPort"]) for port in container.get("ports", []) if port["name"] == "metrics"}
        if named != ({told} if told else set()):
            yield f"{each.where}: listens on {told}, and port metrics is {named or None}"


def names_follow_the_conventions(manifests: list[Manifest]) -> Problems:
    """DNS labels as names, and the labels that Kubernetes recommends on everything, pods included."""
    labelled = [(name_of(item), item["metadata"].get("labels", {})) for item in manifests]
    labelled += [(f"{each.where} pods", each.labels) for each in pods(manifests)]
    for where, labels in labelled:
        for label in ("name", "component", "part-of"):
            if LABEL + label not in labels:
                yield f"{where}: no label {LABEL}{label}"
    spaces = {item["metadata"].get("namespace", "") for item in manifests if item["kind"] != "StorageClass"}
    if len(spaces) > 1:
        yield f"in more than one namespace: {', '.join(sorted(spaces))}"
    for item in manifests:
        if not DNS_NAME.fullmatch(item["metadata"]["name"]):
            yield f"{name_of(item)}: the name is no DNS label"


POD_CHECKS = (
    pods_are_restricted,
    no_secret_is_written_out,
    images_are_pinned,
    resources_are_set,
    selectors_find_pods,
    volumes_match,
    what_is_written_has_a_volume,
    ports_have_names,
    metrics_are_where_they_are_scraped,
    names_follow_the_conventions,
)
