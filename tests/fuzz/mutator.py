"""Change inputs at random: bytes, lines, numbers, and values inside JSON.

The same generator gives the same changes. A change knows nothing of the parser. What a checksum would refuse is made
valid again by `Parser.seal`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any, Final

_TOKENS: Final = [
    *(b"", b"\0", b"\n", b"\r\n", b" ", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\x1b[2J"),
    *(b"\xef\xbb\xbf", b"\x80", b"\\ud800", b"\\u0000", b"null", b"true", b"NaN", b"Infinity", b"-Infinity", b"1e999"),
    *(
        b"{}",
        b"[]",
        b'""',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"'",
        b"@",
        b"/",
        b"//",
        b"..",
        b"../../etc/passwd",
    ),
    *(b"?", b"#", b"%", b"%00", b"%zz", b"&", b"=", b"+", b"-", b".", b"_", b"$", b"*", b"\xd9\xa3", b"\xc2\xb2"),
]
_NUMBERS: Final = [
    *("0", "-1", "-0", "1.5", "1e3", "255", "256", "65535", "65536", "99999999", "100000000", "9999999999"),
    *(str(2**31 - 1), str(2**31), str(2**63 - 1), str(2**63), str(2**64), "-" + str(2**63), "9" * 30, "9" * 400),
    *("9" * 5000, "1e308", "1e309", "0x10", "1_000", "٣", "²", " 1", "01"),
]
_VALUES: Final[list[Any]] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 10**30, 0.5, -0.0, 1e308),
    *("", "x", "..", "../../etc/passwd", "a/b", "a\nb", "\x1b[31m", "\0", "é", "\U0001f600", "9" * 5000, "x" * 3000),
    *(
        [],
        {},
        [[]],
        [1, 2],
        [None],
        {"": None},
        {"a": {"b": []}},
        ["x"] * 50,
        "nan",
        "inf",
        "-1",
        "save@1",
        "0000000001",
    ),
]


class Mutator:
    """Changes inputs with the numbers of one generator.

    An input has at most `usual` bytes. One of `inflated_each` is inflated, and has at most `longest`.
    """

    def __init__(self, draw: random.Random, *, usual: int, longest: int, inflated_each: int) -> None:
        self._draw = draw
        self._usual = usual
        self._longest = longest
        self._inflated_each = inflated_each

    def change(self, data: bytes, others: Sequence[bytes]) -> bytes:
        """Return `data` with one change, or with some more. Parts of `others` may be taken in."""
        for _ in range(self._draw.choice((1, 1, 1, 2, 3, 6))):
            data = self._change_json(data) if self._draw.random() < 0.4 else self._change_bytes(data, others)
        if self._draw.randrange(self._inflated_each) == 0:
            return self._inflated(data)[: self._longest]
        return data[: self._usual]

    # ---------------------------------------------------------------- bytes

    def _change_bytes(self, data: bytes, others: Sequence[bytes]) -> bytes:
        draw = self._draw
        start, end = sorted((draw.randint(0, len(data)), draw.randint(0, len(data))))
        if draw.random() < 0.5:
            end = min(end, start + 8)
        part = data[start:end]
        match draw.randrange(10):
            case 0 if data:
                place = draw.randrange(len(data))
                return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
            case 1:
                return data[:start] + data[end:]
            case 2:
                return data[:end] + part * draw.choice((1, 2, 3, 40)) + data[end:]
            case 3:
                return data[:start] + draw.choice(_TOKENS) + data[start:]
            case 4:
                return data[:start] + draw.choice(_TOKENS) + data[end:]
            case 5:
                return self._with_number(data)
            case 6:
                other = draw.choice(others)
                place = draw.randint(0, len(other))
                return data[:start] + other[place:]
            case 7:
                return data[:start]
            case 8:
                return self._with_lines_changed(data)
            case _:
                return data[:start] + draw.randbytes(min(end - start, 64)) + data[end:]

    def _with_number(self, data: bytes) -> bytes:
        """Replace a run of digits by another number."""
        digits = [place for place, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
        if not digits:
            return data + self._draw.choice(_NUMBERS).encode()
        start = end = self._draw.choice(digits)
        while start and 48 <= data[start - 1] <= 57:
            start -= 1
        while end < len(data) and 48 <= data[end] <= 57:
            end += 1
        return data[:start] + self._draw.choice(_NUMBERS).encode() + data[end:]

    def _with_lines_changed(self, data: bytes) -> bytes:
        lines = data.split(b"\n")
        place, other = self._draw.randrange(len(lines)), self._draw.randrange(len(lines))
        match self._draw.randrange(3):
            case 0:
                lines[place], lines[other] = lines[other], lines[place]
            case 1:
                lines.insert(place, lines[other])
            case _:
                del lines[place]
        return b"\n".join(lines)

    def _inflated(self, data: bytes) -> bytes:
        """Repeat a part until the input is long: that shows time or memory which grows faster than the input."""
        start = self._draw.randint(0, len(data))
        part = data[start : start + self._draw.choice((1, 2, 3, 10, 100, 1000))] or self._draw.choice(_TOKENS) or b"["
        return data[:start] + part * (self._draw.choice((2**16, 2**18, 2**20)) // len(part)) + data[start:]

    # ---------------------------------------------------------------- JSON

    def _change_json(self, data: bytes) -> bytes:
        """Change a value inside the JSON of one line. Other inputs are changed as bytes."""
        lines = data.split(b"\n")
        place = self._draw.randrange(len(lines))
        line = lines[place]
        start = next((index for index, byte in enumerate(line) if byte in b"{["), -1)
        if start < 0 or len(line) > self._usual:
            return self._change_bytes(data, [data])
        try:
            value, end = json.JSONDecoder().raw_decode(line.decode()[start:])
            changed = self._changed(value)
            text = json.dumps(changed, separators=(",", ":"), ensure_ascii=self._draw.random() < 0.5)
        except (ValueError, RecursionError):
            return self._change_bytes(data, [data])
        rest = line.decode()[start + end :].encode()
        lines[place] = line[:start] + text.encode("utf-8", "surrogatepass") + rest
        return b"\n".join(lines)

    def _changed(self, value: Any) -> Any:
        """Change one value in `value`, at any depth."""
        draw = self._draw
        inside = isinstance(value, dict | list) and len(value) > 0 and draw.random() < 0.85
        if not inside:
            if draw.random() < 0.05:
                return self._nested(value)
            return draw.choice(_VALUES)
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, other = draw.choice(keys), draw.choice(keys)
        match draw.randrange(12):
            case 0:
                del value[key]
            case 1:
                value[key] = value[other]
            case 2 if isinstance(value, dict):
                value[draw.choice(("", "x", "$set", "exact", "tagged", str(other) + "s"))] = value.pop(key)
            case 3 if isinstance(value, list):
                value.insert(key, draw.choice(_VALUES))
            case _:
                value[key] = self._changed(value[key])
        return value

    def _nested(self, value: Any) -> Any:
        for _ in range(self._draw.choice((2, 120, 240, 260, 900))):
            value = [value] if self._draw.random() < 0.5 else {"a": value}
        return value
