"""Validate objects against the schemas of a version of Kubernetes, which refuse unknown fields."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]

from tests.deploy.model import Manifest, name_of

# From the oldest on, all fields of the Job are on by default, and `successPolicy` is stable.
OLDEST, NEWEST = "1.33", kubernetes_validate.latest_version()

# Without the cache, it reads megabytes for each object.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


def _closed(**fields: Any) -> dict[str, Any]:
    """Return the schema of an object that has exactly these fields."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


# Kubernetes has no schemas of these kinds. Their projects document the fields that we use.
_LABELS = {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1}
_EXTENSIONS = {
    "kueue.x-k8s.io/v1beta2/LocalQueue": _closed(clusterQueue={"type": "string"}),
    "monitoring.coreos.com/v1/PodMonitor": _closed(
        selector=_closed(matchLabels=_LABELS),
        podMetricsEndpoints={
            "type": "array",
            "items": _closed(port={"type": "string"}, interval={"type": "string", "pattern": "^[0-9]+s$"}),
        },
    ),
    "jobset.x-k8s.io/v1alpha2/JobSet": _closed(
        replicatedJobs={
            "type": "array",
            "items": _closed(
                name={"type": "string"}, replicas={"type": "integer"}, template=_closed(spec={"type": "object"})
            ),
        }
    ),
}


def schema_problems(manifests: list[Manifest], version: str) -> list[str]:
    """Return the reasons for which `version` of Kubernetes, or an extension of it, would refuse objects."""
    return [f"{name_of(item)}: {problem}" for item in manifests for problem in _problems(item, version)]


def _problems(item: Manifest, version: str) -> Iterator[str]:
    extension = _EXTENSIONS.get(f"{item['apiVersion']}/{item['kind']}")
    try:
        if extension is None:
            kubernetes_validate.validate(item, version, strict=True)
            return
        jsonschema.validate(item["spec"], extension)
    except (jsonschema.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        yield error.message
        return
    for job in item["spec"].get("replicatedJobs", []):
        child = {"apiVersion": "batch/v1", "kind": "Job", "metadata": item["metadata"], **job["template"]}
        yield from _problems(child, version)
