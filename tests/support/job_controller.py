"""Imitate Kubernetes' Job controller, scheduler and kubelets, with processes of this machine as pods.

It follows Kubernetes' documentation of Indexed Jobs and the source of its controller, for the fields that
`job_manifest` reads. Each index has one pod. A replacement starts only after the old pod has ended. `sync` makes every
change, and the clock is an argument. Limits: one container a pod, no API, and each node has room for all pods.
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

type Phase = Literal["Pending", "Running", "Succeeded", "Failed"]

DISRUPTION = "DisruptionTarget"

# From pkg/controller/job: the replacements of an index wait 10 s, 20 s, 40 s and so on, at most 10 min.
FIRST_DELAY = 10.0
LONGEST_DELAY = 600.0
# From pkg/controller/podgc: a pod fails this long after the object of its node is gone.
ORPHAN_DELAY = 40.0
# The toleration that each pod is given: it is evicted from a node that is unreachable for so long.
UNREACHABLE_DELAY = 300.0
# What the kubelet gives a pod that it evicts for its use of memory or ephemeral storage.
PRESSURE_GRACE = 1.0


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
class Node:
    """A machine. No pod is placed on one that is not schedulable, unreachable or gone."""

    name: str
    schedulable: bool = True
    unreachable_since: float = math.inf
    gone_since: float = math.inf

    @property
    def takes_pods(self) -> bool:
        return self.schedulable and self.unreachable_since == self.gone_since == math.inf


@dataclass(slots=True, kw_only=True)
class Pod:
    """One pod of an index.

    A pending pod has no node. The exit code is None while the pod runs, and stays None if its node was lost. `failures`
    and `ignored` count the earlier pods of its index that failed. `action` is the decision about its own failure, and
    stays None for a pod that its Job has terminated.
    """

    index: int
    fields: PodFields
    failures: int
    ignored: int
    created_at: float
    node: Node | None = None
    process: Process | None = None
    finished_at: float | None = None
    exit_code: int | None = None
    conditions: set[str] = field(default_factory=set)
    terminating: bool = False
    unneeded: bool = False
    action: Action | None = None
    _grace: float = field(default=math.inf, init=False)
    _kill_at: float = field(default=math.inf, init=False)

    @property
    def name(self) -> str:
        return self.fields.name

    @property
    def phase(self) -> Phase:
        if self.finished_at is None:
            return "Pending" if self.process is None else "Running"
        return "Succeeded" if self.exit_code == 0 else "Failed"

    def terminate(self, now: float, grace: float) -> None:
        """Send SIGTERM, and SIGKILL after `grace` seconds, as soon as the node is reachable. Once only.

        A pending pod has no process to wait for. It fails at the next `sync`.
        """
        if not self.terminating:
            self.terminating, self._grace = True, grace
            self.deliver(now)

    def deliver(self, now: float) -> None:
        """Let the kubelet act on a termination that it has not seen yet."""
        if self.terminating and self.process and self.node and self._kill_at == self.node.unreachable_since == math.inf:
            self._kill_at = now + self._grace
            self.process.send(signal.SIGTERM)

    def observe(self, now: float, orphan_delay: float) -> bool:
        """Return whether the API server knows that the pod has ended. Kill it if its grace period has expired."""
        if self.process is None or self.node is None:
            ended = self.terminating
        elif self.node.gone_since < math.inf:
            ended = now >= self.node.gone_since + orphan_delay and self.process.poll() is not None
            self.conditions |= {DISRUPTION} if ended else set()
        elif self.node.unreachable_since < math.inf:
            ended = False
        else:
            self.exit_code = self.process.poll()
            ended = self.exit_code is not None
            if not ended and now >= self._kill_at:
                self.process.send(signal.SIGKILL)
        if ended:
            self.finished_at = now
        return ended


class JobController:
    """Bring one Job to its end, one `sync` after the other.

    `pods` are all pods in the order of their creation. `failed` counts the failures that no rule ignored. `result` is
    "Complete" or "FailedIndexes" once the Job has ended. `first_delay` is the wait in seconds before the first
    replacement of an index. `orphan_delay` is the wait before a pod fails whose node is gone.
    """

    def __init__(
        self,
        manifest: Rendering,
        launch: Launch,
        *,
        clock: Clock,
        first_delay: float = FIRST_DELAY,
        orphan_delay: float = ORPHAN_DELAY,
    ) -> None:
        self.uid = str(uuid.uuid4())
        self.pods: list[Pod] = []
        self.succeeded: set[int] = set()
        self.failed_indexes: set[int] = set()
        self.failed = 0
        self._manifest = manifest
        self._spec = manifest.job
        self.nodes = [Node(name=f"node-{index}") for index in range(self._spec.completions)]
        self._launch = launch
        self._clock = clock
        self._first_delay = first_delay
        self._orphan_delay = orphan_delay
        self._suspended = False

    @property
    def unfinished(self) -> list[Pod]:
        """The pods that have not ended, pending ones and those that terminate included."""
        return [pod for pod in self.pods if pod.finished_at is None]

    @property
    def running(self) -> list[Pod]:
        """The pods that have a node and have not ended, those that terminate included."""
        return [pod for pod in self.pods if pod.phase == "Running"]

    @property
    def succeeds(self) -> bool:
        """Whether the success policy is met, or all indexes have succeeded without one."""
        return len(self.succeeded) >= self._spec.succeeded_count

    @property
    def result(self) -> str | None:
        if self.succeeds:
            return None if self.unfinished else "Complete"
        return "FailedIndexes" if len(self.succeeded | self.failed_indexes) == self._spec.completions else None

    def sync(self) -> None:
        """Record the pods that have ended, and create and start the pods that are due."""
        now = self._clock.now()
        self._evict_unreachable(now)
        for pod in self.unfinished:
            if pod.observe(now, self._orphan_delay):
                self._account(pod)
        if self.succeeds:
            self._terminate_unneeded()
        elif not self._suspended:
            self._create_due()
        self._schedule()

    # ---------------------------------------------------------------- faults

    def evict(self, *pods: Pod, grace: float | None = None) -> None:
        """End pods as a preemption, a drain or, with `PRESSURE_GRACE`, the pressure on their node does."""
        for pod in pods:
            pod.conditions.add(DISRUPTION)
        self.delete(*pods, grace=grace)

    def delete(self, *pods: Pod, grace: float | None = None) -> None:
        """End pods as `kubectl delete pod` does: without the condition DisruptionTarget."""
        for pod in pods:
            pod.terminate(self._clock.now(), self._spec.grace if grace is None else grace)

    def lose_node(self, *nodes: Node | None) -> None:
        """Kill the pods of nodes whose machines and objects are gone."""
        for node in nodes:
            assert node is not None
            node.gone_since = self._clock.now()
            for pod in self._on(node):
                assert pod.process is not None
                pod.process.send(signal.SIGKILL)

    def disconnect(self, node: Node) -> None:
        """Cut a node off from the API server. Its pods go on."""
        node.unreachable_since = self._clock.now()

    def reconnect(self, node: Node) -> None:
        """Let a node come back: its kubelet learns which pods were evicted meanwhile."""
        node.unreachable_since = math.inf
        for pod in self._on(node):
            pod.deliver(self._clock.now())

    def suspend(self) -> None:
        """Set `suspend`, as Kueue does for a Job that has to give way."""
        self._suspended = True
        self._terminate_unneeded()

    def resume(self) -> None:
        self._suspended = False

    # ---------------------------------------------------------------- reactions

    def _on(self, node: Node) -> list[Pod]:
        return [pod for pod in self.running if pod.node is node]

    def _evict_unreachable(self, now: float) -> None:
        for node in self.nodes:
            if now >= node.unreachable_since + UNREACHABLE_DELAY:
                self.evict(*self._on(node))

    def _terminate_unneeded(self) -> None:
        """End the pods that the Job has no more use for. Their ends count for nothing, not even as a success."""
        for pod in self.unfinished:
            if not pod.terminating:
                pod.unneeded = True
                self.delete(pod)

    def _account(self, pod: Pod) -> None:
        if pod.unneeded:
            return
        if pod.phase == "Succeeded":
            self.succeeded.add(pod.index)
            return
        pod.action = self._spec.action(pod.exit_code, pod.conditions)
        if pod.action == "Ignore":
            return
        self.failed += 1
        if pod.failures >= self._spec.backoff_limit_per_index:
            self.failed_indexes.add(pod.index)

    def _create_due(self) -> None:
        busy = {pod.index for pod in self.unfinished} | self.succeeded | self.failed_indexes
        for index in sorted(set(range(self._spec.completions)) - busy):
            before = next((pod for pod in reversed(self.pods) if pod.index == index), None)
            # A pod that a suspension has ended is forgotten, with the failures before it.
            before = None if before is None or before.unneeded else before
            if before is None or self._clock.now() >= self._replaced_from(before):
                self._create(index, before)

    def _replaced_from(self, pod: Pod) -> float:
        # Ignored failures of the index lengthen the delay too.
        assert pod.finished_at is not None
        return pod.finished_at + min(self._first_delay * 2.0 ** (pod.failures + pod.ignored), LONGEST_DELAY)

    def _create(self, index: int, before: Pod | None) -> None:
        failures = ignored = 0
        if before is not None:
            failures = before.failures + (before.action != "Ignore")
            ignored = before.ignored + (before.action == "Ignore")
        fields = self._manifest.pod_fields(index=index, job_uid=self.uid, suffix=uuid.uuid4().hex[:5])
        now = self._clock.now()
        self.pods.append(Pod(index=index, fields=fields, failures=failures, ignored=ignored, created_at=now))

    def _schedule(self) -> None:
        """Start pending pods, on the nodes with the fewest pods. With a required affinity, only beside the others."""
        for pod in self.unfinished:
            if pod.process is None:
                used = [each.node for each in self.running]
                beside = used if self._spec.one_node and used else self.nodes
                nodes = [node for node in self.nodes if node.takes_pods and node in beside]
                if nodes:
                    pod.node = min(nodes, key=used.count)
                    pod.process = self._launch(pod.fields)


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
