"""Compute the key of a request to a model: 32 hexadecimal digits that are the same in each process.

The key depends on what can change the answer: kind, model, messages and parameters. It does not depend on time-outs,
retries, clients and metadata. It does not depend on credentials either. So a rotated credential keeps the key, and a
file of keys gives nothing to guess a credential by.

Limits: a credential is recognized by the name of its parameter, or inside a URL. Two requests that differ only in what
is left out have one key. A value that has no JSON form counts with its `repr`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, Final

import numpy as np

from distributed_backup.once import OnceLogger

logger = logging.getLogger(__name__)

# A name is left out if one of its words is one of these: `max_retries`, `extra_headers`, `api_key`.
_LEFT_OUT_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        """timeout timeouts retry retries aws amz goog auth authorization bearer jwt cookie cookies header headers
        key keys apikeys secrets passwords passwd passphrase pwd credential credentials cert pem sig signature""",
    )
)
# Also at the end of a longer word: `accesstoken`. But `max_tokens` and `stop_token_ids` change the answer.
_LEFT_OUT_ENDINGS: Final = ("apikey", "secret", "token", "password")
_NUMBERS: Final = frozenset({"id", "ids"})
_LEFT_OUT_NAMES: Final = frozenset(
    {
        *("client", "shared_session", "logger_fn", "metadata", "litellm_metadata"),
        *("litellm_call_id", "litellm_trace_id", "litellm_session_id"),
    }
)
# Names inside these are the user's own: a schema may have a property `password`.
_CONTENT: Final = frozenset(
    {
        *("messages", "input", "prompt", "state", "questions"),
        *("parameters", "schema", "json_schema", "response_schema", "guided_json"),
    }
)
_LEAVES: Final = frozenset({str, int, float, bool, type(None)})
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_URL: Final = re.compile(r"[A-Za-z][\w+.-]*://\S+")
_USER: Final = re.compile(r"(?<=://)[^/?#]*@")
_ADDRESS: Final = " at 0x"

_warnings: defaultdict[str, OnceLogger] = defaultdict(lambda: OnceLogger(logger))


class _UnkeyedError(Exception):
    """A value of this type differs in each process."""


def request_key(kind: str, model: str, request: Mapping[str, Any]) -> str | None:
    """Return the key of a request, or None, after one warning, if a value in it has no form that processes share.

    `request` holds messages or inputs, and parameters, by name.
    """
    parts: dict[str, Any] = {}
    for name, value in request.items():
        if _is_left_out(name):
            continue
        try:
            parts[name] = _canonical(value, name in _CONTENT)
        except Exception as error:  # noqa: BLE001 - a `repr` of the user's may raise anything, and training goes on
            is_known = isinstance(error, _UnkeyedError)
            _warn(kind, name, str(error) if is_known else f"{type(value).__name__} ({type(error).__name__})")
            return None
    return _digest(_text([kind, model, parts]).encode())


def _warn(kind: str, name: str, what: str) -> None:
    _warnings[f"{kind} {name} {what}"].warning(
        "answers are not recorded for each %s whose argument %s holds a %s, because its value can't be compared with "
        "that in another process. They are paid for again after a restart. Pass JSON, bytes, an array or a pydantic "
        "model, or give the class a __repr__ without an address",
        kind,
        name,
        what,
    )


# -------------------------------------------------------------------- what is left out


@lru_cache(maxsize=1024)
def _is_left_out(name: str) -> bool:
    """Whether a parameter can't change the answer, or is a credential."""
    words = [word.lower() for word in _WORD.findall(name)]
    return name in _LEFT_OUT_NAMES or any(
        word in _LEFT_OUT_WORDS or (word.endswith(_LEFT_OUT_ENDINGS) and following not in _NUMBERS)
        for word, following in itertools.pairwise([*words, ""])
    )


def _without_credentials(text: str) -> str:
    """Remove user, password, and parameters that are credentials, if the text is a URL."""
    if not _URL.fullmatch(text):
        return text
    base, *query = re.split(r"[?&#]", _USER.sub("", text))
    names = [(item, item.partition("=")[0]) for item in query]
    return "&".join([base, *(item for item, name in names if name != "code" and not _is_left_out(name))])


# -------------------------------------------------------------------- canonical JSON


def _canonical(value: Any, is_content: bool) -> Any:
    """Return `value` as JSON that depends on nothing but the value, apart from the order of keys."""
    kind = type(value)
    # First what most values are, because a request has about a hundred.
    if kind in _LEAVES and (is_content or kind is not str):
        return value
    if isinstance(value, Enum):
        value = value.value
    if kind is dict or isinstance(value, Mapping):
        return _canonical_fields(value, is_content)
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return value if is_content else _without_credentials(value)
    if isinstance(value, list | tuple):
        return [_canonical(item, is_content) for item in value]
    return _marked(value) or _canonical_object(value, is_content)


def _canonical_fields(fields: Mapping[Any, Any], is_content: bool) -> dict[str, Any]:
    found = {}
    for key, value in fields.items():
        name = key if isinstance(key, str) else _text(_canonical(key, is_content=True))
        if is_content or not _is_left_out(name):
            found[name] = _canonical(value, is_content or name in _CONTENT)
    return found


def _marked(value: Any) -> dict[str, Any] | None:
    """Return a value of one of these types as JSON that names the type."""
    if isinstance(value, type):
        return {"$class": f"{value.__module__}.{value.__qualname__}"}
    if isinstance(value, bytes | bytearray):
        return {"$bytes": _digest(value)}
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return {"$array": [value.dtype.str, list(value.shape), _digest(value.tobytes())]}
    return None


def _canonical_object(value: Any, is_content: bool) -> Any:
    for dump in ("get_json", "model_dump", "tolist"):  # of synalinks, of pydantic, of numpy
        if callable(getattr(value, dump, None)):
            return _canonical(getattr(value, dump)(), is_content)
    if isinstance(value, set | frozenset):
        return {"$set": sorted(_text(_canonical(item, is_content)) for item in value)}
    if dataclasses.is_dataclass(value):
        return _canonical_fields(
            {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}, is_content
        )
    text = repr(value)
    if _ADDRESS in text:
        raise _UnkeyedError(type(value).__name__)
    return {"$repr": _digest(text.encode(errors="surrogatepass"))}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(data: bytes | bytearray) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
