"""Test the keys of requests: what they depend on, what they do not depend on, and what has none."""

from __future__ import annotations

import dataclasses
import enum
import logging
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_backup.training import request_key as module
from distributed_backup.training.request_key import request_key

REQUEST: dict[str, Any] = {
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe? 🙂"}],
    "temperature": 0.5,
    "max_tokens": 100,
}


@pytest.fixture(autouse=True)
def _fresh_warnings() -> Iterator[None]:
    module._warnings.clear()
    yield
    module._warnings.clear()


def key(**changes: Any) -> str | None:
    return request_key("completion", "openai/gpt", REQUEST | changes)


# ---------------------------------------------------------------- what counts


def test_a_key_is_32_hexadecimal_digits() -> None:
    """The digest does not contain the request."""
    assert re.fullmatch("[0-9a-f]{32}", key() or "")


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": [{"role": "user", "content": "Größe? 🙂"}, {"role": "system", "content": "Be brief."}]},
        {"temperature": 0.7},
        {"max_tokens": 101},
        {"min_tokens": 1},
        {"stop_token_ids": [7]},
        {"skip_special_tokens": False},
        {"top_k": 3},
        {"logit_bias": {"50256": -100}},
        {"seed": 1},
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {}}}]},
        {"tool_choice": "auto"},
        {"response_format": {"type": "json_object"}},
        {"reasoning_effort": "low"},
        {"extra_body": {"repetition_penalty": 1.1}},
        {"api_base": "https://other.example/v1"},
        {"api_base": "https://other.example/v1?api-version=2"},
        {"stream": True},
        {"stop": ["a"]},
        {"stop": "a"},
    ],
)
def test_what_changes_the_answer_changes_the_key(changes: dict[str, Any]) -> None:
    """Each of these has a key of its own."""
    assert key(**changes) not in {key(), None}


class One(enum.IntEnum):
    ONE = 1


def test_the_key_of_a_request_never_changes() -> None:
    """Otherwise an update of this package would pay again for what a journal has."""
    text = type("Text", (str,), {})("t")
    request = {
        "messages": [{"role": "user", "content": "hé https://u:p@h/?token=1"}],
        "temperature": 0.5,
        "stop": None,
        "stream": False,
        "timeout": 3,
        "n": 1,
        "top": (1, 2.0, True),
        "text": text,
        "base": "https://u:p@h/?token=1&a=2",
        "extra": {"colour": Colour.RED, "one": One.ONE, "deep": {"api_key": "x", "kept": [{}, [], ""]}},
    }
    assert request_key("K.m", "model", request) == "56959d162c9b1571a6dbf2183b08c196"


def test_kind_and_model_count() -> None:
    """Equal inputs to another model, or to another function of it, are another request."""
    keys = {request_key(kind, model, {"input": "a"}) for kind in ("one", "two") for model in ("x", "y")}
    assert len(keys) == 4


def test_the_order_of_names_does_not_count_and_the_order_of_a_list_does() -> None:
    """Dicts are sorted at each level, lists are not."""
    assert key(extra_body={"a": 1, "b": {"c": 2, "d": 3}}) == key(extra_body={"b": {"d": 3, "c": 2}, "a": 1})
    assert key(stop=["a", "b"]) != key(stop=["b", "a"])
    backwards = dict(reversed(REQUEST.items()))
    assert request_key("completion", "openai/gpt", backwards) == key()


def test_names_in_a_schema_count_whatever_they_are_called() -> None:
    """A property called `password` is no credential."""

    def keys(name: str) -> list[str | None]:
        schema = {"type": "object", "properties": {name: {"type": "string"}}}
        return [
            key(response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}),
            key(tools=[{"type": "function", "function": {"name": "log_in", "parameters": schema}}]),
            key(messages=[{"role": "user", "content": "a", name: 1}]),
        ]

    assert all(one != other for one, other in zip(keys("password"), keys("token"), strict=True))


# ---------------------------------------------------------------- what does not count


@pytest.mark.parametrize(
    "name",
    [
        *("timeout", "request_timeout", "stream_timeout", "num_retries", "max_retries"),
        *("api_key", "apikey", "apiKey", "API_KEY", "azure_ad_token", "accessToken", "accesstoken", "hf_token"),
        *("client_secret", "password", "vertex_credentials", "authorization", "azure_ad_token_provider"),
        *("headers", "extra_headers", "default_headers", "cookies", "x-api-key"),
        *("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_region_name"),
        *("client", "metadata", "litellm_call_id"),
    ],
)
def test_credentials_and_timeouts_do_not_count_at_any_depth(name: str) -> None:
    """A request has the same key without the parameter, with it, and with another value of it."""
    for value in ("sk-1", "sk-2", 3, {"Authorization": "sk-3"}, object()):
        assert key(**{name: value}) == key()
        assert key(extra_body={"a": 1, name: value}) == key(extra_body={"a": 1})
        assert key(fallbacks=[{"model": "m", name: value}]) == key(fallbacks=[{"model": "m"}])


@pytest.mark.parametrize(
    "url",
    [
        "https://user:pa@ss@host.example/v1",
        "https://token@host.example/v1",
        "https://host.example/v1?key=sk-1",
        "https://host.example/v1?api-key=sk-2&code=3#token=4",
        "https://user:p@host.example/v1?sig=a%20b&X-Amz-Signature=c",
    ],
)
def test_credentials_in_a_url_do_not_count(url: str) -> None:
    """User, password and the parameters that are credentials are left out, the rest of a URL counts."""
    plain = "https://host.example/v1"
    assert key(api_base=url) == key(api_base=plain)
    assert key(api_base=url.replace("v1", "v2")) != key(api_base=plain)


def test_a_url_in_a_message_counts_in_full() -> None:
    """A user may ask about it."""
    texts = ["https://a.example/?key=1", "https://a.example/?key=2"]
    assert len({key(messages=[{"role": "user", "content": text}]) for text in texts}) == 2


def test_a_credential_does_not_reach_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that are digested hold no part of any credential, so no key is evidence for a guess."""
    seen: list[bytes] = []
    digest = module._digest

    def recorded(data: bytes) -> str:
        seen.append(bytes(data))
        return digest(data)

    monkeypatch.setattr(module, "_digest", recorded)
    secrets = {
        "api_key": "SECRET-1",
        "extra_headers": {"a": "SECRET-2"},
        "api_base": "https://SECRET-3@a/?key=SECRET-4",
    }
    assert key(**secrets, extra_body={"b": {"access_token": "SECRET-5"}}, tools=[{"headers": {"c": "SECRET-6"}}])
    assert seen
    assert b"SECRET" not in b"".join(seen)


# ---------------------------------------------------------------- values that are not JSON


class Colour(enum.Enum):
    RED = "red"


class Named(pydantic.BaseModel):
    name: str
    tags: set[str] = set()


@dataclasses.dataclass
class Sampler:
    temperature: float
    api_key: str = "sk-1"


class Odd:
    """Has a value in its repr."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Odd({self.value})"


@pytest.mark.parametrize(
    ("one", "equal", "other"),
    [
        (Named(name="a"), Named(name="a"), Named(name="b")),
        (Named, Named, Sampler),
        (Colour.RED, "red", "blue"),
        (np.float64(0.5), 0.5, 0.25),
        (np.int64(3), 3, 4),
        (np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.array([1.0, 2.5])),
        (np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.array([[1.0, 2.0]])),
        (np.array(["a", None], dtype=object), np.array(["a", None], dtype=object), np.array(["b", None], dtype=object)),
        (b"\x00\xff", bytearray(b"\x00\xff"), b"\x00"),
        ((1, 2), [1, 2], [2, 1]),
        ({"b", "a", "c"}, frozenset({"c", "a", "b"}), {"a"}),
        ({1: "a"}, {1: "a"}, {2: "a"}),
        (Sampler(0.5), Sampler(0.5), Sampler(0.6)),
        (Odd(1), Odd(1), Odd(2)),
        (10**30, 10**30, 10**30 + 1),
        (math.nan, math.nan, math.inf),
        ("\ud83d", "\ud83d", "\ud83e"),
        (list[int], list[int], list[str]),
    ],
)
def test_values_that_are_not_json_count_by_value(one: Any, equal: Any, other: Any) -> None:
    """Equal values have one key, in a parameter and in a message."""
    assert key(option=one) == key(option=equal) != key(option=other)
    assert None not in {key(option=one), key(option=other)}
    assert key(messages=[one]) == key(messages=[equal]) != key(messages=[other])


def test_a_value_with_an_address_has_no_key_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The warning names the request, the argument and the class. It comes once for each argument and class."""
    for _ in range(3):
        assert key(option=[object()]) is None
        assert key(other=lambda: None) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    first, second = (record.getMessage() for record in caplog.records)
    assert "not recorded for each completion whose argument option holds a object" in first
    assert "argument other holds a function" in second
    assert key() is not None


def test_a_credential_in_an_object_does_not_count() -> None:
    """Fields of a dataclass and of a pydantic model are parameters, too."""
    assert key(option=Sampler(0.5)) == key(option=Sampler(0.5, api_key="sk-2"))
    assert key(option=Login(user="a", password="b")) == key(option=Login(user="a", password="c"))
    assert key(option=Login(user="a", password="b")) != key(option=Login(user="b", password="b"))


class Login(pydantic.BaseModel):
    user: str
    password: str


class Broken:
    """Can't be printed."""

    def __repr__(self) -> str:
        raise OSError("no repr")


def test_a_value_that_fails_has_no_key_and_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A broken repr and a list that holds itself end in a warning, not in an error of the fit."""
    loop: list[Any] = []
    loop.append(loop)
    assert key(option=Broken()) is None
    assert key(option=loop) is None
    assert len(caplog.records) == 2


# ---------------------------------------------------------------- properties

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), json_values, max_size=5), st.randoms())
def test_any_json_has_a_key_whatever_the_order_of_its_names(request: dict[str, Any], shuffle: Any) -> None:
    """A key exists, and shuffled dicts at all levels have the same one."""

    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            items = [(name, shuffled(item)) for name, item in value.items()]
            shuffle.shuffle(items)
            return dict(items)
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    found = request_key("completion", "m", request)
    assert found is not None
    assert found == request_key("completion", "m", shuffled(request))


PROGRAM = """
import dataclasses
import numpy
from distributed_backup.training.request_key import request_key

class Sampling:
    pass

@dataclasses.dataclass
class Options:
    tags: set

words = "alpha beta gamma delta epsilon zeta".split()
request = {"messages": [{"role": "user", "content": "hi"}], "words": set(words), "kind": Sampling,
           "options": Options(tags=set(words)), "array": numpy.array([Sampling, "a"], dtype=object),
           **{word: 1 for word in set(words)}}
print(list(set(words)), request_key("completion", "m", request))
"""


def test_another_process_with_another_hash_seed_computes_the_same_key() -> None:
    """Sets iterate in another order there."""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.rsplit(" ", 1)
        for seed in ("1", "2", "3")
    ]
    assert len({order for order, _ in outputs}) > 1, "the hash seeds made no difference"
    assert len({found for _, found in outputs}) == 1
    assert outputs[0][1].strip() != "None"
