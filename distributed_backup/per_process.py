"""Values that a forked child must not share with its parent.

Two processes on one connection would read each other's replies, and the threads of a client do not survive a fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


class PerProcess[T]:
    """A value that is made at its first use, and made anew in a forked child.

    Thread-safe. Two threads of a forked child may both make a value at its first use there. One of the two is dropped.

    Args:
        make: Makes the value. If it raises, the next use calls it again.

    Example:
        >>> client = PerProcess(object)
        >>> client.get() is client.get()
        True
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._state = _State[T]()

    def get(self) -> T:
        """Return the value of this process."""
        state = self._own_state()
        with state.lock:
            if not state.values:
                state.values.append(self._make())
            return state.values[0]

    def take(self) -> T | None:
        """Return the value and forget it. None if this process has no value."""
        state = self._own_state()
        with state.lock:
            return state.values.pop() if state.values else None

    def _own_state(self) -> _State[T]:
        if self._state.pid != os.getpid():
            # A new lock, too: the thread that held the parent's at the fork does not exist here.
            self._state = _State()
        return self._state


class _State[T]:
    """The lock and at most one value of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.values: list[T] = []
