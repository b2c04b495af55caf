"""`SignalWatch` with real signals to this process, and `LastResort`; what they do in a fit is in tests/integration."""

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
    """A handler that was there before, and the event it sets."""
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
    """By name, once; afterwards all is as it was."""
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
    """Somebody wrapped our handler during the fit, so the earlier one can't be put back; it is called all the same."""
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
    """Python handles signals on the main thread only; one warning says so."""
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
    """A watch of SIGUSR1 over a handler that was there before."""
    before = signal.signal(signal.SIGUSR1, previous)
    found = watch(on_notice)
    try:
        found.install()
        yield found
    finally:
        found.uninstall()
        signal.signal(signal.SIGUSR1, before)


def test_a_forked_child_ends_by_the_signal_as_if_there_were_no_watch() -> None:
    """It has no thread that could serve a notice: who terminates it would wait for ever."""
    with installed() as found:
        # Python forgets a signal that comes in the middle of a fork.
        ready, tell_ready = os.pipe()
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                os.write(tell_ready, b"!")
                # Not a call that blocks: a signal that comes just before it would be handled after it.
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
    """Somebody chained to us, so that we are called still."""
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
    """Python's own handler of SIGINT would raise KeyboardInterrupt."""
    interrupted = False
    with installed(signal.default_int_handler) as found:
        try:
            send()
        except KeyboardInterrupt:
            interrupted = True
    assert (found.noted, interrupted) == ("SIGUSR1", False)


def test_the_first_signal_is_the_one_that_is_noted() -> None:
    """Its reason and its time are those of the notice."""
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
    """A process has many fits, one after the other."""
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


# ---------------------------------------------------------------- the last resort


def test_the_last_resort_comes_at_the_earliest_of_its_instants() -> None:
    """Two minutes from a cloud, and then a SIGTERM with less; what is later changes nothing."""
    resorted, begin = threading.Event(), time.monotonic()
    last_resort = ExitWatchdog(resorted.set)
    last_resort.arm(PATIENCE)
    last_resort.arm(0.05)
    last_resort.arm(PATIENCE)
    assert resorted.wait(PATIENCE / 2)
    assert time.monotonic() - begin >= 0.05


def test_the_last_resort_comes_once() -> None:
    """Though it was given two instants."""
    calls: list[float] = []
    last_resort = ExitWatchdog(lambda: calls.append(time.monotonic()))
    last_resort.arm(0.1)
    first = last_resort._timer
    last_resort.arm(0.05)
    for timer in (first, last_resort._timer):
        assert timer is not None
        timer.join(PATIENCE)
    assert len(calls) == 1


def test_the_last_resort_does_not_come_once_it_is_called_off() -> None:
    """The fit has left in time; a signal that comes yet is not its business."""
    calls: list[None] = []
    last_resort = ExitWatchdog(lambda: calls.append(None))
    last_resort.arm(0.05)
    timer = last_resort._timer
    last_resort.disarm()
    last_resort.arm(0.01)
    assert timer is not None
    assert timer is last_resort._timer
    timer.join(PATIENCE)
    assert calls == []
