"""Inspect a URL without the driver it needs, and show it without credentials."""

from __future__ import annotations

import re
from typing import Final

_SCHEME: Final = re.compile(r"[A-Za-z0-9+._-]*")
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
    """Return whether this is a URL. Otherwise it is the path of a directory.

    Example:
        >>> is_url("s3://bucket/run-42"), is_url("/mnt/shared/run-42"), is_url("/tmp/a://b")
        (True, False, False)
    """
    text = str(place)
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme[:1].isalpha() and "/" not in scheme and text == stripped(text)


def stripped(text: str, *, also: str = "") -> str:
    """Return the text without blanks and invisible characters around it, and without those of `also`.

    Example:
        >>> stripped("'s3://bucket/run-42' ", also="'")
        's3://bucket/run-42'
    """
    return text.strip("".join({letter for letter in text if not letter.isprintable()}) + " " + also)


def scheme_of(text: str) -> str:
    """Return the part before the first colon in lower case. Empty without a colon.

    Example:
        >>> scheme_of("S3://bucket/run-42"), scheme_of("file:"), scheme_of("/mnt/shared/run-42")
        ('s3', 'file', '')
    """
    scheme, separator, _ = text.partition(":")
    return scheme.lower() if separator else ""


def is_redis_url(text: str) -> bool:
    """Return whether `text` has the scheme of a Redis deployment.

    Example:
        >>> is_redis_url("redis+sentinel://a:26379,b:26379/service")
        True
        >>> is_redis_url("/mnt/shared/run-42")
        False
    """
    return is_url(text) and scheme_of(text) in REDIS_SCHEMES


def without_credentials(url: str) -> str:
    """Return the URL without the part before its last @, and without its options. Both may hold passwords.

    Example:
        >>> without_credentials("redis://user:secret@redis:6379/0?ssl_password=secret")
        'redis://redis:6379/0'
    """
    scheme, separator, rest = url.partition("://")
    if not separator or "/" in scheme:
        # A path, or a mistyped URL.
        return url if "@" not in url else f"…@{url.rpartition('@')[2]}"
    if not _SCHEME.fullmatch(scheme):
        scheme = "…"
    before, mark, after = re.split(r"([?#]|$)", rest, maxsplit=1)
    if mark and "@" in after:
        # An unescaped ? in a password, or an @ in an option: the host can't be found.
        return f"{scheme}{separator}…"
    # The last @ of the whole rest: a password may have an unescaped /.
    return f"{scheme}{separator}{before.rpartition('@')[2]}"
