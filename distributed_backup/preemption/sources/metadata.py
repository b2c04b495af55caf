"""Send requests to a cloud's metadata service, and translate its errors to `BackupError`s of one line.

`http.client` is used because it follows no proxy and no redirect: the service answers for the machine that connects.
The address is link-local rather than a name, because a resolver may take 30 s to report a missing name. Each wait ends
after 2 s, but a server that sends one byte at a time can take longer.
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

# Seconds for each wait: to connect, and for each piece of the answer.
_TIME_LIMIT: Final = 2.0
# Bytes of a body.
_SIZE_LIMIT: Final = 1 << 18
# Seconds. The services give approximate times in whole seconds, so a shorter remainder counts as unknown.
_MIN_LEFT: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of the service. The names in `headers` are in lower case."""

    url: str
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""

    @property
    def server_time(self) -> datetime | None:
        """The time of the answer by the server's clock. None if the header `Date` is missing or invalid."""
        return http_time(self.headers.get("date"))

    def raise_for_status(self) -> Answer:
        """Return this answer if its status is 200.

        Raises:
            BackupError: The status is another.
        """
        if self.status != 200:
            raise BackupError(f"{self.url} answered {self.status}")
        return self

    def json(self) -> Any:
        """Return the parsed body.

        Raises:
            BackupError: The body is not JSON.
        """
        try:
            return json.loads(self.text)
        except (RecursionError, ValueError):
            raise self.parse_error() from None

    def parse_error(self) -> BackupError:
        """Return the error to raise if the body can't be parsed."""
        return BackupError(f"{self.url} answered what can't be understood: {self.text[:80]!r}")


class MetadataService:
    """The metadata service at `address`, an http URL of a host and maybe a port.

    `origin` names the setting of the address, for the error text.

    Raises:
        ConfigError: `address` is not such a URL.
    """

    def __init__(self, address: str, *, origin: str) -> None:
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme != "http" or parts.path.strip("/"):
            raise ConfigError(f"{origin} must name a host and maybe a port, over http, got {address!r}")
        self._host, self._port = host, port or 80
        self._address = f"http://{parts.netloc}"

    def ask(self, path: str, *, headers: Mapping[str, str], method: str = "GET") -> Answer:
        """Send one request and return its answer, whatever its status.

        Raises:
            BackupError: The service did not send a complete answer in time.
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
            except (OSError, HTTPException, OverflowError, UnicodeError) as error:
                raise BackupError(f"no answer from {url}: {str(error) or type(error).__name__}") from None
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(url=url, status=response.status, headers=found, text=text)


def http_time(text: Any) -> datetime | None:
    """Parse a time in the format of HTTP. Return None if `text` is not one.

    Example:
        >>> http_time("Mon, 19 Sep 2016 18:29:47 GMT")
        datetime.datetime(2016, 9, 19, 18, 29, 47, tzinfo=datetime.timezone.utc)
    """
    try:
        return _in_utc(parsedate_to_datetime(text))
    except (OverflowError, TypeError, ValueError):
        return None


def iso_time(text: Any) -> datetime | None:
    """Parse a time in ISO 8601. Return None if `text` is not one.

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
    """Return the seconds from `now` to `end`, both by the server's clock. None if unknown, past, or under 1 s."""
    if end is None or now is None:
        return None
    left = (end - now).total_seconds()
    return left if left >= _MIN_LEFT else None
