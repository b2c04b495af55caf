"""Test `SignalWatch` with real signals to this process, and `ExitWatchdog`. Fits are in tests/integration."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import pytest

from distributed_backup.preemption.signals import SignalWatch
from distributed_backup.preemption.watchdog import ExitWatchdog

PATIENCE = 30.0


@pytest.fixture
def before() -> Iterator[threading.Event]:
    """Install a handler before ours. Return the event it sets."""
    called = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        called.set()

    previous = signal.signal(signal.SIGUSR1, handler)
    yield called
    signal.signal(signal.SIGUSR1, previous)


@pytest.fixture(autouse=True)
def _no_thread_outlasts_its_test() -> Iterator[None]:
    """What a thread still has to log does not appear in the next test."""
    yield
    for thread in threading.enumerate():
        if thread.name == "distributed-backup-signals":
            thread.join(PATIENCE)
            assert not thread.is_alive()


def watch(on_notice: Callable[[str], None]) -> SignalWatch:
    return SignalWatch([signal.SIGUSR1], on_notice=on_notice)


def send() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def test_a_signal_becomes_a_notice_and_the_earlier_handler_is_called_and_put_back(before: threading.Event) -> None:
    """Two signals give one notice, with the signal's name."""
    handler = signal.getsignal(signal.SIGUSR1)
    noticed = threading.Event()
    names: list[str] = []

    def notice(name: str) -> None:
        names.append(name)
        noticed.set()

    installed = watch(notice)
    assert installed.install()
    send()
    send()
    assert noticed.wait(PATIENCE)
    assert before.is_set()
    installed.uninstall()
    assert names == ["SIGUSR1"]
    assert signal.getsignal(signal.SIGUSR1) is handler


def test_who_chained_to_us_still_reaches_the_earlier_handler_afterwards(before: threading.Event) -> None:
    """A handler that wraps ours stays installed after the fit. Ours then still calls the earlier one."""
    installed = watch(lambda _: None)
    installed.install()
    ours = signal.getsignal(signal.SIGUSR1)
    assert callable(ours)

    def wrapper(number: int, frame: FrameType | None) -> None:
        ours(number, frame)

    signal.signal(signal.SIGUSR1, wrapper)
    installed.uninstall()
    send()
    assert before.is_set()


def test_off_the_main_thread_nothing_is_installed(before: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    """Python handles signals on the main thread only. Off it, `install` logs one warning and returns False."""
    handler = signal.getsignal(signal.SIGUSR1)
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(watch(lambda _: None).install()))
    thread.start()
    thread.join()
    assert results == [False]
    assert signal.getsignal(signal.SIGUSR1) is handler
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@contextmanager
def installed(
    previous: Any = signal.SIG_DFL, on_notice: Callable[[str], None] = lambda _: None
) -> Iterator[SignalWatch]:
    """Install a watch of SIGUSR1 over the handler `previous`."""
    before = signal.signal(signal.SIGUSR1, previous)
    found = watch(on_notice)
    try:
        found.install()
        yield found
    finally:
        found.uninstall()
        signal.signal(signal.SIGUSR1, before)


def test_a_forked_child_ends_by_the_signal_as_if_there_were_no_watch() -> None:
    """A forked child has no thread to serve a notice, so it must die of the signal."""
    with installed() as found:
        # Python drops a signal that arrives during a fork.
        ready, tell_ready = os.pipe()
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                os.write(tell_ready, b"!")
                # A busy loop: a signal just before a blocking call would be handled only after it.
                limit = time.monotonic() + PATIENCE
                while time.monotonic() < limit:
                    pass
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGUSR1)
        _, status = os.waitpid(child, 0)
    for descriptor in (ready, tell_ready):
        os.close(descriptor)
    assert (os.WIFSIGNALED(status), os.WTERMSIG(status)) == (True, signal.SIGUSR1)
    assert found.noted is None


def test_a_signal_that_is_ignored_stays_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """A fit under nohup does not handle the signal, and a warning says so. Its other signals are handled."""
    before = signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    ignored = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    found = SignalWatch([signal.SIGUSR1, signal.SIGUSR2], on_notice=lambda _: None)
    found.install()
    found.keep_in_front()
    send()
    assert (signal.getsignal(signal.SIGUSR1), found.noted) == (signal.SIG_IGN, None)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert (found.noted,) == ("SIGUSR2",)
    found.uninstall()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    signal.signal(signal.SIGUSR1, ignored)
    signal.signal(signal.SIGUSR2, before)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["SIGUSR1 is ignored in this process"]


def test_an_earlier_handler_that_exits_or_raises_does_not_prevent_the_notice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither SystemExit nor an error of the earlier handler reaches the training. Both are logged."""
    errors: list[BaseException] = [SystemExit(0), ValueError()]
    noticed = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        raise errors.pop(0)

    with installed(handler, lambda _: noticed.set()) as found:
        threads = [each for each in threading.enumerate() if each.name == "distributed-backup-signals"]
        send()
        send()
    assert noticed.wait(PATIENCE)
    threads[-1].join(PATIENCE)
    assert (found.noted, errors) == ("SIGUSR1", [])
    logged = [record.getMessage() for record in caplog.records if "before ours raised" in record.getMessage()]
    assert [text.split(" raised ")[1].split(":")[0] for text in logged] == ["SystemExit", "ValueError"]


def test_ctrl_c_as_a_notice_does_not_interrupt_the_save_that_it_asks_for() -> None:
    """Python's own handler of SIGINT, which raises KeyboardInterrupt, is not called."""
    interrupted = False
    with installed(signal.default_int_handler) as found:
        try:
            send()
        except KeyboardInterrupt:
            interrupted = True
    assert (found.noted, interrupted) == ("SIGUSR1", False)


def test_the_first_signal_is_the_one_that_is_noted() -> None:
    """Name and time of the notice are those of the first signal."""
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    found = SignalWatch([signal.SIGUSR1, signal.SIGUSR2], on_notice=lambda _: None)
    found.install()
    send()
    first = found.seconds_since
    os.kill(os.getpid(), signal.SIGUSR2)
    found.uninstall()
    signal.signal(signal.SIGUSR2, before)
    assert found.noted == "SIGUSR1"
    assert found.seconds_since >= first


def test_a_watch_leaves_no_thread_behind() -> None:
    """The thread of a watch ends with its fit, whether a signal arrived or not."""
    noticed = threading.Event()
    for send_it in (False, True):
        before = set(threading.enumerate())
        with installed(on_notice=lambda _: noticed.set()):
            threads = [thread for thread in threading.enumerate() if thread not in before]
            assert [thread.name for thread in threads] == ["distributed-backup-signals"]
            if send_it:
                send()
                assert noticed.wait(PATIENCE)
        threads[0].join(PATIENCE)
        assert not threads[0].is_alive()


# ---------------------------------------------------------------- handlers of others, installed during the fit


def replaced_logged(caplog: pytest.LogCaptureFixture) -> int:
    """Return the warnings that say that our handler was replaced."""
    return sum("was replaced during the fit" in record.getMessage() for record in caplog.records)


def test_a_handler_installed_over_ours_is_called_by_ours(
    before: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, then ours is in front. At the end the other one is installed, as the user has left it."""
    called: list[int] = []

    def theirs(number: int, frame: FrameType | None) -> None:
        called.append(number)

    found = watch(lambda _: None)
    found.install()
    found.keep_in_front()
    assert replaced_logged(caplog) == 0
    for _ in range(2):
        signal.signal(signal.SIGUSR1, theirs)
        found.keep_in_front()
    send()
    found.uninstall()
    assert (found.noted, called, before.is_set()) == ("SIGUSR1", [signal.SIGUSR1], False)
    assert signal.getsignal(signal.SIGUSR1) is theirs
    assert replaced_logged(caplog) == 1


def test_a_handler_that_chains_to_ours_gives_one_notice_and_one_call_of_the_earlier_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Ours in front calls theirs, which calls the handler it has found: ours. That one calls the first handler."""
    called: list[str] = []

    def first(number: int, frame: FrameType | None) -> None:
        called.append("first")

    with installed(first) as found:
        ours = signal.getsignal(signal.SIGUSR1)
        assert callable(ours)

        def theirs(number: int, frame: FrameType | None) -> None:
            called.append("theirs")
            ours(number, frame)

        signal.signal(signal.SIGUSR1, theirs)
        found.keep_in_front()
        threads = [each for each in threading.enumerate() if each.name == "distributed-backup-signals"]
        send()
    threads[-1].join(PATIENCE)
    assert (found.noted, called) == ("SIGUSR1", ["theirs", "first"])
    assert "arrived again" not in caplog.text


def test_a_handler_that_was_replaced_for_a_while_leaves_no_trace(before: threading.Event) -> None:
    """Code that puts back what it has found takes its own handler out of the chain, and the fit restores the first."""
    first = signal.getsignal(signal.SIGUSR1)
    found = watch(lambda _: None)
    found.install()
    theirs = threading.Event()
    kept = signal.signal(signal.SIGUSR1, lambda *_: theirs.set())
    found.keep_in_front()
    signal.signal(signal.SIGUSR1, kept)
    found.keep_in_front()
    send()
    found.uninstall()
    assert (found.noted, before.is_set(), theirs.is_set()) == ("SIGUSR1", True, False)
    assert signal.getsignal(signal.SIGUSR1) is first


def test_a_handler_of_the_event_loop_is_called_and_the_signal_is_a_notice() -> None:
    """`loop.add_signal_handler` during the fit hides ours until the next boundary, and removing it does, too."""

    async def run() -> None:
        loop, theirs = asyncio.get_running_loop(), asyncio.Event()
        first, second = (watch(lambda _: None) for _ in range(2))
        first.install()
        loop.add_signal_handler(signal.SIGUSR1, theirs.set)
        first.keep_in_front()
        send()
        async with asyncio.timeout(PATIENCE):
            await theirs.wait()
        assert first.noted == "SIGUSR1"
        first.uninstall()
        second.install()
        loop.remove_signal_handler(signal.SIGUSR1)
        second.keep_in_front()
        send()
        second.uninstall()
        assert second.noted == "SIGUSR1"

    before = signal.getsignal(signal.SIGUSR1)
    asyncio.run(run())
    signal.signal(signal.SIGUSR1, before)


def test_watches_may_end_in_any_order(before: threading.Event) -> None:
    """400 overlapping fits leave the first handler, and each one noted the signal that came while it ran."""
    handler = signal.getsignal(signal.SIGUSR1)
    running = watch(lambda _: None)
    running.install()
    ended = []
    for _ in range(400):
        following = watch(lambda _: None)
        following.install()
        running.uninstall()
        ended.append(running)
        running = following
    send()
    assert running.noted == "SIGUSR1"
    assert before.is_set()
    assert not any(each.noted for each in ended)
    running.uninstall()
    assert signal.getsignal(signal.SIGUSR1) is handler


def test_a_watch_that_ended_off_the_main_thread_acts_as_if_it_were_absent(before: threading.Event) -> None:
    """Its handler can't be removed there. It calls the earlier one, and the next watch removes it."""
    handler = signal.getsignal(signal.SIGUSR1)
    for _ in range(2):
        found = watch(lambda _: None)
        found.install()
        thread = threading.Thread(target=found.uninstall)
        thread.start()
        thread.join()
        before.clear()
        send()
        assert (found.noted, before.is_set()) == (None, True)
    last = watch(lambda _: None)
    last.install()
    last.uninstall()
    assert signal.getsignal(signal.SIGUSR1) is handler


def test_signals_that_are_ignored_at_the_end_of_the_process_are_not_handled(before: threading.Event) -> None:
    """Python sets handlers to the default while it takes modules down, but leaves an ignored signal."""
    found = watch(lambda _: None)
    found.install()
    found.ignore_from_now_on()
    send()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    found.uninstall()
    assert (found.noted, before.is_set()) == (None, False)


# ---------------------------------------------------------------- the watchdog


def watchdogs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "distributed-backup-watchdog"]


def started(act: Callable[[], object]) -> ExitWatchdog:
    watchdog = ExitWatchdog(act)
    watchdog.start()
    return watchdog


def test_the_watchdog_acts_at_the_earliest_of_its_instants() -> None:
    """An earlier instant replaces a later one, and a later one has no effect."""
    acted, begin = threading.Event(), time.monotonic()
    watchdog = started(acted.set)
    watchdog.arm(PATIENCE)
    watchdog.arm(0.05)
    watchdog.arm(PATIENCE)
    assert acted.wait(PATIENCE / 2)
    assert time.monotonic() - begin >= 0.05


def test_the_watchdog_acts_once_and_its_thread_ends() -> None:
    """A watchdog that is armed twice acts once."""
    calls: list[float] = []
    watchdog = started(lambda: calls.append(time.monotonic()))
    (thread,) = watchdogs()
    watchdog.arm(0.1)
    watchdog.arm(0.05)
    thread.join(PATIENCE)
    watchdog.arm(0.0)
    assert (len(calls), watchdogs()) == (1, [])


def test_a_disarmed_watchdog_does_not_act_and_its_thread_ends() -> None:
    """A disarmed watchdog never acts, even if it is armed again. Its instant need not have come."""
    calls: list[None] = []
    for seconds in (None, 0.05, PATIENCE):
        watchdog = started(lambda: calls.append(None))
        (thread,) = watchdogs()
        if seconds is not None:
            watchdog.arm(seconds)
        watchdog.disarm()
        thread.join(PATIENCE / 2)
        assert (calls, watchdogs()) == ([], [])
        watchdog.arm(0.0)
        watchdog.start()
        for again in watchdogs():
            again.join(PATIENCE)
        assert calls == []


def test_a_process_that_can_start_no_thread_any_more_is_still_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It shuts down, or has reached its limit of threads."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    acted = threading.Event()
    watchdog = started(acted.set)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        threading.Thread().start()
    watchdog.arm(0.01)
    assert acted.wait(PATIENCE)
