"""`SignalWatch` with real signals to this process; what it does in a fit is in tests/integration/test_preemption.py."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from distributed_backup.preemption import SignalWatch

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


def watch(
    on_notice: Callable[[str], None],
    *,
    last_resort: float = PATIENCE,
    on_last_resort: Callable[[], None] = lambda: None,
) -> SignalWatch:
    return SignalWatch([signal.SIGUSR1], on_notice=on_notice, last_resort=last_resort, on_last_resort=on_last_resort)


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


def test_the_last_resort_comes_in_time_though_the_notice_hangs(before: threading.Event) -> None:
    """A coordinator or a disk that hangs must not take it away."""
    hanging, resorted = threading.Event(), threading.Event()

    def hang(name: str) -> None:
        hanging.wait(PATIENCE)

    installed = watch(hang, last_resort=0.05, on_last_resort=resorted.set)
    installed.install()
    send()
    assert resorted.wait(PATIENCE / 2)
    hanging.set()
    installed.uninstall()


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
