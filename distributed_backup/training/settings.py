"""Resolve what a user sets: arguments and the environment.

An argument wins over its environment variable, and a variable wins over the default. The environment is read when a
callback is made, never at import. A variable that changes later has no effect.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from distributed_backup.checks import checked_boolean, checked_name, checked_seconds, is_whole
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import ConfigError
from distributed_backup.preemption.sources import NoticeSource, NoticeSources, notice_sources
from distributed_backup.worker.options import OnSaveError, WorkerOptions

ENVIRONMENT_PREFIX = "DISTRIBUTED_BACKUP_"

# In seconds. The lease is shortened to fit into the grace period, and a renewal takes a few milliseconds.
MIN_GRACE_PERIOD: Final = 0.1
# The default of Kubernetes' `terminationGracePeriodSeconds`.
_DEFAULT_GRACE_PERIOD: Final = 30.0
# Of the grace period, for one request to a store: a save that hangs when the notice arrives can be retried once.
_REQUEST_PART: Final = 1 / 3

SaveFrequency = int | Literal["epoch", False]


class _HostDefault(str):
    """The host's default. An explicit "epoch" is another object, and wins over the environment."""

    __slots__ = ()


DEFAULT_SAVE_FREQ: Any = _HostDefault("epoch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The arguments of `BackupAndRestore` as the user gave them, unchecked."""

    backup_dir: str | os.PathLike[str]
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
    state_of: Sequence[Any]
    on_save_error: OnSaveError
    restore_timeout: float
    timings: LeaseTimings | None

    def resolve(self, environment: Mapping[str, str]) -> Settings:
        """Return these arguments, completed by the variables `DISTRIBUTED_BACKUP_*` of `environment` and the defaults.

        Raises:
            ConfigError: A setting is invalid. The message names the argument or the variable.
        """
        variables = EnvironmentSettings.read(environment)
        if not self.backup_dir:
            raise ConfigError("Empty `backup_dir` argument passed")
        if variables.metrics_port is not None:
            # A missing client is reported here, before the fit.
            import distributed_backup.observability.metrics  # noqa: F401
        worker = _worker_options(self, variables)
        return Settings(
            backup_dir=self.backup_dir,
            run_id=self.run_id or variables.run_id,
            checkpoints_kept=2 if checked_boolean("double_checkpoint", self.double_checkpoint) else 1,
            request_timeout=worker.grace_period * _REQUEST_PART,
            coordinator=_first(self.coordinator, variables.coordinator, "file:"),
            session=_session_options(self, variables, worker),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """The settings of one fit. See `BackupAndRestore` for each."""

    worker: WorkerOptions
    worker_name: str | None
    save_freq: SaveFrequency
    save_before_preemption: bool
    notices: NoticeSources
    signals: tuple[signal.Signals, ...]
    state_of: tuple[Any, ...]
    metrics_port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a callback, checked. `request_timeout` is in seconds, for one request to the store."""

    backup_dir: str | os.PathLike[str]
    run_id: str | None
    checkpoints_kept: int
    request_timeout: float
    coordinator: Any
    session: SessionOptions


def _first(*values: Any) -> Any:
    """Return the first value that is not None, in the order: argument, variable, default."""
    return next(value for value in values if value is not None)


def _worker_options(arguments: Arguments, variables: EnvironmentSettings) -> WorkerOptions:
    grace_period = _grace_period(_first(arguments.grace_period, variables.grace_period, _DEFAULT_GRACE_PERIOD))
    exit_code, timings = arguments.exit_code, arguments.timings
    if arguments.on_save_error not in {"warn", "raise"}:
        raise ConfigError(f"on_save_error must be 'warn' or 'raise', got {arguments.on_save_error!r}")
    if not is_whole(exit_code) or not 0 <= exit_code <= 255:
        raise ConfigError(f"exit_code must be a whole number from 0 to 255, got {exit_code!r}")
    if not isinstance(timings, LeaseTimings | None):
        raise ConfigError(f"timings must be a LeaseTimings, got {timings!r}")
    return WorkerOptions(
        timings=timings or LeaseTimings.for_grace_period(grace_period),
        standby=checked_boolean("standby", _first(arguments.standby, variables.standby, False)),
        grace_period=grace_period,
        exit_code=exit_code,
        restore_timeout=checked_seconds("restore_timeout", arguments.restore_timeout),
        on_save_error=arguments.on_save_error,
        delete_checkpoint=checked_boolean("delete_checkpoint", arguments.delete_checkpoint),
    )


def _session_options(arguments: Arguments, variables: EnvironmentSettings, worker: WorkerOptions) -> SessionOptions:
    save_freq = checked_save_freq(arguments.save_freq)
    if isinstance(save_freq, _HostDefault):
        save_freq = _first(variables.save_freq, "epoch")
    save_before_preemption = checked_boolean("save_before_preemption", arguments.save_before_preemption)
    notices = variables.notices
    if arguments.notices is not None or notices is None:
        notices = notice_sources(_first(arguments.notices, "signal"))
    signals = _signals(arguments.signals)
    listens = bool(notices.others or (notices.signal and signals))
    if save_freq is False:
        _check_saves(save_before_preemption, notices, listens=listens)
    if isinstance(arguments.state_of, str) or not isinstance(arguments.state_of, Iterable):
        raise ConfigError(f"state_of must be a sequence of objects, got {arguments.state_of!r}")
    name = arguments.worker_id or variables.worker_id
    return SessionOptions(
        worker=worker,
        worker_name=None if name is None else checked_name("worker_id", name),
        save_freq=save_freq,
        save_before_preemption=save_before_preemption and listens,
        notices=notices,
        signals=signals,
        state_of=tuple(arguments.state_of),
        metrics_port=variables.metrics_port,
    )


def checked_save_freq(value: object) -> SaveFrequency:
    """Return `value` if it is "epoch", False or an int >= 1. Raise ConfigError otherwise."""
    if value is False or (is_whole(value) and cast(int, value) >= 1) or (isinstance(value, str) and value == "epoch"):
        return cast(SaveFrequency, value)
    raise ConfigError(
        f"Invalid value for argument `save_freq`. Received: save_freq={value!r}. Expected either 'epoch', an "
        "integer of at least 1 (batches), or False (save only before a preemption)."
    )


def _grace_period(value: object) -> float:
    seconds = checked_seconds("grace_period", value)
    if seconds < MIN_GRACE_PERIOD:
        raise ConfigError(
            f"grace_period must be at least {MIN_GRACE_PERIOD:g} s, got {value!r}: nothing is saved in less"
        )
    return seconds


def _check_saves(save_before_preemption: bool, notices: NoticeSources, *, listens: bool) -> None:
    """Refuse a callback without a schedule that can't receive a notice either."""
    cause = None if listens else "signals=()" if notices else "notices=()"
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
            raise ConfigError(f"signals can't include {number.name}: no process can handle it")
    return found


# -------------------------------------------------------------------- the environment


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSettings:
    """The settings that a job manifest makes through the environment. None where a variable is absent or empty."""

    coordinator: str | None = None
    run_id: str | None = None
    worker_id: str | None = None
    grace_period: float | None = None
    save_freq: SaveFrequency | None = None
    standby: bool | None = None
    notices: NoticeSources | None = None
    metrics_port: int | None = None

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> EnvironmentSettings:
        """Parse the variables `DISTRIBUTED_BACKUP_*` of `environment`.

        Raises:
            ConfigError: A variable has a value of the wrong form. The message names the variable.
        """

        def read[T](name: str, parse: Callable[[str, str], T]) -> T | None:
            text = environment.get(ENVIRONMENT_PREFIX + name, "").strip()
            return parse(f"${ENVIRONMENT_PREFIX}{name}", text) if text else None

        return cls(
            coordinator=read("COORDINATOR", lambda _, text: text),
            run_id=read("RUN_ID", checked_name),
            worker_id=read("WORKER_ID", checked_name),
            grace_period=read("GRACE_PERIOD", _seconds),
            save_freq=read("SAVE_FREQ", _save_freq),
            standby=read("STANDBY", _boolean),
            notices=read("NOTICES", _notices),
            metrics_port=read("METRICS_PORT", _port),
        )


def _seconds(variable: str, text: str) -> float:
    try:
        return checked_seconds(variable, float(text))
    except ValueError:
        raise ConfigError(f"{variable} must be a positive number of seconds, got {text!r}") from None


def _save_freq(variable: str, text: str) -> SaveFrequency:
    if text.lower() in {"false", "epoch"}:
        return "epoch" if text.lower() == "epoch" else False
    if text.isdecimal() and len(text) < 10 and int(text) >= 1:
        return int(text)
    raise ConfigError(f"{variable} must be 'epoch', 'false' or a whole number of at least 1, got {text!r}")


def _boolean(variable: str, text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ConfigError(f"{variable} must be true or false, got {text!r}")


def _notices(variable: str, text: str) -> NoticeSources:
    try:
        return notice_sources(text)
    except ConfigError as error:
        raise ConfigError(f"{variable}: {error}") from None


def _port(variable: str, text: str) -> int:
    if text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536:
        return int(text)
    raise ConfigError(f"{variable} must be a port, a whole number from 1 to 65535, got {text!r}")
