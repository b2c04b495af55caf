"""What one check has found, and how a check is performed.

A check returns an `Outcome`, or raises an error of this package where the place refused what a run needs.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal, NamedTuple

from distributed_backup.errors import BackupError

Status = Literal["ok", "warning", "danger", "unknown"]
"""Fine, worth knowing, dangerous for a run, and could not be checked."""


class Outcome(NamedTuple):
    """What a check returns."""

    status: Status
    found: str
    """What was found."""
    advice: str = ""
    """Why it matters and what to do. Empty if all is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check, with its name. `Outcome` describes the other attributes."""

    name: str
    status: Status
    found: str
    advice: str = ""


NOT_MADE: Final = Finding(name="other checks", status="unknown", found="not made, because a run can't use this place")
"""Stands for all checks after one that shows this."""

UNUSABLE: Final = "A run can't keep checkpoints here."
"""The advice where nothing can be written."""

_RIGHTS: Final = "Give this user the rights to read, write, list and delete."
_REMEDIES: Final = {
    errno.ENOSPC: "Make room.",
    errno.EDQUOT: "Make room, or raise the quota.",
    errno.EROFS: "Mount it read-write.",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
}


def ok(found: str) -> Outcome:
    """Return the outcome of a check that found no fault."""
    return Outcome("ok", found)


def perform(name: str, check: Callable[[], Outcome], *, advice: str) -> Finding:
    """Perform a check. An error that the place raises is a danger, with this advice and the remedy for its cause."""
    try:
        outcome = check()
    except BackupError as error:
        outcome = Outcome("danger", str(error), _with_remedy(advice, error.__cause__))
    except OSError as error:
        outcome = Outcome("danger", str(error.strerror or error), _with_remedy(advice, error))
    return Finding(name=name, **outcome._asdict())


def _with_remedy(advice: str, cause: BaseException | None) -> str:
    remedy = _REMEDIES.get(cause.errno or 0, "") if isinstance(cause, OSError) else ""
    return f"{advice} {remedy}".strip()


def typical_seconds(call: Callable[[], object], *, times: int) -> float:
    """Return the median duration of several calls, in seconds."""
    durations = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        durations.append(time.perf_counter() - begun)
    return median(durations)


def duration(seconds: float) -> str:
    """Return a duration for people.

    Example:
        >>> duration(0.00123), duration(0.25), duration(3.0)
        ('1.2 ms', '250 ms', '3 s')
    """
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.{1 if seconds < 0.01 else 0}f} ms"


def count(number: int, thing: str) -> str:
    """Return a number with its noun.

    Example:
        >>> count(1, "name"), count(2, "name")
        ('1 name', '2 names')
    """
    return f"{number} {thing}{'' if number == 1 else 's'}"
