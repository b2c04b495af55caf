"""Find the pods in the objects of one kustomization, and the labels that select them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

type Manifest = dict[str, Any]

LABEL = "app.kubernetes.io/"


class Pods(NamedTuple):
    """A template of pods, with the Job, the Job of a JobSet or the StatefulSet that creates them."""

    where: str
    labels: dict[str, str]
    spec: dict[str, Any]
    replicas: int

    @property
    def is_worker(self) -> bool:
        return self.labels[LABEL + "component"] == "worker"

    @property
    def container(self) -> dict[str, Any]:
        """The one container of a pod."""
        [container] = self.spec["containers"]
        return dict(container)


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest | None:
    return next((item for item in manifests if name_of(item) == f"{kind}/{name}"), None)


def jobs(manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the specs of all Jobs, those of a JobSet included."""
    for item in manifests:
        if item["kind"] == "Job":
            yield name_of(item), item["spec"]
        elif item["kind"] == "JobSet":
            for job in item["spec"]["replicatedJobs"]:
                yield f"{name_of(item)}/{job['name']}", job["template"]["spec"]


def pods(manifests: list[Manifest]) -> list[Pods]:
    specs = [*jobs(manifests), *((name_of(item), item["spec"]) for item in manifests if item["kind"] == "StatefulSet")]
    return [
        Pods(where, spec["template"]["metadata"]["labels"], spec["template"]["spec"], spec.get("completions", 1))
        for where, spec in specs
    ]


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether a selector of labels matches. It must have no expressions."""
    wanted: Mapping[str, str] = selector.get("matchLabels", {})
    return "matchExpressions" not in selector and wanted.items() <= labels.items()


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value in a manifest with its path."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from walk(item, f"{path}.{key}")
