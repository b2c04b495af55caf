"""Run the lives of a run: start each worker, do to it what is planned, and start it again until it ends.

It stands for a Job controller and its kubelets: a worker that exits non-zero or is killed is started again under the
same name, and a SIGTERM is followed by a SIGKILL when the grace period has expired.
"""

from __future__ import annotations

import math
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tests.chaos import operators
from tests.chaos.faults import Target, inject
from tests.chaos.history import Command, Journalist, Life, Story, read_life
from tests.chaos.observer import Observer
from tests.chaos.places import Places, names_in
from tests.chaos.plan import ENDS, PLATFORM_MARGIN, How, Kill, Place, Run, grace_period
from tests.support.fork_server import children_of_the_server
from tests.support.processes import Child
from tests.support.proxy import Proxy

LIFE = "tests.chaos.life:live"
# A worker that is started again so often does not come to its end.
_MOST_LIVES = 40
# Seconds before a worker is started again that has failed by itself. Each failure in a row doubles them.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 3.0
# Seconds. A life that takes longer hangs.
_LONGEST_LIFE: Final = 90.0
_SIGNALS: Final[dict[How, signal.Signals]] = {
    "SIGKILL": signal.SIGKILL,
    "SIGTERM": signal.SIGTERM,
    "cut off": signal.SIGTERM,
    "eviction": signal.SIGTERM,
    "Ctrl-C": signal.SIGINT,
    "SIGTERM to all": signal.SIGTERM,
    "SIGKILL to all": signal.SIGKILL,
}
# What has interrupted a life, where several have: the first of these.
_ORDER: Final[tuple[How, ...]] = (
    "SIGKILL",
    "SIGKILL to all",
    "crash",
    "eviction",
    "cut off",
    "Ctrl-C",
    "exception",
    "SIGTERM",
    "SIGTERM to all",
    "pause",
)
_DEADLY: Final[frozenset[How]] = frozenset({"SIGKILL", "SIGKILL to all"})
_ERROR: Final = re.compile(r"^distributed_backup\.\S*\.(\w+): ", re.MULTILINE)


@dataclass(slots=True, kw_only=True)
class _Running:
    """A life that goes on. `notice` is the instant of its first SIGTERM, `ended` that of its end."""

    child: Child
    path: Path
    grace: float
    began: float
    ways: set[How] = field(default_factory=set)
    notice: float | None = None
    ended: float = math.inf

    def watch(self) -> None:
        """Note the end when it comes: the thread of the life may be busy with a fault."""
        self.child.await_end()
        self.ended = time.monotonic()

    def send(self, how: How) -> bool:
        """Send the signal of an interruption. Return False if the process has ended."""
        number = _SIGNALS[how]
        at = time.monotonic()
        try:
            self.child.kill(number)
        except ProcessLookupError:
            return False
        self.ways.add(how)
        if number == signal.SIGTERM and self.notice is None:
            self.notice = at
        return True


class Supervisor:
    """Carries out one run. Its files go to `logs`."""

    def __init__(self, run: Run, place: Place, places: Places, logs: Path) -> None:
        self._run, self._place, self._places, self._logs = run, place, places, logs
        self.story = Story(store=places.store, coordinator=places.coordinator)
        self._running: dict[int, _Running] = {}
        self._lock = threading.Lock()
        self._fault_lock = threading.Lock()
        self._observer = Observer(place)

    def carry_out(self) -> Story:
        """Run all workers to their end. A worker that hangs is a problem of the story."""
        self._logs.mkdir(parents=True, exist_ok=True)
        workers = range(len(self._run.kills))
        with self._observer, ThreadPoolExecutor(len(workers)) as pool:
            for lives in pool.map(self._worker, workers):
                self.story.lives += lives
        self.story.samples = self._observer.samples
        self.story.left = names_in(self._place)
        self.story.keys = self._keys()
        self.story.problems += [f"leftovers: process {pid} still runs" for pid in children_of_the_server()]
        return self.story

    def _keys(self) -> dict[str, int]:
        """Return the keys of the run on its server, with the milliseconds for which they stay. -1 is without limit."""
        if self._places.server is None:
            return {}
        client = self._places.server.client()
        prefix = f"distributed-backup:{{{self._place.run_id}}}:"
        return {
            key.removeprefix(prefix): int(client.pttl(key))
            for key in client.scan_iter(match=f"*{self._place.run_id}*", count=1000)
        }

    # ---------------------------------------------------------------- lives

    def _worker(self, worker: int) -> list[Life]:
        lives: list[Life] = []
        kills = list(self._run.kills[worker])
        with ExitStack() as stack:
            proxy, place = None, self._place
            if self._places.server is not None:
                proxy = stack.enter_context(Proxy(self._places.server.address))
                place = _through(proxy, place, self._places.server.url)
            failures = 0
            for number in range(_MOST_LIVES):
                lives.append(self._live(worker, number, place, proxy, _taken(kills)))
                if lives[-1].exit_code == 0 or self.story.problems:
                    return lives
                failures = failures + 1 if lives[-1].how is None else 0
                # As a Job controller: a disk that is full for seconds must not use all lives up.
                threading.Event().wait(min(_FIRST_PAUSE * 2**failures, _LONGEST_PAUSE) if failures else 0.0)
        self.story.problems.append(f"ends: worker {worker} has not finished in {_MOST_LIVES} lives")
        return lives

    def _live(self, worker: int, number: int, place: Place, proxy: Proxy | None, kills: tuple[Kill, ...]) -> Life:
        path = self._logs / f"w{worker}-{number}.log"
        log = path.with_suffix(".txt")
        target = Target(place=self._place, places=self._places, proxy=proxy, kill_all=self._kill_all)
        began = time.monotonic()
        with Child(LIFE, self._run, place, path, number, kills, log=log) as child:
            running = _Running(child=child, path=path, grace=grace_period(kills), began=began)
            self._running[worker] = running
            watch = threading.Thread(target=running.watch, daemon=True)
            watch.start()
            for kill in kills:
                if not self._happen(running, kill, target):
                    break
            exit_code = self._ended(running)
            watch.join()
            del self._running[worker]
            output = child.output()
        return self._life(running, exit_code, output)

    def _life(self, running: _Running, exit_code: int, output: str) -> Life:
        life = read_life(running.path, exit_code=exit_code, how=None)
        if life.crashed is not None:
            running.ways.add("crash")
        if exit_code == 1 and "PlannedError" in output:
            running.ways.add("exception")
        if life.pauses:
            running.ways.add("pause")
        # A process that has ended by itself takes a signal until its parent knows.
        life.ways = frozenset(running.ways - (_DEADLY if exit_code != -signal.SIGKILL else set()))
        life.how = next((how for how in _ORDER if how in life.ways), None)
        life.began, life.ended = running.began, running.ended
        life.notice, life.grace = running.notice, running.grace
        life.newest = self._observer.look()
        life.output = output
        errors = _ERROR.findall(output)
        life.error = errors[-1] if errors else None
        return life

    def _ended(self, running: _Running) -> int:
        """Wait for the end of a life, and return its exit code. Kill it when its grace period has expired."""
        while True:
            expiry = running.began + _LONGEST_LIFE
            if running.notice is not None:
                expiry = running.notice + running.grace + PLATFORM_MARGIN
            try:
                # Another worker's interruption may be one of this life, too.
                return running.child.join(max(0.0, min(0.5, expiry - time.monotonic())))
            except AssertionError as error:
                if time.monotonic() < expiry:
                    continue
                text = f"{running.path.stem} outlives its time: {str(error)[-2000:]}"
                self.story.problems.append(f"ends: {text}")
                running.child.kill(signal.SIGKILL)
                running.ways.add("SIGKILL")
                return running.child.join()

    # ---------------------------------------------------------------- what happens to them

    def _happen(self, running: _Running, kill: Kill, target: Target) -> bool:
        """Let an interruption happen when the child asks for it. Return False if the life ends before."""
        if kill.how in {"exception", "crash"}:
            return False
        try:
            running.child.expect("kill", timeout=_LONGEST_LIFE)
        except AssertionError:
            return False
        threading.Event().wait(kill.delay)
        if kill.how in ENDS:
            self._end(running, kill)
            return False
        if kill.how == "pause":
            return self._pause(running, kill)
        if kill.how == "command":
            self._command(running, kill)
            return True
        self._inject(running, kill, target)
        return True

    def _end(self, running: _Running, kill: Kill) -> None:
        if kill.how in {"SIGTERM to all", "SIGKILL to all"}:
            self._send_to_all(kill.how)
            return
        running.send(kill.how)
        if kill.how == "eviction":
            threading.Event().wait(kill.seconds)
            running.send("SIGKILL")

    def _send_to_all(self, how: How) -> None:
        for each in list(self._running.values()):
            each.send(how)

    def _kill_all(self) -> None:
        self._send_to_all("SIGKILL to all")

    def _pause(self, running: _Running, kill: Kill) -> bool:
        try:
            running.child.kill(signal.SIGSTOP)
            threading.Event().wait(kill.seconds)
            # Now, because it writes nothing itself.
            Journalist(running.path).note("paused", kill.seconds)
            running.child.kill(signal.SIGCONT)
        except ProcessLookupError:
            return False
        return True

    def _inject(self, running: _Running, kill: Kill, target: Target) -> None:
        # One at a time: a server that is down can't be emptied, and a damaged file is no copy to mend it from.
        with self._fault_lock if kill.how in {"server restart", "FLUSHALL", "damage"} else nullcontext():
            fault = inject(kill, target)
        if kill.how == "FLUSHALL":
            Journalist(running.path).note("flushed")
        self.story.faults.append(fault)

    def _command(self, running: _Running, kill: Kill) -> None:
        if not operators.is_possible(kill.detail, self._place):
            return
        at = time.monotonic()
        with self._lock:
            number = len(self.story.commands) + 1
            self.story.commands.append(Command(words=kill.detail, at=at, until=at, code=-1, output=""))
        log = self._logs / f"command-{number}.txt"
        code, output = operators.call(kill.detail, self._place, log)
        done = Command(words=kill.detail, at=at, until=time.monotonic(), code=code, output=output)
        self.story.commands[number - 1] = done


def _through(proxy: Proxy, place: Place, url: str) -> Place:
    """Return the place as a worker reaches it that connects through a proxy."""
    coordinator = proxy.url() if place.coordinator == url else place.coordinator
    return replace(
        place, backup_dir=proxy.url() if place.backup_dir == url else place.backup_dir, coordinator=coordinator
    )


def _taken(kills: list[Kill]) -> tuple[Kill, ...]:
    """Take the interruptions of the next life: those that it lives through, up to the first one that ends it."""
    taken: list[Kill] = []
    while kills and (not taken or taken[-1].how not in ENDS):
        taken.append(kills.pop(0))
    return tuple(taken)
