"""Every error that this package raises, in one tree.

    BackupError
    ├── ConfigError               an argument or an environment variable is wrong (also a ValueError)
    ├── StoreError                the backup directory can't be read or written
    │   ├── CorruptCheckpointError    one checkpoint does not verify
    │   ├── NoUsableCheckpointError   there are checkpoints, and none verifies
    │   ├── RunMismatchError          the directory belongs to another run
    │   └── StaleTermError            a newer term has committed: this worker is no longer the writer
    ├── CoordinatorError          the coordinator refused a request, or its reply is not valid
    │   └── CoordinatorUnavailableError  the coordinator is unreachable, a retry may succeed
    ├── RestoreError              a position could not be restored
    │   ├── RestoreTimeoutError       no position was announced within `restore_timeout`
    │   └── NotSharedError            the announced checkpoint is not in this worker's directory
    ├── RecordedFailureError      a request to a model failed when it was recorded
    ├── StateError                the training state is not JSON
    └── ProgramMismatchError      the program does not fit the checkpoint

`Preempted` is not an error: it is a `SystemExit`, see `preemption/exit.py`. Each message is one line that says what
happened, why, and what to do. Its data are attributes.
"""

from __future__ import annotations


class BackupError(Exception):
    """Base class of every error of this package."""


class ConfigError(BackupError, ValueError):
    """An argument or an environment variable is wrong."""


class StoreError(BackupError):
    """The backup directory can't be read or written.

    Attributes:
        path: The file or directory that could not be read or written.
        retryable: Whether a retry may succeed, because the server is busy or unreachable.
    """

    def __init__(self, message: str, *, path: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.path = path
        self.retryable = retryable


class CorruptCheckpointError(StoreError):
    """One checkpoint does not verify.

    Attributes:
        reason: Why it does not verify.
    """

    def __init__(self, *, path: str, reason: str) -> None:
        super().__init__(f"checkpoint {path} is unusable: {reason}", path=path)
        self.reason = reason


class NoUsableCheckpointError(StoreError):
    """There are checkpoints, and none of them verifies. Nothing was deleted.

    Attributes:
        reasons: "NAME: REASON" for each checkpoint, newest first.
    """

    def __init__(self, *, path: str, reasons: tuple[str, ...]) -> None:
        super().__init__(
            f"none of the {len(reasons)} checkpoint(s) in {path} is usable ({'; '.join(reasons)}). Nothing was "
            "deleted. Repair them, or move them away to start from the beginning",
            path=path,
        )
        self.reasons = reasons


class RunMismatchError(StoreError):
    """The directory belongs to another run.

    Attributes:
        expected: The run id of this worker.
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
    """This worker is no longer the writer: a newer term has committed, or another worker under the same term.

    A final state is also refused if a newer term was claimed before it was durable.

    See `checkpoints/fencing.py` for the rule.

    Attributes:
        term: The term of the refused commit.
        newest: The newest term in the directory.
    """

    def __init__(
        self, *, path: str, term: int, newest: int, writer: str | None = None, is_claimed: bool = False
    ) -> None:
        by = "" if writer is None else f", written by {writer}"
        why = f"{path} already contains a checkpoint of term {newest}{by}"
        if is_claimed:
            why = f"term {newest} was claimed in {path} before the final state was durable"
        super().__init__(f"commit under term {term} refused: {why}", path=path)
        self.term = term
        self.newest = newest


class CoordinatorError(BackupError):
    """The coordinator refused a request, or its reply is not valid."""


class CoordinatorUnavailableError(CoordinatorError):
    """The coordinator is unreachable. A retry may succeed."""


class RestoreError(BackupError):
    """A position could not be restored."""


class RestoreTimeoutError(RestoreError):
    """No position was announced within `restore_timeout`."""


class NotSharedError(RestoreError):
    """The announced checkpoint is not in this worker's directory: the workers do not share one."""


class RecordedFailureError(BackupError):
    """A request to a model failed when it was recorded, so it fails again without being sent.

    A follower and a replay raise it in the place of the original error, so that the fit does the same as before.

    Attributes:
        error: The class of the original error.
        status_code: Its HTTP status if it had one. Decision models of synalinks decide by it whether to retry.
        retry_after: Seconds that synalinks waits before the retry: 0, because nothing is sent.
    """

    retry_after = 0

    def __init__(self, *, error: str, status_code: int | None) -> None:
        status = "" if status_code is None else f" and HTTP status {status_code}"
        super().__init__(f"the request failed with {error}{status} when the journal recorded it. It was not sent again")
        self.error = error
        self.status_code = status_code


class StateError(BackupError):
    """The training state is not JSON."""


class ProgramMismatchError(BackupError):
    """The program does not fit the checkpoint. The program was not changed."""
