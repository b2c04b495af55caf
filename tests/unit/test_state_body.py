"""The body of a checkpoint: values that MessagePack lacks, bodies of version 0.3, and what is refused."""

from __future__ import annotations

import array
import math
from typing import Any

import numpy as np
import ormsgpack
import pytest

from distributed_backup.checkpoints.format import Checkpoint, Snapshot, decode, encode
from distributed_backup.checkpoints.state_body import decode_state, encode_state, encode_variables
from distributed_backup.cli.export import state_tree
from distributed_backup.cli.status import describe
from distributed_backup.errors import StateError
from distributed_backup.position import Position

# What orjson turns into null or refuses, or MessagePack lacks, or what looks like a mark of version 0.3.
ODD = {
    "nan": math.nan,
    "infinities": [math.inf, -math.inf],
    "big": [2**64, -(2**63) - 1],
    "half": "\ud83d",
    "float": 1.5,
    "$": None,
    "é": "x",
    "tagged": {"int": "7", "text": [True]},
}
# The body that version 0.3 wrote for a state with these values.
TAGGED = (
    b'{"tagged":{"$variables":{"$trainable":[{"$nan":{"float":"nan"},"$infinities":[{"float":"inf"},{"float":"-inf"}],'
    b'"$big":[{"int":"18446744073709551616"},{"int":"-9223372036854775809"}],"$half":{"text":"eda0bd"},"$float":1.5,'
    b'"$$":null,"$\xc3\xa9":"x","$tagged":{"$int":"7","$text":[true]}}]},"$python_random":[3,[1]],'
    b'"$numpy_random":["MT19937",[1],0],"$loop":{},"$schema":{"$trainable":[]}}}'
)
GROUPS = ("trainable", "non_trainable", "optimizer_trainable", "optimizer_non_trainable", "metrics")


def state(value: Any) -> dict[str, Any]:
    return {
        "variables": {"trainable": [value]},
        "python_random": [3, [1]],
        "numpy_random": ["MT19937", [1], 0],
        "loop": {},
        "schema": {"trainable": []},
    }


def checkpoint(value: Any) -> Checkpoint:
    """A checkpoint whose only variable, `a/b`, has this value."""
    groups: dict[str, list[Any]] = {name: [] for name in GROUPS}
    made = {
        **state(value),
        "variables": {**groups, "trainable": [value]},
        "schema": {**groups, "trainable": [{"path": "a/b"}]},
    }
    body = b"".join(encode_state(made))
    header, line = encode(Snapshot(position=Position(1), body=body), run_id="run", term=1, worker_id="w", created_at="")
    return decode(line + body + b"\n", path=header.name)


def test_a_body_of_version_0_3_is_read() -> None:
    """Bodies with tagged values give the state that was written, as new bodies do."""
    assert repr(decode_state(TAGGED)) == repr(state(ODD))
    assert repr(decode_state(encode_state(state(ODD)))) == repr(state(ODD))


def test_a_plain_body_of_version_0_3_is_read() -> None:
    """It is strict JSON."""
    plain = state({"x": [1, 0.1, None, "é"]})
    body = (
        b'{"variables":{"trainable":[{"x":[1,0.1,null,"\xc3\xa9"]}]},"loop":{},"python_random":[3,[1]],'
        b'"numpy_random":["MT19937",[1],0],"schema":{"trainable":[]}}'
    )
    assert decode_state(body) == plain


@pytest.mark.parametrize("items", [0, 1, 512, 513, 527, 528, 1024, 65_536 + 511])
@pytest.mark.parametrize("keys", [1, 15, 16])
def test_a_long_list_in_parts_is_the_same_messagepack(items: int, keys: int) -> None:
    """The parts of a group of variables together are what one call of the encoder makes, in blocks of bounded size."""
    value = {str(key): list(range(items)) if key == 0 else key for key in range(keys)}
    parts = (encode_variables({"trainable": [value, [1], "x"]}) or {})["trainable"]
    assert b"".join(parts) == ormsgpack.packb([value, [1], "x"])
    assert max(map(len, parts)) <= 5 * 512 + 100


def test_a_variable_with_a_long_list_and_other_keys_than_strings_is_refused() -> None:
    """As one without the list is."""
    assert encode_variables({"trainable": [{1: list(range(1000))}]}) is None


def test_a_body_is_one_map_of_messagepack() -> None:
    """Other tools can read it. NaN and bytes are values of MessagePack."""
    made = state({"x": [math.nan, None, b"1"]})
    body = b"".join(encode_state(made, encode_variables(made["variables"])))
    assert repr(ormsgpack.unpackb(body)) == repr(decode_state(body))
    assert repr(decode_state(body)["variables"]) == repr(made["variables"])


def test_what_is_encoded_already_is_not_encoded_again() -> None:
    """A variable of 20 MB is encoded once, for the body and for the digest."""
    variables = {"trainable": [ormsgpack.packb(["encoded before"])]}
    assert decode_state(encode_state(state("other"), variables))["variables"] == {"trainable": ["encoded before"]}


def test_a_body_with_odd_values_is_written_by_the_standard_library() -> None:
    """One line, under the key `exact`, with the names that the standard library gives to NaN and infinities."""
    body = b"".join(encode_state(state([math.nan, -math.inf, 2**64, None, "é\n"])))
    head = '{"exact":{"variables":{"trainable":[[NaN,-Infinity,18446744073709551616,null,"é\\n"]]},'
    assert body.startswith(head.encode())
    assert b"\n" not in body


def test_half_a_letter_in_the_state_of_other_objects_is_kept() -> None:
    """The whole body is then written by the standard library."""
    odd = {**state(1), "objects": {"named": ["\ud83d"]}}
    assert decode_state(encode_state(odd)) == odd


def test_surrogates_are_neither_joined_nor_lost() -> None:
    """Two halves that stand side by side stay two code points."""
    text = "\ud83d \ude00 \ud83d\ude00 \ude00\ud83d \U0001f600\ud83d \x00\u2028"
    assert decode_state(encode_state(state({text: text})))["variables"]["trainable"] == [{text: text}]


@pytest.mark.parametrize(
    "value", [np.float32(0.1), np.array([[1.5, math.nan]]), np.int64(7), np.bool_(True), np.str_("x")]
)
def test_numbers_and_arrays_of_numpy_become_plain_values(value: Any) -> None:
    """Each comes back as `tolist` gives it, beside a null or a NaN as well."""
    for beside in (None, math.nan):
        (found,) = decode_state(encode_state(state([value, beside])))["variables"]["trainable"]
        assert repr(found) == repr([value.tolist(), beside])


class Picture:
    """Has numpy's array protocol, and is no array."""

    __array_interface__: dict[str, Any] = {}  # noqa: RUF012


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({1}, "variables.trainable[0][1] is of type set"),
        (array.array("d", [1.0]), "variables.trainable[0][1] is of type array"),
        (Picture(), "variables.trainable[0][1] is of type Picture"),
        ({"a": {1: 2}}, "variables.trainable[0][1].a has keys that are not strings"),
        ({"a": {None: 2}}, "variables.trainable[0][1].a has keys that are not strings"),
        (np.array([None, {1}], dtype=object), "variables.trainable[0][1][1] is of type set"),
        (np.datetime64("2026-01-01"), "variables.trainable[0][1] is of type date"),
        pytest.param(10**5000, "Exceeds the limit", id="digits"),
    ],
)
@pytest.mark.parametrize("beside", [1, None, math.nan])
def test_a_value_that_is_not_json_is_refused(value: Any, problem: str, beside: Any) -> None:
    """The error names the place and the type, whatever stands beside the value."""
    with pytest.raises(StateError) as caught:
        encode_state(state([beside, value]))
    assert problem in str(caught.value)
    assert str(caught.value).startswith("the training state is not JSON: ")


@pytest.mark.parametrize("odd", [math.nan, 2**70])
def test_a_state_too_deep_for_json_is_refused_whatever_it_contains(odd: Any) -> None:
    """With an odd value, too, the depth is bounded: a body that is written can be read."""
    value: Any = odd
    for _ in range(240):
        value = [value]
    assert repr(decode_state(encode_state(state(value)))["variables"]["trainable"]) == repr([value])
    for _ in range(60):
        value = [value]
    with pytest.raises(StateError, match="nested more than 250 levels"):
        encode_state(state(value))


def test_a_checkpoint_with_odd_values_is_shown_and_exported() -> None:
    """`checkpoints show` gives the size of each variable, `checkpoints export` finds the values."""
    made = checkpoint({"x": [math.nan, 2**64]})
    assert describe(made)["variables"]["trainable"] == {"a/b": len('{"x":[NaN,18446744073709551616]}')}
    assert repr(state_tree(made)["trainable_variables"]) == repr({"a": {"b": {"x": [math.nan, 2**64]}}})
