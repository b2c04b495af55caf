"""The rules of Kubernetes' Job controller on which the manifests rely, as the imitation of it follows them.

Kubernetes documents each of them. The processes here are fakes that end when the test says so.
"""

from __future__ import annotations

import base64
import signal
from typing import Any

import pytest

from tests.support.clocks import FakeClock
from tests.support.job_controller import PRESSURE_GRACE, JobController, Pod
from tests.support.job_manifest import ManifestError, PodFields, Rendering, localiser

SIGTERM, SIGKILL = signal.SIGTERM, signal.SIGKILL

IGNORE_DISRUPTIONS = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
IGNORE_143 = {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [143]}}
LABELS = {"app": "train"}


class FakeProcess:
    """End on `end` or on SIGKILL."""

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
    """A controller with fake processes and a fake clock."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.clock = FakeClock()
        super().__init__(Rendering([job]), lambda fields: FakeProcess(), clock=self.clock)
        self.sync()

    def process(self, pod: Pod) -> FakeProcess:
        assert isinstance(pod.process, FakeProcess)
        return pod.process

    def pod(self, index: int) -> Pod:
        """Return the running pod of `index`."""
        [pod] = [pod for pod in self.running if pod.index == index]
        return pod

    def end(self, index: int, code: int) -> Pod:
        """End the pod of `index` with `code`."""
        pod = self.pod(index)
        self.process(pod).end(code)
        self.sync()
        return pod

    def end_repeatedly(self, index: int, *codes: int) -> None:
        """End the pod of `index` and its replacements with `codes`."""
        for code in codes:
            self.end(index, code)
            self.pass_time(600.0)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.sync()

    @property
    def busy(self) -> list[int]:
        return sorted(pod.index for pod in self.running)


def job(*rules: dict[str, Any], pod: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """Return a Job of 3 indexes, each of which fails at its 3rd failure."""
    template = {
        "restartPolicy": "Never",
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": 15,
        "containers": [{"name": "main", "command": ["python", "train.py"]}],
    }
    wanted = {
        "completionMode": "Indexed",
        "completions": 3,
        "parallelism": 3,
        "backoffLimitPerIndex": 2,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": list(rules)},
        "template": {"metadata": {"labels": LABELS}, "spec": {**template, **(pod or {})}},
    }
    return {"kind": "Job", "metadata": {"name": "train"}, "spec": {**wanted, **spec}}


def bench(*rules: dict[str, Any], **spec: Any) -> Bench:
    return Bench(job(*rules, **spec))


# ---------------------------------------------------------------- completion


def test_each_index_has_one_pod_and_the_job_is_complete_when_each_has_succeeded() -> None:
    controller = bench()
    assert controller.busy == [0, 1, 2]
    controller.end(1, 0)
    controller.end(0, 0)
    assert (controller.result, controller.succeeded) == (None, {0, 1})
    controller.end(2, 0)
    assert (controller.result, controller.succeeded) == ("Complete", {0, 1, 2})
    assert len(controller.pods) == 3


def test_a_pod_that_is_evicted_and_exits_with_0_has_succeeded() -> None:
    controller = bench()
    controller.evict(controller.pod(0))
    assert controller.end(0, 0).phase == "Succeeded"
    assert (controller.succeeded, controller.busy) == ({0}, [1, 2])


def test_the_controller_names_and_labels_its_pods_after_job_and_index() -> None:
    controller = bench()
    fields = controller.pod(2).fields
    assert fields.name.startswith("train-2-")
    assert fields.labels == {
        "app": "train",
        "batch.kubernetes.io/controller-uid": controller.uid,
        "batch.kubernetes.io/job-completion-index": "2",
        "batch.kubernetes.io/job-name": "train",
    }


FIRST_SUCCESS = {"successPolicy": {"rules": [{"succeededCount": 1}]}}


def test_a_success_policy_ends_the_other_pods_and_the_job_is_complete_when_they_have_ended() -> None:
    controller = bench(**FIRST_SUCCESS)
    controller.end_repeatedly(2, 1)
    controller.end(1, 0)
    assert [controller.process(controller.pod(index)).received for index in (0, 2)] == [[SIGTERM], [SIGTERM]]
    results = []
    for index, code in ((0, 143), (2, 1)):
        controller.end(index, code)
        results.append(controller.result)
    assert results == [None, "Complete"]
    assert (controller.succeeded, controller.failed, len(controller.pods)) == ({1}, 1, 4)


def test_a_success_policy_does_not_wait_for_an_index_without_a_node() -> None:
    controller = bench(IGNORE_143, completions=2, parallelism=2, **FIRST_SUCCESS)
    for node in controller.nodes:
        node.schedulable = False
    controller.end_repeatedly(0, 143)
    controller.end(1, 0)
    controller.sync()
    assert (controller.pods[-1].exit_code, controller.result) == (None, "Complete")


def test_a_suspension_counts_nothing_and_forgets_the_failures_of_running_indexes() -> None:
    controller = bench()
    controller.end_repeatedly(0, 1, 1)
    controller.suspend()
    for index, code in ((0, 143), (1, 0), (2, 1)):
        controller.end(index, code)
    controller.pass_time(3600.0)
    assert (controller.busy, controller.failed, controller.succeeded) == ([], 2, set())
    controller.resume()
    controller.sync()
    assert (controller.busy, controller.pod(0).failures) == ([0, 1, 2], 0)


# ---------------------------------------------------------------- how a pod ends


def test_an_evicted_pod_gets_sigterm_and_after_its_grace_period_sigkill() -> None:
    controller = bench(IGNORE_DISRUPTIONS)
    pod = controller.pod(0)
    controller.evict(pod)
    controller.pass_time(14.9)
    assert controller.process(pod).received == [SIGTERM]
    controller.pass_time(0.1)
    assert controller.process(pod).received == [SIGTERM, SIGKILL]
    controller.sync()
    assert (pod.phase, pod.exit_code, pod.action) == ("Failed", 137, "Ignore")


def test_a_second_eviction_does_not_extend_the_grace_period() -> None:
    controller = bench()
    pod = controller.pod(0)
    controller.delete(pod)
    controller.pass_time(10.0)
    controller.evict(pod)
    controller.pass_time(5.0)
    assert controller.process(pod).received == [SIGTERM, SIGKILL]
    assert pod.conditions == {"DisruptionTarget"}


def test_the_pressure_on_a_node_leaves_a_pod_one_second() -> None:
    controller = bench(IGNORE_DISRUPTIONS)
    pod = controller.pod(0)
    controller.evict(pod, grace=PRESSURE_GRACE)
    controller.pass_time(1.0)
    assert controller.process(pod).received == [SIGTERM, SIGKILL]
    controller.sync()
    assert pod.action == "Ignore"


def test_a_pod_whose_node_is_gone_fails_40_s_later_without_an_exit_code() -> None:
    controller = bench(IGNORE_DISRUPTIONS)
    pod = controller.pod(1)
    controller.lose_node(pod.node)
    assert controller.process(pod).received == [SIGKILL]
    controller.pass_time(39.5)
    assert pod.phase == "Running"
    controller.pass_time(0.5)
    assert (pod.phase, pod.exit_code, pod.conditions, pod.action) == ("Failed", None, {"DisruptionTarget"}, "Ignore")
    controller.pass_time(10.0)
    assert controller.pod(1).node is not pod.node


def test_a_pod_on_a_node_that_comes_back_within_5_minutes_goes_on() -> None:
    controller = bench(IGNORE_DISRUPTIONS)
    pod = controller.pod(0)
    assert pod.node is not None
    controller.disconnect(pod.node)
    controller.pass_time(299.0)
    controller.reconnect(pod.node)
    controller.pass_time(600.0)
    assert (controller.pod(0), controller.process(pod).received) == (pod, [])


def test_a_pod_on_a_node_that_comes_back_later_is_replaced_after_it_has_ended_there() -> None:
    controller = bench(IGNORE_DISRUPTIONS)
    pod = controller.pod(0)
    assert pod.node is not None
    controller.disconnect(pod.node)
    controller.pass_time(3600.0)
    assert (controller.pod(0), controller.process(pod).received) == (pod, [])
    controller.reconnect(pod.node)
    assert controller.process(pod).received == [SIGTERM]
    assert controller.end(0, 143).action == "Ignore"
    controller.pass_time(10.0)
    assert controller.pod(0) is not pod


def test_a_pod_that_waits_for_a_node_is_pending_and_its_deletion_counts_as_a_failure() -> None:
    controller = bench(IGNORE_DISRUPTIONS, IGNORE_143)
    for node in controller.nodes:
        node.schedulable = False
    controller.end_repeatedly(0, 143)
    [pending] = [pod for pod in controller.pods if pod.phase == "Pending"]
    controller.delete(pending)
    controller.sync()
    assert (pending.phase, pending.action, controller.failed) == ("Failed", "Count", 1)


def test_a_pod_that_must_run_beside_the_others_waits_while_their_node_takes_none() -> None:
    affinity: dict[str, Any] = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}}
    controller = bench(IGNORE_143, pod={"affinity": affinity})
    node = controller.pod(0).node
    assert node is not None
    assert {pod.name for pod in controller.pods if pod.node is node} == {pod.name for pod in controller.pods}
    node.schedulable = False
    controller.end_repeatedly(0, 143)
    assert (controller.busy, controller.pods[-1].phase) == ([1, 2], "Pending")
    node.schedulable = True
    controller.sync()
    assert controller.busy == [0, 1, 2]


# ---------------------------------------------------------------- replacements


def test_a_replacement_starts_only_after_the_old_pod_has_ended() -> None:
    controller = bench(IGNORE_DISRUPTIONS)
    controller.evict(controller.pod(0))
    controller.pass_time(14.0)
    assert len(controller.pods) == 3
    controller.end(0, 143)
    controller.pass_time(10.0)
    assert controller.busy == [0, 1, 2]
    assert controller.pods[0].finished_at is not None
    assert controller.pods[3].created_at >= controller.pods[0].finished_at
    assert controller.pods[3].name != controller.pods[0].name


@pytest.mark.parametrize("code", [1, 143])
def test_replacements_of_an_index_wait_longer_each_time_whether_or_not_failures_count(code: int) -> None:
    controller = bench(IGNORE_143, backoffLimitPerIndex=9)
    for delay in (10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0):
        controller.end(0, code)
        controller.pass_time(delay - 0.5)
        assert controller.busy == [1, 2]
        controller.pass_time(0.5)
        assert controller.busy == [0, 1, 2]


def test_the_failures_of_one_index_do_not_delay_another() -> None:
    controller = bench()
    controller.end_repeatedly(0, 1, 1)
    controller.end(1, 1)
    controller.pass_time(10.0)
    assert 1 in controller.busy


# ---------------------------------------------------------------- which failures count


def test_an_ignored_failure_does_not_count() -> None:
    controller = bench(IGNORE_143)
    controller.end_repeatedly(0, *[143] * 10)
    assert (controller.failed, controller.failed_indexes, controller.result) == (0, set(), None)
    assert (controller.pod(0).failures, controller.pod(0).ignored) == (0, 10)


def test_a_failure_that_no_rule_matches_counts() -> None:
    controller = bench(IGNORE_DISRUPTIONS, IGNORE_143)
    assert controller.end(0, 137).action == "Count"
    assert controller.failed == 1


def test_a_rule_on_a_condition_matches_only_pods_with_it() -> None:
    controller = bench(IGNORE_DISRUPTIONS)
    controller.delete(controller.pod(0))
    assert controller.end(0, 143).action == "Count"
    controller.evict(controller.pod(1))
    assert controller.end(1, 1).action == "Ignore"


def test_a_rule_on_exit_codes_does_not_match_a_pod_whose_node_was_lost() -> None:
    controller = bench(IGNORE_143)
    pod = controller.pod(1)
    controller.lose_node(pod.node)
    controller.pass_time(40.0)
    assert (pod.action, controller.failed) == ("Count", 1)


def test_an_index_fails_when_its_failures_exceed_the_limit() -> None:
    controller = bench(IGNORE_143)
    controller.end_repeatedly(0, 1, 143, 1)
    assert (controller.failed, controller.failed_indexes, controller.pod(0).failures) == (2, set(), 2)
    controller.end(0, 1)
    assert (controller.failed, controller.failed_indexes) == (3, {0})
    controller.pass_time(600.0)
    assert controller.busy == [1, 2]


def test_the_job_fails_when_the_other_indexes_have_ended() -> None:
    controller = bench(backoffLimitPerIndex=0)
    controller.end(0, 1)
    controller.end(1, 0)
    assert controller.result is None
    controller.end(2, 0)
    assert controller.result == "FailedIndexes"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (job(backoffLimit=6), "not modelled: backoffLimit"),
        (job(pod={"activeDeadlineSeconds": 60}), "not modelled: activeDeadlineSeconds"),
        (job(parallelism=2), "parallelism equal to completions"),
        (job(podReplacementPolicy="TerminatingOrFailed"), "podReplacementPolicy: Failed"),
        (job(pod={"restartPolicy": "OnFailure"}), "restartPolicy: Never"),
        (job(pod={"shareProcessNamespace": False}), "shareProcessNamespace: true"),
        (job({**IGNORE_143, "action": "FailJob"}), "only action: Ignore"),
        (job(successPolicy={"rules": [{"succeededIndexes": "0"}]}), "success policy with succeededCount"),
        (job({"action": "Ignore", "onExitCodes": {"operator": "NotIn", "values": [1]}}), "only operator: In"),
        (job({**IGNORE_143, **IGNORE_DISRUPTIONS}), "on exit codes or on conditions"),
    ],
)
def test_a_job_with_rules_that_are_not_modelled_is_refused(found: dict[str, Any], reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        Bench(found)


# ---------------------------------------------------------------- the environment of a container

VALUES = {"kind": "ConfigMap", "metadata": {"name": "values"}, "data": {"ROOT": "/backup", "EPOCHS": "3"}}
PASSWORDS = {
    "kind": "Secret",
    "metadata": {"name": "passwords"},
    "data": {"password": base64.b64encode(b"$(ROOT)x").decode()},
}
FIELDS = PodFields(name="train-1-abcde", labels=LABELS)
ALL_VALUES = [{"configMapRef": {"name": "values"}}]


def environment(*entries: dict[str, Any], **more: Any) -> dict[str, str]:
    template = {"containers": [{"command": ["python"], "env": list(entries), **more}]}
    return dict(Rendering([VALUES, PASSWORDS]).container(template, FIELDS, str).environment)


def from_(kind: str, **reference: str) -> dict[str, Any]:
    return {"name": "X", "valueFrom": {kind: reference}}


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (from_("fieldRef", fieldPath="metadata.name"), "train-1-abcde"),
        (from_("fieldRef", fieldPath="metadata.labels['app']"), "train"),
        (from_("fieldRef", fieldPath="metadata.labels['unset']"), ""),
        (from_("configMapKeyRef", name="values", key="EPOCHS"), "3"),
        (from_("secretKeyRef", name="passwords", key="password"), "$(ROOT)x"),
    ],
)
def test_a_variable_comes_from_the_pod_a_config_map_or_a_secret(entry: dict[str, Any], value: str) -> None:
    assert environment(entry)["X"] == value


def test_a_variable_of_its_own_overrides_that_of_a_config_map() -> None:
    assert environment({"name": "EPOCHS", "value": "4"}, envFrom=ALL_VALUES) == {"ROOT": "/backup", "EPOCHS": "4"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$(A)/$(A)", "a/a"),
        ("$$(A)", "$(A)"),
        ("$(LATER)", "$(LATER)"),
        ("$(ROOT)/x", "/backup/x"),
        ("$(PASSWORD)@valkey", "$(ROOT)x@valkey"),
    ],
)
def test_a_value_refers_to_the_variables_before_it(text: str, value: str) -> None:
    password = {**from_("secretKeyRef", name="passwords", key="password"), "name": "PASSWORD"}
    entries = [{"name": "A", "value": "a"}, password, {"name": "X", "value": text}, {"name": "LATER", "value": "b"}]
    assert environment(*entries, envFrom=ALL_VALUES)["X"] == value


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"env": [from_("configMapKeyRef", name="none", key="A")]}, "there is no ConfigMap 'none'"),
        ({"env": [from_("secretKeyRef", name="passwords", key="A")]}, "'passwords' has no key 'A'"),
        ({"env": [from_("fieldRef", fieldPath="status.podIP")]}, "not modelled: fieldRef status.podIP"),
        ({"envFrom": [{"secretRef": {"name": "none"}}]}, "there is no Secret 'none'"),
    ],
)
def test_a_container_that_could_not_start_is_refused(more: dict[str, Any], reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        environment(**more)


def test_an_optional_secret_may_be_missing() -> None:
    assert environment(envFrom=[{"secretRef": {"name": "none", "optional": True}}]) == {}


def test_the_command_has_the_paths_of_this_machine() -> None:
    container = {
        "command": ["python", "/app/train.py"],
        "args": ["--to=$(TO)"],
        "workingDir": "/app",
        "envFrom": ALL_VALUES,
        "env": [{"name": "HERE", "value": "/app"}, {"name": "TO", "value": "$(ROOT)/run"}],
    }
    places = localiser({"/app": "/here/app", "/backup": "/here/backup"})
    started = Rendering([VALUES]).container({"containers": [container]}, FIELDS, places)
    assert started.command == ("python", "/here/app/train.py", "--to=/here/backup/run")
    assert (started.directory, started.environment["HERE"]) == ("/here/app", "/here/app")
    assert started.environment["TO"] == "/here/backup/run"
