"""Read the settings that a job manifest makes through the environment.

The environment is read when a callback is made, never at import. A variable that changes later has no effect. An empty
variable is as good as none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from distributed_backup.checks import checked_name, checked_seconds
from distributed_backup.errors import ConfigError
from distributed_backup.preemption.sources import NoticeSources, notice_sources

ENVIRONMENT_PREFIX: Final = "DISTRIBUTED_BACKUP_"

SaveFrequency = int | Literal["epoch", False]


def variable_of(name: str) -> str:
    """Return the environment variable of an argument, as it is written in a shell."""
    return f"${ENVIRONMENT_PREFIX}{name.upper()}"


@contextmanager
def named(name: str) -> Iterator[None]:
    """Begin the message of a `ConfigError` with the name of the setting that it is about."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(name) else f"{name}: {text}") from None


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
            text = environment.get(ENVIRONMENT_PREFIX + name.upper(), "").strip()
            return parse(variable_of(name), text) if text else None

        return cls(
            coordinator=read("coordinator", lambda _, text: text),
            run_id=read("run_id", checked_name),
            worker_id=read("worker_id", checked_name),
            grace_period=read("grace_period", _seconds),
            save_freq=read("save_freq", _save_freq),
            standby=read("standby", _boolean),
            notices=read("notices", _notices),
            metrics_port=read("metrics_port", _port),
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
    with named(variable):
        return notice_sources(text)


def _port(variable: str, text: str) -> int:
    if text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536:
        return int(text)
    raise ConfigError(f"{variable} must be a port, a whole number from 1 to 65535, got {text!r}")
