"""A stand-in for Kubernetes' Job controller, and for the kubelets that run its pods as processes of this machine.

It behaves as Kubernetes documents for an Indexed Job, which `job_manifest` has read: a pod per index, SIGTERM, the
grace period, SIGKILL, what counts as a failure and what is ignored, and a replacement only when the old pod is gone.
Nothing moves but by `sync`, and nothing is timed but by the clock that is passed in. The limits: one container a pod,
always a node with room, and no API server, so that nobody else changes the Job.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import runpy
import signal
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from distributed_backup.clock import Clock
from tests.support import processes  # noqa: F401 - what is forked below is forked from its server
from tests.support.job_manifest import Action, Container, Manifest, PodFields

type Phase = Literal["Running", "Succeeded", "Failed"]

DISRUPTION = "DisruptionTarget"

# Of pkg/controller/job: before the n-th replacement of an index there are 10 s, 20 s, 40 s and so on, at most 10 min.
FIRST_DELAY = 10.0
LONGEST_DELAY = 600.0


class Process(Protocol):
    """The process of a container."""

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        ...

    def poll(self) -> int | None:
        """None while it runs; then its exit code as container runtimes tell it, 128 + n if signal n ended it."""
        ...


type Launch = Callable[[PodFields], Process]


@dataclass(slots=True, kw_only=True)
class Pod:
    """One pod.

    Attributes:
        index: Its completion index.
        fields: Its metadata.
        process: What runs in it.
        failures: How often its index had failed before, as far as that counted.
        ignored: How often as far as it did not count.
        created_at: When it was made.
        finished_at: When it was seen to be over.
        exit_code: None while it runs, and for ever if its node took it along.
        conditions: The conditions that are true of it.
        terminating: It was told to end.
        action: What became of its failure.
    """

    index: int
    fields: PodFields
    process: Process
    failures: int
    ignored: int
    created_at: float
    finished_at: float | None = None
    exit_code: int | None = None
    conditions: set[str] = field(default_factory=set)
    terminating: bool = False
    action: Action | None = None
    _kill_at: float = field(default=math.inf, init=False)
    _node_lost: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        return self.fields.name

    @property
    def phase(self) -> Phase:
        if self.finished_at is None:
            return "Running"
        return "Succeeded" if self.exit_code == 0 else "Failed"

    def terminate(self, kill_at: float) -> None:
        """SIGTERM now, SIGKILL at `kill_at`; who was told before is not told again, and gets no more time."""
        if not self.terminating:
            self.terminating, self._kill_at = True, kill_at
            self.process.send(signal.SIGTERM)

    def lose_node(self) -> None:
        """The machine is gone, and with it whatever could tell how the container ended."""
        self._node_lost = True
        self.process.send(signal.SIGKILL)

    def observe(self, now: float) -> bool:
        """What a kubelet does: kill whose time is over; tell whether the pod is over."""
        code = self.process.poll()
        if code is not None:
            self.exit_code, self.finished_at = None if self._node_lost else code, now
            return True
        if now >= self._kill_at:
            self.process.send(signal.SIGKILL)
        return False


class JobController:
    """Brings one Job to its end, one `sync` after the other.

    Args:
        manifest: The objects that the Job is among.
        launch: Starts the process of a pod.
        clock: Where time comes from.
        first_delay: Seconds before the first replacement of an index.

    Attributes:
        pods: All that there were, in the order of their creation.
        succeeded: The indexes that are complete.
        failed_indexes: The indexes that were given up.
        failed: How many pods failed, as far as that counted.
        result: "Complete", or why the Job failed, as soon as that is settled.
    """

    def __init__(self, manifest: Manifest, launch: Launch, *, clock: Clock, first_delay: float = FIRST_DELAY) -> None:
        self.uid = str(uuid.uuid4())
        self.pods: list[Pod] = []
        self.succeeded: set[int] = set()
        self.failed_indexes: set[int] = set()
        self.failed = 0
        self.result: str | None = None
        self._manifest = manifest
        self._spec = manifest.spec
        self._launch = launch
        self._clock = clock
        self._first_delay = first_delay

    @property
    def running(self) -> list[Pod]:
        """The pods that are not over yet; they may have been told to end."""
        return [pod for pod in self.pods if pod.phase == "Running"]

    @property
    def finished(self) -> bool:
        """Settled, and all pods are over."""
        return self.result is not None and not self.running

    def sync(self) -> None:
        """See which pods are over, settle what follows, and start those that are due."""
        for pod in self.running:
            if pod.observe(self._clock.now()):
                self._account(pod)
        if self.result is None:
            self.result = self._settle()
        if self.result is None:
            self._start_due()
        elif self.result != "Complete":
            self.delete(*self.running)

    # ---------------------------------------------------------------- what befalls pods

    def evict(self, *pods: Pod) -> None:
        """Preemption, eviction, the drain of the node that these pods run on."""
        for pod in pods:
            pod.conditions.add(DISRUPTION)
        self.delete(*pods)

    def delete(self, *pods: Pod) -> None:
        """As `kubectl delete pod`: the same, and nothing is told of a disruption."""
        for pod in pods:
            pod.terminate(self._clock.now() + self._spec.grace)

    def lose_node(self, *pods: Pod) -> None:
        """The node that these pods run on goes without a word."""
        for pod in pods:
            pod.conditions.add(DISRUPTION)
            pod.lose_node()

    # ---------------------------------------------------------------- what the controller does

    def _account(self, pod: Pod) -> None:
        if pod.phase == "Succeeded":
            self.succeeded.add(pod.index)
            return
        pod.action = self._spec.action(pod.exit_code, pod.conditions)
        if pod.action == "Ignore":
            return
        self.failed += 1
        if pod.action == "FailIndex" or pod.failures >= self._spec.backoff_limit_per_index:
            self.failed_indexes.add(pod.index)

    def _settle(self) -> str | None:
        spec = self._spec
        if any(pod.action == "FailJob" for pod in self.pods):
            return "PodFailurePolicy"
        if self.failed > spec.backoff_limit:
            return "BackoffLimitExceeded"
        if spec.max_failed_indexes is not None and len(self.failed_indexes) > spec.max_failed_indexes:
            return "MaxFailedIndexesExceeded"
        if len(self.succeeded | self.failed_indexes) < spec.completions:
            return None
        return "FailedIndexes" if self.failed_indexes else "Complete"

    def _start_due(self) -> None:
        taken = {pod.index for pod in self.running}
        done = self.succeeded | self.failed_indexes
        pending = [index for index in range(self._spec.completions) if index not in taken | done]
        for index in pending[: self._spec.parallelism - len(taken)]:
            before = next((pod for pod in reversed(self.pods) if pod.index == index), None)
            if before is None or self._clock.now() >= self._replaced_from(before):
                self._start(index, before)

    def _replaced_from(self, pod: Pod) -> float:
        # The controller delays by all failures of the index, those that were ignored included.
        assert pod.finished_at is not None
        return pod.finished_at + min(self._first_delay * 2.0 ** (pod.failures + pod.ignored), LONGEST_DELAY)

    def _start(self, index: int, before: Pod | None) -> None:
        failures = ignored = 0
        if before is not None:
            failures = before.failures + (before.action != "Ignore")
            ignored = before.ignored + (before.action == "Ignore")
        fields = self._manifest.pod_fields(
            index=index, job_uid=self.uid, suffix=uuid.uuid4().hex[:5], failures=failures, ignored=ignored
        )
        self.pods.append(
            Pod(
                index=index,
                fields=fields,
                process=self._launch(fields),
                failures=failures,
                ignored=ignored,
                created_at=self._clock.now(),
            )
        )


class ContainerProcess:
    """A container that runs `python SCRIPT ARGUMENTS`, in a process forked from a server that has synalinks imported.

    The script sees its own arguments, the environment of its container and nothing of ours, and writes to `log`.

    Args:
        container: How it is started, with the paths of this machine.
        log: Where its output goes.
    """

    def __init__(self, container: Container, log: Path) -> None:
        assert container.command[0] == "python", f"only python is modelled, got {container.command}"
        self._is_pid_one = container.is_pid_one
        self._process = multiprocessing.get_context("forkserver").Process(target=_run, args=(container, log))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; one that it has no handler for, PID 1 does not get (pid_namespaces(7)), but for SIGKILL."""
        with suppress(FileNotFoundError, ProcessLookupError):  # it may be gone by now
            if number == signal.SIGKILL or not self._is_pid_one or self._handles(number):
                os.kill(self.pid, number)

    def poll(self) -> int | None:
        code = self._process.exitcode
        return code if code is None or code >= 0 else 128 - code

    def end(self) -> None:
        """Kill it if it still runs, and tidy up."""
        self._process.kill()
        self._process.join()
        self._process.close()

    def _handles(self, number: signal.Signals) -> bool:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
        return bool(int(caught, 16) >> (number - 1) & 1)


def _run(container: Container, log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.clear()
    os.environ.update(container.environment)
    os.chdir(container.directory)
    sys.argv = list(container.command[1:])
    runpy.run_path(sys.argv[0], run_name="__main__")
