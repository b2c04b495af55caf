"""The rules of the stand-in for Kubernetes' Job controller, with processes that end when the test says so.

Each is one that Kubernetes documents: a stand-in that got it wrong would prove nothing of the manifests.
"""

from __future__ import annotations

import base64
import signal
from typing import Any

import pytest

from tests.support.clocks import FakeClock
from tests.support.job_controller import JobController, Pod
from tests.support.job_manifest import Manifest, ManifestError, PodFields, localiser

SIGTERM, SIGKILL = signal.SIGTERM, signal.SIGKILL

IGNORE_DISRUPTIONS = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def on_codes(action: str, *values: int, operator: str = "In", **more: str) -> dict[str, Any]:
    return {"action": action, "onExitCodes": {"operator": operator, "values": list(values), **more}}


class FakeProcess:
    """Ends when it is told to: by `end`, or by SIGKILL."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._code: int | None = None

    def send(self, number: signal.Signals) -> None:
        self.received.append(number)
        if number == SIGKILL:
            self._code = 137

    def poll(self) -> int | None:
        return self._code

    def end(self, code: int) -> None:
        self._code = code


class Bench(JobController):
    """A controller with processes and a clock that the test moves."""

    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self.clock = FakeClock()
        self.launched: list[FakeProcess] = []
        super().__init__(Manifest(objects), self._fake, clock=self.clock)
        self.sync()

    def _fake(self, fields: PodFields) -> FakeProcess:
        self.launched.append(FakeProcess())
        return self.launched[-1]

    def process(self, pod: Pod) -> FakeProcess:
        return self.launched[self.pods.index(pod)]

    def pod(self, index: int) -> Pod:
        """The pod of `index` that runs."""
        [pod] = [pod for pod in self.running if pod.index == index]
        return pod

    def end(self, index: int, code: int) -> Pod:
        """The pod of `index` ends with `code`, and that is seen."""
        pod = self.pod(index)
        self.process(pod).end(code)
        self.sync()
        return pod

    def end_again_and_again(self, index: int, *codes: int) -> None:
        """The pod of `index` and its replacements end with `codes`."""
        for code in codes:
            self.end(index, code)
            self.pass_time(600.0)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.sync()

    @property
    def busy(self) -> list[int]:
        return [pod.index for pod in self.running]


def job(*rules: dict[str, Any], container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A Job of 3 indexes that gives an index up at its 3rd failure."""
    return {
        "kind": "Job",
        "metadata": {"name": "train", "namespace": "lab"},
        "spec": {
            "completionMode": "Indexed",
            "completions": 3,
            "parallelism": 3,
            "backoffLimitPerIndex": 2,
            "podReplacementPolicy": "Failed",
            **({"podFailurePolicy": {"rules": list(rules)}} if rules else {}),
            "template": {
                "metadata": {"labels": {"app": "train"}},
                "spec": {
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": 15,
                    "containers": [{"name": "main", "command": ["python", "train.py"], **(container or {})}],
                },
            },
            **spec,
        },
    }


def bench(*rules: dict[str, Any], **spec: Any) -> Bench:
    return Bench([job(*rules, **spec)])


# ---------------------------------------------------------------- indexes and completion


def test_each_index_gets_one_pod_and_the_job_is_complete_when_each_has_succeeded() -> None:
    controller = bench()
    assert controller.busy == [0, 1, 2]
    controller.end(1, 0)
    controller.end(0, 0)
    assert not controller.finished
    controller.end(2, 0)
    assert (controller.finished, controller.result, controller.succeeded) == (True, "Complete", {0, 1, 2})
    assert len(controller.pods) == 3


def test_no_more_pods_than_parallelism_run_and_the_lowest_index_is_next() -> None:
    controller = bench(completions=5, parallelism=2)
    assert controller.busy == [0, 1]
    controller.end(0, 0)
    assert controller.busy == [1, 2]


def test_a_pod_that_is_told_to_end_and_ends_with_zero_has_succeeded() -> None:
    controller = bench()
    controller.evict(controller.pod(0))
    assert controller.end(0, 0).phase == "Succeeded"
    assert controller.succeeded == {0}
    assert controller.busy == [1, 2]


# ---------------------------------------------------------------- how a pod is ended


def test_a_pod_is_told_to_end_and_killed_when_its_grace_period_is_over() -> None:
    controller = bench(IGNORE_DISRUPTIONS)
    pod = controller.pod(0)
    controller.evict(pod)
    controller.pass_time(14.9)
    assert controller.process(pod).received == [SIGTERM]
    controller.pass_time(0.1)
    assert controller.process(pod).received == [SIGTERM, SIGKILL]
    controller.sync()
    assert (pod.phase, pod.exit_code, pod.action) == ("Failed", 137, "Ignore")


def test_a_second_eviction_gives_no_more_time() -> None:
    controller = bench()
    pod = controller.pod(0)
    controller.delete(pod)
    controller.pass_time(10.0)
    controller.evict(pod)
    controller.pass_time(5.0)
    assert controller.process(pod).received == [SIGTERM, SIGKILL]
    assert pod.conditions == {"DisruptionTarget"}


def test_a_drain_ends_several_pods_at_once_and_each_has_its_own_end() -> None:
    controller = bench(IGNORE_DISRUPTIONS)
    drained = [controller.pod(0), controller.pod(2)]
    controller.evict(*drained)
    assert [controller.process(pod).received for pod in controller.pods] == [[SIGTERM], [], [SIGTERM]]
    controller.end(0, 143)
    controller.pass_time(15.0)
    controller.sync()
    assert [pod.exit_code for pod in drained] == [143, 137]
    assert controller.failed == 0


def test_a_lost_node_kills_at_once_and_leaves_no_exit_code() -> None:
    controller = bench(IGNORE_DISRUPTIONS)
    pod = controller.pod(1)
    controller.lose_node(pod)
    assert controller.process(pod).received == [SIGKILL]
    controller.sync()
    assert (pod.phase, pod.exit_code, pod.conditions, pod.action) == ("Failed", None, {"DisruptionTarget"}, "Ignore")


@pytest.mark.parametrize("rule", [on_codes("Ignore", 137, 143), on_codes("Ignore", 1, operator="NotIn")])
def test_no_rule_on_exit_codes_is_for_a_pod_whose_node_was_lost(rule: dict[str, Any]) -> None:
    controller = bench(rule)
    pod = controller.pod(1)
    controller.lose_node(pod)
    controller.sync()
    assert (pod.action, controller.failed) == ("Count", 1)


# ---------------------------------------------------------------- replacement


def test_a_replacement_starts_only_when_the_old_pod_is_gone() -> None:
    controller = bench(IGNORE_DISRUPTIONS)
    controller.evict(controller.pod(0))
    controller.pass_time(14.0)
    assert controller.busy == [0, 1, 2]
    assert len(controller.pods) == 3
    controller.end(0, 143)
    controller.pass_time(10.0)
    assert sorted(controller.busy) == [0, 1, 2]
    assert controller.pods[0].finished_at is not None
    assert controller.pods[3].created_at >= controller.pods[0].finished_at
    assert controller.pods[3].name != controller.pods[0].name


def test_a_terminating_pod_takes_the_room_of_a_running_one() -> None:
    controller = bench(completions=3, parallelism=2)
    controller.evict(controller.pod(0))
    controller.sync()
    assert controller.busy == [0, 1]


@pytest.mark.parametrize("code", [1, 143])
def test_replacements_of_an_index_wait_longer_each_time_whether_or_not_failures_count(code: int) -> None:
    controller = bench(on_codes("Ignore", 143), backoffLimitPerIndex=9)
    for delay in (10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0):
        controller.end(0, code)
        controller.pass_time(delay - 0.5)
        assert controller.busy == [1, 2]
        controller.pass_time(0.5)
        assert sorted(controller.busy) == [0, 1, 2]


def test_each_index_waits_for_its_own_failures_only() -> None:
    controller = bench()
    controller.end_again_and_again(0, 1, 1)
    controller.end(1, 1)
    controller.pass_time(10.0)
    assert 1 in controller.busy


# ---------------------------------------------------------------- what counts


def test_what_is_ignored_does_not_count() -> None:
    controller = bench(on_codes("Ignore", 143))
    controller.end_again_and_again(0, *[143] * 10)
    assert (controller.failed, controller.failed_indexes, controller.result) == (0, set(), None)
    assert controller.pod(0).fields.annotations["batch.kubernetes.io/job-index-failure-count"] == "0"
    assert controller.pod(0).fields.annotations["batch.kubernetes.io/job-index-ignored-failure-count"] == "10"


def test_an_index_is_given_up_when_it_fails_once_more_than_the_limit() -> None:
    controller = bench(on_codes("Ignore", 143))
    controller.end_again_and_again(0, 1, 143, 1)
    assert (controller.failed, controller.failed_indexes) == (2, set())
    assert controller.pod(0).fields.annotations["batch.kubernetes.io/job-index-failure-count"] == "2"
    controller.end(0, 1)
    assert (controller.failed, controller.failed_indexes) == (3, {0})
    controller.pass_time(600.0)
    assert controller.busy == [1, 2]


def test_the_other_indexes_go_on_and_then_the_job_has_failed() -> None:
    controller = bench(backoffLimitPerIndex=0)
    controller.end(0, 1)
    controller.end(1, 0)
    assert not controller.finished
    controller.end(2, 0)
    assert (controller.finished, controller.result) == (True, "FailedIndexes")


def test_too_many_failed_indexes_end_the_job() -> None:
    controller = bench(backoffLimitPerIndex=0, maxFailedIndexes=1)
    controller.end(0, 1)
    assert controller.result is None
    controller.end(1, 1)
    assert controller.result == "MaxFailedIndexesExceeded"


def test_the_limit_of_the_whole_job_counts_the_failures_of_all_indexes() -> None:
    controller = bench(on_codes("Ignore", 143), backoffLimit=2)
    for index, code in ((0, 1), (1, 1), (2, 143)):
        controller.end(index, code)
    assert controller.result is None
    controller.pass_time(10.0)
    controller.end(2, 1)
    assert controller.result == "BackoffLimitExceeded"


def test_a_failed_job_ends_its_pods_and_is_finished_when_they_are_gone() -> None:
    controller = bench(on_codes("FailJob", 42))
    controller.end(0, 42)
    assert (controller.result, controller.finished) == ("PodFailurePolicy", False)
    assert [controller.process(pod).received for pod in controller.running] == [[SIGTERM], [SIGTERM]]
    controller.end(1, 143)
    controller.end(2, 143)
    assert (controller.result, controller.finished) == ("PodFailurePolicy", True)
    controller.pass_time(600.0)
    assert len(controller.pods) == 3


# ---------------------------------------------------------------- rules


def test_an_index_can_be_given_up_at_once() -> None:
    controller = bench(on_codes("FailIndex", 42))
    assert controller.end(0, 42).action == "FailIndex"
    assert (controller.failed, controller.failed_indexes, controller.result) == (1, {0}, None)


def test_the_first_rule_that_matches_decides() -> None:
    first, second = on_codes("Ignore", 42), on_codes("FailJob", 42)
    assert bench(first, second).end(0, 42).action == "Ignore"
    assert bench(second, first).end(0, 42).action == "FailJob"


def test_a_failure_that_no_rule_is_for_counts() -> None:
    controller = bench(IGNORE_DISRUPTIONS, on_codes("Ignore", 143))
    assert controller.end(0, 137).action == "Count"
    assert controller.failed == 1


def test_a_rule_on_a_condition_is_not_for_pods_without_it() -> None:
    controller = bench(IGNORE_DISRUPTIONS)
    controller.delete(controller.pod(0))
    assert controller.end(0, 143).action == "Count"
    controller.evict(controller.pod(1))
    assert controller.end(1, 1).action == "Ignore"


def test_a_rule_may_name_the_codes_that_it_is_not_for() -> None:
    controller = bench(on_codes("Ignore", 1, 2, operator="NotIn"))
    assert controller.end(0, 1).action == "Count"
    assert controller.end(1, 3).action == "Ignore"


def test_a_rule_may_name_its_container() -> None:
    assert bench(on_codes("Ignore", 143, containerName="main")).end(0, 143).action == "Ignore"


# ---------------------------------------------------------------- what is refused


def without(name: str) -> dict[str, Any]:
    found = job()
    del found["spec"][name]
    return found


def with_pod(**pod: Any) -> dict[str, Any]:
    found = job()
    found["spec"]["template"]["spec"].update(pod)
    return found


REFUSED = [
    pytest.param(job(successPolicy={}), "not modelled: successPolicy", id="a field that is not modelled"),
    pytest.param(with_pod(activeDeadlineSeconds=60), "not modelled: activeDeadlineSeconds", id="an end of the pod"),
    pytest.param(without("completionMode"), "only completionMode: Indexed", id="no indexes"),
    pytest.param(without("backoffLimitPerIndex"), "backoffLimitPerIndex", id="no limit per index"),
    pytest.param(without("podReplacementPolicy"), "got TerminatingOrFailed", id="replaced while terminating"),
    pytest.param(with_pod(restartPolicy="OnFailure"), "restartPolicy: Never", id="restarted in its pod"),
    pytest.param(with_pod(initContainers=[{}]), "only one container", id="an init container"),
    pytest.param(job(on_codes("Retry", 1)), "unknown action 'Retry'", id="an unknown action"),
    pytest.param(job(on_codes("Ignore", 1, operator="Not")), "unknown operator 'Not'", id="an unknown operator"),
    pytest.param(job(on_codes("Ignore", 0)), "exit code 0 is no failure", id="a rule on success"),
    pytest.param(job({"action": "Ignore"}), "on exit codes or on conditions", id="a rule on nothing"),
    pytest.param(
        job({**on_codes("Ignore", 1), **IGNORE_DISRUPTIONS}), "on exit codes or on conditions", id="a rule on both"
    ),
    pytest.param(
        job({"action": "Ignore", "onPodConditions": [{"type": "Ready", "status": "False"}]}),
        "only conditions that are true",
        id="a condition that is false",
    ),
    pytest.param(
        job(on_codes("Ignore", 1, containerName="sidecar")),
        "containers that are not there",
        id="a rule on no container",
    ),
]


@pytest.mark.parametrize(("found", "reason"), REFUSED)
def test_a_job_is_refused_that_kubernetes_or_the_stand_in_has_no_rules_for(found: dict[str, Any], reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        Manifest([found])


def test_a_pod_failure_policy_alone_makes_replacements_wait() -> None:
    found = job(IGNORE_DISRUPTIONS)
    del found["spec"]["podReplacementPolicy"]
    assert Manifest([found]).spec.grace == 15.0


def test_what_is_left_out_is_what_the_api_server_fills_in() -> None:
    found = job()
    del found["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    spec = Manifest([found]).spec
    assert (spec.grace, spec.backoff_limit, spec.max_failed_indexes) == (30.0, 2**31 - 1, None)


def test_a_rendering_without_a_job_or_with_two_is_refused() -> None:
    with pytest.raises(ManifestError, match="one Job is wanted, got 0"):
        Manifest([])
    with pytest.raises(ManifestError, match="one Job is wanted, got 2"):
        Manifest([job(), {**job(), "metadata": {"name": "other"}}])


# ---------------------------------------------------------------- what a container gets

VALUES = {"kind": "ConfigMap", "metadata": {"name": "values"}, "data": {"ROOT": "/backup", "EPOCHS": "3"}}
PASSWORDS = {
    "kind": "Secret",
    "metadata": {"name": "passwords"},
    "data": {"password": base64.b64encode(b"$(ROOT)x").decode()},
}
FIELDS = PodFields(
    name="train-1-abcde",
    namespace="lab",
    uid="9",
    labels={"app": "train", "batch.kubernetes.io/job-completion-index": "1"},
    annotations={"owner": "me"},
)


def environment(*entries: dict[str, Any], **more: Any) -> dict[str, str]:
    manifest = Manifest([job(container={"env": list(entries), **more}), VALUES, PASSWORDS])
    return dict(manifest.container(manifest.job, FIELDS, str).environment)


def from_(kind: str, **reference: str) -> dict[str, Any]:
    return {"name": "X", "valueFrom": {kind: reference}}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "train-1-abcde"),
        ("metadata.namespace", "lab"),
        ("metadata.uid", "9"),
        ("metadata.labels['app']", "train"),
        ("metadata.annotations['owner']", "me"),
        ("metadata.labels['nobody']", ""),
    ],
)
def test_the_downward_api_tells_of_the_pod(path: str, value: str) -> None:
    assert environment(from_("fieldRef", fieldPath=path))["X"] == value


def test_values_come_from_config_maps_and_secrets() -> None:
    assert environment(from_("configMapKeyRef", name="values", key="EPOCHS"))["X"] == "3"
    assert environment(from_("secretKeyRef", name="passwords", key="password"))["X"] == "$(ROOT)x"


def test_all_of_a_config_map_may_be_taken_and_single_values_win() -> None:
    found = environment({"name": "EPOCHS", "value": "4"}, envFrom=[{"configMapRef": {"name": "values"}}])
    assert found == {"ROOT": "/backup", "EPOCHS": "4", "JOB_COMPLETION_INDEX": "1"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$(A)/$(A)", "a/a"),
        ("$$(A)", "$(A)"),
        ("$(LATER)", "$(LATER)"),
        ("$(ROOT)/x", "/backup/x"),
        ("$A $", "$A $"),
    ],
)
def test_a_value_refers_to_those_before_it(text: str, value: str) -> None:
    entries = [{"name": "A", "value": "a"}, {"name": "X", "value": text}, {"name": "LATER", "value": "b"}]
    assert environment(*entries, envFrom=[{"configMapRef": {"name": "values"}}])["X"] == value


def test_what_is_referred_to_is_not_expanded_again() -> None:
    password = {**from_("secretKeyRef", name="passwords", key="password"), "name": "PASSWORD"}
    found = environment({"name": "ROOT", "value": "r"}, password, {"name": "X", "value": "redis://:$(PASSWORD)@valkey"})
    assert found["X"] == "redis://:$(ROOT)x@valkey"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"env": [from_("configMapKeyRef", name="nowhere", key="A")]}, "the ConfigMap 'nowhere' is not there"),
        ({"env": [from_("secretKeyRef", name="passwords", key="A")]}, "'passwords' has no key 'A'"),
        ({"env": [from_("resourceFieldRef", resource="limits.cpu")]}, "not modelled: resourceFieldRef"),
        ({"env": [from_("fieldRef", fieldPath="status.podIP")]}, "not modelled: fieldRef status.podIP"),
        ({"envFrom": [{"secretRef": {"name": "nowhere"}}]}, "the Secret 'nowhere' is not there"),
        ({"envFrom": [{"secretRef": {"name": "passwords"}, "prefix": "A_"}]}, "not modelled: prefix"),
        ({"command": None}, "an image's own command is not modelled"),
    ],
)
def test_a_container_that_could_not_start_is_refused(more: dict[str, Any], reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        environment(**more)


def test_what_is_optional_may_be_missing() -> None:
    assert environment(envFrom=[{"secretRef": {"name": "nowhere", "optional": True}}]) == {"JOB_COMPLETION_INDEX": "1"}


def test_the_command_is_put_together_from_what_the_manifest_has_with_the_places_of_this_machine() -> None:
    container = {
        "command": ["python", "/app/train.py"],
        "args": ["--index=$(JOB_COMPLETION_INDEX)", "--to=$(TO)"],
        "workingDir": "/app",
        "envFrom": [{"configMapRef": {"name": "values"}}],
        "env": [{"name": "HERE", "value": "/app"}, {"name": "TO", "value": "$(ROOT)/run"}],
    }
    manifest = Manifest([job(container=container), VALUES])
    started = manifest.container(manifest.job, FIELDS, localiser({"/app": "/here/app", "/backup": "/here/backup"}))
    assert started.command == ("python", "/here/app/train.py", "--index=1", "--to=/here/backup/run")
    assert (started.directory, started.environment["HERE"]) == ("/here/app", "/here/app")
    assert started.environment["TO"] == "/here/backup/run"


def test_a_process_is_pid_one_unless_its_pod_shares_its_processes() -> None:
    manifest = Manifest([job()])
    assert manifest.container(manifest.job, FIELDS, str).is_pid_one
    assert not manifest.container(with_pod(shareProcessNamespace=True), FIELDS, str).is_pid_one


def test_the_controller_names_and_labels_its_pods_after_job_and_index() -> None:
    controller = bench()
    fields = controller.pod(2).fields
    assert fields.name.startswith("train-2-")
    assert fields.namespace == "lab"
    assert fields.labels == {
        "app": "train",
        "batch.kubernetes.io/controller-uid": controller.uid,
        "batch.kubernetes.io/job-completion-index": "2",
        "batch.kubernetes.io/job-name": "train",
        "controller-uid": controller.uid,
        "job-name": "train",
    }
    assert fields.annotations["batch.kubernetes.io/job-completion-index"] == "2"
