"""The contract of a source of notices: something that can be asked whether this machine is about to go.

A source says what it sees, and decides nothing: when to save and when to leave is the watch's business, see
`preemption`. It is asked again and again from a thread of its own, and may block there for a moment. It can't promise
to be in time: a cloud announces what it does as best it can, or not at all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from distributed_backup.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something is going to happen to this machine.

    Args:
        reason: What, for the logs and the other workers: "aws:terminate".
        remaining: Seconds until then, as of now; None if that can't be told, and the grace period counts.
        sure: Whether it ends this process. Else it is a warning: what is there is saved, and training goes on.

    Raises:
        ConfigError: `remaining` is no positive number of seconds.
    """

    reason: str
    remaining: float | None = None
    terminal: bool = True

    def __post_init__(self) -> None:
        if self.remaining is not None and not 0 < self.remaining < math.inf:
            raise ConfigError(f"remaining must be a positive number of seconds or None, got {self.remaining!r}")


class NoticeSource(ABC):
    """One source of notices. Used by one fit at a time.

    Example:
        >>> class Maintenance(NoticeSource):
        ...     name = "maintenance"
        ...
        ...     def poll(self) -> Alert | None:
        ...         return Alert(reason="maintenance:tonight", terminal=False)
        >>> Maintenance().poll()
        Alert(reason='maintenance:tonight', remaining=None, terminal=False)
    """

    name: str
    """What it is called in the logs."""

    period: float = 1.0
    """Seconds between two polls."""

    def begin(self) -> None:  # noqa: B027 - most have nothing to remember
        """A fit begins: what was there before is not news. Called from the training thread; must not block."""

    @abstractmethod
    def poll(self) -> Alert | None:
        """What is going to happen, for as long as it is; None if nothing is.

        Raises:
            Exception: It can't be told; logged once, and asked again.
        """
