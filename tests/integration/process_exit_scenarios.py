"""Preempt real fits and measure until the process has ended, for `test_process_exit`. Imports synalinks.

Run as a script: it forks one child for each case, `AT_ONCE` at a time. Each child ends as a script does, through the
whole exit of the interpreter. The output is one JSON list for each case: name, exit code, seconds from the signal to
the end, output.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import json
import logging
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from distributed_backup import BackupAndRestore, Preempted
from distributed_backup.demo.offline_model import OfflineLanguageModel
from distributed_backup.preemption.process_exit import interpreter_exits
from tests.support.programs import build_program, samples

GRACE_PERIOD = 4.0
EXIT_CODE = 143
# Seconds. Far more than any case takes.
FOREVER = 30.0
# Cases that run at the same time. Most of them wait for the end of their grace period.
AT_ONCE = 4

Call = Callable[[], Awaitable[None]]


class Model(OfflineLanguageModel):
    """A model whose first call reports itself through a pipe, and takes as long as `work`."""

    work: Call
    ready: int
    called = False

    async def _acompletion(self, formatted_messages: Any, **kwargs: Any) -> dict[str, Any]:
        if not self.called:
            self.called = True
            os.write(self.ready, b"!")
            await self.work()
        answer: dict[str, Any] = await super()._acompletion(formatted_messages, **kwargs)
        return answer


async def fit(directory: Path, ready: int, call: Call) -> None:
    program, model = await build_program()
    model.__class__, model.work, model.ready = Model, call, ready
    callback = BackupAndRestore(directory, save_freq=False, grace_period=GRACE_PERIOD, exit_code=EXIT_CODE)
    await program.fit(*samples(4), batch_size=2, minibatch_size=None, epochs=2, verbose=0, callbacks=[callback])


# ---------------------------------------------------------------- the calls


async def short() -> None:
    await asyncio.sleep(0.3)


async def endless() -> None:
    await asyncio.Event().wait()


async def blocks_the_loop() -> None:
    time.sleep(FOREVER)


async def hangs_in_a_thread() -> None:
    await asyncio.to_thread(time.sleep, FOREVER)


# ---------------------------------------------------------------- the programs


async def swallows_cancellation(directory: Path, ready: int) -> None:
    """Train beside a task that ends only by itself."""

    async def stubborn() -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await fit(directory, ready, short)
    task.cancel()


async def hangs_in_its_cleanup(directory: Path, ready: int) -> None:
    """Train within a context whose exit never ends, as that of a client whose server is away."""

    @asynccontextmanager
    async def client() -> Any:
        try:
            yield
        finally:
            await asyncio.Event().wait()

    async with client():
        await fit(directory, ready, short)


async def leaves_a_thread(directory: Path, ready: int) -> None:
    """Train beside a thread that the interpreter waits for. Leave output in the buffer, and an exit function."""
    threading.Thread(target=time.sleep, args=(FOREVER,)).start()
    atexit.register(lambda: print("exit function called"))
    print("printed")
    await fit(directory, ready, short)


async def handler_of_the_loop(directory: Path, ready: int) -> None:
    """Train with a handler of the event loop, which sets the default when it is closed. Send a signal after that."""

    def send() -> None:
        while not interpreter_exits():
            time.sleep(0.001)
        limit = time.monotonic() + 0.2
        while signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN and time.monotonic() < limit:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print, "their handler called")
    threading.Thread(target=send).start()
    await fit(directory, ready, short)


async def goes_on(directory: Path, ready: int) -> None:
    """Catch `Preempted`, work until the grace period is over, and exit with another code."""
    caught = None
    try:
        await fit(directory, ready, short)
    except Preempted as preempted:
        caught = preempted
    await asyncio.sleep(GRACE_PERIOD + 0.5)
    print("caught", caught)
    gc.freeze()  # the rest of the interpreter's exit is not what is tested, and takes seconds
    sys.exit(7)


async def goes_on_and_is_ended(directory: Path, ready: int) -> None:
    """Catch `Preempted`, and send another signal once the grace period is over."""
    with suppress(Preempted):
        await fit(directory, ready, short)
    await asyncio.sleep(GRACE_PERIOD + 0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(FOREVER)


async def handler_that_exits(directory: Path, ready: int) -> None:
    """Train with a handler of the user that leaves with code 0."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    await fit(directory, ready, endless)


def program_with(call: Call) -> Callable[[Path, int], Awaitable[None]]:
    return lambda directory, ready: fit(directory, ready, call)


CASES: dict[str, Callable[[Path, int], Awaitable[None]]] = {
    "short call": program_with(short),
    "call that never ends": program_with(endless),
    "call that blocks the loop": program_with(blocks_the_loop),
    "call that hangs in a thread": program_with(hangs_in_a_thread),
    "task that swallows cancellation": swallows_cancellation,
    "cleanup that hangs": hangs_in_its_cleanup,
    "thread that is left": leaves_a_thread,
    "signals until the end": program_with(short),
    "handler that exits": handler_that_exits,
    "handler of the loop": handler_of_the_loop,
    "goes on": goes_on,
    "goes on and is ended": goes_on_and_is_ended,
}


# ---------------------------------------------------------------- the parent


class Child:
    """A forked child. It gets SIGTERM once its first call has begun, or SIGTERMs until its end if `repeat`."""

    def __init__(self, case: str, log: Path, pid: int, listening: int) -> None:
        self._case, self._log, self._pid, self._listening = case, log, pid, listening
        self._repeat = case == "signals until the end"
        self._signalled: float | None = None

    def ended(self) -> bool:
        """Send the signal that is due. Once the child has ended, print its exit code and its seconds."""
        if self._signalled is None:
            if not select.select([self._listening], [], [], 0)[0]:
                return False
            os.close(self._listening)
            self._signalled = time.monotonic()
            os.kill(self._pid, signal.SIGTERM)
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        seconds = time.monotonic() - self._signalled
        if pid:
            code = os.waitstatus_to_exitcode(status)
            print(json.dumps([self._case, code, seconds, self._log.read_text()]), flush=True)
        elif seconds > FOREVER:
            os.kill(self._pid, signal.SIGKILL)
        elif self._repeat:
            os.kill(self._pid, signal.SIGTERM)
        return pid != 0


def start(case: str, root: Path) -> Child | Awaitable[None]:
    """Fork. Return the program to run in the child, and the child in the parent."""
    listening, ready = os.pipe()
    log = root / f"{case}.log"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads of libraries are idle
        pid = os.fork()
    if pid == 0:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        logging.basicConfig(level=logging.INFO)
        return CASES[case](root / case, ready)
    os.close(ready)
    return Child(case, log, pid, listening)


def main(root: Path) -> Awaitable[None] | None:
    """Run all cases, `AT_ONCE` at a time. Return the program to run in a child, and None in the parent at the end."""
    waiting, running = list(CASES), list[Child]()
    while waiting or running:
        if waiting and len(running) < AT_ONCE:
            started = start(waiting.pop(0), root)
            if not isinstance(started, Child):
                return started
            running.append(started)
        running = [child for child in running if not child.ended()]
        time.sleep(0.001)
    return None


if __name__ == "__main__":
    program = main(Path(sys.argv[1]))
    if program is not None:
        asyncio.run(program)  # type: ignore[arg-type]  # a coroutine
