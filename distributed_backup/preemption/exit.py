"""Define the exit that a served notice raises out of `fit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed_backup.position import Position


class Preempted(SystemExit):
    """The exit out of `fit` after a notice was served. The process exits with `code`, and is to be started again.

    A standby also raises it, without a notice, if it leads again and another worker has come further meanwhile.

    It is a `SystemExit`, so `except Exception` does not catch it. A program that catches it on purpose may go on. Its
    blocks that handle the exception must end before the kill: the process is ended before that if they do not.

    Attributes:
        code: The exit code, `exit_code` of the callback (default 143 = 128 + SIGTERM).
        position: Position of the newest checkpoint known to be durable. None if there is none.
        checkpoint: Name of that checkpoint. None if there is none.
        seconds: Seconds from the notice to this exit. 0 without a notice.

    Example:
        >>> error = Preempted(143, position=None, checkpoint=None, seconds=0.5)
        >>> error.code
        143
    """

    def __init__(self, code: int, *, position: Position | None, checkpoint: str | None, seconds: float) -> None:
        super().__init__(code)
        self.position = position
        self.checkpoint = checkpoint
        self.seconds = seconds
