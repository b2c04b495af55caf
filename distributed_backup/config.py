"""What a user may set, checked once.

Values only: nothing here opens a file or a socket. An argument wins over its environment variable; the
environment is read when a callback is made, never at import.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from distributed_backup.errors import ConfigError

if TYPE_CHECKING:
    from distributed_backup.notice_sources import NoticeSources

ENVIRONMENT_PREFIX = "DISTRIBUTED_BACKUP_"

# What may stand in a run id or a worker id: they become file names and, later, parts of keys.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

# Of the grace period, for a lease to run out and be taken; the rest is for the save, and for leaving.
_LEASE_PART = 0.6

SaveFrequency = int | Literal["epoch", False]
OnSaveError = Literal["warn", "raise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimings:
    """How long a lease lasts and how often it is renewed, in seconds.

    Args:
        duration: How long others must wait before they take over from a leader that fell silent. Longer
            survives longer pauses of a healthy leader; shorter hands over sooner. Also how long a worker
            that died without a word still counts as a member.
        renew_deadline: How long the leader goes on without a successful renewal before it stands down. Must
            be shorter than `duration`, so that it stands down before anyone else may take over.
        retry_period: How often each worker talks to the coordinator. At least two tries fit into
            `renew_deadline` when it is half of it or less. A file coordinator ticks faster: its tick is a
            system call, not a round trip.

    The defaults are those of kubernetes/client-go `tools/leaderelection`.

    Raises:
        ConfigError: Unless 0 < retry_period < renew_deadline < duration, all finite.

    Example:
        >>> LeaseTimings(duration=6.0, renew_deadline=4.0, retry_period=1.0).duration
        6.0
    """

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0

    def __post_init__(self) -> None:
        numbers = all(_is_number(value) for value in (self.retry_period, self.renew_deadline, self.duration))
        if not numbers or not 0 < self.retry_period < self.renew_deadline < self.duration < math.inf:
            raise ConfigError(
                "want 0 < retry_period < renew_deadline < duration, got "
                f"{self.retry_period!r}, {self.renew_deadline!r}, {self.duration!r}"
            )

    @classmethod
    def within(cls, grace_period: float) -> LeaseTimings:
        """The defaults, shortened where a grace period is short.

        If the leader is killed while all workers are being preempted, a follower can take over and save only if the
        lease runs out early enough: it and one tick may take 0.6 of the grace period.

        Args:
            grace_period: Seconds between a notice and the kill.

        Example:
            >>> LeaseTimings.within(30.0) == LeaseTimings()
            True
            >>> LeaseTimings.within(10.0).duration < 6.0
            True
        """
        usual = cls()
        part = min(1.0, _LEASE_PART * grace_period / (usual.duration + usual.retry_period))
        return cls(
            duration=part * usual.duration,
            renew_deadline=part * usual.renew_deadline,
            retry_period=part * usual.retry_period,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker behaves; see `BackupAndRestore` for each."""

    timings: LeaseTimings = field(default_factory=LeaseTimings)
    standby: bool = False
    grace_period: float = 30.0
    exit_code: int = 143
    restore_timeout: float = 300.0
    on_save_error: OnSaveError = "warn"
    delete_checkpoint: bool = True

    @property
    def keeps_final_state(self) -> bool:
        """Whether the state at the end is committed whatever the schedule."""
        return self.standby or not self.delete_checkpoint

    @property
    def reserve(self) -> float:
        """Seconds of the grace period kept for the last commit, for leaving, and for the interpreter's exit."""
        return reserve_of(self.grace_period)


def reserve_of(remaining: float) -> float:
    """Seconds to keep of those that remain before a kill: a tenth, at least 1 s but no more than 40 %.

    Example:
        >>> reserve_of(30.0), reserve_of(5.0), reserve_of(1.0)
        (3.0, 1.0, 0.4)
    """
    return min(max(1.0, 0.1 * remaining), 0.4 * remaining)


def checked_name(kind: str, value: object) -> str:
    """Return `value` if it may be a file name of ours, else raise ConfigError.

    Args:
        kind: What it names, for the message: "run_id", "worker_id".
        value: Comes from outside.

    Example:
        >>> checked_name("run_id", "job-42")
        'job-42'
    """
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise ConfigError(
        f"{kind} must be 1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit; got {value!r}"
    )


def checked_save_freq(value: object) -> SaveFrequency:
    """Return `value` if it is "epoch", False or an int >= 1, else raise ConfigError."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if whole or value is False or (isinstance(value, str) and value == "epoch"):
        return cast(SaveFrequency, value)
    raise ConfigError(
        f"Invalid value for argument `save_freq`. Received: save_freq={value!r}. Expected either 'epoch', an "
        "integer of at least 1 (batches), or False (save only before a preemption)."
    )


def checked_seconds(name: str, value: object) -> float:
    """Return `value` as positive, finite float seconds, else raise ConfigError."""
    if isinstance(value, int | float) and _is_number(value) and 0 < value < math.inf:
        return float(value)
    raise ConfigError(f"{name} must be a positive number of seconds, got {value!r}")


def checked_boolean(name: str, value: object) -> bool:
    """Return `value` if it is True or False, else raise ConfigError: "false" would count as true."""
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{name} must be True or False, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def new_worker_id(name: str | None) -> str:
    """The id of one incarnation of a worker: its name and a random suffix.

    A worker that restarts quickly under the same name is thereby a new member, and never takes the lease or
    the announcement of its predecessor for its own.

    Args:
        name: Name of the pod or machine; None for host name and process id.
    """
    if name is None:
        host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")[:96] or "host"
        name = f"{host}-{os.getpid()}"
    return f"{checked_name('worker_id', name)[:119]}-{secrets.token_hex(4)}"


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
    from distributed_backup.notice_sources import notice_sources  # and http.client, only for those who set it

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
