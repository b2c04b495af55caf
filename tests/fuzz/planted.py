"""Parsers with one planted error each, which the fuzzer must find."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import orjson

from distributed_backup.errors import StateError
from tests.fuzz.engine import Parser


def _trusted_length(data: bytes) -> None:
    """Make room for as many bytes as the input names."""
    if len(data) >= 4:
        bytearray(struct.unpack(">I", data[:4])[0] >> 8)[: len(data)] = data


def _trusted_count(data: bytes) -> None:
    """Make a list as long as the input says."""
    count = data.partition(b" ")[0]
    if count.isdigit() and len(count) < 7:
        [None] * int(count)


def _uncaught_decode(data: bytes) -> None:
    data.decode()


def _uncaught_key(data: bytes) -> None:
    try:
        fields = orjson.loads(data)
    except ValueError:
        raise StateError("not JSON") from None
    if isinstance(fields, dict):
        fields["run_id"]


def _uncaught_recursion(data: bytes) -> None:
    def depth(value: object) -> int:
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    try:
        found = orjson.loads(data)
    except ValueError:
        return
    depth(found)


def _quadratic_scan(data: bytes) -> None:
    """Look for the end of each line from the beginning."""
    for place in range(0, len(data), 16):
        data[:place].count(b"\n")


def _quadratic_join(data: bytes) -> None:
    """Change all that was read with each piece. A copy alone would be too fast on some machines."""
    read = b""
    for place in range(0, len(data), 8):
        read = (read + data[place : place + 8]).lower()


def _wrong_number(data: bytes) -> None:
    if data.isdigit():
        int(data)


def _parser(name: str, seed: bytes, call: Callable[[bytes], object]) -> Parser:
    return Parser(name=name, seeds=(seed,), call=call, longest=2**17)


PLANTED: Final = (
    _parser("a length that is trusted", b"\0\0\1\0abc", _trusted_length),
    _parser("a count that is trusted", b"17 abc", _trusted_count),
    _parser("a decode without a handler", b"abc", _uncaught_decode),
    _parser("a missing field without a handler", b'{"run_id":"x","term":3}', _uncaught_key),
    _parser("a recursion without a limit", b"[[1],[2]]", _uncaught_recursion),
    _parser("a scan of quadratic time", b"a\nb\n", _quadratic_scan),
    _parser("a join of quadratic time", b"a\nb\n", _quadratic_join),
    _parser("a number of any length", b"7", _wrong_number),
)
