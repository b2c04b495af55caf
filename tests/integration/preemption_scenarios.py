"""Run a real fit that reports its hooks in a child, for the tests of preemption. Imports synalinks."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import synalinks

from distributed_backup import BackupAndRestore, Preempted
from distributed_backup.demo.offline_model import OfflineLanguageModel
from distributed_backup.preemption.signals import SignalWatch
from distributed_backup.storage.local import LocalStorage
from distributed_backup.training import session as fit_session
from tests.support.jobs import Job
from tests.support.programs import build_program, complete_state, samples

Report = Callable[..., None]


class Reporter(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Reports each hook, and slows the language model down from the hook `slow` of the job."""

    def __init__(self, report: Report, job: Job, model: SlowModel) -> None:
        super().__init__()
        self._report, self._job, self._model = report, job, model
        self._epoch = 0

    def _tell(self, *what: Any) -> None:
        if what == self._job.slow:
            self._model.latency, self._model.blocking = self._job.slow_latency, self._job.blocking
        elif what[0] in {"batch_end", "epoch_end"}:
            self._model.latency, self._model.blocking = self._job.latency, False
        self._report(what[0], what[1:])

    def on_train_begin(self, logs: Any = None) -> None:
        self._tell("train_begin")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch
        self._tell("epoch_begin", epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._tell("batch_begin", self._epoch, batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._tell("batch_end", self._epoch, batch)

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._tell("test_batch_begin", self._epoch, batch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._tell("epoch_end", epoch)

    def on_train_end(self, logs: Any = None) -> None:
        self._tell("train_end")


class SlowModel(OfflineLanguageModel):
    """Reports a slow call when it begins."""

    report: Report | None = None
    blocking = False

    async def _acompletion(self, formatted_messages: Any, **kwargs: Any) -> dict[str, Any]:
        if self.latency >= 1.0 and self.report is not None:
            self.report("slow_call")
        if self.blocking:
            time.sleep(self.latency)
        answer: dict[str, Any] = await super()._acompletion(formatted_messages, **kwargs)
        return answer


async def fit(report: Report, job: Job, *before: Any, model_class: type[SlowModel] = SlowModel) -> dict[str, Any]:
    program, model = await build_program(optimizer=job.optimizer, latency=job.latency)
    model.__class__, model.report = model_class, report
    program.steps_per_execution = job.steps_per_execution
    x, y = samples(8)
    callback = BackupAndRestore(job.backup_dir, **job.arguments)
    try:
        await program.fit(
            x,
            y,
            validation_split=0.25,
            epochs=job.epochs,
            batch_size=2,
            validation_batch_size=1,
            minibatch_size=None,
            verbose=0,
            callbacks=[Reporter(report, job, model), *before, callback],
        )
    except Preempted as preempted:
        report("preempted", (preempted.position, preempted.checkpoint, preempted.seconds, preempted.code))
        raise
    return {"calls": model.calls, "state": complete_state(program)}


def train(report: Report, job: Job) -> dict[str, Any]:
    return asyncio.run(fit(report, job))


class Mover(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Changes the working directory when the fit begins, as tuners do for each trial."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    def on_train_begin(self, logs: Any = None) -> None:
        os.chdir(self._directory)


def train_elsewhere(report: Report, job: Job, base: Path, own: Path) -> dict[str, Any]:
    """Make the callback in one working directory and train in another."""
    os.chdir(base)
    return asyncio.run(fit(report, job, Mover(own)))


def train_with_handler(report: Report, job: Job) -> dict[str, Any]:
    """Train with a handler of the user, and report its call and its return."""

    def theirs(number: int, frame: Any) -> None:
        report("their_handler", number)

    signal.signal(signal.SIGTERM, theirs)
    try:
        return train(report, job)
    finally:
        report("handler_is_back", signal.getsignal(signal.SIGTERM) is theirs)


def train_with_exiting_handler(report: Report, job: Job) -> dict[str, Any]:
    """Train with a handler of the user that exits before our thread runs."""
    watch = SignalWatch._watch

    def late(self: SignalWatch) -> None:
        number = self._notes.get()
        time.sleep(1.0)
        self._notes.put(number)
        watch(self)

    SignalWatch._watch = late  # type: ignore[method-assign]
    signal.signal(signal.SIGTERM, lambda number, frame: exit(7))
    return train(report, job)


def train_with_loop_handler(report: Report, job: Job) -> dict[str, Any]:
    """Train with a handler that the event loop gets during the fit."""

    class Adding(synalinks.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, report, "their_handler")

    return asyncio.run(fit(report, job, Adding()))


def train_with_ignored_signal(report: Report, job: Job) -> dict[str, Any]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return train(report, job)


def train_in_a_thread(report: Report, job: Job) -> Any:
    results: list[Any] = []

    def run() -> None:
        results.append(train(report, job))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def train_with_slow_disk(report: Report, job: Job, seconds: float) -> dict[str, Any]:
    """Train with an fsync that takes `seconds` and is reported."""
    original = LocalStorage._sync

    def slow(self: LocalStorage, descriptor: int) -> None:
        report("sync")
        time.sleep(seconds)
        original(self, descriptor)

    LocalStorage._sync = slow  # type: ignore[method-assign]
    return train(report, job)


def train_with_hanging_commit(report: Report, job: Job) -> dict[str, Any]:
    """Train with a rename that never returns, as on a lost network disk. Report a checkpoint's."""

    def hang(self: LocalStorage, partial: Any, path: Any) -> None:
        if path.suffix == ".ckpt":
            report("hanging")
        threading.Event().wait()

    LocalStorage._publish = hang  # type: ignore[method-assign]
    return train(report, job)


def train_with_failing_disk(report: Report, job: Job) -> dict[str, Any]:
    """Train with commits that all fail with ENOSPC."""

    def full(self: LocalStorage, descriptor: int, chunk: bytes | memoryview) -> None:
        if bytes(chunk).startswith(b'{"batch"'):
            report("disk_full")
            raise OSError(28, "No space left on device")
        original(self, descriptor, chunk)

    original = LocalStorage._write
    LocalStorage._write = full  # type: ignore[method-assign]
    return train(report, job)


def train_after_a_death(report: Report, job: Job) -> dict[str, Any]:
    """Let a fit die in a callback, and run the next one in the same process and task, as in a notebook."""

    class Dying(synalinks.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise RuntimeError("dying")

    async def both() -> dict[str, Any]:
        try:
            await fit(report, job, Dying())
        except RuntimeError as error:
            report("died", str(error))
        return await fit(report, job)

    return asyncio.run(both())


def train_after_deaths(report: Report, job: Job) -> dict[str, Any]:
    """Let fits die in other directories of one task. Then train within a batch of another fit, and send SIGTERM."""

    class Dying(synalinks.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            raise RuntimeError("dying")

    class Looking(synalinks.callbacks.Callback):  # type: ignore[misc]
        def __init__(self, event: str, signals: bool) -> None:
            super().__init__()
            self._event, self._signals = event, signals

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            report(self._event, sorted(Path(each.location).name for each in fit_session._open_sessions))
            if self._signals:
                signal.raise_signal(signal.SIGTERM)

    def job_at(number: int) -> Job:
        return replace(job, backup_dir=job.backup_dir.with_name(f"run-{number}"))

    class Nesting(SlowModel):
        async def _acompletion(self, formatted_messages: Any, **kwargs: Any) -> dict[str, Any]:
            self.__class__ = SlowModel
            await fit(report, job_at(5), Looking("open_sessions_within", signals=True))
            raise AssertionError

    async def run() -> dict[str, Any]:
        for number in range(3):
            with suppress(RuntimeError):
                await fit(report, job_at(number), Dying())
        await fit(report, replace(job_at(3), epochs=1), Looking("open_sessions", signals=False))
        return await fit(report, job_at(4), model_class=Nesting)

    return asyncio.run(run())


def train_and_die(report: Report, job: Job) -> None:
    """Let a fit die in a callback with a commit pending, and run the exit functions of the interpreter."""
    import atexit

    try:
        train_after_epoch_one_die(report, job)
    except RuntimeError:
        atexit._run_exitfuncs()  # what the interpreter does at its exit, and a forked child does not


def train_after_epoch_one_die(report: Report, job: Job) -> None:
    class Dying(synalinks.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise RuntimeError("dying")

    async def run() -> None:
        await fit(report, job, Dying())

    train_slow = LocalStorage._sync

    def slow(self: LocalStorage, descriptor: int) -> None:
        time.sleep(0.2)
        train_slow(self, descriptor)

    LocalStorage._sync = slow  # type: ignore[method-assign]
    asyncio.run(run())


def train_with_signal_at(report: Report, job: Job, hook: str) -> dict[str, Any]:
    """Send SIGTERM to this process inside a hook of another callback."""

    class Signalling(synalinks.callbacks.Callback):  # type: ignore[misc]
        fired = False

        def __getattribute__(self, name: str) -> Any:
            if name == hook and not Signalling.fired:

                def fire(*args: Any, **kwargs: Any) -> None:
                    Signalling.fired = True
                    report("fired")
                    signal.raise_signal(signal.SIGTERM)
                    # The next hook must run after the notice.
                    deadline = time.monotonic() + 5
                    while not _notice_given(job) and time.monotonic() < deadline:
                        time.sleep(0.001)

                return fire
            return super().__getattribute__(name)

    return asyncio.run(fit(report, job, Signalling()))


def train_and_be_told_at_the_end(report: Report, job: Job, owner: type, what: str, hangs: bool) -> dict[str, Any]:
    """Send SIGTERM to this process in a method that a complete fit calls as it leaves. The method may hang."""
    original = getattr(owner, what)

    def told(*arguments: Any) -> Any:
        report("leaving")
        signal.raise_signal(signal.SIGTERM)
        if hangs:
            threading.Event().wait()
        return original(*arguments)

    setattr(owner, what, told)
    return train(report, job)


def _notice_given(job: Job) -> bool:
    return any(session._worker.notice_given for session in fit_session._open_sessions)
