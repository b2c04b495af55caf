"""Resolve what a user sets: arguments and the environment.

An argument wins over its environment variable, and a variable wins over the default: see `environment`.
"""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, cast

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.checks import checked_boolean, checked_name, checked_seconds, is_whole, shown
from distributed_backup.coordination import coordinator_from_url
from distributed_backup.coordination.base import Coordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import ConfigError
from distributed_backup.preemption.sources import NoticeSource, NoticeSources, notice_sources
from distributed_backup.storage import absolute_place, storage_from_url
from distributed_backup.training.attributes import can_hold_state
from distributed_backup.training.environment import EnvironmentSettings, SaveFrequency, named, variable_of
from distributed_backup.worker.options import OnSaveError, WorkerOptions

# In seconds. The lease is shortened to fit into the grace period, and a renewal takes a few milliseconds.
MIN_GRACE_PERIOD: Final = 0.1
# The default of Kubernetes' `terminationGracePeriodSeconds`.
_DEFAULT_GRACE_PERIOD: Final = 30.0
# Of the grace period, for one request to a store: a save that hangs when the notice arrives can be retried once.
_REQUEST_PART: Final = 1 / 3

_UNCHANGEABLE: Final = (str, bytes, int, float, complex, tuple, frozenset, type(None), type)


class _HostDefault(str):
    """The host's default. An explicit "epoch" is another object, and wins over the environment."""

    __slots__ = ()


DEFAULT_SAVE_FREQ: Any = _HostDefault("epoch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The arguments of `BackupAndRestore` as the user gave them, unchecked."""

    backup_dir: str | os.PathLike[str] | None
    save_freq: SaveFrequency
    double_checkpoint: bool
    delete_checkpoint: bool
    save_before_preemption: bool
    coordinator: Any
    run_id: str | None
    worker_id: str | None
    standby: bool | None
    grace_period: float | None
    exit_code: int
    signals: Iterable[int]
    notices: str | NoticeSource | Iterable[str | NoticeSource] | None
    state_of: Sequence[Any] | None
    journal: bool
    journal_of: Any
    on_save_error: OnSaveError
    restore_timeout: float
    timings: LeaseTimings | None

    def resolve(self, environment: Mapping[str, str]) -> Settings:
        """Return these arguments, completed by the variables `DISTRIBUTED_BACKUP_*` of `environment` and the defaults.

        Raises:
            ConfigError: A setting is invalid. The message names the argument or the variable.
        """
        variables = EnvironmentSettings.read(environment)
        if self.backup_dir is None or (isinstance(self.backup_dir, str) and not self.backup_dir):
            # The first sentence is synalinks' own.
            text = "Empty `backup_dir` argument passed. Give the path of a directory, or a URL"
            raise ConfigError(f"{text}: got {self.backup_dir!r}")
        if variables.metrics_port is not None:
            # A missing client is reported here, before the fit.
            import distributed_backup.observability.metrics  # noqa: F401
        with named("backup_dir"):
            backup_dir = absolute_place(self.backup_dir)
        worker = _worker_options(self, variables)
        return Settings(
            backup_dir=backup_dir,
            run_id=_chosen("run_id", self, variables).checked(checked_name),
            checkpoints_kept=2 if checked_boolean("double_checkpoint", self.double_checkpoint) else 1,
            request_timeout=worker.grace_period * _REQUEST_PART,
            coordinator=_chosen("coordinator", self, variables, "file:"),
            session=_session_options(self, variables, worker),
        )


class Setting(NamedTuple):
    """A value, and the name under which the user has set it: the argument's or the variable's."""

    name: str
    value: Any

    def checked[T](self, check: Callable[[str, Any], T]) -> T | None:
        """Return the checked value, None if nothing is set. `check` takes the name for its message."""
        return None if self.value is None else check(self.name, self.value)


def _chosen(name: str, arguments: Arguments, variables: EnvironmentSettings, default: Any = None) -> Setting:
    """Return the value that counts: that of the argument, else of the variable, else the default."""
    argument, variable = getattr(arguments, name), getattr(variables, name)
    if variable is not None and (argument is None or isinstance(argument, _HostDefault)):
        return Setting(variable_of(name), variable)
    return Setting(name, default if argument is None else argument)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """The settings of one fit. See `BackupAndRestore` for each."""

    worker: WorkerOptions
    worker_name: str | None
    save_freq: SaveFrequency
    save_before_preemption: bool
    notices: NoticeSources
    signals: tuple[signal.Signals, ...]
    state_of: tuple[Any, ...] | None
    journal: bool
    journal_of: tuple[tuple[Any, str], ...]
    metrics_port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a callback, checked.

    `backup_dir` is a URL or an absolute path. `request_timeout` is in seconds, for one request to the store.
    """

    backup_dir: str
    run_id: str | None
    checkpoints_kept: int
    request_timeout: float
    coordinator: Setting
    session: SessionOptions

    def make_store(self) -> CheckpointStore:
        """Return the store in the backup directory. It does no I/O.

        Raises:
            ConfigError: The directory's URL can't be used. The message names the argument.
        """
        with named("backup_dir"):
            storage = storage_from_url(self.backup_dir, run_id=self.run_id, limit=self.request_timeout)
        return CheckpointStore(storage, run_id=self.run_id, keep=self.checkpoints_kept)

    def make_coordinator(self) -> Coordinator:
        """Return the coordinator. It does no I/O.

        Raises:
            ConfigError: It can't be used. The message names the argument or the variable.
        """
        name, given = self.coordinator
        if isinstance(given, Coordinator):
            return given
        with named(name):
            if isinstance(given, str):
                return coordinator_from_url(given, backup_dir=self.backup_dir)
            # Imported here, because only users of Redis need its driver.
            from distributed_backup.coordination.redis import RedisCoordinator

            return RedisCoordinator(given)


def _worker_options(arguments: Arguments, variables: EnvironmentSettings) -> WorkerOptions:
    grace_period = _grace_period(*_chosen("grace_period", arguments, variables, _DEFAULT_GRACE_PERIOD))
    exit_code, timings, on_save_error = arguments.exit_code, arguments.timings, arguments.on_save_error
    if not isinstance(on_save_error, str) or on_save_error not in {"warn", "raise"}:
        raise ConfigError(f"on_save_error must be 'warn' or 'raise', got {shown(on_save_error)}")
    if not is_whole(exit_code) or not 0 <= exit_code <= 255:
        raise ConfigError(f"exit_code must be a whole number from 0 to 255, got {shown(exit_code)}")
    if not isinstance(timings, LeaseTimings | None):
        raise ConfigError(f"timings must be a LeaseTimings, got {shown(timings)}")
    return WorkerOptions(
        timings=timings or LeaseTimings.for_grace_period(grace_period),
        standby=checked_boolean(*_chosen("standby", arguments, variables, False)),
        grace_period=grace_period,
        exit_code=exit_code,
        restore_timeout=checked_seconds("restore_timeout", arguments.restore_timeout),
        on_save_error=on_save_error,
        delete_checkpoint=checked_boolean("delete_checkpoint", arguments.delete_checkpoint),
    )


def _session_options(arguments: Arguments, variables: EnvironmentSettings, worker: WorkerOptions) -> SessionOptions:
    save_freq = _chosen("save_freq", arguments, variables)
    save_before_preemption = checked_boolean("save_before_preemption", arguments.save_before_preemption)
    notices = variables.notices
    if arguments.notices is not None or notices is None:
        notices = notice_sources("signal" if arguments.notices is None else arguments.notices)
    signals = _signals(arguments.signals)
    listens = bool(notices.others or (notices.signal and signals))
    journal = checked_boolean("journal", arguments.journal)
    if checked_save_freq(save_freq.value) is False:
        _check_saves(save_freq.name, save_before_preemption, notices, listens=listens)
    return SessionOptions(
        # Without a schedule the leader writes no journal before a notice, and a standby runs no fit to follow with.
        worker=replace(worker, follows_journal=journal and save_freq.value is not False and not worker.standby),
        worker_name=_chosen("worker_id", arguments, variables).checked(checked_name),
        save_freq=save_freq.value,
        save_before_preemption=save_before_preemption and listens,
        notices=notices,
        signals=signals,
        state_of=_state_of(arguments.state_of),
        journal=journal,
        journal_of=_journal_of(arguments.journal_of),
        metrics_port=variables.metrics_port,
    )


def checked_save_freq(value: object) -> SaveFrequency:
    """Return `value` if it is "epoch", False or an int >= 1. Raise ConfigError otherwise."""
    if value is False or (is_whole(value) and cast(int, value) >= 1) or (isinstance(value, str) and value == "epoch"):
        return cast(SaveFrequency, value)
    raise ConfigError(
        f"Invalid value for argument `save_freq`. Received: save_freq={shown(value)}. Expected either 'epoch', an "
        "integer of at least 1 (batches), or False (save only before a preemption)."
    )


def _grace_period(name: str, value: object) -> float:
    seconds = checked_seconds(name, value)
    if seconds < MIN_GRACE_PERIOD:
        raise ConfigError(
            f"{name} must be at least {MIN_GRACE_PERIOD:g} s, got {shown(value)}: nothing is saved in less"
        )
    return seconds


def _check_saves(save_freq: str, save_before_preemption: bool, notices: NoticeSources, *, listens: bool) -> None:
    """Refuse a callback without a schedule that can't receive a notice either."""
    cause = None if listens else "signals=()" if notices else "notices=()"
    cause = cause if save_before_preemption else "save_before_preemption=False"
    if cause is not None:
        raise ConfigError(
            f"{save_freq}=False with {cause} would never save anything: set save_freq to 'epoch' or to a number of "
            f"batches, or leave {cause.partition('=')[0]} out"
        )


def _signals(given: object) -> tuple[signal.Signals, ...]:
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ConfigError(f"signals must be a sequence of signal numbers, such as [signal.SIGTERM], got {shown(given)}")
    return tuple(_signal(number) for number in given)


def _signal(number: object) -> signal.Signals:
    try:
        found = signal.Signals(cast(int, number)) if is_whole(number) else None
    except ValueError:
        found = None
    if found is None:
        raise ConfigError(f"signals must hold signal numbers, such as signal.SIGTERM, got {shown(number)}")
    if found in {signal.SIGKILL, signal.SIGSTOP}:
        raise ConfigError(f"signals can't include {found.name}: no process can handle it")
    return found


def _state_of(given: object) -> tuple[Any, ...] | None:
    if given is None:
        return None
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ConfigError(f"state_of must be a sequence of objects, got {shown(given)}")
    objects = tuple(given)
    for item in objects:
        if isinstance(item, _UNCHANGEABLE) or not can_hold_state(item):
            raise ConfigError(
                "state_of must hold objects with state, such as callbacks, containers or random generators, got "
                f"{shown(item)}"
            )
    return objects


def _journal_of(given: object) -> tuple[tuple[Any, str], ...]:
    """Return the pairs in `given`: one, or a sequence of them."""
    if given is None:
        return ()
    pairs = (given,) if _is_method(given) else given
    if not isinstance(pairs, Iterable) or not all(map(_is_method, pairs := tuple(pairs))):
        raise ConfigError(
            "journal_of must be a pair of an object and the name of an asynchronous method of it, such as "
            f'(client, "search"), or a sequence of such pairs, got {shown(given)}'
        )
    return cast(tuple[tuple[Any, str], ...], pairs)


def _is_method(pair: object) -> bool:
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], str):
        return False
    return inspect.iscoroutinefunction(getattr(pair[0], pair[1], None))
