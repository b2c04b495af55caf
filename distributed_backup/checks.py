"""Check single values that come from a user. A wrong one raises `ConfigError`."""

from __future__ import annotations

import math
import os
import re
import reprlib
import threading
from pathlib import Path
from typing import Final

from distributed_backup.errors import ConfigError
from distributed_backup.urls import is_url, stripped, without_credentials

# The form of run ids and worker ids, which become parts of file names and of Redis keys.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Characters of a path or URL. Linux takes no longer path.
MAX_PLACE: Final = 4096
# The longest wait in seconds that Python can make.
MAX_SECONDS: Final = threading.TIMEOUT_MAX
# A URL that `Path` has changed. A directory of such a name can be given as "./s3:".
_ONE_SLASH: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")
# An address with a password and without a scheme, and one that begins with another sign than a letter.
_NO_SCHEME: Final = re.compile(r"[^/]*:(//|.*@)", re.DOTALL)
_QUOTES: Final = "'\"`<>"
_REPR: Final = reprlib.Repr(maxstring=200, maxother=200, maxlong=60)


def shown(value: object) -> str:
    """Return `value` for a message: one line of limited length, even if its `repr` is long or fails.

    Example:
        >>> shown("soon"), shown([1] * 1000)
        ("'soon'", '[1, 1, 1, 1, 1, 1, ...]')
    """
    try:
        text = _REPR.repr(value)
    except ValueError:  # an int of more than 4300 digits
        text = f"a {type(value).__name__}"
    return re.sub(r"\s*\n\s*", " ", text)


def checked_name(kind: str, value: object) -> str:
    """Return `value` if it is a valid id, else raise ConfigError. `kind` is "run_id" or "worker_id".

    Example:
        >>> checked_name("run_id", "job-42")
        'job-42'
    """
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise ConfigError(
        f"{kind} must be 1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit, got {shown(value)}"
    )


def checked_seconds(name: str, value: object) -> float:
    """Return `value` as positive float seconds that Python can wait for, else raise ConfigError."""
    if not isinstance(value, int | float) or not is_number(value) or not 0 < value < math.inf:
        raise ConfigError(f"{name} must be a positive number of seconds, got {shown(value)}")
    if value > MAX_SECONDS:
        raise ConfigError(f"{name} must be at most {MAX_SECONDS:.0f} s, got {shown(value)}")
    return float(value)


def checked_boolean(name: str, value: object) -> bool:
    """Return `value` if it is True or False, else raise ConfigError. The text "false" would count as true."""
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{name} must be True or False, got {shown(value)}")


def checked_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Return `value` as an absolute path, with a leading `~` expanded, else raise ConfigError.

    A training script may change its working directory later. `..` stays, because the part before it may be a link.

    Example:
        >>> checked_path("backup_dir", "/mnt/shared/run-42")
        PosixPath('/mnt/shared/run-42')
    """
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"{name} must be a path, got {shown(text)}")
    if len(text) > MAX_PLACE:
        raise ConfigError(f"{name} has {len(text)} characters, and a path has at most {MAX_PLACE}")
    expanded = os.path.expanduser(text)  # noqa: PTH111 - Path makes "./~" and "~" equal
    if expanded.startswith("~"):
        raise ConfigError(f"{name} {text!r} names a home directory that does not exist: use an absolute path")
    try:
        return Path(expanded).absolute()
    except FileNotFoundError:
        raise ConfigError(f"{name} {text!r} is relative to a working directory that was removed") from None


def refuse_address(place: str) -> None:
    """Raise ConfigError if a text is no URL and looks like a mistyped one. It would be taken for a directory.

    Example:
        >>> refuse_address("/mnt/shared/run-42")
    """
    bare = stripped(place, also=_QUOTES)
    url = bare.replace(":/", "://", 1) if _ONE_SLASH.match(bare) else bare
    if bare == place != url:
        raise ConfigError(
            f"{without_credentials(url)} has lost a slash, as a URL does that is made a path: give it as text"
        )
    if _NO_SCHEME.match(bare) or (bare != place and is_url(url)):
        problem = "does not begin with a scheme" if bare == place else "has a blank or a quote around it"
        raise ConfigError(
            f"{without_credentials(url)} looks like the address of a server and {problem}: write it as in "
            "redis://host:6379, or begin the path of a directory with ./"
        )


def is_whole(value: object) -> bool:
    """Whether `value` is an int other than a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether `value` is an int other than a bool, or a float."""
    return isinstance(value, int | float) and not isinstance(value, bool)
