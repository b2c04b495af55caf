"""Let two processes talk over the storage that they test, of one machine or of two.

Each writes messages into a log of its own, an appended file, and reads the other's. That is how followers read the
journal of their leader. On NFS such a file is read anew when it is opened, while a new name may take a minute.

The limit: a storage that does not show appended bytes ends the talk with `TalkError`. So does a failure of the other.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import orjson

from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.errors import BackupError, StoreError
from distributed_backup.storage.base import Storage

# Seconds until the other's next message is given up. They suffice on a slow network file system.
_PATIENCE: Final = 120.0
# Parts of `Storage.poll_interval` between two looks for a message.
_PACE: Final = 0.1
_MOST_BYTES: Final = 1 << 20


class TalkError(BackupError):
    """The other process wrote nothing that could be read, or failed itself."""


class GoneError(BackupError):
    """The other process has ended. That says nothing about the storage."""


class Party:
    """One of two processes.

    Args:
        storage: The storage that both test.
        prefix: Begins the names of all files that the two make.
        first: Whether this is the one that makes the changes.
        lives: Returns whether the other process is still there. One of another machine counts as there.

    Attributes:
        lock: A coordinator that an exercise has made. Without a reference its lock would be released.
    """

    def __init__(self, storage: Storage, *, prefix: str, first: bool, lives: Callable[[], bool] = lambda: True) -> None:
        self.storage = storage
        self.first = first
        self.lock: FileCoordinator | None = None
        self._prefix = prefix
        self._lives = lives
        self._own, self._others = (self.name(f"{letter}.log") for letter in ("ab" if first else "ba"))
        self._said = 0
        self._heard = 0
        self._waiting: deque[bytes] = deque()

    def name(self, name: str) -> str:
        """Return the name of a file of the two."""
        return f"{self._prefix}{name}"

    def say(self, **fields: Any) -> None:
        """Append a message to the own log."""
        line = orjson.dumps(fields) + b"\n"
        self.storage.append(self._own, line, at=self._said)
        self._said += len(line)

    def hear(self, meanwhile: Callable[[], object] | None = None) -> dict[str, Any]:
        """Wait for the other's next message.

        Args:
            meanwhile: Called between two looks. None rests.

        Raises:
            GoneError: The other process has ended, or has removed its messages.
            TalkError: None came in time, other bytes than those of a message came, or the other has failed.
        """
        end = time.monotonic() + _PATIENCE
        while (message := self._try_hear()) is None:
            if not self._lives():
                raise GoneError("the second process of this test has ended early")
            if time.monotonic() > end:
                raise TalkError(
                    f"no bytes of the other process were seen within {_PATIENCE:g} s. If its check was interrupted, "
                    "repeat it"
                )
            (meanwhile or self.rest)()
        return message

    def _try_hear(self) -> dict[str, Any] | None:
        """Return the other's next message, None if there is none yet. Raises as `hear` does."""
        if not self._waiting:
            self._read()
        if not self._waiting:
            return None
        try:
            message: dict[str, Any] = orjson.loads(self._waiting.popleft())
        except orjson.JSONDecodeError:
            raise TalkError("other bytes than the other process appended were read") from None
        if "failure" in message:
            raise TalkError(message["failure"])
        return message

    def _read(self) -> None:
        try:
            data = self.storage.read_from(self._others, self._heard, _MOST_BYTES)
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            if self._heard > 0:
                raise GoneError("the messages of the other process are gone: its check was interrupted") from error
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._heard += len(whole)
        self._waiting.extend(whole.splitlines())

    def rest(self) -> None:
        """Wait between two looks."""
        threading.Event().wait(_PACE * self.storage.poll_interval)

    def tidy(self) -> None:
        """Remove all files of the two."""
        with suppress(StoreError):
            for name in self.storage.names():
                if name.startswith(self._prefix):
                    self.storage.remove(name)


def meet(storage: Storage, *, me: str, within: float) -> tuple[Party, str] | None:
    """Find the other process that calls this on the same storage, and return a party and the other's host.

    Each writes a greeting, and answers each greeting that it finds. The two whose answers name each other have met. So
    a greeting that a killed process has left behind is never met.

    Args:
        storage: The storage, with other files or none.
        me: Hexadecimal digits that no other process has.
        within: Seconds to wait.

    Returns:
        None if no other came in time.
    """
    end = time.monotonic() + within
    # Noted before they are written, so that Ctrl-C in the middle leaves none.
    mine = {f"{me}.greeting"}
    try:
        storage.put(f"{me}.greeting", [socket.gethostname().encode()])
        while time.monotonic() < end:
            names = storage.names()
            for other in (name.partition(".")[0] for name in names if name.endswith(".greeting")):
                if other == me:
                    continue
                if (answer := f"{me}.{other}.answer") not in mine:
                    mine.add(answer)
                    storage.put(answer, [b"met"])
                if f"{other}.{me}.answer" in names:
                    host = storage.read(f"{other}.greeting").decode()
                    party = Party(storage, prefix=f"{min(me, other)}.{max(me, other)}.", first=me < other)
                    party.say(hello=True)
                    party.hear()
                    return party, host
            threading.Event().wait(max(storage.poll_interval, 0.1))
        return None
    finally:
        for name in mine:
            with suppress(StoreError):
                storage.remove(name)
