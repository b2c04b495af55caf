"""Define the contract of a source of notices: it is polled for upcoming interruptions of this machine.

A source reports and decides nothing: `preemption.poller` decides what is a notice. Each source has a thread of its own
and may block there. A source can't promise to be in time: a cloud may announce an interruption late or not at all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from distributed_backup.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An upcoming interruption of this machine.

    Args:
        reason: The interruption, for the logs and the other workers, such as "aws:terminate".
        remaining: Seconds from now until the interruption. Default: None, unknown, and the callback's `grace_period`
            counts.
        terminal: Whether the interruption ends this process. A terminal alert makes the worker save and exit. False is
            a warning: the run is saved and training continues. Default: True, because most interruptions are
            terminal.

    Raises:
        ConfigError: `remaining` is not a positive, finite number.

    Example:
        >>> from distributed_backup import Alert
        >>> Alert(reason="maintenance:tonight", remaining=3600.0, terminal=False)
        Alert(reason='maintenance:tonight', remaining=3600.0, terminal=False)
    """

    reason: str
    remaining: float | None = None
    terminal: bool = True

    def __post_init__(self) -> None:
        if self.remaining is not None and not 0 < self.remaining < math.inf:
            raise ConfigError(f"remaining must be a positive number of seconds or None, got {self.remaining!r}")


class NoticeSource(ABC):
    """A source of notices, to be given as `BackupAndRestore(notices=[..., source])`. Serves one fit at a time.

    A subclass sets `name` and defines `poll`.

    Attributes:
        name: Name in the logs.
        period: Seconds between two polls. Default: 1.0, as Azure recommends. The shortest notices of clouds are 30 s.

    Example:
        >>> from distributed_backup import Alert, NoticeSource
        >>> class Maintenance(NoticeSource):
        ...     name = "maintenance"
        ...
        ...     def poll(self) -> Alert | None:
        ...         return Alert(reason="maintenance:tonight", terminal=False)
        >>> Maintenance().poll()
        Alert(reason='maintenance:tonight', remaining=None, terminal=False)
    """

    name: str
    period: float = 1.0

    def begin(self) -> None:  # noqa: B027 - most have no state
        """Forget earlier notices: a fit begins. Called from the training thread. Must not block."""

    @abstractmethod
    def poll(self) -> Alert | None:
        """Return the upcoming interruption, at each poll while it is upcoming. None if there is none.

        Raises:
            Exception: Any error. The first one is logged, and polling continues.
        """
