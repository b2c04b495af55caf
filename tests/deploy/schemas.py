"""Whether objects are of the form that a version of Kubernetes accepts, unknown fields refused."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]

from tests.deploy.model import Manifest, name_of

# All fields of the Job are there, and on by default, from the oldest on.
OLDEST, NEWEST = "1.29", "1.37"

# It would read megabytes anew for each object.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


def _closed(**fields: Any) -> dict[str, Any]:
    """An object that has these fields and no other."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


# Of what Kubernetes does not know itself, those fields that we use, as their projects document them.
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
    "jobset.x-k8s.io/v1alpha2/JobSet": {
        "type": "object",
        "properties": {
            "suspend": {"type": "boolean"},
            "replicatedJobs": {
                "type": "array",
                "items": _closed(
                    name={"type": "string"},
                    replicas={"type": "integer"},
                    template=_closed(spec={"type": "object"}),
                ),
            },
        },
        "required": ["replicatedJobs"],
        "additionalProperties": False,
    },
}


def schema_problems(manifests: list[Manifest], version: str) -> list[str]:
    """What `version` of Kubernetes, or an extension of it, would refuse."""
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
