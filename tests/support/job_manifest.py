"""Read an Indexed Job as kustomize rendered it: the rules of its controller, and the environment of its containers.

The module follows Kubernetes' documentation of batch/v1 Jobs and of environment variables. It reads only the fields
that the manifests in deploy/ have. It refuses a Job with any other field, so a manifest is never read in part.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

type Action = Literal["Ignore", "Count"]

# Every field of a Job's spec that is read.
_SPEC = {
    "backoffLimitPerIndex",
    "completionMode",
    "completions",
    "parallelism",
    "podFailurePolicy",
    "podReplacementPolicy",
    "successPolicy",
    "template",
}

# Every field of a worker's pod and of its container that is read, or that has no effect on a machine without a cluster.
# Others, such as `activeDeadlineSeconds`, would end pods.
POD_FIELDS = {
    "affinity",
    "automountServiceAccountToken",
    "containers",
    "enableServiceLinks",
    "nodeSelector",
    "restartPolicy",
    "securityContext",
    "serviceAccountName",
    "shareProcessNamespace",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
}
CONTAINER_FIELDS = {
    "command",
    "env",
    "envFrom",
    "image",
    "name",
    "ports",
    "resources",
    "securityContext",
    "terminationMessagePolicy",
    "volumeMounts",
    "workingDir",
}

# "$$" is a dollar sign and "$(NAME)" a reference: see the API reference of EnvVar.
_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


class ManifestError(Exception):
    """The API server would refuse this manifest, or this module does not model one of its fields."""


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise ManifestError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A podFailurePolicy rule that ignores exit codes, or conditions that are true."""

    values: frozenset[int]
    conditions: frozenset[str]

    @classmethod
    def read(cls, rule: Mapping[str, Any], container: str) -> Self:
        codes = rule.get("onExitCodes", {"operator": "In", "values": ()})
        patterns = rule.get("onPodConditions", [])
        _demand(rule["action"] == "Ignore", f"only action: Ignore is modelled, got {rule['action']}")
        _demand(codes["operator"] == "In", f"only operator: In is modelled, got {codes['operator']}")
        _demand(all(item.get("status", "True") == "True" for item in patterns), "only true conditions are modelled")
        _demand(bool(codes["values"]) != bool(patterns), "a rule is on exit codes or on conditions, and not on both")
        _demand(0 not in codes["values"], "exit code 0 is no failure")
        named = codes.get("containerName", container)
        _demand(named == container, f"the rule names the container {named!r}, the pod has {container!r}")
        return cls(values=frozenset(codes["values"]), conditions=frozenset(item["type"] for item in patterns))

    def matches(self, exit_code: int | None, conditions: Set[str]) -> bool:
        """Return whether this rule applies to a failed pod. The exit code is None if its node was lost."""
        return exit_code in self.values or bool(self.conditions & conditions)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """The part of a Job's spec that its controller reads."""

    completions: int
    succeeded_count: int
    backoff_limit_per_index: int
    rules: tuple[Rule, ...]
    grace: float
    one_node: bool

    @classmethod
    def read(cls, spec: Mapping[str, Any]) -> Self:
        """Read the spec of a Job.

        Raises:
            ManifestError: The API server would refuse it, or this module does not model one of its fields.
        """
        pod = spec["template"]["spec"]
        _demand(len(pod["containers"]) == 1, "only one container is modelled")
        [container] = pod["containers"]
        unknown = sorted({*spec.keys() - _SPEC, *pod.keys() - POD_FIELDS, *container.keys() - CONTAINER_FIELDS})
        _demand(not unknown, f"not modelled: {', '.join(unknown)}")
        _demand(spec.get("completionMode") == "Indexed", "only completionMode: Indexed is modelled")
        _demand(spec["parallelism"] == spec["completions"], "only parallelism equal to completions is modelled")
        _demand("backoffLimitPerIndex" in spec, "only Jobs with backoffLimitPerIndex are modelled")
        _demand(spec.get("podReplacementPolicy") == "Failed", "only podReplacementPolicy: Failed is modelled")
        _demand(pod.get("restartPolicy") == "Never", "backoffLimitPerIndex needs restartPolicy: Never")
        # Otherwise the process is PID 1 and the kernel withholds a SIGTERM that it has no handler for.
        _demand(pod.get("shareProcessNamespace") is True, "only shareProcessNamespace: true is modelled")
        [success] = spec.get("successPolicy", {"rules": [{"succeededCount": spec["completions"]}]})["rules"]
        _demand(success.keys() == {"succeededCount"}, "only a success policy with succeededCount is modelled")
        return cls(
            completions=spec["completions"],
            succeeded_count=success["succeededCount"],
            backoff_limit_per_index=spec["backoffLimitPerIndex"],
            rules=tuple(Rule.read(rule, container["name"]) for rule in spec["podFailurePolicy"]["rules"]),
            grace=float(pod["terminationGracePeriodSeconds"]),
            # The only required affinity in the manifests is that of the pods to each other.
            one_node="podAffinity" in pod.get("affinity", {}),
        )

    def action(self, exit_code: int | None, conditions: Set[str]) -> Action:
        """Return "Ignore" if a rule matches the failure, otherwise "Count"."""
        return "Ignore" if any(rule.matches(exit_code, conditions) for rule in self.rules) else "Count"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFields:
    """The metadata of a pod that its container can refer to."""

    name: str
    labels: Mapping[str, str]

    def read(self, path: str) -> str:
        """Return the field at "metadata.name" or "metadata.labels['app']". An unset label is empty."""
        found = re.fullmatch(r"metadata\.(?:name|labels\['([^']+)'\])", path)
        if found is None:
            raise ManifestError(f"not modelled: fieldRef {path}")
        return self.labels.get(found[1], "") if found[1] else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The command of a container, with its directory and its environment."""

    command: tuple[str, ...]
    directory: str
    environment: Mapping[str, str]


class Rendering:
    """The objects that `kubectl kustomize` printed."""

    def __init__(self, objects: Iterable[Mapping[str, Any]]) -> None:
        self.objects = {(item["kind"], item["metadata"]["name"]): item for item in objects}

    @cached_property
    def job(self) -> JobSpec:
        return JobSpec.read(self.objects["Job", "train"]["spec"])

    def pod_fields(self, *, index: int, job_uid: str, suffix: str) -> PodFields:
        """Return the metadata that the controller gives a pod: the labels of the template, and its own."""
        labels = self.objects["Job", "train"]["spec"]["template"]["metadata"]["labels"]
        own = {"controller-uid": job_uid, "job-name": "train", "job-completion-index": str(index)}
        return PodFields(
            name=f"train-{index}-{suffix}",
            labels={**labels, **{f"batch.kubernetes.io/{name}": value for name, value in own.items()}},
        )

    def container(self, template: Mapping[str, Any], pod: PodFields, localise: Callable[[str], str]) -> Container:
        """Return how the one container of a pod is started.

        Args:
            template: The spec of the pod.
            pod: The metadata of the pod.
            localise: Replaces paths and hosts of the cluster by those of this machine. It sees each value and each word
                once, before their references are replaced.
        """
        [container] = template["containers"]
        environment = self._environment(container, pod, localise)
        words = [*container["command"], *container.get("args", ())]
        return Container(
            command=tuple(_expanded(localise(word), environment) for word in words),
            directory=localise(container.get("workingDir", "/")),
            environment=environment,
        )

    def _environment(
        self, container: Mapping[str, Any], pod: PodFields, localise: Callable[[str], str]
    ) -> dict[str, str]:
        environment: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            environment.update((name, localise(value)) for name, value in self._entries(source).items())
        for entry in container.get("env", ()):
            if "valueFrom" in entry:
                environment[entry["name"]] = localise(self._value_from(entry["valueFrom"], pod))
            else:
                environment[entry["name"]] = _expanded(localise(entry["value"]), environment)
        return environment

    def _value_from(self, source: Mapping[str, Any], pod: PodFields) -> str:
        [(kind, reference)] = source.items()
        if kind == "fieldRef":
            return pod.read(reference["fieldPath"])
        entries = self._entries({kind.replace("KeyRef", "Ref"): reference})
        _demand(reference["key"] in entries, f"{reference['name']!r} has no key {reference['key']!r}")
        return entries[reference["key"]]

    def _entries(self, source: Mapping[str, Any]) -> dict[str, str]:
        """Return all entries of a ConfigMap or a Secret."""
        [(field, reference)] = source.items()
        kind = {"configMapRef": "ConfigMap", "secretRef": "Secret"}[field]
        found = self.objects.get((kind, reference["name"]))
        if found is None:
            _demand(reference.get("optional", False), f"there is no {kind} {reference['name']!r}")
            return {}
        if kind == "ConfigMap":
            return dict(found["data"])
        return {name: base64.b64decode(value).decode() for name, value in found["data"].items()}


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    """Return `text` with its references replaced, except those to a variable that is not set."""

    def replaced(found: re.Match[str]) -> str:
        return "$" if found[1] is None else environment.get(found[1], found[0])

    return _REFERENCE.sub(replaced, text)


def localiser(places: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that replaces each key of `places`, a path or a host and port, by its value."""
    anywhere = re.compile("|".join(re.escape(place) for place in places))
    return lambda text: anywhere.sub(lambda found: places[found[0]], text)
