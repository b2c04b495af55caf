"""Test `SignalWatch` with real signals to this process, and `ExitWatchdog`. Fits are in tests/integration."""

from __future__ import annotations

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


def test_a_signal_that_was_ignored_before_stays_ignored_when_the_fit_is_over() -> None:
    """An ignored signal stays ignored, even if a handler that wraps ours still calls it."""
    with installed(signal.SIG_IGN) as found:
        ours = signal.getsignal(signal.SIGUSR1)
        assert callable(ours)

        def wrapper(number: int, frame: FrameType | None) -> None:
            ours(number, frame)

        signal.signal(signal.SIGUSR1, wrapper)
        found.uninstall()
        send()
    assert found.noted is None


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


# ---------------------------------------------------------------- the watchdog


def test_the_watchdog_acts_at_the_earliest_of_its_instants() -> None:
    """An earlier instant replaces a later one, and a later one has no effect."""
    acted, begin = threading.Event(), time.monotonic()
    watchdog = ExitWatchdog(acted.set)
    watchdog.arm(PATIENCE)
    watchdog.arm(0.05)
    watchdog.arm(PATIENCE)
    assert acted.wait(PATIENCE / 2)
    assert time.monotonic() - begin >= 0.05


def test_the_watchdog_acts_once() -> None:
    """A watchdog that is armed twice acts once."""
    calls: list[float] = []
    watchdog = ExitWatchdog(lambda: calls.append(time.monotonic()))
    watchdog.arm(0.1)
    first = watchdog._timer
    watchdog.arm(0.05)
    for timer in (first, watchdog._timer):
        assert timer is not None
        timer.join(PATIENCE)
    assert len(calls) == 1


def test_a_disarmed_watchdog_does_not_act() -> None:
    """A disarmed watchdog never acts, even if it is armed again."""
    calls: list[None] = []
    watchdog = ExitWatchdog(lambda: calls.append(None))
    watchdog.arm(0.05)
    timer = watchdog._timer
    watchdog.disarm()
    watchdog.arm(0.01)
    assert timer is not None
    assert timer is watchdog._timer
    timer.join(PATIENCE)
    assert calls == []
