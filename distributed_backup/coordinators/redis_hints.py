"""Hints over pub/sub: a thread that listens, and says that a look may be worth while.

Pub/sub is at most once: what is sent while nobody is connected is gone, and a connection that died in silence looks
like one on which nothing happens. So nothing rests on a hint, and a connection that does not even answer a PING is
replaced.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, get_args

from redis.exceptions import RedisError

from distributed_backup.coordinators.base import Hint
from distributed_backup.coordinators.redis_link import RedisLink
from distributed_backup.errors import BackupError

if TYPE_CHECKING:
    from redis.client import PubSub

logger = logging.getLogger(__name__)

_HINTS: Final = frozenset(get_args(Hint))


class HintListener:
    """Listens on one channel for as long as somebody wants to know.

    Args:
        link: The server.
        channel: The channel.
        period: Seconds of silence after which the connection is tested, and between two tries to connect.
    """

    def __init__(self, link: RedisLink, channel: str, period: float) -> None:
        self._link = link
        self._channel = channel
        self._period = period
        self._lock = threading.Lock()
        self._wakes: list[Callable[[Hint], None]] = []
        # What ends the thread that runs now; each thread has its own, so that an old one never serves new listeners.
        self._ending: threading.Event | None = None
        self._subscription: PubSub | None = None

    def add(self, wake: Callable[[Hint], None]) -> Callable[[], None]:
        """Call `wake` with each hint until the function that is returned is called."""
        with self._lock:
            self._wakes.append(wake)
            if self._ending is None:
                self._ending = threading.Event()
                threading.Thread(
                    target=self._run, args=(self._ending,), name="distributed-backup-hints", daemon=True
                ).start()

        def remove() -> None:
            with self._lock:
                if wake in self._wakes:
                    self._wakes.remove(wake)
                if not self._wakes:
                    self._end()

        return remove

    def _end(self) -> None:
        if self._ending is not None:
            self._ending.set()
            self._ending = None
        if self._subscription is not None:
            # The answer ends the thread's wait; without one it ends by itself, a period later.
            with suppress(RedisError, OSError, ValueError):
                self._subscription.unsubscribe()

    def _run(self, ending: threading.Event) -> None:
        while not ending.is_set():
            try:
                self._listen(ending)
            except BackupError as error:
                logger.debug("no hints, trying again channel=%s reason=%s", self._channel, error)
                ending.wait(self._period)

    def _listen(self, ending: threading.Event) -> None:
        with self._link.subscription() as subscription:
            subscription.subscribe(self._channel)
            with self._lock:
                self._subscription = subscription
            try:
                tested = False
                while not ending.is_set():
                    message = subscription.get_message(timeout=self._period)
                    if message is not None:
                        tested = False
                        self._pass_on(message)
                    elif tested:
                        return  # not even an answer to the PING: connect anew
                    else:
                        tested = True
                        subscription.ping()
            finally:
                with self._lock:
                    self._subscription = None

    def _pass_on(self, message: dict[str, Any]) -> None:
        if message["type"] == "message" and message["data"] in _HINTS:
            with self._lock:
                wakes = list(self._wakes)
            for wake in wakes:
                wake(message["data"])
