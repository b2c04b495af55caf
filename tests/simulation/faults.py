"""What happens to a simulated run: drawn from its seed, until the plan says that the world is quiet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from distributed_backup.checkpoints.format import checkpoints_among
from tests.simulation.scheduler import Process

if TYPE_CHECKING:
    from tests.simulation.fit import Fit
    from tests.simulation.world import World


class Faults:
    """The faults of one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._choose = world.scheduler.random
        kinds: list[tuple[str, Callable[[], None]]] = [
            ("kill", self._kill),
            ("kill", self._kill),
            ("sigterm", self._sigterm),
            ("sigterm to all", self._sigterm_to_all),
            ("kill all", self._kill_all),
            ("kill in a write", self._kill_in_write),
            ("pause", self._pause),
            ("pause in a write", self._pause_in_write),
            ("pause in an append", self._pause_in_append),
            ("pause in an append", self._pause_in_append),
            ("clock jump", self._jump),
            ("disk slow", self._slow_disk),
        ]
        if self._choose.random() < 0.4:
            kinds += [
                ("partition", self._partition),
                ("network", self._network),
                ("server emptied", self._empty_server),
            ]
        if self._choose.random() < 0.25:
            kinds += [("disk full", self._full_disk), ("disk away", self._disk_away), ("file damaged", self._damage)]
        self._damaged: set[str] = set()
        # Each run has its own mixture.
        self._kinds = self._choose.sample(kinds, self._choose.randint(1, len(kinds)))
        self._mean = self._choose.choice([0.7, 2.0, 8.0])
        if world.plan.is_dense:
            self._kinds = [each for each in kinds if each[0] == "kill" or each[0].startswith("pause")]
            self._mean = self._choose.choice([0.3, 0.7])

    def run(self) -> None:
        """Let things happen until the world is quiet."""
        world = self._world
        while True:
            world.scheduler.pause(self._choose.expovariate(1 / self._mean))
            if world.scheduler.now > world.plan.faults_until:
                break
            name, happen = self._choose.choice(self._kinds)
            world.faults[name] += 1
            happen()
        world.check.note("nothing more happens")

    def _later(self, mean: float, then: Callable[[], None]) -> None:
        delay = self._choose.expovariate(1 / mean)

        def wait() -> None:
            self._world.scheduler.pause(delay)
            then()

        self._world.scheduler.spawn(self._world.cluster, wait)

    def _victims(self) -> list[tuple[int, Fit]]:
        return [(slot, fit) for slot, fit in self._world.live.items() if fit is not None and not fit.process.is_dead]

    # ---------------------------------------------------------------- processes

    def _kill(self) -> None:
        if victims := self._victims():
            self._world.kill(self._choose.choice(victims)[0])

    def _kill_all(self) -> None:
        for slot, _ in self._victims():
            self._world.kill(slot)

    def _kill_in_write(self) -> None:
        kills_all = self._choose.random() < 0.5

        def kill(process: Process) -> None:
            for slot, fit in self._victims():
                if kills_all or fit.process is process:
                    self._world.kill(slot)

        self._world.disk.in_next["write"] = kill

    def _pause_in_write(self) -> None:
        self._world.disk.in_next["write"] = self._suspend

    def _pause_in_append(self) -> None:
        # For long, so that another worker leads when the append ends.
        self._world.disk.in_next["append"] = lambda process: self._suspend(process, 30.0)

    def _sigterm(self) -> None:
        if victims := self._victims():
            self._notice(*self._choose.choice(victims))

    def _sigterm_to_all(self) -> None:
        for slot, fit in self._victims():
            self._notice(slot, fit)

    def _notice(self, slot: int, fit: Fit) -> None:
        world = self._world
        grace = world.plan.grace * self._choose.choice([1.0, 1.0, 0.3])
        world.check.noticed(fit, grace)
        world.scheduler.spawn(fit.process, lambda: fit.worker.give_notice("SIGTERM", grace * fit.process.rate))

        def end() -> None:
            world.scheduler.pause(grace)
            if world.live[slot] is fit:
                world.kill(slot)

        world.scheduler.spawn(world.cluster, end)

    def _pause(self) -> None:
        if victims := self._victims():
            self._suspend(self._choose.choice(victims)[1].process)

    def _suspend(self, process: Process, mean: float | None = None) -> None:
        process.is_paused = True
        self._world.check.note(f"{process.name} is suspended")
        self._later(mean or self._choose.choice([1.0, 30.0]), lambda: self._resume(process))

    def _resume(self, process: Process) -> None:
        self._world.check.note(f"{process.name} goes on")
        self._world.scheduler.resume(process)

    def _jump(self) -> None:
        if victims := self._victims():
            self._choose.choice(victims)[1].process.ahead += self._choose.choice([0.5, 20.0])

    # ---------------------------------------------------------------- network and server

    def _partition(self) -> None:
        if victims := self._victims():
            process, cut_off = self._choose.choice(victims)[1].process, self._world.network.cut_off
            cut_off.add(process)
            self._world.check.note(f"{process.name} is cut off")
            self._later(self._choose.choice([1.0, 20.0]), lambda: cut_off.discard(process))

    def _network(self) -> None:
        network = self._world.network
        network.chance, network.latency = self._choose.choice([0.05, 0.5]), self._choose.choice([0.003, 0.2])

        def heal() -> None:
            network.chance, network.latency = 0.0, 0.003

        self._later(10.0, heal)

    def _empty_server(self) -> None:
        self._world.check.note("the server loses its data")
        self._world.network.empty()

    # ---------------------------------------------------------------- disk

    def _slow_disk(self) -> None:
        self._set_disk(10.0, latency=0.1)

    def _full_disk(self) -> None:
        self._set_disk(5.0, is_full=True)

    def _disk_away(self) -> None:
        self._set_disk(5.0, is_away=True)

    def _damage(self) -> None:
        """Cut a file off, or change a byte in it. Another checkpoint stays sound."""
        files = self._world.disk.files
        sound = [name for name in checkpoints_among(files) if name not in self._damaged]
        names = [name for name in files if name.endswith(".journal")] + sound[: len(sound) - 1]
        if names:
            name = self._choose.choice(names)
            place = self._choose.randrange(len(files[name]) + 1)
            changed = files[name][:place]
            if self._choose.random() < 0.5 and place < len(files[name]):
                changed += bytes([files[name][place] ^ 64]) + files[name][place + 1 :]
            files[name] = changed
            self._damaged.add(name)
            self._world.check.note(f"{name} is damaged")

    def _set_disk(self, mean: float, **changes: object) -> None:
        disk = self._world.disk
        before = {name: False if name != "latency" else 0.002 for name in changes}
        for name, value in changes.items():
            setattr(disk, name, value)
        self._world.check.note(f"disk: {changes}")

        def heal() -> None:
            for name, value in before.items():
                setattr(disk, name, value)

        self._later(mean, heal)
