"""What a kustomization consists of: its pods, whoever makes them, their containers, and the environment of these."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

type Manifest = dict[str, Any]

LABEL = "app.kubernetes.io/"
REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


class Pods(NamedTuple):
    """A template of pods, and what makes them: a Job (perhaps in a JobSet) or a StatefulSet."""

    where: str
    labels: dict[str, str]
    spec: dict[str, Any]
    claims: set[str]

    @property
    def is_worker(self) -> bool:
        return self.labels.get(LABEL + "component") == "worker"


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest | None:
    return next((item for item in manifests if name_of(item) == f"{kind}/{name}"), None)


def jobs(manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The specs of Jobs, those that a JobSet makes included."""
    for item in manifests:
        if item["kind"] == "Job":
            yield name_of(item), item["spec"]
        elif item["kind"] == "JobSet":
            for job in item["spec"]["replicatedJobs"]:
                yield f"{name_of(item)}/{job['name']}", job["template"]["spec"]


def pods(manifests: list[Manifest]) -> list[Pods]:
    specs = [(where, spec, set[str]()) for where, spec in jobs(manifests)]
    for item in manifests:
        if item["kind"] == "StatefulSet":
            claims = {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
            specs.append((name_of(item), item["spec"], claims))
    return [
        Pods(where, spec["template"]["metadata"]["labels"], spec["template"]["spec"], claims)
        for where, spec, claims in specs
    ]


def containers(manifests: list[Manifest]) -> Iterator[tuple[Pods, dict[str, Any]]]:
    for each in pods(manifests):
        for container in each.spec.get("initContainers", []) + each.spec["containers"]:
            yield each, container


def environment(manifests: list[Manifest], container: Mapping[str, Any]) -> dict[str, str]:
    """The literal values that a container gets, from ConfigMaps too; of Secrets and of its pod, the kind of source."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            config = find(manifests, "ConfigMap", source["configMapRef"]["name"]) or {}
            found |= config.get("data", {})
    for entry in container.get("env", []):
        source = entry.get("valueFrom", {})
        key = source.get("configMapKeyRef", {"name": ""})
        config = find(manifests, "ConfigMap", key["name"]) or {"data": {}}
        value = entry.get("value") or config["data"].get(key.get("key"))
        found[entry["name"]] = value or next(iter(source), "")
    return found


def expanded(manifests: list[Manifest], container: Mapping[str, Any], name: str) -> str:
    """The value of a variable with what it refers to in its place; empty if it is not set."""
    values = environment(manifests, container)

    def replaced(text: str) -> str:
        return REFERENCE.sub(lambda found: replaced(values.get(found[1], "")), text)

    return replaced(values.get(name, ""))


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All that is in a manifest, with its path."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from walk(item, f"{path}.{key}")
