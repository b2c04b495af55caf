"""One life of a worker: a fit in a child process, which reports when it is to be killed. Imports synalinks."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import synalinks

from distributed_backup import BackupAndRestore, LeaseTimings
from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.observability.events import Event, Sink
from distributed_backup.training.answers import Answers
from tests.chaos import bugs, disk
from tests.chaos.history import Journalist
from tests.chaos.plan import EPOCHS, STEPS, Kill, Place, Run, grace_period
from tests.chaos.programs import build
from tests.chaos.provider import Provider, token_of
from tests.integration.resume_scenarios import strict
from tests.support.programs import complete_state

Report = Callable[..., None]
# The part of the requests that fail.
_FAILURES = {"failing": 0.2, "refused": 0.3}
_SHORT_LEASE = LeaseTimings(duration=1.0, renew_deadline=0.7, retry_period=0.1)
_TOKEN = re.compile(rb'"(w[0-9]+-[0-9]+\.[0-9]+)"')


class PlannedError(Exception):
    """The exception that ends a fit."""


class Observer:
    """Notes the events of this life, and reports when an interruption is due."""

    def __init__(self, report: Report, path: Path, kills: tuple[Kill, ...]) -> None:
        self._report = report
        self._journalist = Journalist(path)
        self.life = path.stem
        self._lock = threading.Lock()
        self._kills = list(kills)
        self._left = kills[0].count if kills else 0
        self.provider: Provider | None = None
        self.raises = False
        # Without a journal, the fit sees an answer as soon as it comes.
        self.sees_at_once = False

    def note(self, kind: str, *fields: object) -> None:
        self._journalist.note(kind, *fields)
        if kind == "seen" and not str(fields[0]).startswith(f"{self.life}."):
            self._count("replayed")
        if kind == "answered" and self.sees_at_once:
            self.note("seen", *fields)
        self._count(kind)

    def step(self, kind: str, step: str, name: str) -> None:
        """Count a step of a commit or an append, and kill this process if it is time to."""
        with self._lock:
            kill = self._due(kind)
            if kill is not None:
                self._journalist.note("crash", f"{kind}:{step.replace(' ', '-')}", name)
                os.kill(os.getpid(), signal.SIGKILL)

    def _count(self, kind: str) -> None:
        with self._lock:
            kill = self._due(kind)
        if kill is not None:
            self._interrupt(kill)

    def _due(self, kind: str) -> Kill | None:
        """Count an event. Return the interruption that is due at it."""
        if not self._kills or kind != self._kills[0].event:
            return None
        self._left -= 1
        if self._left > 0:
            return None
        kill = self._kills.pop(0)
        self._left = self._kills[0].count if self._kills else 0
        return kill

    def _interrupt(self, kill: Kill) -> None:
        if kill.how == "exception":
            self.raises = True
            return
        if kill.how == "cut off" and self.provider is not None:
            self.provider.is_hanging = True
        self._report("kill")

    def emit(self, event: Event) -> None:
        """Note an event of the worker."""
        if event.kind == "restored":
            self.note("start", event.fields["epoch"], event.fields["batch"])
        self.note("event", event.kind, orjson.dumps(dict(event.fields)).decode())

    def close(self, timeout: float) -> None:
        """Do nothing: each event is in the file already."""


class Boundaries(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Notes the state at each boundary, and raises if it is time to."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._note(self._epoch, batch + 1)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._note(self._epoch, STEPS + batch + 1)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._note(epoch + 1, 0)

    def _note(self, epoch: int, batch: int) -> None:
        if self._observer.raises:
            self._observer.raises = False
            raise PlannedError
        self._observer.note("boundary", epoch, batch, digest(self.program))


class Observed(BackupAndRestore):
    """A callback whose events are noted."""

    observer: Observer

    def _event_sinks(self) -> tuple[Sink, ...]:
        return (self.observer,)


def digest(program: Any) -> str:
    """Return a digest of the variables without metrics, and of both random generators."""
    state = complete_state(program)
    state["variables"].pop("metrics")
    data = orjson.dumps(state, option=orjson.OPT_SORT_KEYS, default=repr)
    return hashlib.sha256(data).hexdigest()[:16]


def observe(observer: Observer) -> None:
    """Note what becomes durable, and what the fit sees, for the rest of this process."""
    ask, ask_stream, append = Answers.ask, Answers.ask_stream, JournalWriter.append

    async def noted(self: Any, key: Any, request: Any, codec: Any) -> Any:
        response = await ask(self, key, request, codec)
        observer.note("seen", token_of(response))
        return response

    async def noted_stream(self: Any, key: Any, request: Any, codec: Any) -> Any:
        chunks = await ask_stream(self, key, request, codec)

        async def pass_on() -> Any:
            token = ""
            async for chunk in chunks:
                token = token_of(chunk) if hasattr(chunk, "id") else token
                yield chunk
            observer.note("seen", token)

        return pass_on()

    def appended(self: Any, record: Any, done: Callable[[], None]) -> None:
        def durable() -> None:
            if hasattr(record, "value"):
                observer.note("durable", _token_in(record.value))
            done()

        append(self, record, durable)

    Answers.ask, Answers.ask_stream, JournalWriter.append = noted, noted_stream, appended  # type: ignore[method-assign]


def _token_in(value: bytes) -> str:
    """Return the token in a recorded answer."""
    found = _TOKEN.search(value)
    return "" if found is None else found[1].decode()


def live(report: Report, run: Run, place: Place, path: Path, number: int, kills: tuple[Kill, ...]) -> None:
    """Run the fit until it ends or is killed. `kills` are pauses, and what may end this life after them."""
    strict()
    logging.getLogger("synalinks").setLevel(logging.ERROR)
    observer = Observer(report, path, kills)
    with_journal = bugs.plant(run.bug)
    observer.sees_at_once = not with_journal
    observe(observer)
    disk.report_steps(observer.step)
    if place.full is not None:
        disk.fill(Path(place.full), Path(place.backup_dir), lambda name: observer.note("full", name))
    if run.keeps_all:
        CheckpointStore._unneeded = lambda *arguments: ()  # type: ignore[assignment,method-assign]
    provider = Provider(path.stem, observer.note, failures=_FAILURES.get(run.program, 0.0), latency=run.latency)
    observer.provider = provider
    provider.install()
    asyncio.run(_fit(run, place, observer, provider, seed=run.seed + number, journal=with_journal, kills=kills))


async def _fit(
    run: Run, place: Place, observer: Observer, provider: Provider, *, seed: int, journal: bool, kills: tuple[Kill, ...]
) -> None:
    built = await build(
        run.program,
        provider,
        seed=seed,
        is_shuffled=run.is_shuffled,
        on_tool=lambda name: observer.note("tool", name),
    )
    backup = Observed(
        place.backup_dir,
        save_freq=run.save_freq,
        double_checkpoint=run.keeps_two,
        delete_checkpoint=run.deletes,
        coordinator=place.coordinator,
        run_id=place.run_id,
        worker_id=observer.life,
        standby=run.standby,
        grace_period=grace_period(kills),
        # The last worker out waits for dead ones until their lease has lapsed.
        timings=_SHORT_LEASE if place.is_leased or run.deletes else None,
        journal=journal,
        journal_of=built.journal_of or None,
    )
    backup.observer = observer
    await built.program.fit(**built.data, epochs=EPOCHS, verbose=0, callbacks=[Boundaries(observer), backup])
    observer.note("end", digest(built.program))
