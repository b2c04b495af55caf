"""Tell from an error of an fsspec client what happened, and whether a retry may succeed."""

from __future__ import annotations

import errno

from distributed_backup.storage.fsspec_client import (
    _CONFLICTS,
    _FINAL_ERRNO,
    _PASSING_NAMES,
    _PASSING_STATUS,
    _REFUSING_STATUS,
    _chain,
    _google_refusal,
    _status_of,
)


def retryable(error: Exception) -> bool:
    """Whether a failure is of the kind that passes by itself.

    What a server answered counts for more than what a client made of it. What can't be told is taken for final: a
    wrong setting, say.
    """
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    if isinstance(error, TimeoutError):
        return True
    if (status := _status_of(error)) is not None:
        unknown = isinstance(error, OSError) and error.errno == errno.EIO
        return status not in _REFUSING_STATUS and (status >= 500 or status in _PASSING_STATUS or unknown)
    if _google_refusal(str(error)) or "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    if isinstance(error, OSError | EOFError):
        return getattr(error, "errno", None) not in _FINAL_ERRNO
    return any(kind.__name__ in _PASSING_NAMES for kind in type(error).__mro__)


def is_conflict(error: Exception) -> bool:
    """Whether a write was refused because of another that is under way; it is not told which of them is there then."""
    responses = (getattr(cause, "response", None) for cause in _chain(error))
    return any(isinstance(told, dict) and told.get("Error", {}).get("Code") in _CONFLICTS for told in responses)


def reason_of(error: Exception) -> str:
    """What a client says of a failure, in one line and without the URL of the request."""
    said = str(getattr(error, "strerror", None) or error).strip()
    if refusal := _google_refusal(said):
        # The first line has but the URL.
        _, _, said = said.partition("\n")
        said = said.strip() or refusal
    # The lines after the first are ids of requests and answers in XML.
    line = said.partition("\n")[0].strip().rstrip(".")
    if line.startswith((",", "<")) and (status := _status_of(error)) is not None:
        # No more than that was said, or it is a page of a proxy.
        return f"status {status}"
    return line or type(error).__name__
