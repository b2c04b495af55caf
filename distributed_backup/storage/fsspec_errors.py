"""Read from an error of an fsspec client what failed, and whether a retry may succeed.

Each family of clients has its own classes, and some raise those of their drivers. None of them is imported here.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Final

# Codes of S3 for one of two concurrent writes of one key.
_CONFLICTS: Final = frozenset({"ConditionalRequestConflict", "OperationAborted"})
# Too many requests, or concurrent ones. A retry may also succeed after 500 and above, except for 501.
_PASSING_STATUS: Final = frozenset({408, 409, 425, 429})
# Final whatever the message says. s3fs raises EIO for messages it does not know, and those may come from a busy store.
_REFUSING_STATUS: Final = frozenset({400, 401, 403, 501})
# Class names of driver errors for a server that can't be reached. Subclasses of OSError need no entry.
_PASSING_NAMES: Final = frozenset(
    {
        "ChecksumError",
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionError",
        "HTTPClientError",
        "IncompleteReadError",
        "ResponseParserError",
        "ServiceRequestError",
        "ServiceResponseError",
        "TransportError",
        "error_temp",
    }
)
# Errors of the operating system that a retry can't cure.
_FINAL_ERRNO: Final = frozenset(
    {
        errno.EINVAL,
        errno.EISDIR,
        errno.EMSGSIZE,
        errno.ENAMETOOLONG,
        errno.ENOSYS,
        errno.ENOTDIR,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EROFS,
    }
)
_GOOGLE_REFUSALS: Final = ("Forbidden", "Bad Request")


def retryable(error: Exception) -> bool:
    """Return whether a retry may succeed.

    The status of the server's response decides before the client's class. An unknown error counts as final, because it
    may be a wrong setting.
    """
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    if isinstance(error, TimeoutError):
        return True
    if (status := status_of(error)) is not None:
        unknown = isinstance(error, OSError) and error.errno == errno.EIO
        return status not in _REFUSING_STATUS and (status >= 500 or status in _PASSING_STATUS or unknown)
    if _google_refusal(str(error)) or "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    if isinstance(error, OSError | EOFError):
        return getattr(error, "errno", None) not in _FINAL_ERRNO
    return any(kind.__name__ in _PASSING_NAMES for kind in type(error).__mro__)


def is_conflict(error: Exception) -> bool:
    """Return whether a write was refused because of a concurrent one. Either of the two may have succeeded."""
    responses = (getattr(cause, "response", None) for cause in _chain(error))
    return any(
        isinstance(response, dict) and response.get("Error", {}).get("Code") in _CONFLICTS for response in responses
    )


def reason_of(error: Exception) -> str:
    """Return a client's message in one line, without the URL of the request."""
    said = str(getattr(error, "strerror", None) or error).strip()
    if refusal := _google_refusal(said):
        # The first line is the URL.
        _, _, said = said.partition("\n")
        said = said.strip() or refusal
    # The lines after the first are request ids and XML.
    line = said.partition("\n")[0].strip().rstrip(".")
    if line.startswith((",", "<")) and (status := status_of(error)) is not None:
        # The message is empty, or the HTML page of a proxy.
        return f"status {status}"
    return line or type(error).__name__


def _google_refusal(said: str) -> str | None:
    return next((refusal for refusal in _GOOGLE_REFUSALS if said.startswith(f"{refusal}: http")), None)


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of the response behind an error. Each family of clients keeps it elsewhere."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        code = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        for status in (code, *(getattr(cause, name, None) for name in ("status_code", "status", "code"))):
            if isinstance(status, int | str) and re.fullmatch(r"[1-5]\d\d", str(status)):
                return int(status)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
