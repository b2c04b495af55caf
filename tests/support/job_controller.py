"""Imitate Kubernetes' Job controller and kubelets, with processes of this machine as pods.

It follows Kubernetes' documentation of Indexed Jobs, for the fields that `job_manifest` reads. Each index has one pod.
A pod gets SIGTERM, and SIGKILL after its grace period. A replacement starts only after the old pod has ended.
`sync` makes every change, and the clock is an argument. Limits: one container a pod, always a node with room, no API.
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
from tests.support.fork_server import start_server
from tests.support.job_manifest import Action, Container, PodFields, Rendering

type Phase = Literal["Running", "Succeeded", "Failed"]

DISRUPTION = "DisruptionTarget"

# From pkg/controller/job: the replacements of an index wait 10 s, 20 s, 40 s and so on, at most 10 min.
FIRST_DELAY = 10.0
LONGEST_DELAY = 600.0


class Process(Protocol):
    """The process of a container."""

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        ...

    def poll(self) -> int | None:
        """Return None while it runs, then its exit code: 128 + n if signal n ended it."""
        ...


type Launch = Callable[[PodFields], Process]


@dataclass(slots=True, kw_only=True)
class Pod:
    """One pod of an index.

    Its exit code is None while it runs, and stays None if its node was lost. `failures` and `ignored` count the earlier
    pods of its index that failed. `action` is the decision about its own failure.
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
        """Send SIGTERM now and SIGKILL at `kill_at`. A second call has no effect."""
        if not self.terminating:
            self.terminating, self._kill_at = True, kill_at
            self.process.send(signal.SIGTERM)

    def lose_node(self) -> None:
        """Kill the container and lose its exit code."""
        self._node_lost = True
        self.process.send(signal.SIGKILL)

    def observe(self, now: float) -> bool:
        """Return whether the pod has ended, and kill it if its grace period has expired."""
        code = self.process.poll()
        if code is not None:
            self.exit_code, self.finished_at = None if self._node_lost else code, now
            return True
        if now >= self._kill_at:
            self.process.send(signal.SIGKILL)
        return False


class JobController:
    """Bring one Job to its end, one `sync` after the other.

    `pods` are all pods in the order of their creation. `failed` counts the failures that no rule ignored. `result` is
    "Complete" or "FailedIndexes" once each index has succeeded or failed. `first_delay` is the wait in seconds before
    the first replacement of an index.
    """

    def __init__(self, manifest: Rendering, launch: Launch, *, clock: Clock, first_delay: float = FIRST_DELAY) -> None:
        self.uid = str(uuid.uuid4())
        self.pods: list[Pod] = []
        self.succeeded: set[int] = set()
        self.failed_indexes: set[int] = set()
        self.failed = 0
        self._manifest = manifest
        self._spec = manifest.job
        self._launch = launch
        self._clock = clock
        self._first_delay = first_delay

    @property
    def running(self) -> list[Pod]:
        """The pods that have not ended, those that terminate included."""
        return [pod for pod in self.pods if pod.phase == "Running"]

    @property
    def result(self) -> str | None:
        if len(self.succeeded | self.failed_indexes) < self._spec.completions:
            return None
        return "FailedIndexes" if self.failed_indexes else "Complete"

    def sync(self) -> None:
        """Record the pods that have ended, and start the replacements that are due."""
        for pod in self.running:
            if pod.observe(self._clock.now()):
                self._account(pod)
        self._start_due()

    # ---------------------------------------------------------------- faults

    def evict(self, *pods: Pod) -> None:
        """End pods as a preemption, an eviction or a drain of their node does."""
        for pod in pods:
            pod.conditions.add(DISRUPTION)
        self.delete(*pods)

    def delete(self, *pods: Pod) -> None:
        """End pods as `kubectl delete pod` does: without the condition DisruptionTarget."""
        for pod in pods:
            pod.terminate(self._clock.now() + self._spec.grace)

    def lose_node(self, *pods: Pod) -> None:
        """Kill pods as the loss of their node does."""
        for pod in pods:
            pod.conditions.add(DISRUPTION)
            pod.lose_node()

    # ---------------------------------------------------------------- reactions

    def _account(self, pod: Pod) -> None:
        if pod.phase == "Succeeded":
            self.succeeded.add(pod.index)
            return
        pod.action = self._spec.action(pod.exit_code, pod.conditions)
        if pod.action == "Ignore":
            return
        self.failed += 1
        if pod.failures >= self._spec.backoff_limit_per_index:
            self.failed_indexes.add(pod.index)

    def _start_due(self) -> None:
        busy = {pod.index for pod in self.running} | self.succeeded | self.failed_indexes
        for index in sorted(set(range(self._spec.completions)) - busy):
            before = next((pod for pod in reversed(self.pods) if pod.index == index), None)
            if before is None or self._clock.now() >= self._replaced_from(before):
                self._start(index, before)

    def _replaced_from(self, pod: Pod) -> float:
        # Ignored failures of the index lengthen the delay too.
        assert pod.finished_at is not None
        return pod.finished_at + min(self._first_delay * 2.0 ** (pod.failures + pod.ignored), LONGEST_DELAY)

    def _start(self, index: int, before: Pod | None) -> None:
        failures = ignored = 0
        if before is not None:
            failures = before.failures + (before.action != "Ignore")
            ignored = before.ignored + (before.action == "Ignore")
        fields = self._manifest.pod_fields(index=index, job_uid=self.uid, suffix=uuid.uuid4().hex[:5])
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
    """Run `python SCRIPT ARGUMENTS` in a process forked from a server that has synalinks imported.

    The script has its own arguments and the environment of its container, and writes to `log`.
    """

    def __init__(self, container: Container, log: Path) -> None:
        assert container.command[0] == "python", f"only python is modelled, got {container.command}"
        start_server()
        self._process = multiprocessing.get_context("forkserver").Process(target=_run, args=(container, log))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it may have ended
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        code = self._process.exitcode
        return code if code is None or code >= 0 else 128 - code

    def end(self) -> None:
        """Kill it if it still runs, and release its resources."""
        self._process.kill()
        self._process.join()
        self._process.close()


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
