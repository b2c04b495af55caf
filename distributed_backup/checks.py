"""Check single values that come from a user. A wrong one raises `ConfigError`."""

from __future__ import annotations

import math
import re

from distributed_backup.errors import ConfigError

# The form of run ids and worker ids, which become parts of file names and of Redis keys.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def checked_name(kind: str, value: object) -> str:
    """Return `value` if it is a valid id, else raise ConfigError. `kind` is "run_id" or "worker_id".

    Example:
        >>> checked_name("run_id", "job-42")
        'job-42'
    """
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise ConfigError(
        f"{kind} must be 1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit, got {value!r}"
    )


def checked_seconds(name: str, value: object) -> float:
    """Return `value` as positive, finite float seconds, else raise ConfigError."""
    if isinstance(value, int | float) and is_number(value) and 0 < value < math.inf:
        return float(value)
    raise ConfigError(f"{name} must be a positive number of seconds, got {value!r}")


def checked_boolean(name: str, value: object) -> bool:
    """Return `value` if it is True or False, else raise ConfigError. The text "false" would count as true."""
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{name} must be True or False, got {value!r}")


def is_whole(value: object) -> bool:
    """Whether `value` is an int other than a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether `value` is an int other than a bool, or a float."""
    return isinstance(value, int | float) and not isinstance(value, bool)
