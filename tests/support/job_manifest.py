"""An Indexed Job as it was rendered: what its controller goes by, and what its containers get.

Reads what Kubernetes documents of batch/v1 Jobs and of a container's environment, as far as preemptible training jobs
need it. What is not modelled, or what the API server would refuse, is refused here: a manifest is never half read.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import yaml

type Action = Literal["Ignore", "Count", "FailIndex", "FailJob"]

# Every field of a Job's spec that is read; Kubernetes has more, which would change what is tested here.
_SPEC = {
    "backoffLimit",
    "backoffLimitPerIndex",
    "completionMode",
    "completions",
    "maxFailedIndexes",
    "parallelism",
    "podFailurePolicy",
    "podReplacementPolicy",
    "template",
    "ttlSecondsAfterFinished",  # says only when a finished Job is deleted
}

# Every field of a worker's pod and of its container that is read, or changes nothing on a machine that has no cluster:
# what these may be is checked where the manifests are. Others, such as activeDeadlineSeconds, would end pods.
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
    "args",
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

# The API server's default of `backoffLimit` where `backoffLimitPerIndex` is given.
_NO_LIMIT = 2**31 - 1

# "$$" is a dollar sign, "$(NAME)" a reference; see the API reference of EnvVar.
_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


class ManifestError(Exception):
    """The API server would refuse this manifest, or it has what is not modelled here."""


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise ManifestError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule of a podFailurePolicy: on exit codes (of one container or of any), or on conditions that are true."""

    action: Action
    container: str | None = None
    operator: Literal["In", "NotIn"] = "In"
    values: frozenset[int] = frozenset()
    conditions: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        _demand(self.action in get_args(Action.__value__), f"unknown action {self.action!r}")
        _demand(self.operator in {"In", "NotIn"}, f"unknown operator {self.operator!r}")
        _demand(bool(self.values) != bool(self.conditions), "a rule is on exit codes or on conditions, and not on both")
        _demand(not (0 in self.values and self.operator == "In"), "exit code 0 is no failure")

    @classmethod
    def read(cls, rule: Mapping[str, Any]) -> Self:
        codes = rule.get("onExitCodes", {})
        patterns = rule.get("onPodConditions", [])
        _demand(all(str(item.get("status", "True")) == "True" for item in patterns), "only conditions that are true")
        return cls(
            action=rule["action"],
            container=codes.get("containerName"),
            operator=codes.get("operator", "In"),
            values=frozenset(codes.get("values", ())),
            conditions=frozenset(item["type"] for item in patterns),
        )

    def matches(self, exit_code: int | None, conditions: Set[str]) -> bool:
        """Tell whether this rule is for a pod that failed like this; the container is the one that a rule may name."""
        if self.conditions:
            return bool(self.conditions & conditions)
        return exit_code is not None and (exit_code in self.values) == (self.operator == "In")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What the controller goes by."""

    name: str
    completions: int
    parallelism: int
    backoff_limit: int
    backoff_limit_per_index: int
    max_failed_indexes: int | None
    rules: tuple[Rule, ...]
    grace: float

    @classmethod
    def read(cls, job: Mapping[str, Any]) -> Self:
        """Read a Job.

        Raises:
            ManifestError: It would not be accepted, or has what is not modelled here.
        """
        spec, pod = job["spec"], job["spec"]["template"]["spec"]
        _demand(len(pod["containers"]) == 1 and not pod.get("initContainers"), "only one container is modelled")
        unknown = sorted(
            {*spec.keys() - _SPEC, *pod.keys() - POD_FIELDS, *pod["containers"][0].keys() - CONTAINER_FIELDS}
        )
        _demand(not unknown, f"not modelled: {', '.join(unknown)}")
        _demand(spec.get("completionMode") == "Indexed", "only completionMode: Indexed is modelled")
        _demand("backoffLimitPerIndex" in spec, "only Jobs with backoffLimitPerIndex are modelled")
        _demand(pod.get("restartPolicy") == "Never", "backoffLimitPerIndex needs restartPolicy: Never")
        policy = spec.get("podFailurePolicy", {})
        # With a podFailurePolicy, "Failed" is the default and the only value that is accepted.
        replaced_when = spec.get("podReplacementPolicy", "Failed" if policy else "TerminatingOrFailed")
        _demand(replaced_when == "Failed", f"only podReplacementPolicy: Failed is modelled, got {replaced_when}")
        rules = tuple(Rule.read(rule) for rule in policy.get("rules", ()))
        named = {rule.container for rule in rules} - {None}
        _demand(named <= {pod["containers"][0]["name"]}, f"rules name containers that are not there: {named}")
        return cls(
            name=job["metadata"]["name"],
            completions=spec["completions"],
            parallelism=spec["parallelism"],
            backoff_limit=spec.get("backoffLimit", _NO_LIMIT),
            backoff_limit_per_index=spec["backoffLimitPerIndex"],
            max_failed_indexes=spec.get("maxFailedIndexes"),
            rules=rules,
            grace=float(pod.get("terminationGracePeriodSeconds", 30)),
        )

    def action(self, exit_code: int | None, conditions: Set[str]) -> Action:
        """What becomes of a failure: what the first rule says that matches it; "Count" if none does.

        Args:
            exit_code: Of the container; None where its node took it along.
            conditions: Those that are true of the pod.
        """
        return next((rule.action for rule in self.rules if rule.matches(exit_code, conditions)), "Count")


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFields:
    """What the downward API tells a container of its pod."""

    name: str
    namespace: str
    uid: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    def read(self, path: str) -> str:
        """The field at `path`, as "metadata.labels['app']"; a label or annotation that is not there is empty."""
        found = re.fullmatch(r"metadata\.(?:(name|namespace|uid)|(labels|annotations)\['([^']+)'\])", path)
        if found is None:
            raise ManifestError(f"not modelled: fieldRef {path}")
        if found[1]:
            return str(getattr(self, found[1]))
        entries: Mapping[str, str] = getattr(self, found[2])
        return entries.get(found[3], "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """How a container is started, and whether its process is PID 1 there."""

    command: tuple[str, ...]
    directory: str
    environment: Mapping[str, str]
    is_pid_one: bool


class Manifest:
    """The objects of one rendering, of which one is a Job.

    Args:
        objects: What `kubectl kustomize` printed, parsed.
    """

    def __init__(self, objects: Iterable[Mapping[str, Any]]) -> None:
        self.objects = {(item["kind"], item["metadata"]["name"]): item for item in objects}
        jobs = [item for (kind, _), item in self.objects.items() if kind == "Job"]
        _demand(len(jobs) == 1, f"one Job is wanted, got {len(jobs)}")
        self.job = jobs[0]
        self.spec = JobSpec.read(self.job)

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(item for item in yaml.safe_load_all(text) if item)

    def pod_fields(self, *, index: int, job_uid: str, suffix: str, failures: int, ignored: int) -> PodFields:
        """The metadata that the controller gives a pod: what the template has, and its own."""
        own = {
            "batch.kubernetes.io/controller-uid": job_uid,
            "batch.kubernetes.io/job-name": self.spec.name,
            "batch.kubernetes.io/job-completion-index": str(index),
            # Of before 1.27, and still set.
            "controller-uid": job_uid,
            "job-name": self.spec.name,
        }
        counts = {
            "batch.kubernetes.io/job-completion-index": str(index),
            "batch.kubernetes.io/job-index-failure-count": str(failures),
            "batch.kubernetes.io/job-index-ignored-failure-count": str(ignored),
        }
        metadata = self.job["spec"]["template"].get("metadata", {})
        return PodFields(
            name=f"{self.spec.name}-{index}-{suffix}",
            namespace=self.job["metadata"].get("namespace", "default"),
            uid=f"{job_uid}-{index}-{suffix}",
            labels={**metadata.get("labels", {}), **own},
            annotations={**metadata.get("annotations", {}), **counts},
        )

    def container(self, owner: Mapping[str, Any], pod: PodFields, localise: Callable[[str], str]) -> Container:
        """How the container of a pod is started.

        Args:
            owner: The object with the pod's template.
            pod: The pod.
            localise: Puts what is on this machine in the place of what is in the cluster; sees each value and each word
                once, before references in it are replaced.
        """
        template = owner["spec"]["template"]["spec"]
        [container] = template["containers"]
        _demand(bool(container.get("command")), "an image's own command is not modelled")
        environment = self._environment(container, pod, localise)
        words = [*container["command"], *container.get("args", ())]
        return Container(
            command=tuple(_expanded(localise(word), environment) for word in words),
            directory=localise(container.get("workingDir", "/")),
            environment=environment,
            is_pid_one=not template.get("shareProcessNamespace", False),
        )

    def _environment(
        self, container: Mapping[str, Any], pod: PodFields, localise: Callable[[str], str]
    ) -> dict[str, str]:
        environment: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            _demand("prefix" not in source, "not modelled: prefix")
            environment.update((name, localise(value)) for name, value in self._entries(source).items())
        for entry in container.get("env", ()):
            if "valueFrom" in entry:
                environment[entry["name"]] = localise(self._value_from(entry["valueFrom"], pod))
            else:
                environment[entry["name"]] = _expanded(localise(entry.get("value", "")), environment)
        # A Job's pods get it behind all others, unless it is there.
        index = pod.labels.get("batch.kubernetes.io/job-completion-index")
        return environment if index is None else {"JOB_COMPLETION_INDEX": index, **environment}

    def _value_from(self, source: Mapping[str, Any], pod: PodFields) -> str:
        [(kind, reference)] = source.items()
        if kind == "fieldRef":
            return pod.read(reference["fieldPath"])
        _demand(kind in {"configMapKeyRef", "secretKeyRef"}, f"not modelled: {kind}")
        entries = self._entries({kind.replace("KeyRef", "Ref"): reference})
        _demand(reference["key"] in entries, f"{reference['name']!r} has no key {reference['key']!r}")
        return entries[reference["key"]]

    def _entries(self, source: Mapping[str, Any]) -> dict[str, str]:
        """All of a ConfigMap or a Secret."""
        kind = "ConfigMap" if "configMapRef" in source else "Secret"
        reference = source["configMapRef" if kind == "ConfigMap" else "secretRef"]
        found = self.objects.get((kind, reference["name"]))
        if found is None:
            _demand(reference.get("optional", False), f"the {kind} {reference['name']!r} is not there")
            return {}
        if kind == "ConfigMap":
            return dict(found.get("data", {}))
        return {name: base64.b64decode(value).decode() for name, value in found.get("data", {}).items()}


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    """`text` with its references to variables replaced; one to a variable that is not there stays as it is."""

    def replaced(found: re.Match[str]) -> str:
        return "$" if found[1] is None else environment.get(found[1], found[0])

    return _REFERENCE.sub(replaced, text)


def localiser(places: Mapping[str, str]) -> Callable[[str], str]:
    """A function that puts what is on this machine in the place of what is in the cluster.

    Args:
        places: What stands in the manifest (a path, a host and port), and what stands for it here.
    """
    anywhere = re.compile("|".join(re.escape(place) for place in places))
    return lambda text: anywhere.sub(lambda found: places[found[0]], text)
