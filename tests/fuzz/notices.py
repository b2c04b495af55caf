"""The answers of metadata services, from their first byte on: a captive portal or another server may answer."""

from __future__ import annotations

import io
from http.client import HTTPConnection
from typing import Any, Final
from unittest import mock

from distributed_backup.preemption.sources.aws import AwsSource
from distributed_backup.preemption.sources.azure import AzureSource
from distributed_backup.preemption.sources.base import NoticeSource
from distributed_backup.preemption.sources.gce import GceSource
from tests.fuzz.engine import Parser
from tests.fuzz.files import JSON_MEMORY, SEPARATOR


class _Socket:
    """A connection over which the server has sent these bytes, and nothing after them."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self._data)

    def sendall(self, _: Any) -> None: ...
    def close(self) -> None: ...


def _poll(source: NoticeSource, data: bytes) -> None:
    """Poll twice. Each request gets the next answer of the input, and the last answer again."""
    answers = data.split(SEPARATOR)

    def connect(connection: HTTPConnection) -> None:
        connection.sock = _Socket(answers.pop(0) if len(answers) > 1 else answers[0])

    with mock.patch.object(HTTPConnection, "connect", connect):
        source.begin()
        source.poll()
        source.poll()


def _answer(body: str, status: int = 200, headers: str = "") -> bytes:
    date = "Date: Mon, 19 Sep 2016 18:29:47 GMT\r\n"
    return f"HTTP/1.1 {status} X\r\n{date}{headers}Content-Length: {len(body)}\r\n\r\n{body}".encode()


_GOOGLE: Final = "Metadata-Flavor: Google\r\n"
_EVENT: Final = (
    '{"DocumentIncarnation":1,"Events":[{"EventId":"A","EventType":"Preempt","ResourceType":"VirtualMachine",'
    '"Resources":["vm-1"],"EventStatus":"Scheduled","NotBefore":"Mon, 19 Sep 2016 18:30:47 GMT"},'
    '{"EventType":"Freeze","Resources":["VM-1"],"EventStatus":"Started","NotBefore":""}]}'
)
_CHUNKED: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nvm-1\r\n0\r\n\r\n"

PARSERS: Final = (
    Parser(
        name="metadata of GCE",
        seeds=(
            _answer("FALSE", headers=_GOOGLE) + SEPARATOR + _answer("MIGRATE_ON_HOST_MAINTENANCE", headers=_GOOGLE),
            _answer("TRUE", headers=_GOOGLE),
            _answer("<html>", 302),
        ),
        call=lambda data: _poll(GceSource(), data),
        memory=JSON_MEMORY,
    ),
    Parser(
        name="metadata of EC2",
        seeds=(
            _answer("token")
            + SEPARATOR
            + _answer('{"action":"terminate","time":"2016-09-19T18:31:00Z"}')
            + SEPARATOR
            + _answer("", 401)
            + SEPARATOR
            + _answer("token")
            + SEPARATOR
            + _answer('{"action":"stop","time":"2016-09-19T18:31:00Z"}'),
            _answer("token") + SEPARATOR + _answer("", 404) + SEPARATOR + _answer('{"noticeTime":"x"}'),
        ),
        call=lambda data: _poll(AwsSource(), data),
        memory=JSON_MEMORY,
    ),
    Parser(
        name="metadata of Azure",
        seeds=(_answer("vm-1") + SEPARATOR + _answer(_EVENT), _CHUNKED + SEPARATOR + _answer('{"Events":[]}')),
        call=lambda data: _poll(AzureSource(), data),
        memory=JSON_MEMORY,
    ),
)
