"""Inputs that once broke a rule, by the name of the parser. Each one stands for what was mended."""

from __future__ import annotations

from typing import Final

import orjson

from tests.fuzz.files import SEGMENT, SEPARATOR, checkpoint_with, seal_checkpoint, seal_segment
from tests.fuzz.records import GOOD_REPLY
from tests.support.cli_runs import body


def _nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def header_with(**changes: bytes) -> bytes:
    """Return a checkpoint with these fields of its header, as JSON. The header is canonical."""
    head, _, content = checkpoint_with(body()).partition(b"\n")
    fields = {name: orjson.dumps(value) for name, value in orjson.loads(head).items()} | changes
    line = b"{" + b",".join(b'"%s":%s' % (name.encode(), fields[name]) for name in sorted(fields)) + b"}"
    return seal_checkpoint(line + b"\n" + content)


def _long_header() -> bytes:
    """Return a segment whose header names one field again and again."""
    body = SEGMENT.partition(b"\n")[0][9:]
    return seal_segment(b"00000000 " + body[:-1] + b',"epoch":1' * 10000 + b"}\n")


def _answer(body: bytes, date: bytes = b"Mon, 19 Sep 2016 18:29:47 GMT") -> bytes:
    return b"HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Length: %d\r\n\r\n%s" % (date, len(body), body)


_LATE: Final = b"Mon, 19 Sep 2016 9999999999:29:47 GMT"
_EVENT: Final = b'{"at":"2026-11-29T00:00:00Z","worker":"w","event":"joined","standby":false,"run":%s}\n'
_REPLAYED: Final = (
    b'{"at":"2026-11-29T00:00:00Z","worker":"w","event":"joined","standby":false,"run":"job-42"}\n'
    b'{"at":"2026-11-29T00:00:01Z","worker":"w","event":"replayed","answers":%d,"epoch":0,"batch":1}\n' % (2**64 - 1)
)
_ANNOUNCED: Final = '{"term":3,"worker_id":"w","kind":"x","position":[1,3],"checkpoint":%s,"digest":null,"answers":%s}'
_TERM: Final = b'{"worker_id":"w","resigned":false,"announcement":%s}'


def _view(announced: str, *notice: object) -> bytes:
    return orjson.dumps([3, "w-1", 100, 14900, announced, *notice])


CORPUS: Final[tuple[tuple[str, bytes], ...]] = (
    # The bytes of an array of objects were taken as their addresses: a checkpoint could end the process, or worse.
    ("packed values", b'{"$array":["|O",[1],{"$bytes":"QUFBQUFBQUE="}]}'),
    ("packed values", b'{"$array":[[["a","|O"]],[1],{"$bytes":"QUFBQUFBQUE="}]}'),
    ("packed values", b'{"$scalar":["|O",[],{"$bytes":"QUFBQUFBQUE="}]}'),
    # A few bytes took a GB.
    ("packed values", b'{"$bytearray":1000000000}'),
    ("packed values", b'{"$array":["|S0",[1000000000],{"$bytes":""}]}'),
    ("packed values", _nested(900)),
    ("packed values", b'{"$dict":"../../etc"}'),
    ("packed values", b'{"$Generator":{"$BitGenerator":{"bit_generator":"PCG64"}}}'),
    ("packed values", b'{"$RandomState":{"bit_generator":"MT19937","state":{"key":{"$bytes":"A"},"pos":0}}}'),
    ("checkpoint", header_with(data=_nested(300))),
    ("checkpoint", header_with(created_at=b"[1]")),
    ("checkpoint", header_with(digest=b"7")),
    ("checkpoint", checkpoint_with(b"-1")),
    # MessagePack: a list and a map with 4 billion entries, lists in lists, a key that is a number, bytes, an extension.
    ("checkpoint", checkpoint_with(b"\xdd\xff\xff\xff\xff")),
    ("checkpoint", checkpoint_with(b"\xdf\xff\xff\xff\xff")),
    ("checkpoint", checkpoint_with(b"\x91" * 100_000 + b"\xc0")),
    ("checkpoint", checkpoint_with(b"\x81\xa9variables\x81\x01\x02")),
    ("checkpoint", checkpoint_with(b"\x81\xa9variables\xc4\x01\xff")),
    ("checkpoint", checkpoint_with(b"\x81\xa9variables\xd4\x01\xff")),
    ("checkpoint", checkpoint_with(b'{"exact":' + _nested(5000) + b"}")),
    ("checkpoint", checkpoint_with(b'{"tagged":{"$variables":{"text":7}}}')),
    ("checkpoint", checkpoint_with(b'{"tagged":' + _nested(1000) + b"}")),
    ("event log", _EVENT % b'["x"]'),
    ("event log", _EVENT % (b'"job-42","more":' + _nested(300))),
    # Two of them have a sum that JSON has no number for.
    ("event log", _REPLAYED * 2),
    ("event log", _REPLAYED.replace(b'"w","event":"rep', b'"w%s","event":"rep' % (b"-00" * 2**16))),
    ("event log", b"\n" * 2**18),
    ("event log", b"{\n" * 2**17),
    # One reader took a long record, and the other one did not.
    ("journal segment", _long_header()),
    ("parts of a file in a bucket", b"a.part-00000001-" + b"9" * 5000 + b" 1"),
    ("term record", _TERM % (_ANNOUNCED % (_nested(300).decode(), "[]")).encode()),
    ("term record", _TERM % (_ANNOUNCED % ("7", "[]")).encode()),
    ("view from Redis", _view(_ANNOUNCED % ("null", "[1]"))),
    ("view from Redis", _view(_ANNOUNCED % ("[7]", "[]"))),
    ("view from Redis", _view("", "n-1", 20000, "w-2", 7, "SIGTERM")),
    ("members from Redis", b'["w-1",100,7]'),
    ("bytes of a Redis server", b"+OK\r\n+OK\r\n$18446744073709551616\r\nx\r\n"),
    ("bytes of a Redis server", b"+OK\r\n+OK\r\n" + b"*1\r\n" * 5000),
    ("bytes of a Redis server", GOOD_REPLY.replace(b":14900", b":1" + b"0" * 400)),
    ("Redis URL", b"rediss://:pa55w0rd@[::1]:6380/3?protocol=2147483647"),
    ("Redis URL", b"redis:/:pa55w0rd@a:6379/0?a=\nredis://:x@a:6379/0"),
    ("Redis URL", b"redis+sentinel://" + b"a:26379," * 100 + b"b/service"),
    ("coordinator URL", b"file://" + b"/x" * 2**15),
    ("backup directory", b"file://\x1b[99999999999"),
    ("backup directory", b"/x" * 2**16),
    # A notice was lost for a wrong date in the answer.
    ("metadata of EC2", _answer(b"token") + SEPARATOR + _answer(b'{"action":"terminate","time":"x"}', _LATE)),
    ("metadata of EC2", _answer(b"token") + SEPARATOR + _answer(_nested(10000))),
    ("metadata of Azure", _answer(b"vm-1") + SEPARATOR + _answer(b'{"Events":[]}', _LATE)),
    (
        "metadata of Azure",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-9223372036854775808\r\nx\r\n0\r\n\r\n",
    ),
)
