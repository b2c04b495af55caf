"""What can be said of a coordinator's URL without the driver that it needs.

Nothing that is shown of a URL holds credentials.
"""

from __future__ import annotations

import re
from typing import Final

REDIS_SCHEMES: Final = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)


def is_url(place: object) -> bool:
    """Whether this is a URL, and not the path of a directory.

    Example:
        >>> is_url("s3://bucket/run-42"), is_url("/mnt/shared/run-42"), is_url("/tmp/a://b")
        (True, False, False)
    """
    scheme, separator, _ = str(place).partition("://")
    return bool(separator) and bool(scheme) and scheme[0].isalpha() and "/" not in scheme


def scheme_of(text: str) -> str:
    """Return the part before the first colon in lower case. Empty without a colon.

    Example:
        >>> scheme_of("S3://bucket/run-42"), scheme_of("file:"), scheme_of("/mnt/shared/run-42")
        ('s3', 'file', '')
    """
    scheme, separator, _ = text.partition(":")
    return scheme.lower() if separator else ""


def is_redis_url(text: str) -> bool:
    """Whether `text` begins as the URL of a Redis deployment does.

    Example:
        >>> is_redis_url("redis+sentinel://a:26379,b:26379/service")
        True
        >>> is_redis_url("/mnt/shared/run-42")
        False
    """
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.lower() in REDIS_SCHEMES


def without_credentials(url: str) -> str:
    """The URL without what stands before its last @, and without its options: both may hold passwords.

    Example:
        >>> without_credentials("redis://user:secret@redis:6379/0?ssl_password=secret")
        'redis://redis:6379/0'
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        # No URL, or a mistyped one.
        return url if "@" not in url else f"…@{url.rpartition('@')[2]}"
    before, mark, after = re.split(r"([?#]|$)", rest, maxsplit=1)
    if mark and "@" in after:
        # An unescaped ? in a password, or an @ in an option: where the place is can't be told.
        return f"{scheme}{separator}…"
    # The last @ of all: an unescaped / in a password must not make the rest of it a host.
    return f"{scheme}{separator}{before.rpartition('@')[2]}"
