"""Run a whole Job from its rendered manifests: workers over a real server that are preempted repeatedly.

The commands, the environment and the rules come from the manifests, and `job_controller` imitates Kubernetes.
One table, `Cluster.places`, replaces paths and hosts of the cluster by those of this machine. A seeded generator draws
the victims and the moments. Each moment is a progress in the logs of the pods, never a time.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from distributed_backup.checkpoints.format import parse_name
from distributed_backup.checkpoints.state_body import decode_state
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import SystemClock
from distributed_backup.position import Position
from tests.deploy.facts import DEPLOY
from tests.deploy.renderings import kustomized, parsed, with_server
from tests.support.job_controller import ContainerProcess, JobController, Pod
from tests.support.job_manifest import Container, PodFields, Rendering, localiser
from tests.support.servers import RedisServer, wait_for

# Seconds for 3 workers, the uninterrupted run and the first import of synalinks on two noisy cores.
PATIENCE = 150.0

# The values that a user sets. The data are on the volume, and few, which keeps the run short.
EPOCHS = 7
VALUES = {
    "DISTRIBUTED_BACKUP_SAVE_FREQ": "1",
    "TRAIN_BATCH_SIZE": "3",
    "TRAIN_DATA": "/backup/questions.json",
    "TRAIN_EPOCHS": str(EPOCHS),
    "TRAIN_LATENCY": "0.1",
}
DATA = {
    part: [{"question": f"{part} {number}?", "answer": "yes"} for number in range(count)]
    for part, count in (("training", 9), ("validation", 3))
}
# The boundaries of an epoch: after 3 batches of training and 1 of validation, and at its end.
EPOCH = 5

FINAL = re.compile(r"^final state: .*sha256=(\w{64})$", re.MULTILINE)


def render(overlay: str, directory: Path) -> Rendering:
    """Return the objects of a user's own overlay over one of ours."""
    directory.mkdir()
    literals = [f"{name}={value}" for name, value in VALUES.items()]
    kustomization = {
        "resources": [os.path.relpath(DEPLOY / "overlays" / overlay, directory.resolve())],
        "configMapGenerator": [{"name": "train", "behavior": "merge", "literals": literals}],
    }
    (directory / "kustomization.yaml").write_text(json.dumps(kustomization))
    return Rendering(with_server(parsed(kustomized(directory))))


class Cluster:
    """Start the pods that the controller asks for, and read their logs.

    `places` maps paths and hosts in the manifests to those of this machine.
    """

    def __init__(self, rendering: Rendering, root: Path) -> None:
        self.rendering = rendering
        self.controller = JobController(rendering, self._launch, clock=SystemClock(), first_delay=0.0, orphan_delay=0.0)
        self._root = root
        self.places = {"/app": str(DEPLOY), "/backup": str(root / "backup"), "/data": str(root / "data")}
        self._stack = ExitStack()
        self._latest: dict[str, ContainerProcess] = {}

    def __enter__(self) -> Cluster:
        (self._root / "data").mkdir()
        (self._root / "backup").mkdir()
        (self._root / "backup" / "questions.json").write_text(json.dumps(DATA))
        container = self.container("StatefulSet/valkey", PodFields(name="valkey-0", labels={}))
        server = RedisServer(
            self._root / "server",
            port=0,
            config={"requirepass": container.environment["VALKEY_PASSWORD"]},
            arguments=container.command[1:],
        )
        self._stack.enter_context(server)
        self.places["valkey:6379"] = f"127.0.0.1:{server.port}"
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def container(self, owner: str, fields: PodFields) -> Container:
        """Return how the container of a pod of "Kind/name" is started on this machine."""
        kind, _, name = owner.partition("/")
        template = self.rendering.objects[kind, name]["spec"]["template"]["spec"]
        return self.rendering.container(template, fields, localiser(self.places))

    def _launch(self, fields: PodFields) -> ContainerProcess:
        """Start the container of a pod, and check that the one it replaces has ended."""
        index = fields.labels["batch.kubernetes.io/job-completion-index"]
        before = self._latest.get(index)
        assert before is None or not Path(f"/proc/{before.pid}").exists(), f"two pods of index {index} at a time"
        self._latest[index] = self.run(self.container("Job/train", fields), fields.name)
        return self._latest[index]

    def run(self, container: Container, name: str) -> ContainerProcess:
        process = ContainerProcess(container, self._root / f"{name}.log")
        self._stack.callback(process.end)
        return process

    def log(self, name: str) -> str:
        path = self._root / f"{name}.log"
        return path.read_text() if path.exists() else ""

    @property
    def logs(self) -> str:
        """The logs of all pods, for a failure."""
        return "".join(f"--- {pod.name}\n{self.log(pod.name)}" for pod in self.controller.pods)

    def start(self, pod: Pod) -> str | None:
        """Return the checkpoint that a pod started from: "null" for a fresh start, None if it has not started."""
        found = re.search(r" restored worker=\S+ checkpoint=(\S+)", self.log(pod.name))
        return None if found is None else found[1]

    def final(self, name: str) -> str | None:
        """Return the digest of the final state that a pod printed."""
        found = FINAL.search(self.log(name))
        return None if found is None else found[1]

    def last_commit(self, run_id: str) -> tuple[Position, dict[str, Any]]:
        """Return position and state of the newest checkpoint, random generators included, without measured times."""
        newest = CheckpointStore(self._root / "backup" / run_id).latest()
        assert newest is not None
        state = decode_state(newest.body)
        counters = state["objects"]["counters"]
        assert counters.pop("seconds")
        for model in counters["models"]:
            measured = [name for name in model["counts"] if name.endswith("elapsed_s")]
            assert [model["counts"].pop(name) for name in measured]
        return newest.position, state

    @property
    def progress(self) -> int:
        """The number of boundaries of the run that are committed."""
        logs = "".join(self.log(pod.name) for pod in self.controller.pods)
        named = [parse_name(name) for name in re.findall(r" committed worker=\S+ checkpoint=(\S+)", logs)]
        newest = max((found[1] for found in named if found is not None), default=Position(0))
        return newest.epoch * EPOCH + newest.batch

    def at_work(self) -> list[Pod]:
        """Return the pods that train and do not terminate."""
        return [pod for pod in self.controller.running if not pod.terminating and self.start(pod) is not None]

    def leader(self) -> Pod | None:
        """Return the pod that leads, or None between two leaders."""
        for pod in self.at_work():
            changes = re.findall(r" (elected|resigned|lost) worker=", self.log(pod.name))
            if changes and changes[-1] == "elected":
                return pod
        return None

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Run the controller until `condition` holds."""

        def look() -> bool:
            self.controller.sync()
            held = condition()
            assert held or self.controller.result is None, f"the Job ended before {what}"
            return held

        try:
            wait_for(look, what, PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs}") from None


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(render("gke-spot", tmp_path / "overlay"), tmp_path) as cluster:
        yield cluster


@pytest.fixture
def uninterrupted(cluster: Cluster) -> ContainerProcess:
    """The same command alone, with a run of its own and a file lock instead of the server."""
    container = cluster.container("Job/train", cluster.rendering.pod_fields(index=0, job_uid="alone", suffix="x"))
    alone = {"DISTRIBUTED_BACKUP_COORDINATOR": "file:", "TRAIN_LATENCY": "0"}
    return cluster.run(replace(container, environment={**container.environment, **alone}), "uninterrupted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """End `pods` pods when `at` boundaries of the run are committed."""

    name: Literal["evict", "delete"]
    pods: int
    at: int


def faults(chance: random.Random) -> list[Fault]:
    """Return two preemptions, the drain of a node with two pods and a deletion, in the first half of the run."""
    sorts: list[tuple[Literal["evict", "delete"], int]] = [("evict", 1), ("evict", 1), ("evict", 2), ("delete", 1)]
    chance.shuffle(sorts)
    moments = sorted(chance.sample(range(2, EPOCHS * EPOCH // 2), len(sorts)))
    return [Fault(name=name, pods=pods, at=at) for (name, pods), at in zip(sorts, moments, strict=True)]


def inject(cluster: Cluster, fault: Fault, chance: random.Random) -> list[Pod]:
    """Wait for the moment of a fault, inject it and return its victims."""
    cluster.wait(
        lambda: cluster.progress >= fault.at and len(cluster.at_work()) >= fault.pods,
        f"{fault.pods} pods are at work at boundary {fault.at}",
    )
    victims = chance.sample(cluster.at_work(), fault.pods)
    getattr(cluster.controller, fault.name)(*victims)
    return victims


def lose_the_leaders_node(cluster: Cluster) -> Pod:
    """Kill the leader with its node, which is the worst case: no worker commits until its lease has expired."""
    cluster.wait(lambda: cluster.leader() is not None, "a pod leads")
    leader = cluster.leader()
    assert leader is not None
    cluster.controller.lose_node(leader.node)
    return leader


def test_a_job_that_is_preempted_again_and_again_ends_in_the_exact_state_and_no_failure_is_counted(
    cluster: Cluster, uninterrupted: ContainerProcess
) -> None:
    chance = random.Random(4)
    ended = [pod for fault in faults(chance) for pod in inject(cluster, fault, chance)]
    lost = lose_the_leaders_node(cluster)
    cluster.wait(lambda: cluster.controller.result is not None, "the Job has ended")
    wait_for(lambda: uninterrupted.poll() is not None, "the uninterrupted run is complete", PATIENCE)

    controller, pods = cluster.controller, cluster.controller.pods
    # With the success policy, the first worker that succeeds ends the others.
    unneeded = {pod.index for pod in pods if pod.unneeded}
    assert (controller.result, controller.succeeded | unneeded) == ("Complete", {0, 1, 2})
    assert (controller.failed, controller.failed_indexes) == (0, set())
    assert {pod.failures for pod in pods} == {0}

    assert cluster.last_commit(controller.uid) == cluster.last_commit("alone")
    exact = cluster.final("uninterrupted")
    assert exact is not None
    finals = [cluster.final(pod.name) for pod in pods if pod.phase == "Succeeded" and not pod.unneeded]
    assert finals == [exact] * len(controller.succeeded)

    # The faults have happened: each of 6 pods exited as it should, and its replacement resumed.
    assert [pod.exit_code for pod in ended] == [143] * 5
    assert lost.exit_code is None
    assert sum("DisruptionTarget" in pod.conditions for pod in pods) == 5
    assert {pod.action for pod in [*ended, lost]} == {"Ignore"}
    assert len(pods) == 3 + 6, cluster.logs
    assert all(cluster.start(pod) not in {None, "null"} for pod in pods[3:] if not pod.unneeded)


# ---------------------------------------------------------------- the process of a container

SCRIPT = """
import os, sys, threading
print(sorted(os.environ), sys.argv[1:], os.getcwd(), flush=True)
if sys.argv[1] == "wait":
    threading.Event().wait()
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., ContainerProcess]]:
    """Start the script above, with its output in `log`, and wait for its first line."""
    (tmp_path / "script.py").write_text(SCRIPT)
    with ExitStack() as stack:

        def run(*words: str) -> ContainerProcess:
            container = Container(
                command=("python", "script.py", *words),
                directory=str(tmp_path),
                environment={"ONLY": "this"},
            )
            process = ContainerProcess(container, tmp_path / "log")
            stack.callback(process.end)
            wait_for(
                lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text(), "the script has begun", PATIENCE
            )
            return process

        yield run


def ended(process: ContainerProcess) -> int:
    """Wait for the exit code of a process."""
    wait_for(lambda: process.poll() is not None, "the process has ended", PATIENCE)
    code = process.poll()
    assert code is not None
    return code


def test_a_container_has_its_own_arguments_environment_and_directory(
    run: Callable[..., ContainerProcess], tmp_path: Path
) -> None:
    assert ended(run("3", "more")) == 3
    assert (tmp_path / "log").read_text() == f"['ONLY'] ['3', 'more'] {tmp_path}\n"


def test_a_signal_shows_in_the_exit_code(run: Callable[..., ContainerProcess]) -> None:
    process = run("wait")
    process.send(signal.SIGTERM)
    assert ended(process) == 143
    process.send(signal.SIGTERM)  # the process has ended
