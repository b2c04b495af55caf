"""Values that are made once for each process, with real forks."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable

import pytest

from distributed_backup.per_process import PerProcess


def in_fork(check: Callable[[], bool]) -> bool:
    """Return what `check` returns in a forked child."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which are what is tested
        child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_value_is_made_once() -> None:
    """Until it is taken."""
    made = PerProcess(object)
    assert made.take() is None
    first = made.get()
    assert made.get() is first
    assert made.take() is first
    assert made.take() is None
    assert made.get() is not first


def test_a_forked_child_makes_its_own() -> None:
    """The parent keeps the one it has."""
    made = PerProcess(os.getpid)
    assert made.get() == os.getpid()
    assert in_fork(lambda: made.get() == os.getpid())
    assert made.get() == os.getpid()


def test_a_forked_child_does_not_take_its_parents() -> None:
    """To close the parent's connection would be to close it for both."""
    made = PerProcess(object)
    first = made.get()
    assert in_fork(lambda: made.take() is None)
    assert made.get() is first


def test_a_child_that_is_forked_while_a_value_is_made_does_not_wait_for_it() -> None:
    """The thread that makes the value does not exist in the child."""
    making, go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    def make() -> int:
        if os.getpid() == parent:
            making.set()
            assert go_on.wait(30.0)
        return os.getpid()

    made = PerProcess(make)
    thread = threading.Thread(target=made.get)
    thread.start()
    assert making.wait(30.0)

    def child_uses_it() -> bool:
        done: list[int] = []
        user = threading.Thread(target=lambda: done.append(made.get()), daemon=True)
        user.start()
        user.join(30.0)
        return done == [os.getpid()]

    try:
        assert in_fork(child_uses_it)
    finally:
        go_on.set()
        thread.join()
    assert made.get() == parent


def test_a_value_that_could_not_be_made_is_made_at_the_next_use() -> None:
    """The error is the maker's."""
    errors = [ConnectionError("down")]

    def make() -> str:
        if errors:
            raise errors.pop()
        return "made"

    made = PerProcess(make)
    with pytest.raises(ConnectionError, match="down"):
        made.get()
    assert made.get() == "made"
