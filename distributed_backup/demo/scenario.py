"""Starts the processes, does to them what clouds do, and collects what they report.

The script: train; SIGTERM the leader; restart it; SIGKILL the worker that leads by then; restart that one; wait for
the end. Each step waits for an event, none for a time. The director decides nothing about the outcome: see
`verdict`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Protocol

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import Clock, SystemClock
from distributed_backup.demo.messages import REFERENCE, Message, Plan, Role
from distributed_backup.demo.process import DemoProcess
from distributed_backup.demo.process_table import Cast, Life
from distributed_backup.errors import BackupError
from distributed_backup.position import Position

# Between two events: generous, for the first one waits for the import of synalinks on whatever machine this is.
_PATIENCE = 120.0
# Between the end of a process's pipe and its end.
_EXIT_PATIENCE = 30.0


class DemoError(BackupError):
    """The demonstration could not be carried out."""


class Audience(Protocol):
    """Who watches."""

    def step(self, text: str) -> None:
        """The director goes on to the next step of the script."""

    def message(self, message: Message, cast: Cast) -> None:
        """Something happened; `cast` knows of it already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """A signal that the director sent.

    Args:
        at: When.
        life: To whom.
        last_boundary: The last boundary the victim had reached.
    """

    at: float
    life: Life
    last_boundary: Position


@dataclass(slots=True, kw_only=True)
class Recording:
    """What happened.

    Attributes:
        cast: The lives of all processes.
        sigterm: The preemption of a leader; None if it came to none.
        on_disk: The newest position that verified on the disk when the preempted leader was gone.
        sigkill: The kill of a leader; None if it came to none.
        left_behind: What was left at the end: names in the backup directory, and what is on a server.
        unreadable: Checkpoints among them that don't verify.
    """

    cast: Cast
    sigterm: Blow | None = None
    on_disk: Position | None = None
    sigkill: Blow | None = None
    left_behind: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


class Director:
    """Carries out one demonstration.

    Args:
        plan: What is trained.
        workers: How many workers, at least 2.
        backup_dir: The directory of the run.
        keep: Whether its files stay.
        logs: A directory for what the processes print and log.
        audience: Who watches.
        clock: Where time comes from.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        workers: int,
        backup_dir: Path,
        keep: bool,
        logs: Path,
        audience: Audience,
        clock: Clock | None = None,
    ) -> None:
        self._plan = plan
        self._workers = workers
        self._backup_dir = backup_dir
        self._keep = keep
        self._logs = logs
        self._audience = audience
        self._clock = clock or SystemClock()
        self._processes: list[DemoProcess] = []
        self._recording = Recording(cast=Cast())

    @property
    def _cast(self) -> Cast:
        return self._recording.cast

    def run(self) -> Recording:
        """Carry it out; whatever happens, no process is left behind.

        Raises:
            DemoError: Something that the script waits for did not happen.
        """
        with self._tidied_up():
            self._introduce()
            self._open()
            self._preempt_leader()
            self._kill_leader()
            self._close()
        return self._recording

    # ---------------------------------------------------------------- the script

    def _introduce(self) -> None:
        coordination = self._plan.coordination
        if coordination.has_lease:
            self._audience.step(f"Coordinator: {coordination.place or coordination.name}")
            self._audience.step(
                f"Who holds the lease leads; it lasts {coordination.timings.duration:.1f} s, and the leader renews it "
                f"every {coordination.timings.retry_period:.1f} s: when it falls silent, another takes over"
            )

    def _open(self) -> None:
        self._audience.step("Starting: the import of synalinks takes a while, up to 20 s on a small machine")
        for number in range(1, self._workers + 1):
            self._start(f"worker-{number}")
        self._start(REFERENCE)
        self._audience.step("Training until the leader is in the middle of its second epoch")
        self._until(lambda: all(life.is_training for life in self._cast.current()), "all workers train")

    def _preempt_leader(self) -> None:
        # In the second epoch and between its ends, so that what is on the disk by schedule is not enough.
        victim = self._until(lambda: self._leader_in_flight(Position(1, 1)), "the leader is in its second epoch")
        self._audience.step(f"SIGTERM to the leader, {victim.name}, in the middle of a batch: it saves and leaves")
        self._recording.sigterm = blow = self._send(victim, signal.SIGTERM)
        self._until(lambda: victim.code is not None, f"{victim.name} leaves")
        self._recording.on_disk = self._newest_on_disk()
        self._until(lambda: self._cast.next_election(blow.at, not_by=victim), "another worker leads")
        self._restart(victim)

    def _kill_leader(self) -> None:
        victim = self._until(lambda: self._leader_in_flight(Position(2, 0)), "the new leader is in its third epoch")
        wait = "; its lease must run out" if self._plan.coordination.has_lease else ""
        self._audience.step(f"SIGKILL to the new leader, {victim.name}: no time to save anything{wait}")
        self._recording.sigkill = blow = self._send(victim, signal.SIGKILL)
        self._until(lambda: victim.code is not None, f"{victim.name} is gone")
        self._until(lambda: self._cast.next_election(blow.at, not_by=victim), "another worker leads")
        self._restart(victim)

    def _close(self) -> None:
        self._audience.step("Waiting for the end: all workers, and the run that nothing happened to")
        everybody = [*self._cast.current(), self._cast.reference()]
        self._until(lambda: all(life is None or life.code is not None for life in everybody), "everybody finishes")
        store = CheckpointStore(self._backup_dir)
        self._recording.unreadable = tuple(row.name for row in store.verify())
        if self._backup_dir.exists():
            self._recording.left_behind = tuple(sorted(path.name for path in self._backup_dir.iterdir()))

    def _leader_in_flight(self, after: Position) -> Life | None:
        leader = self._cast.leader()
        if leader is None or leader.position <= after or not leader.position.batch or not leader.has_batch_in_flight:
            return None
        return leader

    def _restart(self, gone: Life) -> None:
        self._audience.step(f"Restarting {gone.name}: it resumes where the others are")
        self._start(gone.name)
        self._until(lambda: self._cast.lives[gone.name][-1].is_training, f"{gone.name} trains again")

    def _newest_on_disk(self) -> Position | None:
        newest = next((row for row in CheckpointStore(self._backup_dir).list() if row.valid), None)
        return None if newest is None else newest.position

    # ---------------------------------------------------------------- processes and their events

    def _start(self, name: str) -> None:
        number = len(self._cast.lives.get(name, ())) + 1
        role = Role(
            name=name,
            life=number,
            backup_dir=None if name == REFERENCE else self._backup_dir,
            keep=self._keep,
            log=self._logs / f"{name}.log",
        )
        process = DemoProcess(self._plan, role)
        self._processes.append(process)
        self._cast.enter(Life(name=name, number=number, pid=process.pid))
        self._tell(Message(at=self._clock.now(), name=name, life=number, kind="started"))

    def _send(self, life: Life, number: signal.Signals) -> Blow:
        process = next(item for item in self._processes if item.pid == life.pid)
        blow = Blow(at=self._clock.now(), life=life, last_boundary=life.position)
        process.send(number)
        self._tell(Message(at=blow.at, name=life.name, life=life.number, kind="sent", fields={"signal": number.name}))
        return blow

    def _until[T](self, condition: Callable[[], T | None], what: str) -> T:
        """Take events until `condition` gives something true; what it gave."""
        while not (value := condition()):
            pipes = [process.messages for process in self._processes if not process.messages.closed]
            if not pipes:
                raise DemoError(f"everybody has left, and it did not happen that {what}; is the latency too short?")
            ready = wait(pipes, _PATIENCE)
            if not ready:
                raise DemoError(f"gave up: waited until {what}, and nothing happened for {_PATIENCE:g} s")
            for process in [item for item in self._processes if item.messages in ready]:
                self._take(process)
            self._check(what)
        return value

    def _take(self, process: DemoProcess) -> None:
        message = process.receive()
        if message is None:
            code = process.join(_EXIT_PATIENCE)
            process.end()
            role = process.role
            message = Message(at=self._clock.now(), name=role.name, life=role.life, kind="gone", fields={"code": code})
        self._tell(message)

    def _tell(self, message: Message) -> None:
        self._cast.apply(message)
        self._audience.message(message, self._cast)

    def _check(self, what: str) -> None:
        """Nobody may leave without the director's doing before the fit is complete."""
        hit = [blow.life for blow in (self._recording.sigterm, self._recording.sigkill) if blow is not None]
        for lives in self._cast.lives.values():
            life = lives[-1]
            if life.code is not None and life.state is None and life not in hit:
                raise DemoError(
                    f"{life.name} ended with exit code {life.code} while waiting until {what}; its last lines:\n"
                    + self._last_lines(life.name)
                )

    def _last_lines(self, name: str) -> str:
        log = self._logs / f"{name}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-12:]) if log.exists() else "(no log)"

    @contextmanager
    def _tidied_up(self) -> Iterator[None]:
        try:
            yield
        finally:
            for process in self._processes:
                process.end()
