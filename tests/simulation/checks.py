"""What must hold after each step of a simulated run: the promises of GUARANTEES.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from distributed_backup.checkpoints.format import CheckpointHeader, checkpoints_among, decode, is_final, parse_name
from distributed_backup.checkpoints.journal import term_of_segment
from distributed_backup.errors import NotSharedError, RestoreTimeoutError, RunMismatchError, StoreError
from distributed_backup.observability.events import Event
from distributed_backup.position import Position
from distributed_backup.worker.notices import covers
from distributed_backup.worker.start_point import StartPoint

if TYPE_CHECKING:
    from tests.simulation.fit import Fit
    from tests.simulation.world import World


class PromiseBrokenError(AssertionError):
    """A promise was broken."""


class Checks:
    """The history of one run, as far as the promises need it. A promise that is broken raises `PromiseBrokenError`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.log: list[str] = []
        self.asks = 0
        self._seen: dict[str, str] = {}
        self._states: dict[Position, str] = {}
        self._writers: dict[int, str] = {}
        self._newest: Position | None = None
        # Checkpoints that were committed when a newer term had begun. They count less than any of that term.
        self._late: set[str] = set()
        self._is_late = False
        # How far each worker has saved.
        self._saved: dict[str, Position] = {}
        self._notices: dict[Fit, float] = {}
        self._oldest_starts: dict[Fit, str] = {}
        # The newest term that was claimed when a follower began.
        self._leads_at_start: dict[Fit, int] = {}
        self._waiting: dict[Fit, list[Callable[[], object]]] = {}
        # The highest term that was ever claimed, and that when the run was deleted.
        self._claimed = self._deleted_terms = 0
        self.deletions = 0
        self._is_void = False
        self.broken: PromiseBrokenError | None = None
        """The first promise that was broken. A simulated thread may swallow what is raised in it."""

    def note(self, text: str) -> None:
        """Add a line to the story of the run."""
        self.log.append(f"{self._world.scheduler.now:9.3f}  {text}")

    def _violated(self, text: str) -> NoReturn:
        self.note(f"VIOLATION {text}")
        self.broken = self.broken or PromiseBrokenError(text)
        raise self.broken

    @property
    def _is_intact(self) -> bool:
        """Whether the disk has kept all that was written: else the journal may have gaps, which are announced."""
        return not any(self._world.faults[name] for name in ("disk full", "disk away", "file damaged"))

    @property
    def _is_recorded(self) -> bool:
        """Whether all answers are recorded, and no two workers can lead at once without knowing of each other."""
        plan, faults = self._world.plan, self._world.faults
        is_connected = not any(faults[name] for name in ("partition", "network", "server emptied"))
        is_kept = plan.journal and plan.save_freq is not False
        return is_kept and is_connected and self._is_intact and not self._is_void

    def emit(self, event: Event) -> None:
        """Note an event of a worker. Answers that are void are asked for again, as promised."""
        self._is_void = self._is_void or event.kind == "voided"
        if event.kind in {
            "voided",
            "diverged",
            "stood_down",
            "elected",
            "lost",
            "resigned",
            "replayed",
            "commit_failed",
        }:
            self.note(f"{event.worker} {event.kind} {dict(event.fields)}")

    def close(self, timeout: float) -> None:
        """Do nothing."""

    # ---------------------------------------------------------------- answers

    def asked(self, fit: Fit, key: str) -> None:
        """Check that no answer is paid for twice, and that N workers pay one bill."""
        self.asks += 1
        if self._is_recorded and key in self._seen:
            self._violated(f"{fit.process.name} asks at {fit.position} for what {self._seen[key]} was answered")

    def seen(self, fit: Fit, key: str) -> None:
        """Note that an answer has reached the training of a worker."""
        # It has been deposed, and what it does from now on is not for the run.
        if not fit.worker.stands_by:
            self._judge(fit, lambda: self._seen.setdefault(key, fit.process.name))

    # ---------------------------------------------------------------- states

    def joins(self, fit: Fit) -> None:
        """Note what is saved when no worker leads: then a new leader restores that, and all others with it."""
        leads = any(each and each.worker._context.elector.is_leader for each in self._world.live.values())
        names = checkpoints_among(self._world.disk.files)
        # What a leader has announced counts until its lease has expired, also if it died after a newer commit.
        if names and not leads and not self._world.network.is_leased:
            self._oldest_starts[fit] = names[0]

    def started(self, fit: Fit, start: StartPoint) -> None:
        """Check that a worker starts from no older checkpoint than the others."""
        oldest = self._oldest_starts.get(fit, "")
        if (start.name or "") < oldest and not self.deletions and self._is_intact:
            self._violated(f"{fit.process.name} starts from {start.name}, and {oldest} was saved before it had joined")
        self.note(f"{fit.process.name} starts at {fit.position} from {start.name} leading={start.term}")
        if start.term is None:
            self._leads_at_start[fit] = self._highest_claim()

    def _highest_claim(self) -> int:
        return max((int(name[:-5]) for name in self._world.disk.files if name.endswith(".term")), default=0)

    def _judge(self, fit: Fit, check: Callable[[], object]) -> None:
        """Check something, for a follower once its leader has begun a segment. See `journal_tail`: the limits.

        Until then it may read what the leader before appends late. It is lost then, and nothing more is checked of it.
        """
        waiting = self._waiting.setdefault(fit, [])
        waiting.append(check)
        newest = max(map(term_of_segment, self._world.disk.files), default=0)
        if newest >= self._leads_at_start.get(fit, 0):
            while waiting:
                waiting.pop(0)()

    def reached(self, fit: Fit) -> None:
        """Check that all workers, and a resumed one, pass through the same states."""
        self.note(f"{fit.process.name} is at {fit.position} in {fit.program.state[:6]}")
        position, own = fit.position, fit.program.state

        def check() -> None:
            if self._is_recorded and self._states.setdefault(position, own) != own:
                self._violated(f"{fit.process.name} is in another state at {position} than a worker before it")

        self._judge(fit, check)

    # ---------------------------------------------------------------- checkpoints

    def disk_changed(self, name: str) -> None:
        """Check that the newest checkpoint verifies, never goes back, and has one writer for its term."""
        files = self._world.disk.files
        self._claimed = max(self._claimed, self._highest_claim())
        parsed = parse_name(name)
        if parsed is None:
            return
        if name in files:
            header = decode(files[name], path=name).header
            self.note(f"{header.worker_id} commits {name}")
            self._written(header)
            if any(int(other[:-5]) > header.term for other in files if other.endswith(".term")):
                self._late.add(name)
        names = checkpoints_among(files)
        newest = parse_name(names[0]) if names else None
        if (
            newest is not None
            and self._newest is not None
            and newest[1] < self._newest
            and not (self._is_late or self._world.faults["file damaged"])
        ):
            self._violated(f"the newest checkpoint went from {self._newest} back to {newest[1]}")
        if not names:
            self._deleted()
        self._newest = None if newest is None else newest[1]
        self._is_late = bool(names) and names[0] in self._late

    def _written(self, header: CheckpointHeader) -> None:
        writer = self._writers.setdefault(header.term, header.worker_id)
        # The claims of terms were deleted with the run. A worker that was away then may lead under one again.
        if writer != header.worker_id and header.term > self._deleted_terms:
            self._violated(f"{writer} and {header.worker_id} have both written under term {header.term}")
        self._saved[writer] = max(header.position, self._saved.get(writer, header.position))

    def _deleted(self) -> None:
        """Check that the run is one that its last worker deletes."""
        self.deletions += 1
        self.note("the run is deleted")
        world = self._world
        if not world.plan.deletes:
            self._violated("the run was deleted")
        # A worker that comes back begins the run again, and one that was away may still go on with the old one.
        self._is_void = True
        self._writers, self._newest = {}, None
        self._deleted_terms = self._claimed

    # ---------------------------------------------------------------- the ends of workers

    def finished(self, fit: Fit) -> None:
        """Check that the final state is durable when a worker finishes, if it is to be kept."""
        self.note(f"{fit.process.name} has finished in {fit.program.state[:6]}")
        world = self._world
        if not world.options.worker.keeps_final_state or world.plan.deletes or not self._is_intact:
            return
        names = checkpoints_among(world.disk.files)
        if not names or not is_final(names[0]):
            self._violated(f"{fit.process.name} has finished, and the newest checkpoint is {names[:1]}")

    def noticed(self, fit: Fit, grace: float) -> None:
        """Note that a worker will be killed."""
        self.note(f"{fit.process.name} gets SIGTERM, {grace:g} s before its end")
        self._notices[fit] = min(self._notices.get(fit, math.inf), fit.clock.now() + grace * fit.process.rate)

    def preempted(self, fit: Fit) -> None:
        """Check that a worker that leaves before its time is up has nothing to lose."""
        self.note(f"{fit.process.name} leaves, preempted, at {fit.position}")
        if fit not in self._notices or not self._is_intact or fit.worker._state.is_lost:
            return
        last = fit.worker._context.last_boundary
        has_time = fit.clock.now() < self._notices[fit] - fit.worker._preemption.reserve
        # A worker whose fit is complete has left the training to the others, unless the final state is kept.
        is_done = fit.position.epoch == self._world.plan.epochs and self._world.plan.deletes
        # A leader that was cut off, and has a successor, saves under its own term.
        is_saved = is_done or covers(self._newest, last) or covers(self._saved.get(fit.worker.worker_id), last)
        if has_time and not is_saved and not self.deletions:
            self._violated(f"{fit.process.name} left early at {last}, and the newest checkpoint is at {self._newest}")

    def killed(self, fit: Fit) -> None:
        """Note a SIGKILL."""
        self.note(f"{fit.process.name} is killed at {fit.position}")

    def failed(self, fit: Fit, error: Exception) -> None:
        """Check that a fit fails only by what its disk or its server has done."""
        self.note(f"{fit.process.name} fails: {error!r}")
        faults = self._world.faults
        is_excused = isinstance(error, StoreError) and not self._is_intact
        # It was away while the others completed and deleted the run.
        is_excused = is_excused or (isinstance(error, NotSharedError | RunMismatchError) and self.deletions > 0)
        is_excused = is_excused or (isinstance(error, RestoreTimeoutError) and faults.total() > 0)
        if not is_excused:
            raise error

    def ended(self) -> None:
        """Check that a run that nothing happened to has paid for one training, and has left what it should."""
        world, plan = self._world, self._world.plan
        bill: Any = plan.epochs * plan.batches * plan.at_once
        is_shared = plan.workers == 1 or (plan.journal and plan.save_freq is not False) or plan.standby
        if not world.faults and is_shared and self.asks != bill:
            self._violated(f"{self.asks} answers were paid for, and one training has {bill}")
        if not world.faults and plan.deletes and world.disk.files:
            self._violated(f"{sorted(world.disk.files)} are left of a run that has finished")
