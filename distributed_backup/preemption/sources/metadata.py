"""Asking a cloud's metadata service: short questions over plain HTTP, and what goes wrong with them.

The service is asked directly, never through a proxy: it answers for the machine that asks. Each wait for it is short,
and every failure is a BackupError of one line. It is reached by its link-local address rather than by name: a resolver
may take half a minute to find out that there is no such name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, IncompleteRead
from typing import Any, Final
from urllib.parse import urlsplit

from distributed_backup.errors import BackupError, ConfigError

ADDRESS: Final = "http://169.254.169.254"

# For each wait: to connect, and for each piece of the answer.
_TIME_LIMIT: Final = 2.0
_SIZE_LIMIT: Final = 1 << 18
# Less can't be told apart from nothing: the times are whole seconds, and said to be approximate.
_LEAST_LEFT: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the service answered.

    Args:
        url: What was asked for.
        status: HTTP status.
        headers: By name in lower case.
        text: The body.
    """

    url: str
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""

    @property
    def server_time(self) -> datetime | None:
        """The instant by the server's clock; None if it did not say."""
        return http_time(self.headers.get("date"))

    def raise_for_status(self) -> Answer:
        """This.

        Raises:
            BackupError: It is not the answer to what was asked.
        """
        if self.status != 200:
            raise BackupError(f"{self.url} answered {self.status}")
        return self

    def json(self) -> Any:
        """The body, parsed.

        Raises:
            BackupError: It is no JSON.
        """
        try:
            return json.loads(self.text)
        except ValueError:
            raise self.parse_error() from None

    def parse_error(self) -> BackupError:
        """The error to raise if it makes no sense."""
        return BackupError(f"{self.url} answered what can't be understood: {self.text[:80]!r}")


class MetadataService:
    """A metadata service.

    Args:
        address: URL of scheme, host and maybe port.
        origin: Where it comes from, for the message.

    Raises:
        ConfigError: `address` is no such URL.
    """

    def __init__(self, address: str, *, origin: str) -> None:
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme != "http" or parts.path.strip("/"):
            raise ConfigError(f"{origin} must name a host and maybe a port, over http; got {address!r}")
        self._host, self._port = host, port or 80
        self._address = f"http://{parts.netloc}"

    def ask(self, path: str, *, headers: Mapping[str, str], method: str = "GET") -> Answer:
        """One question, one answer.

        Args:
            path: Begins with a slash.
            headers: Of the request.
            method: Of the request.

        Raises:
            BackupError: There was no complete answer in time.
        """
        url = f"{self._address}{path}"
        with closing(HTTPConnection(self._host, self._port, timeout=_TIME_LIMIT)) as connection:
            try:
                connection.request(method, path, headers=dict(headers))
                response = connection.getresponse()
                body = response.read(_SIZE_LIMIT)
                if response.length:
                    raise IncompleteRead(body, response.length)
                text = body.decode()
            except (OSError, HTTPException, UnicodeError) as error:
                raise BackupError(f"no answer from {url}: {str(error) or type(error).__name__}") from None
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(url=url, status=response.status, headers=found, text=text)


def http_time(text: Any) -> datetime | None:
    """An instant as HTTP writes it; None if `text` is none.

    Example:
        >>> http_time("Mon, 19 Sep 2016 18:29:47 GMT")
        datetime.datetime(2016, 9, 19, 18, 29, 47, tzinfo=datetime.timezone.utc)
    """
    try:
        return _in_utc(parsedate_to_datetime(text))
    except (TypeError, ValueError):
        return None


def iso_time(text: Any) -> datetime | None:
    """An instant by ISO 8601; None if `text` is none.

    Example:
        >>> iso_time("2017-09-18T08:22:00Z")
        datetime.datetime(2017, 9, 18, 8, 22, tzinfo=datetime.timezone.utc)
    """
    try:
        return _in_utc(datetime.fromisoformat(text))
    except (TypeError, ValueError):
        return None


def _in_utc(instant: datetime) -> datetime:
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant


def seconds_left(end: datetime | None, now: datetime | None) -> float | None:
    """Seconds until `end`; None if that can't be told, or it is over: then what was to happen did not yet.

    Args:
        end: By the clock of `now`.
        now: By the server's clock; ours may be wrong.
    """
    if end is None or now is None:
        return None
    left = (end - now).total_seconds()
    return left if left >= _LEAST_LEFT else None
