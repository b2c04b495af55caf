"""The script of the demonstration: start the processes, send the signals a cloud sends, and record the messages.

The steps: train, SIGTERM the leader, restart it, SIGKILL the next leader, restart that one, wait for the end. Each step
waits for a message, with a timeout between two messages. `verdict` judges the recording.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """A signal that the scenario sent, with the last boundary that its process had reached."""

    at: float
    record: ProcessRecord
    last_boundary: Position


@dataclass(slots=True, kw_only=True)
class Recording:
    """The data of one demonstration.

    `on_disk` is the newest position that verified when the preempted leader had exited. `leftovers` are the names in
    the backup directory at the end, and records on a server. `unreadable` are checkpoints that don't verify.
    """

    table: ProcessTable
    sigterm: SentSignal | None = None
    on_disk: Position | None = None
    sigkill: SentSignal | None = None
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
        self._recording = Recording(table=self._table)

    def run(self) -> Recording:
        """Run all steps. On return or error no process is left.

        Raises:
            DemoError: The condition of a step did not occur.
        """
        with self._processes_closed():
            self._describe_coordinator()
            self._start_all()
            self._preempt_leader()
            self._kill_leader()
            self._await_end()
        return self._recording

    # ---------------------------------------------------------------- the steps

    def _describe_coordinator(self) -> None:
        coordination = self._plan.coordination
        if coordination.has_lease:
            self._observer.step(f"Coordinator: {coordination.place or coordination.name}")
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

    def _preempt_leader(self) -> None:
        # In the second epoch and between its ends, where scheduled checkpoints are not enough.
        victim = self._wait_until(lambda: self._leader_in_flight(Position(1, 1)), "the leader is in its second epoch")
        self._observer.step(f"SIGTERM to the leader, {victim.name}, in the middle of a batch: it saves and exits")
        self._recording.sigterm = sent = self._send(victim, signal.SIGTERM)
        self._wait_until(lambda: victim.exit_code is not None, f"{victim.name} exits")
        self._recording.on_disk = self._newest_on_disk()
        self._wait_until(lambda: self._table.next_election(sent.at, not_by=victim), "another worker leads")
        self._restart(victim)

    def _kill_leader(self) -> None:
        victim = self._wait_until(
            lambda: self._leader_in_flight(Position(2, 0)), "the new leader is in its third epoch"
        )
        wait = ". Its lease must run out" if self._plan.coordination.has_lease else ""
        self._observer.step(f"SIGKILL to the new leader, {victim.name}: no time to save anything{wait}")
        self._recording.sigkill = sent = self._send(victim, signal.SIGKILL)
        self._wait_until(lambda: victim.exit_code is not None, f"{victim.name} exits")
        self._wait_until(lambda: self._table.next_election(sent.at, not_by=victim), "another worker leads")
        self._restart(victim)

    def _await_end(self) -> None:
        self._observer.step("Waiting for the end of all workers and of the uninterrupted reference run")
        processes = [*self._table.current(), self._table.reference()]
        self._wait_until(
            lambda: all(record is None or record.exit_code is not None for record in processes), "all processes exit"
        )
        store = CheckpointStore(self._backup_dir)
        self._recording.unreadable = tuple(row.name for row in store.verify())
        if self._backup_dir.exists():
            self._recording.leftovers = tuple(sorted(path.name for path in self._backup_dir.iterdir()))

    def _leader_in_flight(self, after: Position) -> ProcessRecord | None:
        leader = self._table.leader()
        if leader is None or leader.position <= after or not leader.position.batch or not leader.has_batch_in_flight:
            return None
        return leader

    def _restart(self, exited: ProcessRecord) -> None:
        self._observer.step(f"Restarting {exited.name}: it resumes from the newest checkpoint")
        self._start(exited.name)
        self._wait_until(lambda: self._table.records[exited.name][-1].is_training, f"{exited.name} trains again")

    def _newest_on_disk(self) -> Position | None:
        newest = next((row for row in CheckpointStore(self._backup_dir).list() if row.valid), None)
        return None if newest is None else newest.position

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
        self._handle(Message(at=self._clock.now(), name=name, incarnation=incarnation, kind="started"))

    def _send(self, record: ProcessRecord, number: signal.Signals) -> SentSignal:
        process = next(item for item in self._processes if item.pid == record.pid)
        sent = SentSignal(at=self._clock.now(), record=record, last_boundary=record.position)
        process.send(number)
        self._handle(
            Message(
                at=sent.at,
                name=record.name,
                incarnation=record.incarnation,
                kind="signal_sent",
                fields={"signal": number.name},
            )
        )
        return sent

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
            spec = process.spec
            message = Message(
                at=self._clock.now(),
                name=spec.name,
                incarnation=spec.incarnation,
                kind="exited",
                fields={"code": code},
            )
        self._handle(message)

    def _handle(self, message: Message) -> None:
        self._table.apply(message)
        self._observer.message(message, self._table)

    def _check_exits(self, text: str) -> None:
        """Raise if a process has exited before its fit was complete, unless the scenario sent it a signal."""
        signalled = [sent.record for sent in (self._recording.sigterm, self._recording.sigkill) if sent is not None]
        for records in self._table.records.values():
            record = records[-1]
            if record.exit_code is not None and record.final_state is None and record not in signalled:
                raise DemoError(
                    f"{record.name} ended with exit code {record.exit_code} while the demonstration waited until "
                    f"{text}. The end of its log:\n" + self._log_end(record.name)
                )

    def _log_end(self, name: str) -> str:
        log = self._logs / f"{name}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-12:]) if log.exists() else "(no log)"

    @contextmanager
    def _processes_closed(self) -> Iterator[None]:
        try:
            yield
        finally:
            for process in self._processes:
                process.close()
