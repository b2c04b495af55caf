"""Receive hints over pub/sub, in a thread.

Pub/sub delivers at most once: a hint that is sent while the connection is down is lost. So nothing depends on a hint. A
dead connection looks like a silent one. The listener sends a PING after a silence and replaces a connection that does
not reply.
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
# Seconds between two checks whether the thread is to end.
_CHECK_PERIOD: Final = 0.25


class HintListener:
    """Listens on one channel while it has subscribers.

    After `silence` seconds without a message it tests the connection. It waits `retry` seconds between two attempts to
    connect.
    """

    def __init__(self, client: RedisClient, channel: str, *, silence: float, retry: float) -> None:
        self._client = client
        self._channel = channel
        self._silence = silence
        self._retry = retry
        self._lock = threading.Lock()
        self._wakes: list[Callable[[Hint], None]] = []
        # Ends the running thread. Each thread has its own event, so that an ending one never serves new subscribers.
        self._ending: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def add(self, wake: Callable[[Hint], None]) -> Callable[[], None]:
        """Call `wake` with each hint until the returned function is called."""
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
        """Wait for the thread to end, if it has no subscribers.

        The interpreter stops daemon threads at exit, and this one may hold a lock of the driver then.
        """
        with self._lock:
            thread = None if self._wakes else self._thread
        if thread is not None:
            thread.join(timeout)

    def _end(self) -> None:
        # Only set the event: two threads must not use one connection. The listener checks it every 0.25 s.
        if self._ending is not None:
            self._ending.set()
            self._ending = None

    def _run(self, ending: threading.Event) -> None:
        while not ending.is_set():
            try:
                self._listen(ending)
            except Exception as error:  # noqa: BLE001 - nothing depends on hints, and a driver may raise anything
                logger.debug("can't receive hints, retrying channel=%s reason=%s", self._channel, error)
                ending.wait(self._retry)

    def _listen(self, ending: threading.Event) -> None:
        with self._client.subscription() as subscription:
            subscription.subscribe(self._channel)
            silent, tested = 0.0, False
            while not ending.is_set():
                pause = min(_CHECK_PERIOD, self._silence)
                message = subscription.get_message(timeout=pause)
                if message is not None:
                    silent, tested = 0.0, False
                    self._pass_on(message)
                    continue
                silent += pause
                if silent < self._silence:
                    continue
                if tested:
                    return  # no reply to the PING: connect again
                silent, tested = 0.0, True
                subscription.ping()

    def _pass_on(self, message: dict[str, Any]) -> None:
        if message["type"] == "message" and message["data"] in _HINTS:
            with self._lock:
                wakes = list(self._wakes)
            for wake in wakes:
                wake(message["data"])
