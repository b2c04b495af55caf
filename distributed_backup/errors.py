"""Every error this package raises, in one tree.

    BackupError
    ├── ConfigError               an argument or an environment variable is wrong (also a ValueError)
    ├── StoreError                the backup directory can't be read or written
    │   ├── CorruptCheckpointError    one checkpoint does not verify
    │   ├── NoUsableCheckpointError   there are checkpoints and none verifies
    │   ├── RunMismatchError          the directory belongs to another run
    │   └── StaleTermError            a newer term has committed: we are no longer the writer
    ├── CoordinatorError          the coordinator refused or could not be understood
    │   └── CoordinatorUnavailableError  it can't be reached just now; trying again may help
    ├── RestoreError              a position could not be restored
    │   ├── RestoreTimeoutError       nobody announced a position in time
    │   └── NotSharedError            the announced checkpoint is not in our directory
    ├── StateError                the training state can't be expressed as JSON
    └── ProgramMismatchError      the program does not fit the checkpoint

`Preempted` is not an error: it is a `SystemExit` that leaves `fit` after the save. Each message is one line
that says what, where and what to do; the data are attributes.
"""

from __future__ import annotations


class BackupError(Exception):
    """Base of every error of this package."""


class ConfigError(BackupError, ValueError):
    """An argument or an environment variable is wrong."""


class StoreError(BackupError):
    """The backup directory can't be read or written.

    Attributes:
        path: What could not be read or written.
        may_pass: Whether it is of the kind that passes by itself: a server that is busy, or can't be reached.
    """

    def __init__(self, message: str, *, path: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.path = path
        self.retryable = retryable


class CorruptCheckpointError(StoreError):
    """One checkpoint does not verify.

    Attributes:
        reason: What is wrong with it.
    """

    def __init__(self, *, path: str, reason: str) -> None:
        super().__init__(f"checkpoint {path} is unusable: {reason}", path=path)
        self.reason = reason


class NoUsableCheckpointError(StoreError):
    """There are checkpoints and none of them verifies. Nothing was deleted."""

    def __init__(self, *, path: str, reasons: tuple[str, ...]) -> None:
        super().__init__(
            f"none of the {len(reasons)} checkpoint(s) in {path} is usable ({'; '.join(reasons)}); nothing was "
            "deleted: repair them, or move them away to start from the beginning",
            path=path,
        )
        self.reasons = reasons


class RunMismatchError(StoreError):
    """The directory belongs to another run.

    Attributes:
        expected: The run id this worker was given.
        found: The run id in the directory.
    """

    def __init__(self, *, path: str, expected: str, found: str) -> None:
        super().__init__(
            f"{path} belongs to run {found!r}, this worker to run {expected!r}: "
            "give each run a directory of its own, or leave run_id out",
            path=path,
        )
        self.expected = expected
        self.found = found


class StaleTermError(StoreError):
    """This worker is no longer the writer: a newer term has committed, or another worker under the same one.

    Attributes:
        term: The term of the refused commit.
        newest: The newest term in the directory.
    """

    def __init__(self, *, path: str, term: int, newest: int, writer: str | None = None) -> None:
        by = "" if writer is None else f" by {writer}"
        super().__init__(f"commit under term {term} refused: {path} already holds term {newest}{by}", path=path)
        self.term = term
        self.newest = newest


class CoordinatorError(BackupError):
    """The coordinator refused, or answered what can't be understood."""


class CoordinatorUnavailableError(CoordinatorError):
    """The coordinator can't be reached just now; trying again may help."""


class RestoreError(BackupError):
    """A position could not be restored."""


class RestoreTimeoutError(RestoreError):
    """Nobody announced a position within `restore_timeout`."""


class NotSharedError(RestoreError):
    """The announced checkpoint is not in our directory."""


class StateError(BackupError):
    """The training state can't be expressed as JSON."""


class ProgramMismatchError(BackupError):
    """The program does not fit the checkpoint; it was left untouched."""
