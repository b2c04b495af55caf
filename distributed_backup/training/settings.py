"""Resolve what a user sets: arguments and the environment.

An argument wins over its environment variable. The environment is read when a callback is made, never at import.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from distributed_backup.checks import checked_name, checked_seconds
from distributed_backup.errors import ConfigError
from distributed_backup.preemption.sources import NoticeSources, notice_sources
from distributed_backup.worker.options import WorkerOptions

ENVIRONMENT_PREFIX = "DISTRIBUTED_BACKUP_"

SaveFrequency = int | Literal["epoch", False]


def checked_save_freq(value: object) -> SaveFrequency:
    """Return `value` if it is "epoch", False or an int >= 1, else raise ConfigError."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if whole or value is False or (isinstance(value, str) and value == "epoch"):
        return cast(SaveFrequency, value)
    raise ConfigError(
        f"Invalid value for argument `save_freq`. Received: save_freq={value!r}. Expected either 'epoch', an "
        "integer of at least 1 (batches), or False (save only before a preemption)."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSettings:
    """What a job manifest sets through the environment; None where a variable is absent or empty."""

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
            ConfigError: A variable has a value of the wrong form; the message names the variable.
        """
        coordinator = _variable(environment, "COORDINATOR")
        run_id = _variable(environment, "RUN_ID")
        worker_id = _variable(environment, "WORKER_ID")
        grace_period = _variable(environment, "GRACE_PERIOD")
        save_freq = _variable(environment, "SAVE_FREQ")
        standby = _variable(environment, "STANDBY")
        notices = _variable(environment, "NOTICES")
        metrics_port = _variable(environment, "METRICS_PORT")
        return cls(
            coordinator=coordinator,
            run_id=run_id and checked_name(f"${ENVIRONMENT_PREFIX}RUN_ID", run_id),
            worker_id=worker_id and checked_name(f"${ENVIRONMENT_PREFIX}WORKER_ID", worker_id),
            grace_period=None if grace_period is None else _seconds(grace_period),
            save_freq=None if save_freq is None else _save_freq(save_freq),
            standby=None if standby is None else _boolean("STANDBY", standby),
            notices=None if notices is None else _notices(notices),
            metrics_port=None if metrics_port is None else _port("METRICS_PORT", metrics_port),
        )


def _variable(environment: Mapping[str, str], name: str) -> str | None:
    return environment.get(ENVIRONMENT_PREFIX + name, "").strip() or None


def _seconds(text: str) -> float:
    try:
        return checked_seconds("grace_period", float(text))
    except ValueError:
        raise ConfigError(
            f"${ENVIRONMENT_PREFIX}GRACE_PERIOD must be a positive number of seconds, got {text!r}"
        ) from None


def _save_freq(text: str) -> SaveFrequency:
    if text.lower() in {"false", "epoch"}:
        return "epoch" if text.lower() == "epoch" else False
    if text.isdecimal() and len(text) < 10 and int(text) >= 1:
        return int(text)
    raise ConfigError(
        f"${ENVIRONMENT_PREFIX}SAVE_FREQ must be 'epoch', 'false' or a whole number of at least 1, got {text!r}"
    )


def _port(name: str, text: str) -> int:
    if text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536:
        return int(text)
    raise ConfigError(f"${ENVIRONMENT_PREFIX}{name} must be a port, a whole number from 1 to 65535, got {text!r}")


def _notices(text: str) -> NoticeSources:
    try:
        return notice_sources(text)
    except ConfigError as error:
        raise ConfigError(f"${ENVIRONMENT_PREFIX}NOTICES: {error}") from None


def _boolean(name: str, text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ConfigError(f"${ENVIRONMENT_PREFIX}{name} must be true or false, got {text!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """What a session needs from the callback; see `BackupAndRestore` for each."""

    worker: WorkerOptions
    save_freq: SaveFrequency
    save_before_preemption: bool
    notices: NoticeSources
    signals: tuple[signal.Signals, ...]
    state_of: Sequence[Any]
    metrics_port: int | None
