"""Hints over pub/sub: a thread that listens, and says that a look may be worth while.

Pub/sub is at most once: what is sent while nobody is connected is gone, and a connection that died in silence looks
like one on which nothing happens. So nothing rests on a hint, and a connection that does not even answer a PING is
replaced.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final, get_args

from distributed_backup.coordination.base import Hint
from distributed_backup.redis_client.client import RedisClient

logger = logging.getLogger(__name__)

_HINTS: Final = frozenset(get_args(Hint))
# Seconds after which the thread looks whether anybody still listens.
_LOOK_UP: Final = 0.25


class HintListener:
    """Listens on one channel for as long as somebody wants to know.

    Args:
        link: The server.
        channel: The channel.
        silence: Seconds without a word after which the connection is tested.
        retry: Seconds between two tries to connect.
    """

    def __init__(self, link: RedisClient, channel: str, *, silence: float, retry: float) -> None:
        self._link = link
        self._channel = channel
        self._silence = silence
        self._retry = retry
        self._lock = threading.Lock()
        self._wakes: list[Callable[[Hint], None]] = []
        # What ends the thread that runs now; each thread has its own, so that an old one never serves new listeners.
        self._ending: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def add(self, wake: Callable[[Hint], None]) -> Callable[[], None]:
        """Call `wake` with each hint until the function that is returned is called."""
        with self._lock:
            self._wakes.append(wake)
            if self._ending is None:
                self._ending = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._ending,), name="distributed-backup-hints", daemon=True
                )
                self._thread.start()

        def remove() -> None:
            with self._lock:
                if wake in self._wakes:
                    self._wakes.remove(wake)
                if not self._wakes:
                    self._end()

        return remove

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread that nobody needs any more.

        At the interpreter's end it would be stopped wherever it is, perhaps with a lock of the driver that is needed.
        """
        with self._lock:
            thread = None if self._wakes else self._thread
        if thread is not None:
            thread.join(timeout)

    def _end(self) -> None:
        # No more than a word: a connection must not be touched by two threads. The listener looks up soon.
        if self._ending is not None:
            self._ending.set()
            self._ending = None

    def _run(self, ending: threading.Event) -> None:
        while not ending.is_set():
            try:
                self._listen(ending)
            except Exception as error:  # noqa: BLE001 - nothing rests on hints, and what a driver may raise has no end
                logger.debug("no hints, trying again channel=%s reason=%s", self._channel, error)
                ending.wait(self._retry)

    def _listen(self, ending: threading.Event) -> None:
        with self._link.subscription() as subscription:
            subscription.subscribe(self._channel)
            silent, tested = 0.0, False
            while not ending.is_set():
                pause = min(_LOOK_UP, self._silence)
                message = subscription.get_message(timeout=pause)
                if message is not None:
                    silent, tested = 0.0, False
                    self._pass_on(message)
                    continue
                silent += pause
                if silent < self._silence:
                    continue
                if tested:
                    return  # not even an answer to the PING: connect anew
                silent, tested = 0.0, True
                subscription.ping()

    def _pass_on(self, message: dict[str, Any]) -> None:
        if message["type"] == "message" and message["data"] in _HINTS:
            with self._lock:
                wakes = list(self._wakes)
            for wake in wakes:
                wake(message["data"])
