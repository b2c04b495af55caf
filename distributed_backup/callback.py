"""`BackupAndRestore`: synalinks' hooks, translated.

Glue only: each hook hands over to the session of the running fit. Policy is in `worker`, the wrapped methods in
`resume`, all reading of a program in `training_state`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import synalinks

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.checks import checked_boolean, checked_name, checked_seconds
from distributed_backup.clock import SystemClock
from distributed_backup.coordination import coordinator_from_url
from distributed_backup.coordination.base import Coordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import ConfigError
from distributed_backup.preemption.sources import NoticeSource, NoticeSources, notice_sources
from distributed_backup.storage import storage_from_url
from distributed_backup.training.session import FitSession
from distributed_backup.training.settings import EnvironmentSettings, SaveFrequency, SessionOptions, checked_save_freq
from distributed_backup.worker.options import OnSaveError, WorkerOptions, new_worker_id

if TYPE_CHECKING:
    import redis


class _Default(str):
    """The host's default, told apart from the same value given explicitly, which wins over the environment."""

    __slots__ = ()


_EPOCH: Any = _Default("epoch")

# Leases are shortened to fit into a grace period, and can't be as short as one likes.
MIN_GRACE_PERIOD = 0.1

# Of the grace period, for one request to a store: a save that hangs when the notice comes can be tried again.
_REQUEST_PART = 1 / 3


class BackupAndRestore(synalinks.callbacks.Callback):  # type: ignore[misc]  # synalinks has no types
    """Backs up a fit, restores it after a preemption, and goes on exactly where it was.

    A drop-in for `synalinks.callbacks.BackupAndRestore`, whose first four arguments it takes. N workers may run the
    same script on one `backup_dir`: one of them, the leader, writes; all of them start from the same position.

    Args:
        backup_dir: The directory of the run, shared by its workers and by nothing else; or a URL: `s3://bucket/run-42`,
            `gs://`, `az://`, any other that fsspec knows, or that of a Redis deployment (see `storage_from_url`).
        save_freq: "epoch", or every how many batches (int >= 1), or False: no checkpoint is ever written unless a
            preemption comes (but the final state, with `standby` or `delete_checkpoint=False`). Left out,
            `$DISTRIBUTED_BACKUP_SAVE_FREQ` counts, else "epoch".
        double_checkpoint: Keep the previous checkpoint too.
        delete_checkpoint: Delete the backup when the last worker has finished. A worker that is away at that moment
            finds nothing when it comes back: use False where workers are restarted.
        save_before_preemption: On a notice, save the last batch boundary at once and leave; False: serve no notice.
        coordinator: A `Coordinator`, a URL (see `coordinator_from_url`), a client of Redis, or None for
            `$DISTRIBUTED_BACKUP_COORDINATOR`, else "file:", a lock in `backup_dir`; a `backup_dir` on a Redis
            deployment is led over the same.
        run_id: Id of the run; None for `$DISTRIBUTED_BACKUP_RUN_ID`, else the directory's own.
        worker_id: Name of this worker (pod, machine); None for `$DISTRIBUTED_BACKUP_WORKER_ID`, else host name and
            process id. Each fit adds a random suffix.
        standby: Only the leader trains; the others wait in `on_train_begin` and take over from the newest checkpoint
            when it is gone, or return with the final state. None for `$DISTRIBUTED_BACKUP_STANDBY`, else False.
        grace_period: Seconds between a notice and the kill, where the notice does not say; None for
            `$DISTRIBUTED_BACKUP_GRACE_PERIOD`, else 30, the default of Kubernetes.
        exit_code: Of `Preempted`; 143 is what a process killed by SIGTERM would show (128 + 15).
        signals: Which signals mean a preemption.
        notices: What tells of a preemption: "signal"; "file:/path", when it is touched; "gce", "aws" or "azure", when
            the metadata service of that cloud says so; a `notice_sources.NoticeSource`; or several of these. None for
            `$DISTRIBUTED_BACKUP_NOTICES` (names with commas between them), else "signal".
        state_of: Callbacks or other objects whose state is saved and restored too.
        on_save_error: "warn" logs a failed commit and trains on; "raise" ends the fit with the error.
        restore_timeout: Seconds to wait for another worker's announcement at the start.
        timings: Durations of the lease; None for those of client-go, shortened where the grace period is short.

    Raises:
        ConfigError: A wrong argument or environment variable; it is a ValueError.

    Example:
        ```python
        callback = BackupAndRestore("/mnt/shared/run-42")
        history = await program.fit(x, y, validation_split=0.2, epochs=10, callbacks=[callback])
        ```
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        save_freq: SaveFrequency = _EPOCH,
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
        *,
        save_before_preemption: bool = True,
        coordinator: Coordinator | redis.Redis | str | None = None,
        run_id: str | None = None,
        worker_id: str | None = None,
        standby: bool | None = None,
        grace_period: float | None = None,
        exit_code: int = 143,
        signals: Iterable[int] = (signal.SIGTERM,),
        notices: str | NoticeSource | Iterable[str | NoticeSource] | None = None,
        state_of: Sequence[Any] = (),
        on_save_error: OnSaveError = "warn",
        restore_timeout: float = 300.0,
        timings: LeaseTimings | None = None,
    ) -> None:
        super().__init__()
        environment = EnvironmentSettings.read(os.environ)
        save_before_preemption = checked_boolean("save_before_preemption", save_before_preemption)
        if not backup_dir:
            raise ConfigError("Empty `backup_dir` argument passed")
        save_freq = checked_save_freq(save_freq)
        if isinstance(save_freq, _Default):
            save_freq = _first(environment.save_freq, "epoch")
        sources = environment.notices
        if notices is not None or sources is None:
            sources = notice_sources(_first(notices, "signal"))
        signals = _signals(signals)
        listens = bool(sources.others or (sources.signal and signals))
        if save_freq is False:
            _check_that_it_saves(save_before_preemption, sources, listens=listens)
        if on_save_error not in {"warn", "raise"}:
            raise ConfigError(f"on_save_error must be 'warn' or 'raise', got {on_save_error!r}")
        if not isinstance(exit_code, int) or isinstance(exit_code, bool) or not 0 <= exit_code <= 255:
            raise ConfigError(f"exit_code must be a whole number from 0 to 255, got {exit_code!r}")
        if not isinstance(timings, LeaseTimings | None):
            raise ConfigError(f"timings must be a LeaseTimings, got {timings!r}")
        if isinstance(state_of, str) or not isinstance(state_of, Iterable):
            raise ConfigError(f"state_of must be a sequence of objects, got {state_of!r}")
        if environment.metrics_port is not None:
            import distributed_backup.observability.metrics  # noqa: F401 - now, so that what is missing is said before the fit
        grace_period = _grace_period(_first(grace_period, environment.grace_period, 30.0))
        run_id = run_id or environment.run_id
        storage = storage_from_url(backup_dir, run_id=run_id, limit=grace_period * _REQUEST_PART)
        self._store = CheckpointStore(
            storage, run_id=run_id, keep=2 if checked_boolean("double_checkpoint", double_checkpoint) else 1
        )
        self._coordinator = _coordinator(_first(coordinator, environment.coordinator, "file:"), backup_dir)
        name = worker_id or environment.worker_id
        self._worker_name = None if name is None else checked_name("worker_id", name)
        self._options = SessionOptions(
            worker=WorkerOptions(
                timings=timings or LeaseTimings.for_grace_period(grace_period),
                standby=checked_boolean("standby", _first(standby, environment.standby, False)),
                grace_period=grace_period,
                exit_code=exit_code,
                restore_timeout=checked_seconds("restore_timeout", restore_timeout),
                on_save_error=on_save_error,
                delete_checkpoint=checked_boolean("delete_checkpoint", delete_checkpoint),
            ),
            save_freq=save_freq,
            save_before_preemption=save_before_preemption and listens,
            notices=sources,
            signals=signals,
            state_of=tuple(state_of),
            metrics_port=environment.metrics_port,
        )
        self._session: FitSession | None = None

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002 - synalinks' signature, as below
        """Join the run and restore; may wait for other workers."""
        if self._session is not None:
            self._session.end()
        self._session = FitSession(
            callback=self,
            program=self.program,
            params=self.params or {},
            store=self._store,
            coordinator=self._coordinator,
            worker_id=new_worker_id(self._worker_name),
            clock=SystemClock(),
            options=self._options,
        )
        self._session.begin()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Note where we are."""
        if self._session is not None:
            self._session.epoch_begins(epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Hand the boundary over."""
        if self._session is not None:
            self._session.train_batch_ended(batch)

    def on_test_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Note that the validation begins."""
        if self._session is not None:
            self._session.test_begins()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Hand the boundary over."""
        if self._session is not None:
            self._session.test_batch_ended(batch)

    def on_test_end(self, logs: Any = None) -> None:  # noqa: ARG002
        """Note that the validation is over."""
        if self._session is not None:
            self._session.test_ended()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Hand the boundary over."""
        if self._session is not None:
            self._session.epoch_ended(epoch)

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002
        """Finish the run."""
        if self._session is not None:
            session, self._session = self._session, None
            session.train_ends()


def _first(*values: Any) -> Any:
    """The first that is not None: argument, environment, default."""
    return next(value for value in values if value is not None)


def _coordinator(coordinator: Coordinator | redis.Redis | str, backup_dir: str | os.PathLike[str]) -> Coordinator:
    if isinstance(coordinator, Coordinator):
        return coordinator
    if isinstance(coordinator, str):
        return coordinator_from_url(coordinator, backup_dir=backup_dir)
    from distributed_backup.coordination.redis import RedisCoordinator  # its driver, only for those who use it

    return RedisCoordinator(coordinator)


def _grace_period(value: object) -> float:
    seconds = checked_seconds("grace_period", value)
    if seconds < MIN_GRACE_PERIOD:
        raise ConfigError(
            f"grace_period must be at least {MIN_GRACE_PERIOD:g} s, got {value!r}: nothing is saved in less"
        )
    return seconds


def _check_that_it_saves(save_before_preemption: bool, sources: NoticeSources, *, listens: bool) -> None:
    cause = None if listens else "signals=()" if sources else "notices=()"
    cause = cause if save_before_preemption else "save_before_preemption=False"
    if cause is not None:
        raise ConfigError(f"save_freq=False with {cause} would never save anything")


def _signals(numbers: Iterable[int]) -> tuple[signal.Signals, ...]:
    try:
        found = tuple(signal.Signals(number) for number in numbers)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"signals must be signal numbers: {error}") from None
    for number in found:
        if number in {signal.SIGKILL, signal.SIGSTOP}:
            raise ConfigError(f"{number.name} can't be handled by any process")
    return found
