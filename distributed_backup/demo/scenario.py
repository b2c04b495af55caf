"""The script of the demonstration: start the processes, send the signals a cloud sends, and record the messages.

The steps: train, SIGTERM the leader, restart it, SIGKILL the next leader, restart that one, wait for the end. Each step
waits for a message, with a timeout between two messages. `verdict` judges the recording.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Final, Protocol

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import SystemClock
from distributed_backup.demo.messages import REFERENCE, Message, Plan, ProcessSpec
from distributed_backup.demo.process import DemoProcess
from distributed_backup.demo.process_table import ProcessRecord, ProcessTable
from distributed_backup.errors import BackupError
from distributed_backup.position import Position

# Seconds between two messages. The first one waits for the import of synalinks, which may take a minute.
_MESSAGE_TIMEOUT: Final = 120.0
# Seconds between the end of a process's pipe and its exit.
_EXIT_TIMEOUT: Final = 30.0


class DemoError(BackupError):
    """The demonstration could not be completed."""


class Observer(Protocol):
    """Receives the steps and the messages while the scenario runs."""

    def step(self, text: str) -> None:
        """Take the next step of the script."""

    def message(self, message: Message, table: ProcessTable) -> None:
        """Take a message, which `table` already contains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentSignal:
    """A signal that the scenario sent to a leader, and what followed.

    The process `record` had reached `last_boundary`. `on_disk` is the newest position that verified when it had exited.
    """

    at: float
    record: ProcessRecord
    last_boundary: Position
    on_disk: Position | None
    next_leader_at: float


@dataclass(slots=True, kw_only=True)
class Recording:
    """The data of one complete demonstration.

    `leftovers` are the names in the backup directory at the end, and records on a server. `unreadable` are checkpoints
    that don't verify.
    """

    table: ProcessTable
    sigterm: SentSignal
    sigkill: SentSignal
    leftovers: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


class Scenario:
    """One demonstration with at least 2 workers. `logs` is the directory for the output of the processes."""

    def __init__(
        self, plan: Plan, *, workers: int, backup_dir: Path, keep: bool, logs: Path, observer: Observer
    ) -> None:
        self._plan = plan
        self._workers = workers
        self._backup_dir = backup_dir
        self._keep = keep
        self._logs = logs
        self._observer = observer
        self._clock = SystemClock()
        self._processes: list[DemoProcess] = []
        self._table = ProcessTable()
        self._signalled: list[ProcessRecord] = []

    def run(self) -> Recording:
        """Run all steps. On return or error no process is left.

        Raises:
            DemoError: The condition of a step did not occur.
        """
        try:
            self._describe_coordinator()
            self._start_all()
            # In the second epoch and between its ends, where scheduled checkpoints are not enough.
            sigterm = self._signal_leader(signal.SIGTERM, Position(1, 1), "it saves and exits")
            sigkill = self._signal_leader(signal.SIGKILL, Position(2, 0), "no time to save anything")
            self._await_end()
            return Recording(
                table=self._table,
                sigterm=sigterm,
                sigkill=sigkill,
                leftovers=tuple(sorted(path.name for path in self._backup_dir.glob("*"))),
                unreadable=tuple(row.name for row in CheckpointStore(self._backup_dir).verify()),
            )
        finally:
            for process in self._processes:
                process.close()

    # ---------------------------------------------------------------- the steps

    def _describe_coordinator(self) -> None:
        coordination = self._plan.coordination
        if coordination.has_lease:
            self._observer.step(f"Coordinator: {coordination.place}")
            self._observer.step(
                f"The holder of the lease leads. A lease lasts {coordination.timings.duration:.1f} s, and the leader "
                f"renews it every {coordination.timings.retry_period:.1f} s: when renewals stop, another takes over"
            )

    def _start_all(self) -> None:
        self._observer.step("Starting: the import of synalinks takes up to 20 s on a small machine")
        for number in range(1, self._workers + 1):
            self._start(f"worker-{number}")
        self._start(REFERENCE)
        self._observer.step("Training until the leader is in the middle of its second epoch")
        self._wait_until(lambda: all(record.is_training for record in self._table.current()), "all workers train")
        paid = ", ".join(f"{record.name} {record.answers.total()}" for record in self._table.current())
        self._observer.step("The leader asks the language model, and the others take its answers from the journal")
        self._observer.step(f"LM calls so far: {paid}")

    def _signal_leader(self, number: signal.Signals, after: Position, purpose: str) -> SentSignal:
        """Signal the leader in a batch after the position `after`. Restart it when another worker leads."""
        victim = self._wait_until(
            lambda: self._leader_in_flight(after), f"the leader is in a batch after {self._plan.describe(after)}"
        )
        self._observer.step(f"{number.name} to the leader, {victim.name}, in the middle of a batch: {purpose}")
        process = next(item for item in self._processes if item.pid == victim.pid)
        at, last_boundary = self._clock.now(), victim.position
        self._signalled.append(victim)
        process.send(number)
        self._handle(process.spec.message("signal_sent", at=at, fields={"signal": number.name}))
        self._wait_until(lambda: victim.exit_code is not None, f"{victim.name} exits")
        on_disk = next((row.position for row in CheckpointStore(self._backup_dir).list() if row.valid), None)
        next_leader_at = self._wait_until(lambda: self._table.next_election(at, not_by=victim), "another worker leads")
        self._observer.step(f"Restarting {victim.name}: it resumes from the newest checkpoint and follows the journal")
        self._start(victim.name)
        self._wait_until(lambda: self._table.records[victim.name][-1].is_training, f"{victim.name} trains again")
        return SentSignal(
            at=at, record=victim, last_boundary=last_boundary, on_disk=on_disk, next_leader_at=next_leader_at
        )

    def _leader_in_flight(self, after: Position) -> ProcessRecord | None:
        leader = self._table.leader()
        if leader is None or leader.position <= after or not leader.position.batch or not leader.has_batch_in_flight:
            return None
        return leader

    def _await_end(self) -> None:
        self._observer.step("Waiting for the end of all workers and of the uninterrupted reference run")
        records = [*self._table.current(), self._table.reference()]
        self._wait_until(lambda: all(record.exit_code is not None for record in records), "all processes exit")

    # ---------------------------------------------------------------- processes and their messages

    def _start(self, name: str) -> None:
        incarnation = len(self._table.records.get(name, ())) + 1
        spec = ProcessSpec(
            name=name,
            incarnation=incarnation,
            backup_dir=None if name == REFERENCE else self._backup_dir,
            keep=self._keep,
            log=self._logs / f"{name}.log",
        )
        process = DemoProcess(self._plan, spec)
        self._processes.append(process)
        self._table.add(ProcessRecord(name=name, incarnation=incarnation, pid=process.pid))
        self._handle(spec.message("started", at=self._clock.now(), fields={}))

    def _wait_until[T](self, condition: Callable[[], T | None], text: str) -> T:
        """Handle messages until `condition` returns a true value, and return that value."""
        while not (value := condition()):
            pipes = [process.messages for process in self._processes if not process.messages.closed]
            if not pipes:
                raise DemoError(
                    f"all processes have exited while the demonstration waited until {text}: a larger --latency gives "
                    "it more time"
                )
            ready = wait(pipes, _MESSAGE_TIMEOUT)
            if not ready:
                raise DemoError(f"no message for {_MESSAGE_TIMEOUT:g} s while the demonstration waited until {text}")
            for process in [item for item in self._processes if item.messages in ready]:
                self._receive(process)
            self._check_exits(text)
        return value

    def _receive(self, process: DemoProcess) -> None:
        message = process.receive()
        if message is None:
            code = process.join(_EXIT_TIMEOUT)
            process.close()
            message = process.spec.message("exited", at=self._clock.now(), fields={"code": code})
        self._handle(message)

    def _handle(self, message: Message) -> None:
        self._table.apply(message)
        self._observer.message(message, self._table)

    def _check_exits(self, text: str) -> None:
        """Raise if a process has exited before its fit was complete, unless the scenario sent it a signal."""
        for records in self._table.records.values():
            record = records[-1]
            if record.exit_code is not None and not record.final_state and record not in self._signalled:
                raise DemoError(
                    f"{record.name} ended with exit code {record.exit_code} while the demonstration waited until "
                    f"{text}. The end of its log:\n" + self._log_end(record.name)
                )

    def _log_end(self, name: str) -> str:
        log = self._logs / f"{name}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-12:]) if log.exists() else "(no log)"
