"""`BackupAndRestore`: the hooks that synalinks calls, translated.

Each hook passes its call to the `FitSession` of the running fit. A hook that is called outside `fit`, as by
`program.evaluate`, does nothing. The protocol is in `worker`, the wrapped methods are in `training.fast_forward`.
"""

from __future__ import annotations

import copy
import os
import pickle
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import synalinks

from distributed_backup.clock import SystemClock
from distributed_backup.coordination.base import Coordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import ConfigError
from distributed_backup.observability.events import Sink
from distributed_backup.preemption.sources.base import NoticeSource
from distributed_backup.training.environment import SaveFrequency
from distributed_backup.training.running_fit import RunningFit
from distributed_backup.training.session import FitSession
from distributed_backup.training.settings import DEFAULT_SAVE_FREQ, Arguments
from distributed_backup.worker.options import OnSaveError

if TYPE_CHECKING:
    import redis


class BackupAndRestore(synalinks.callbacks.BackupAndRestore):  # type: ignore[misc]  # synalinks has no types
    """Back up a fit, restore it after a preemption, and continue at the batch where it stopped.

    A drop-in for `synalinks.callbacks.BackupAndRestore`, whose four arguments come first. N workers may run the same
    script on one `backup_dir`. One of them, the leader, writes checkpoints. All of them start from the same position.

    It can be copied and pickled. A copy has the same settings and takes no part in a running fit. A coordinator or
    client that you have made is shared by copies of one process, and can't be pickled: name it by its URL.

    All durations are in seconds. An argument wins over its environment variable. Variables are read when the callback
    is made.

    Args:
        backup_dir: The run's directory, for the workers of this run only. A path, made absolute when the callback is
            made, or a URL: `s3://bucket/run-42`, `gs://`, `az://`, another scheme of fsspec, or a Redis deployment (see
            `storage_from_url`).
        save_freq: When the leader commits a checkpoint: "epoch", or an int >= 1 for every so many batches.
            Validation batches count, and the end of each epoch is committed too.
            False commits at a notice only, and at the end with `standby=True` or `delete_checkpoint=False`.
            Default: `$DISTRIBUTED_BACKUP_SAVE_FREQ`, or else "epoch", as in synalinks.
        double_checkpoint: Whether to keep the previous checkpoint too. It is used if the newest one is damaged.
            Default: False, as in synalinks.
        delete_checkpoint: Whether the last worker to finish deletes the backup. Use False where finished workers may
            be restarted: a worker that returns after the deletion trains from the beginning. Default: True, as in
            synalinks.
        save_before_preemption: Whether to serve notices: save the last batch boundary, then raise `Preempted`.
            Default: True. False installs no signal handler and polls no source.
        coordinator: How the leader is elected: a `Coordinator`, a URL (see `coordinator_from_url`) or a `redis.Redis`
            client. Default: `$DISTRIBUTED_BACKUP_COORDINATOR`, or else "file:", a lock in `backup_dir` that needs no
            server and works on one machine. A `backup_dir` on a Redis deployment is coordinated over the same
            deployment.
        run_id: Id of the run, 1 to 128 letters, digits, ".", "_" or "-". A directory of another run is refused.
            Default: `$DISTRIBUTED_BACKUP_RUN_ID`, or else the id in the directory, random at first. A `backup_dir` on a
            Redis deployment has no default.
        worker_id: Name of this worker, such as its pod. Each fit appends a random suffix, so a restarted worker is a
            new member. Default: `$DISTRIBUTED_BACKUP_WORKER_ID`, or else host name and process id, which are unique.
        standby: Whether only the leader trains. The others wait in `on_train_begin`. They take over from the newest
            checkpoint when the leader fails, or return with the final state. A leader that loses its lease to one of
            them stops and waits too. If it leads again but is behind by then, it exits with `Preempted`. Default:
            `$DISTRIBUTED_BACKUP_STANDBY`, or else False: each worker runs the fit, and followers take the answers of
            models from the leader's journal. A takeover then needs no waiting.
        grace_period: Seconds between a notice and the kill, at least 0.1. A notice that carries its own time wins.
            Default: `$DISTRIBUTED_BACKUP_GRACE_PERIOD`, or else 30, the default of Kubernetes. Name 1 to 2 s less than
            the platform allows: Python may run a signal handler late on a busy machine.
        exit_code: Exit code of `Preempted`, 0 to 255. Default: 143 (128 + 15), what a shell reports for a process that
            SIGTERM has killed.
        signals: The signals that are notices. Default: SIGTERM, which Kubernetes and Slurm send before SIGKILL.
        notices: The sources of notices, one or several: "signal", "file:/path" (a touch of the file), "gce", "aws",
            "azure" (the metadata service of that cloud), or a `NoticeSource`. Default: `$DISTRIBUTED_BACKUP_NOTICES`
            (names separated by commas), or else "signal", which every platform sends.
        state_of: Callbacks or other objects whose state is saved and restored, besides synalinks' own callbacks: by
            `get_state` and `set_state` if they have both, or else all attributes. A container or random generator is
            restored itself. Default: None, which saves synalinks' own callbacks in the fit's list except `History`, and
            the counters and metrics of tokens and cost. `()` saves none of these.
        journal: Whether the leader records each answer of a model, so that a resumed fit asks for none again. Default:
            True. With `save_freq=False`, answers are written from a notice on. False keeps no journal.
        journal_of: Other methods whose results are recorded: a pair of an object and the name of an asynchronous method
            of it, or several such pairs. For a client of your own, or an expensive tool. Results must be JSON. Default:
            None, which records language, embedding and decision models of synalinks.
        on_save_error: "warn" logs a failed commit and training continues. "raise" ends the fit with the error.
            Default: "warn", because earlier checkpoints are intact and the next commit may succeed.
        restore_timeout: Seconds to wait at the start for the store, and for the leader's announcement. Default: 300,
            which covers the start of all pods of a job. A standby waits without limit.
        timings: Durations of the lease. Default: those of kubernetes/client-go (15, 10 and 2 s), shortened in
            proportion where `grace_period` is under 28.3 s, so that a follower can take over and save in time.

    Raises:
        ConfigError: An argument or a variable is invalid. It is a ValueError.

    Example:
        ```python
        callback = BackupAndRestore("/mnt/shared/run-42")
        history = await program.fit(x, y, validation_split=0.2, epochs=10, callbacks=[callback])
        ```
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        save_freq: SaveFrequency = DEFAULT_SAVE_FREQ,
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
        state_of: Sequence[Any] | None = None,
        journal: bool = True,
        journal_of: tuple[Any, str] | Iterable[tuple[Any, str]] | None = None,
        on_save_error: OnSaveError = "warn",
        restore_timeout: float = 300.0,
        timings: LeaseTimings | None = None,
    ) -> None:
        # First, while there are no other local names. Each parameter is a field of `Arguments`.
        given = {name: value for name, value in locals().items() if name != "self"}
        # The host's own __init__ and hooks must not run, see `test_no_method_of_the_host_runs`.
        synalinks.callbacks.Callback.__init__(self)
        self._settings = Arguments(**given).resolve(os.environ)
        self._is_path = isinstance(backup_dir, os.PathLike)
        self._session: FitSession | None = None
        self._connect()

    def _connect(self) -> None:
        self._store = self._settings.make_store()
        self._coordinator = self._settings.make_coordinator()

    # ---------------------------------------------------------------- the host's attributes

    @property
    def backup_dir(self) -> str | Path:
        """The directory or URL as it was given. A relative path is absolute here."""
        place = self._settings.backup_dir
        return Path(place) if self._is_path else place

    @property
    def save_freq(self) -> SaveFrequency:
        """When the leader commits a checkpoint."""
        return self._settings.session.save_freq

    @property
    def double_checkpoint(self) -> bool:
        """Whether the previous checkpoint is kept too."""
        return self._settings.checkpoints_kept > 1

    @property
    def delete_checkpoint(self) -> bool:
        """Whether the last worker to finish deletes the backup."""
        return self._settings.session.worker.delete_checkpoint

    # ---------------------------------------------------------------- copies

    def _state(self) -> dict[str, Any]:
        """Return what a copy has: all attributes except those of a fit and those that `_connect` makes."""
        fresh = {"_session": None, "_program": None, "params": None}
        made = {"_store", "_coordinator"}
        return {name: value for name, value in {**vars(self), **fresh}.items() if name not in made}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickle.

        Raises:
            PicklingError: The coordinator is an object of this process.
        """
        name, given = self._settings.coordinator
        if not isinstance(given, str):
            raise pickle.PicklingError(
                f"this BackupAndRestore can't be pickled, because its {name} is a {type(given).__name__}, an object of "
                "this process: name the coordinator by its URL, such as redis://host:6379 or file:///path"
            )
        return self._state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    def __copy__(self) -> BackupAndRestore:
        made = type(self).__new__(type(self))
        made.__setstate__(self._state())
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> BackupAndRestore:
        made = memo[id(self)] = type(self).__new__(type(self))
        # Shared, because it may hold locks and connections.
        given = self._settings.coordinator.value
        memo[id(given)] = given
        made.__setstate__(copy.deepcopy(self._state(), memo))
        return made

    # ---------------------------------------------------------------- hooks

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002 - synalinks' signature, as below
        """Join the run and restore. May wait for other workers."""
        fit = RunningFit.find(self.program)
        self._refuse_two_at_once(fit)
        fit.warn_if_unbuilt()
        if self._session is not None:
            self._session.end()
        self._session = FitSession(
            self,
            store=self._store,
            coordinator=self._coordinator,
            clock=SystemClock(),
            options=self._settings.session,
            sinks=self._event_sinks(),
        )
        self._session.begin()

    def _refuse_two_at_once(self, fit: RunningFit) -> None:
        """Refuse two of these callbacks in one fit, and one of them in two fits.

        Raises:
            ConfigError: Each callback restores a position of its own, which the other does not reach.
        """
        ours = [each for each in fit.callbacks if isinstance(each, BackupAndRestore)]
        if len(ours) > 1:
            places = " and ".join(each.location for each in ours)
            raise ConfigError(
                f"this fit has {len(ours)} BackupAndRestore callbacks, for {places}: each would restore its own "
                "position. Give the fit one of them"
            )
        if self._session is not None and self._session.is_in_use:
            raise ConfigError(
                f"this BackupAndRestore for {self.location} is in use by another fit that is still running: make a "
                "callback with a directory of its own for each fit"
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Note the epoch that begins."""
        if self._session is not None:
            self._session.epoch_begins(epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Submit the boundary of a training batch."""
        if self._session is not None:
            self._session.train_batch_ended(batch)

    def on_test_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Note that a validation begins."""
        if self._session is not None:
            self._session.test_begins()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Submit the boundary of a validation batch."""
        if self._session is not None:
            self._session.test_batch_ended(batch)

    def on_test_end(self, logs: Any = None) -> None:  # noqa: ARG002
        """Note that a validation has ended."""
        if self._session is not None:
            self._session.test_ended()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Submit the boundary of an epoch."""
        if self._session is not None:
            self._session.epoch_ended(epoch)

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002
        """Finish the run."""
        if self._session is not None:
            session, self._session = self._session, None
            session.train_ends()

    @property
    def location(self) -> str:
        """The absolute path or the URL of the backup directory, without credentials."""
        return self._store.location

    def _event_sinks(self) -> tuple[Sink, ...]:
        """Return sinks that receive this worker's events besides the event log. For subclasses."""
        return ()
